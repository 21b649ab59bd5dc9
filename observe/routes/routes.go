// Package routes makes Alertmanager's configuration: which alert reaches whom,
// what comes in one message, and what is held back because another alert says
// why.
package routes

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"strings"

	"fournines/observe/rules"
)

// Languages that messages are written in.
const (
	English = "en"
	Chinese = "zh"
)

// Config says who is told.
type Config struct {
	// Webhook gets every message as Alertmanager writes it; empty: none.
	Webhook string
	// Heartbeat is called every minute as long as alerts are delivered. What
	// stands there must sound when it is not. Empty: the webhook gets it, hourly.
	Heartbeat string
	// Email is a list of addresses and how to send; nil: none.
	Email *Email
	// Slack is the URL of an incoming webhook; empty: none.
	Slack string
	// Relays are the URLs of `fournines alert-relay`, one for each robot of
	// DingTalk, WeCom or Feishu: Alertmanager has no form of its own for them.
	Relays []string
	// RelayToken is what they want to be sent; empty: nothing.
	RelayToken string
	// Language of messages to people: English (the default) or Chinese.
	Language string
	// TemplateFile is the path of Templates on the server.
	TemplateFile string
}

// Email is how messages are sent by mail.
type Email struct {
	To []string
	// From is the sender's address.
	From string
	// Server is host:port of the mail server.
	Server string
	// User and Password log in there; empty: no login.
	User, Password string
	// PlainText allows a server without TLS.
	PlainText bool
}

// Validate reports every mistake; each names its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	urls := []struct{ name, value string }{{"Webhook", c.Webhook}, {"Heartbeat", c.Heartbeat}, {"Slack", c.Slack}}
	for i, r := range c.Relays {
		urls = append(urls, struct{ name, value string }{fmt.Sprintf("Relays[%d]", i), r})
	}
	for _, f := range urls {
		u, err := url.Parse(f.value)
		if f.value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
			bad(f.name, "not an http or https URL") // it may hold a token, so it is not printed
		}
	}
	if c.Language != "" && c.Language != English && c.Language != Chinese {
		bad("Language", "%q is not %s or %s", c.Language, English, Chinese)
	}
	if e := c.Email; e != nil {
		if len(e.To) == 0 {
			bad("Email.To", "is empty")
		}
		for i, to := range e.To {
			if _, err := mail.ParseAddress(to); err != nil {
				bad(fmt.Sprintf("Email.To[%d]", i), "%q is no address", to)
			}
		}
		if _, err := mail.ParseAddress(e.From); err != nil {
			bad("Email.From", "%q is no address", e.From)
		}
		if _, _, err := net.SplitHostPort(e.Server); err != nil {
			bad("Email.Server", "%q is not host:port", e.Server)
		}
	}
	if (c.Email != nil || c.Slack != "") && c.TemplateFile == "" {
		bad("TemplateFile", "is missing")
	}
	return errors.Join(errs...)
}

// Templates are those of mail and Slack in both languages.
//
//go:embed messages.tmpl
var Templates []byte

type object = map[string]any

// File renders alertmanager.yml. JSON is valid YAML, and its quoting needs no
// thought.
func File(c Config) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("alertmanager: %w", err)
	}
	if c.Language == "" {
		c.Language = English
	}
	heartbeat := object{"name": "heartbeat"}
	watchdog := object{
		"receiver": "heartbeat", "matchers": []string{matcher("alertname", rules.Watchdog)}, "group_by": []string{"alertname"},
		"group_wait": "0s", "group_interval": "1m", "repeat_interval": "1m",
	}
	switch {
	case c.Heartbeat != "":
		heartbeat["webhook_configs"] = []object{{"url": c.Heartbeat, "send_resolved": false}}
	case c.Webhook != "":
		heartbeat["webhook_configs"] = []object{{"url": c.Webhook, "send_resolved": false}}
		watchdog["repeat_interval"] = "1h"
	}
	out := object{
		"route": object{
			// An alert that is not ours is a page: somebody wants to be told.
			"receiver": "people", "group_by": []string{"layer"},
			"group_wait": "5s", "group_interval": "15s", "repeat_interval": "1h",
			"routes": []object{
				watchdog,
				{
					// A ticket is read in the morning; it can wait for company.
					"receiver": "people", "matchers": []string{matcher("severity", string(rules.Warning))}, "group_by": []string{"layer", "severity"},
					"group_wait": "15s", "group_interval": "5m", "repeat_interval": "12h",
				},
			},
		},
		"inhibit_rules": inhibitions(),
		"receivers":     []object{c.people(), heartbeat},
	}
	if c.TemplateFile != "" {
		out["templates"] = []string{c.TemplateFile}
	}
	return json.MarshalIndent(out, "", "  ")
}

// people are all ways on which a person is told.
func (c *Config) people() object {
	receiver := object{"name": "people"}
	var hooks []object
	if c.Webhook != "" {
		hooks = append(hooks, object{"url": c.Webhook, "send_resolved": true})
	}
	for _, u := range c.Relays {
		hook := object{"url": u, "send_resolved": true}
		if c.RelayToken != "" {
			hook["http_config"] = object{"authorization": object{"credentials": c.RelayToken}}
		}
		hooks = append(hooks, hook)
	}
	if len(hooks) > 0 {
		receiver["webhook_configs"] = hooks
	}
	template := func(name string) string { return fmt.Sprintf(`{{ template "fournines.%s.%s" . }}`, name, c.Language) }
	if e := c.Email; e != nil {
		mail := object{
			"to": strings.Join(e.To, ", "), "from": e.From, "smarthost": e.Server, "require_tls": !e.PlainText, "send_resolved": true,
			"headers": object{"Subject": template("title")}, "text": template("text"), "html": "",
		}
		if e.User != "" {
			mail["auth_username"], mail["auth_password"] = e.User, e.Password
		}
		receiver["email_configs"] = []object{mail}
	}
	if c.Slack != "" {
		receiver["slack_configs"] = []object{{
			"api_url": c.Slack, "send_resolved": true, "title": template("title"), "text": template("text"),
			"fallback": template("title"), "color": `{{ if eq .Status "firing" }}danger{{ else }}good{{ end }}`,
		}}
	}
	return receiver
}

func matcher(label, value string) string { return fmt.Sprintf("%s=%q", label, value) }

// oneOf matches a label with one of several values.
func oneOf(label string, values ...string) string {
	return fmt.Sprintf("%s=~%q", label, strings.Join(values, "|"))
}

// consequences are alerts that a lost zone brings about everywhere, also in the
// zones that are left.
var consequences = []string{
	"TargetDown", "RedisInstanceDown", "RedisReplicaLinkDown", "RedisMasterWithoutReplica", "RedisSlotsSuspect", "PostgresNoSynchronousStandby",
	"PostgresReplicationLag", "PostgresStandbyBehind", "PostgresSlotGrowth", "PatroniCutFromEtcd", "InstanceUnhealthy", "InstanceEjected",
	"StreamsCut", "RateLimitsDegraded", "RequestsShed", "ErrorBudgetFastBurn", "ErrorBudgetSlowBurn", "LatencyBudgetFastBurn", "LatencyBudgetSlowBurn",
}

// inhibitions hold back what another alert explains. Nothing holds back what
// says that users are not served for minutes (ErrorRateHigh, GatewayDown).
func inhibitions() []object {
	inhibit := func(source string, targets []string, equal ...string) object {
		return object{"source_matchers": []string{matcher("alertname", source)}, "target_matchers": targets, "equal": equal}
	}
	alerts := func(names ...string) []string { return []string{oneOf("alertname", names...)} }
	fast := oneOf("alertname", "ErrorBudgetFastBurn", "ErrorBudgetSlowBurn", "LatencyBudgetFastBurn", "LatencyBudgetSlowBurn")
	return []object{
		inhibit("ZoneDown", []string{`alertname!="ZoneDown"`}, "zone"),
		inhibit("ZoneDown", alerts(consequences...)),
		{
			"source_matchers": []string{fast, matcher("scope", rules.Overall)},
			"target_matchers": []string{fast, matcher("scope", rules.PerApp)}, "equal": []string{"alertname"},
		},
		inhibit("ErrorBudgetFastBurn", alerts("ErrorBudgetSlowBurn"), "scope", "app"),
		inhibit("LatencyBudgetFastBurn", alerts("LatencyBudgetSlowBurn"), "scope", "app"),
		inhibit("GatewayDown", []string{matcher("alertname", "ServiceUnreachable"), matcher("service", "gateway")}),
		inhibit("GatewayDown", []string{matcher("alertname", "TargetDown"), matcher("job", "gateway")}),
		inhibit("MilvusDown", []string{matcher("alertname", "TargetDown"), matcher("job", "milvus")}),
		inhibit("DifyNoWorker", []string{matcher("alertname", "TargetDown"), matcher("job", "dify-worker")}),
		inhibit("MilvusDown", []string{matcher("alertname", "ServiceUnreachable"), matcher("service", "milvus")}),
		inhibit("NoHealthyInstance", alerts("InstanceUnhealthy", "InstanceEjected")),
		inhibit("EtcdNoLeader", alerts("PatroniNoLeader", "PatroniCutFromEtcd")),
		inhibit("PostgresNoPrimary", alerts("PatroniNoLeader", "DatabaseClientsHeld", "PostgresNoSynchronousStandby", "DatabasePoolExhausted")),
		inhibit("PostgresNoPrimary", []string{matcher("alertname", "ServiceUnreachable"), matcher("service", "postgres")}),
		inhibit("RedisClusterState", alerts("RedisSlotsUncovered", "RedisSlotsSuspect", "RedisCommandsHeld", "RedisReplicaLinkDown", "RateLimitsDegraded", "JobsStoreDown")),
		inhibit("RedisSlotsUncovered", alerts("RedisSlotsSuspect", "RedisCommandsHeld", "RateLimitsDegraded", "JobsStoreDown")),
		inhibit("RedisClusterState", []string{matcher("alertname", "ServiceUnreachable"), matcher("service", "redis")}),
		inhibit("CertificateExpires", alerts("CertificateExpiresSoon"), "component"),
		inhibit("DiskAlmostFull", alerts("DiskFillsUp"), "instance", "mountpoint"),
	}
}
