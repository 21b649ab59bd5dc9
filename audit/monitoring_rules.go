package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// monitoringRules look at the configuration of Prometheus, Alertmanager and
// Grafana, and at a Prometheus that runs.
func monitoringRules() []Rule {
	reads := []Kind{KindLivePrometheus}
	running := func(check func(p *Prometheus) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for i := range in.Prometheus {
				out = append(out, check(&in.Prometheus[i])...)
			}
			return out
		}
	}
	ask := func(p *Prometheus, query string) Place { return Place{File: p.Name, Query: query} }
	return []Rule{
		{
			ID: "FN720", Title: "Prometheus alerts nobody", Severity: High, Reads: []Kind{KindPrometheus},
			Why:  "Without `alerting.alertmanagers` or `rule_files` no alert leaves the server.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Name the Alertmanagers and the rules.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, p := range in.prometheus {
					if len(p.root.get("alerting", "alertmanagers").items()) == 0 {
						out = append(out, found(p.root.get("alerting").atOr(p.root), "no Alertmanager"))
					}
					if len(p.root.get("rule_files").items()) == 0 {
						out = append(out, found(p.root.get("rule_files").atOr(p.root), "no rule_files"))
					}
				}
				return out
			},
		},
		{
			ID: "FN721", Title: "faults are scraped late", Severity: Medium, Reads: []Kind{KindPrometheus},
			Why:  "The default is a minute, and an alert needs two scrapes: half of a month's budget.",
			Cost: costs(perBlind, takesRestart, 1),
			Fix:  "Set global.scrape_interval and evaluation_interval to 15s.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, p := range in.prometheus {
					for _, name := range []string{"scrape_interval", "evaluation_interval"} {
						n := p.root.get("global", name)
						if d, err := model.ParseDuration(orDefault(n.text(), "1m")); err == nil && time.Duration(d) > 30*time.Second {
							h := found(n.atOr(p.root.get("global"), p.root), "%s is %v", name, d)
							h.edits = n.replace("15s")
							out = append(out, h)
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN722", Title: "alerts end in a receiver that does nothing", Severity: High, Reads: []Kind{KindAlertmanager},
			Why:  "The default route leads to a receiver without an address; what no other route takes is dropped without a word.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Give the receiver of the top route an address that pages.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, a := range in.alertmanagers {
					name := a.root.get("route", "receiver")
					known := false
					for _, r := range a.root.get("receivers").items() {
						if r.get("name").text() != name.text() {
							continue
						}
						known = true
						if len(r.pairs()) < 2 {
							out = append(out, found(r.get("name").at(), "receiver %s has no address", name.text()))
						}
					}
					if !known {
						out = append(out, found(name.atOr(a.root.get("route")), "there is no receiver %q", name.text()))
					}
				}
				return out
			},
		},
		{
			ID: "FN723", Title: "a critical alert waits to be grouped", Severity: Medium, Reads: []Kind{KindAlertmanager},
			Why:  "group_wait delays the first message of a group by 30 s by default, and repeats come after hours.",
			Cost: costs(perBlind, takesRestart, 1),
			Fix:  "Set `group_wait: 0s` (or a few seconds) in the route of critical alerts.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, a := range in.alertmanagers {
					route := a.root.get("route")
					w := route.get("group_wait")
					d, err := model.ParseDuration(orDefault(w.text(), "30s"))
					faster := slices.ContainsFunc(route.get("routes").items(), func(r node) bool { return r.get("group_wait").ok() })
					if err == nil && time.Duration(d) >= 30*time.Second && !faster {
						out = append(out, found(w.atOr(route), "group_wait is %v", d))
					}
				}
				return out
			},
		},
		{
			ID: "FN724", Title: "a dashboard that shows something else", Severity: Medium, Reads: []Kind{KindKubernetes},
			Why:  "Grafana's 1860 and 8919 are two boards of node_exporter, 12856 shows the JVM of Spring Boot. None shows Dify, PostgreSQL, Redis or Milvus; the last stays empty for Python.",
			Cost: costs(perBlind, takesPerson, 0.3),
			Fix:  "Use boards of the layers that you run.",
			check: func(in *Inventory) []hit {
				shows := map[string]string{"1860": "hosts (node_exporter)", "8919": "hosts (node_exporter, in Chinese)", "12856": "the JVM of Spring Boot"}
				var out []hit
				for _, o := range in.objects {
					o.walk(func(n node) {
						if k := n.name(); (k == "gnetId" || k == "id" && o.kind == "GrafanaDashboard") && shows[n.text()] != "" {
							out = append(out, found(n.at(), "%s: dashboard %s shows %s", o.title(), n.text(), shows[n.text()]))
						}
					})
				}
				return out
			},
		},
		{
			ID: "FN730", Title: "an alert on a metric that does not exist", Severity: Critical, Reads: reads,
			Why:  "This Prometheus has no series of that name, so the alert cannot fire.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Start the exporter, or correct the name.",
			check: running(func(p *Prometheus) []hit {
				var out []hit
				for _, r := range p.Rules {
					expr, err := ParsePromQL(r.Query)
					if err != nil || !r.Alert {
						continue
					}
					absent := map[string]bool{}
					for _, s := range Selectors(expr) {
						if name := MetricName(s); name != "" && !p.Metrics[name] && !absent[name] && !strings.Contains(r.Query, "absent") && !strings.Contains(r.Query, "or vector(") {
							absent[name] = true
							out = append(out, found(ask(p, r.Query), "alert %s: no series %s", r.Name, name))
						}
					}
				}
				return out
			}),
		},
		{
			ID: "FN731", Title: "an alert on a label that no series has", Severity: Critical, Reads: reads,
			Why:  "The selector matches nothing, whatever happens.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Look at the labels that the metric has, and compare its value.",
			check: running(func(p *Prometheus) []hit {
				var out []hit
				for _, r := range p.Rules {
					for _, l := range r.Lacks {
						out = append(out, found(ask(p, r.Query), "%s: no series of %s", r.Name, l))
					}
				}
				return out
			}),
		},
		{
			ID: "FN732", Title: "a rule that fails to evaluate", Severity: High, Reads: reads,
			Why:  "It neither fires nor records.",
			Cost: costs(perBlind, takesUnseen, 0.5),
			Fix:  "Correct what the error says.",
			check: running(func(p *Prometheus) []hit {
				var out []hit
				for _, r := range p.Rules {
					if r.Error != "" {
						out = append(out, found(ask(p, r.Query), "%s: %s", r.Name, r.Error))
					}
				}
				return out
			}),
		},
		{
			ID: "FN733", Title: "this Prometheus alerts nobody", Severity: High, Reads: reads,
			Why:  "It knows no Alertmanager, or has no alerting rule.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Configure both, and a dead man's switch.",
			check: running(func(p *Prometheus) []hit {
				var out []hit
				if p.Alertmanagers == 0 {
					out = append(out, found(ask(p, "GET /api/v1/alertmanagers"), "no active Alertmanager"))
				}
				if !slices.ContainsFunc(p.Rules, func(r LiveRule) bool { return r.Alert }) {
					out = append(out, found(ask(p, "GET /api/v1/rules"), "no alerting rule"))
				}
				return out
			}),
		},
		{
			ID: "FN734", Title: "targets do not answer", Severity: High, Reads: reads,
			Why:  "What they would show is not seen, and they may be what is broken.",
			Cost: costs(perBlind, takesUnseen, 0.5),
			Fix:  "Bring them back, or remove them.",
			check: running(func(p *Prometheus) []hit {
				if len(p.Down) == 0 {
					return nil
				}
				return []hit{found(ask(p, "up == 0"), "%d of %d: %s", len(p.Down), p.Targets, strings.Join(p.Down, ", "))}
			}),
		},
		{
			ID: "FN735", Title: "a layer without metrics", Severity: High, Reads: reads,
			Why:  "Trap 3 of the article, blind spots: no series of this Prometheus shows the layer.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Scrape its exporter.",
			check: running(func(p *Prometheus) []hit {
				var out []hit
				for _, l := range layers {
					seen := false
					for name := range p.Metrics {
						seen = seen || l.metrics.MatchString(name)
					}
					if !seen {
						out = append(out, found(ask(p, "GET /api/v1/label/__name__/values"), "%s: none of %d metrics", l.name, len(p.Metrics)))
					}
				}
				return out
			}),
		},
		{
			ID: "FN736", Title: "GPUs are idle and nothing queues in front of them", Severity: Medium, Reads: reads,
			Why:  "Trap 1 of the article: eight cards at 30% use. More cards do not help what a queue would.",
			Cost: costs(perPeak, takesPeak, 0.2),
			Fix:  "Queue and split tasks first, then shorten prompts, then buy.",
			check: running(func(p *Prometheus) []hit {
				queue := false
				for name := range p.Metrics {
					queue = queue || layers[len(layers)-1].metrics.MatchString(name)
				}
				if p.GPUs < 2 || p.GPUUse >= 40 || queue {
					return nil
				}
				return []hit{found(ask(p, "avg(avg_over_time(DCGM_FI_DEV_GPU_UTIL[1d]))"), "%d GPUs at %.0f%%, and no metric of a queue", p.GPUs, p.GPUUse)}
			}),
		},
		{
			ID: "FN737", Title: "metrics are kept for less than a month", Severity: Low, Reads: reads,
			Why:  "An objective over 30 days cannot be judged from less.",
			Cost: costs(perBlind, takesPerson, 0.1),
			Fix:  "Set --storage.tsdb.retention.time=31d, or write to a long-term store.",
			check: running(func(p *Prometheus) []hit {
				if p.Retention == 0 || p.Retention >= 30*24*time.Hour {
					return nil
				}
				return []hit{found(ask(p, "GET /api/v1/status/runtimeinfo"), "storageRetention %s", fmt.Sprint(model.Duration(p.Retention)))}
			}),
		},
	}
}
