package live

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"

	"fournines/audit"
)

// answer is the envelope of Prometheus's API.
type answer[T any] struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   T      `json:"data"`
}

// maxLabelQueries bounds the questions about labels of rules.
const maxLabelQueries = 500

// Prometheus asks the server at rawURL for its metrics, rules, targets and
// Alertmanagers.
func Prometheus(ctx context.Context, rawURL string) (audit.Prometheus, error) {
	u, err := checkURL(rawURL, "http", "https")
	if err != nil {
		return audit.Prometheus{}, fmt.Errorf("prometheus: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	p := prometheusClient{newClient(u, "")}
	out, err := p.ask(ctx)
	if err != nil {
		return audit.Prometheus{}, fmt.Errorf("prometheus %s: %w", u.Host, err)
	}
	out.Name = u.Host
	return out, nil
}

type prometheusClient struct{ *client }

func (c prometheusClient) ask(ctx context.Context) (audit.Prometheus, error) {
	out := audit.Prometheus{Metrics: map[string]bool{}}
	var names answer[[]string]
	since := strconv.FormatInt(time.Now().Add(-24*time.Hour).Unix(), 10)
	if err := c.get(ctx, "/api/v1/label/__name__/values", url.Values{"start": {since}}, &names); err != nil {
		return out, err
	}
	for _, n := range names.Data {
		out.Metrics[n] = true
	}
	var managers answer[struct {
		Active []struct{} `json:"activeAlertmanagers"`
	}]
	if err := c.get(ctx, "/api/v1/alertmanagers", nil, &managers); err != nil {
		return out, err
	}
	out.Alertmanagers = len(managers.Data.Active)
	var targets answer[struct {
		Active []struct {
			Pool   string `json:"scrapePool"`
			URL    string `json:"scrapeUrl"`
			Health string `json:"health"`
		} `json:"activeTargets"`
	}]
	if err := c.get(ctx, "/api/v1/targets", url.Values{"state": {"active"}}, &targets); err != nil {
		return out, err
	}
	out.Targets = len(targets.Data.Active)
	for _, t := range targets.Data.Active {
		if t.Health == "down" {
			where := t.Pool
			if u, err := url.Parse(t.URL); err == nil {
				where += " " + u.Host
			}
			out.Down = append(out.Down, where)
		}
	}
	slices.Sort(out.Down)
	var info answer[struct {
		Retention string `json:"storageRetention"`
	}]
	if err := c.get(ctx, "/api/v1/status/runtimeinfo", nil, &info); err != nil {
		return out, err
	}
	// "15d", or "15d or 512MiB"; a size alone says nothing about time.
	word := info.Data.Retention
	for i, r := range word {
		if r == ' ' {
			word = word[:i]
			break
		}
	}
	if d, err := model.ParseDuration(word); err == nil {
		out.Retention = time.Duration(d)
	}
	if out.Metrics["DCGM_FI_DEV_GPU_UTIL"] {
		use, n, err := c.scalar(ctx, "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[1d]))")
		if err != nil {
			return out, err
		}
		if n > 0 {
			out.GPUUse = use
			count, _, err := c.scalar(ctx, "count(DCGM_FI_DEV_GPU_UTIL)")
			if err != nil {
				return out, err
			}
			out.GPUs = int(count)
		}
	}
	return out, c.rules(ctx, &out)
}

// rules reads the rules, and asks for each label that a selector wants if any
// series of the metric has it.
func (c prometheusClient) rules(ctx context.Context, out *audit.Prometheus) error {
	var all answer[struct {
		Groups []struct {
			Rules []struct {
				Name      string `json:"name"`
				Query     string `json:"query"`
				Type      string `json:"type"`
				LastError string `json:"lastError"`
			} `json:"rules"`
		} `json:"groups"`
	}]
	if err := c.get(ctx, "/api/v1/rules", nil, &all); err != nil {
		return err
	}
	carried := map[string]bool{}
	for _, g := range all.Data.Groups {
		for _, r := range g.Rules {
			rule := audit.LiveRule{Name: r.Name, Query: r.Query, Alert: r.Type == "alerting", Error: r.LastError}
			expr, err := audit.ParsePromQL(r.Query)
			if err != nil {
				out.Rules = append(out.Rules, rule)
				continue
			}
			for _, s := range audit.Selectors(expr) {
				name := audit.MetricName(s)
				if !out.Metrics[name] {
					continue
				}
				for _, label := range audit.WantedLabels(s) {
					pair := fmt.Sprintf("%s{%s}", name, label)
					has, known := carried[pair]
					if !known {
						if len(carried) == maxLabelQueries {
							continue
						}
						_, n, err := c.scalar(ctx, fmt.Sprintf(`count(last_over_time(%s{%s!=""}[1d]))`, name, label))
						if err != nil {
							return err
						}
						has = n > 0
						carried[pair] = has
					}
					if !has {
						rule.Lacks = append(rule.Lacks, pair)
					}
				}
			}
			out.Rules = append(out.Rules, rule)
		}
	}
	return nil
}

// scalar asks for one number; n is how many there were.
func (c prometheusClient) scalar(ctx context.Context, query string) (value float64, n int, err error) {
	var got answer[struct {
		Result []struct {
			Value [2]any `json:"value"`
		} `json:"result"`
	}]
	if err := c.get(ctx, "/api/v1/query", url.Values{"query": {query}}, &got); err != nil {
		return 0, 0, err
	}
	if len(got.Data.Result) == 0 {
		return 0, 0, nil
	}
	text, _ := got.Data.Result[0].Value[1].(string)
	value, err = strconv.ParseFloat(text, 64)
	return value, len(got.Data.Result), err
}
