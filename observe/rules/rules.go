// Package rules has the recording and alerting rules of an installation, made
// from its objective: what Prometheus computes, and when it says so.
//
// An alert that pages (critical) is something that users feel now or will before
// anybody could look in the morning. Everything else is a ticket (warning). Each
// has a runbook of its name in docs/runbooks. Expressions name only metrics of
// package catalogue, and every alert is unit-tested with promtool: that it is
// silent, fires with its figure, and resolves.
package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity says who has to do something, and when.
type Severity string

// The severities. Alertmanager's routes know them.
const (
	// Critical pages: users feel it.
	Critical Severity = "critical"
	// Warning is a ticket: it costs redundancy or will become critical.
	Warning Severity = "warning"
	// None is no alarm: it shows that alerts are delivered.
	None Severity = "none"
)

// Layers of an installation; each is a group of rules, and the label "layer" of
// its alerts.
const (
	LayerSLO        = "slo"
	LayerGateway    = "gateway"
	LayerPostgres   = "postgres"
	LayerRedis      = "redis"
	LayerVectors    = "vectors"
	LayerDify       = "dify"
	LayerBackup     = "backup"
	LayerMachine    = "machine"
	LayerMonitoring = "monitoring"
)

// RunbookDir is where the runbooks stand, from the root of the repository.
const RunbookDir = "docs/runbooks/"

// Watchdog is the alert that always fires: the dead man's switch.
const Watchdog = "Watchdog"

// Alert is one alerting rule.
type Alert struct {
	Name     string
	Layer    string
	Severity Severity
	// Expr fires for each series that it returns, after For without a gap.
	Expr string
	For  time.Duration
	// KeepFiring bridges gaps: an alert that flaps tells once.
	KeepFiring time.Duration
	// Summary is one sentence for a phone's screen, Description has the figure.
	// Both are templates of Prometheus.
	Summary, Description string
}

// Runbook is the path of the alert's runbook.
func (a Alert) Runbook() string { return RunbookDir + a.Name + ".md" }

// Recording is one recording rule.
type Recording struct {
	// Record is the new series' name.
	Record string
	Expr   string
	Labels map[string]string
}

// Group is evaluated as a whole, rule by rule in order.
type Group struct {
	Name string
	// Interval is how often; 0 is Prometheus' own.
	Interval   time.Duration
	Recordings []Recording
	Alerts     []Alert
}

// Config is what rules are made from.
type Config struct {
	// Objective is the share of requests that must not fail, between 0 and 1.
	Objective float64
	// Window is over how long both objectives hold, rolling.
	Window time.Duration
	// FirstContent is how long users may wait for the first content of an answer.
	// It must be a bucket of fournines_gateway_app_first_content_seconds.
	FirstContent time.Duration
	// FirstContentObjective is the share of answers that must come in that time.
	FirstContentObjective float64
}

// Validate reports every mistake; each names its field.
func (c Config) Validate() error {
	var errs []error
	share := func(field string, v float64) {
		if v <= 0 || v >= 1 {
			errs = append(errs, fmt.Errorf("%s: %v is not between 0 and 1", field, v))
		}
	}
	share("Objective", c.Objective)
	share("FirstContentObjective", c.FirstContentObjective)
	if c.Window < 24*time.Hour {
		errs = append(errs, fmt.Errorf("%s: %v is less than a day", "Window", c.Window))
	}
	if c.FirstContent <= 0 {
		errs = append(errs, fmt.Errorf("%s: %v is not positive", "FirstContent", c.FirstContent))
	}
	return errors.Join(errs...)
}

// Build makes all groups. It returns the mistakes of c.
func Build(c Config) ([]Group, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	groups := c.slo()
	for _, layer := range []struct {
		name   string
		alerts []Alert
	}{
		{LayerMonitoring, monitoringAlerts}, {LayerGateway, gatewayAlerts}, {LayerPostgres, postgresAlerts},
		{LayerRedis, redisAlerts}, {LayerVectors, vectorsAlerts}, {LayerDify, difyAlerts},
		{LayerBackup, backupAlerts}, {LayerMachine, machineAlerts},
	} {
		g := Group{Name: layer.name, Alerts: slices.Clone(layer.alerts)}
		for i := range g.Alerts {
			g.Alerts[i].Layer = layer.name
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// Alerts lists the alerts of groups in order.
func Alerts(groups []Group) []Alert {
	var all []Alert
	for _, g := range groups {
		all = append(all, g.Alerts...)
	}
	return all
}

// File renders groups as Prometheus reads them. JSON is valid YAML, and its
// quoting needs no thought.
func File(groups []Group) ([]byte, error) {
	type object = map[string]any
	list := make([]object, 0, len(groups))
	for _, g := range groups {
		rules := make([]object, 0, len(g.Recordings)+len(g.Alerts))
		for _, r := range g.Recordings {
			rule := object{"record": r.Record, "expr": oneLine(r.Expr)}
			if len(r.Labels) > 0 {
				rule["labels"] = r.Labels
			}
			rules = append(rules, rule)
		}
		for _, a := range g.Alerts {
			rule := object{
				"alert": a.Name, "expr": oneLine(a.Expr),
				"labels": object{"severity": string(a.Severity), "layer": a.Layer},
				"annotations": object{
					"summary": a.Summary, "description": a.Description, "runbook_url": a.Runbook(),
				},
			}
			if a.For > 0 {
				rule["for"] = Duration(a.For)
			}
			if a.KeepFiring > 0 {
				rule["keep_firing_for"] = Duration(a.KeepFiring)
			}
			rules = append(rules, rule)
		}
		group := object{"name": g.Name, "rules": rules}
		if g.Interval > 0 {
			group["interval"] = Duration(g.Interval)
		}
		list = append(list, group)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	err := enc.Encode(object{"groups": list})
	return out.Bytes(), err
}

// oneLine takes the line breaks out of an expression that the source has for
// its reader.
func oneLine(expr string) string { return strings.Join(strings.Fields(expr), " ") }

// Duration writes d as Prometheus does, in its largest whole unit.
func Duration(d time.Duration) string {
	for _, u := range []struct {
		name string
		is   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if d%u.is == 0 {
			return fmt.Sprintf("%d%s", d/u.is, u.name)
		}
	}
	return fmt.Sprintf("%dms", d/time.Millisecond)
}
