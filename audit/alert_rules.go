package audit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/promql/parser"

	"fournines/internal/strictyaml"
)

// layer is one of Dify's layers, by the metrics that show it.
type layer struct {
	name    string
	metrics *regexp.Regexp
	roles   []role
}

var layers = []layer{
	{"requests", regexp.MustCompile(`^(http_|envoy_|istio_|nginx_|traefik_|caddy_|haproxy_|probe_|fournines_gateway_|fournines_slo|slo:|dify_)`), []role{roleAPI, roleEntry}},
	{"PostgreSQL", regexp.MustCompile(`^(pg_|cnpg_|patroni_|postgres_|ccp_|fournines_pgproxy_)`), []role{rolePostgres}},
	{"Redis", regexp.MustCompile(`^(redis_|fournines_redisproxy_)`), []role{roleRedis}},
	{"vector database", regexp.MustCompile(`^(milvus_|weaviate_|qdrant_|collections_|opensearch_|elasticsearch_|fournines_vectors?_)`), []role{roleVector}},
	{"task queue", regexp.MustCompile(`^(celery_|redis_key_size|rabbitmq_|fournines_gateway_jobs|keda_)`), []role{roleWorker}},
}

func alertRules() []Rule {
	reads := []Kind{KindRules, KindKubernetes}
	forAlerts := func(check func(a *alertRule) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, a := range in.alerts {
				out = append(out, check(a)...)
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN701", Title: "a rule that is neither an alert nor a record", Severity: Critical, Reads: reads,
			Why:  "Prometheus refuses the whole file for one misspelt key, so none of its alerts exists.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Write `alert:` (or `record:`); `promtool check rules` finds it.",
			check: forAlerts(func(a *alertRule) []hit {
				if a.name != "" {
					return nil
				}
				for _, p := range a.pairs() {
					if !p.scalar() || slices.Contains([]string{"expr", "for", "keep_firing_for"}, p.name()) {
						continue
					}
					// Only an alert has these.
					want := "record"
					if a.get("for").ok() || a.get("annotations").ok() || a.get("labels", "severity").ok() || strictyaml.Nearest(p.name(), []string{"alert"}) != "" {
						want = "alert"
					}
					h := found(Place{File: p.file.name, Line: p.key.Line, Column: p.key.Column}, "%q where %s is meant", p.name(), want)
					h.edits = p.rename(want)
					return []hit{h}
				}
				return []hit{found(a.place(), "neither alert nor record")}
			}),
		},
		{
			ID: "FN702", Title: "an expression that Prometheus refuses", Severity: Critical, Reads: reads,
			Why:  "The whole file is refused, and after a restart Prometheus does not start.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Correct it; `promtool check rules` shows the place.",
			check: forAlerts(func(a *alertRule) []hit {
				switch {
				case !a.expr.ok():
					return []hit{found(a.place(), "%s has no expr", a.title())}
				case a.err != nil:
					return []hit{found(a.expr.at(), "%s: %v", a.title(), a.err)}
				}
				return nil
			}),
		},
		{
			ID: "FN703", Title: "an alert on a metric that no exporter has", Severity: Critical, Reads: reads,
			Why:  "It selects nothing and never fires. Everybody believes that the fault is watched.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Use the metric that exists.",
			check: func(in *Inventory) []hit {
				recorded := map[string]bool{}
				for _, a := range in.alerts {
					recorded[a.get("record").text()] = true
				}
				var out []hit
				for _, a := range in.alerts {
					if a.parsed == nil {
						continue
					}
					for _, s := range Selectors(a.parsed) {
						name := MetricName(s)
						if why := missingMetrics[name]; why != "" && !recorded[name] {
							h := found(a.expr.at(), "%s: %s does not exist; %s", a.title(), name, why)
							if replacements[name] != "" {
								h.edits = a.mended()
							}
							out = append(out, h)
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN704", Title: "an alert on a label that the metric does not carry", Severity: Critical, Reads: reads,
			Why:  "The selector matches no series, so the alert never fires. Trap 3 of the article: a switch of Redis went unnoticed.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Compare the value: `min(redis_cluster_state) == 0`.",
			check: forAlerts(func(a *alertRule) []hit {
				if a.parsed == nil {
					return nil
				}
				var out []hit
				for _, s := range Selectors(a.parsed) {
					for _, l := range WantedLabels(s) {
						if why := missingLabels[MetricName(s)][l]; why != "" {
							h := found(a.expr.at(), "%s: %s has no label %s; %s", a.title(), MetricName(s), l, why)
							if m := stateFail.FindString(a.expr.text()); m != "" && m == strings.TrimSpace(a.expr.text()) {
								h.edits = a.expr.replace("redis_cluster_state == 0")
							}
							out = append(out, h)
						}
					}
				}
				return out
			}),
		},
		{
			ID: "FN705", Title: "an alert that can never fire", Severity: Critical, Reads: reads,
			Why:  "The threshold is outside what the expression can be: a share above 1, a gauge of 0 and 1 compared with 2.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Write a share as 0.05, not 5.",
			check: forAlerts(func(a *alertRule) []hit {
				if a.parsed == nil {
					return nil
				}
				var out []hit
				for _, c := range comparisons(a.parsed) {
					if why := c.impossible(); why != "" {
						out = append(out, found(a.expr.at(), "%s: compared with %g, and %s", a.title(), c.value, why))
					}
				}
				return out
			}),
		},
		{
			ID: "FN706", Title: "a duration where a number belongs", Severity: High, Reads: reads,
			Why:  "`> 100ms` is a syntax error up to Prometheus 2.53 and means 0.1 from 2.54 on: the same file is refused by one server and read by the next.",
			Cost: costs(perBlind, takesPerson, 0.5),
			Fix:  "Write the number in the metric's unit: 0.1 for seconds.",
			check: forAlerts(func(a *alertRule) []hit {
				m := durationAsNumber.FindStringSubmatch(a.expr.text())
				if m == nil || a.parsed == nil {
					return nil
				}
				h := found(a.expr.at(), "%s: %s", a.title(), strings.TrimSpace(m[0]))
				h.edits = a.mended()
				return []hit{h}
			}),
		},
		{
			ID: "FN707", Title: "an alert that comes too late", Severity: Medium, Reads: reads,
			Why:  "A month at 99.99% has 4.3 minutes. A critical alert that first waits five has seen the budget go.",
			Cost: costs(perBlind, takesPeak, 0.5),
			Fix:  "Alert on the burn rate of the error budget over two windows, or set `for` to 1m.",
			check: forAlerts(func(a *alertRule) []hit {
				severity := a.get("labels", "severity").text()
				if !a.alert || severity != "critical" && severity != "page" || a.holds() < 5*time.Minute || strings.Contains(a.expr.text(), "predict_linear") {
					return nil
				}
				h := found(a.get("for").at(), "%s waits %v", a.title(), a.holds())
				h.edits = a.get("for").replace("1m")
				return []hit{h}
			}),
		},
		{
			ID: "FN708", Title: "an alert without a severity", Severity: Low, Reads: reads,
			Why:  "Alertmanager routes by labels; without one it goes where nobody is woken, or wakes for everything.",
			Cost: costs(perBlind, takesPerson, 0.2),
			Fix:  "Add `labels: {severity: critical}` or `warning`.",
			check: forAlerts(func(a *alertRule) []hit {
				if !a.alert || a.get("labels", "severity").ok() {
					return nil
				}
				return []hit{found(a.place(), "%s", a.title())}
			}),
		},
		{
			ID: "FN709", Title: "lag that reads 0 when replication is cut", Severity: High, Reads: reads,
			Why:  "Both exporters compute it on the standby, and it is 0 while received and replayed positions are equal: a standby whose receiver is cut off looks perfect.",
			Cost: costs(perBlind, takesUnseen, 0.5),
			Fix:  "Add an alert on the primary's side: fewer standbys in pg_stat_replication than there should be, or cnpg_pg_replication_streaming_replicas.",
			check: func(in *Inventory) []hit {
				var lag *alertRule
				for _, a := range in.alerts {
					if a.parsed == nil {
						continue
					}
					for _, s := range Selectors(a.parsed) {
						switch name := MetricName(s); {
						case name == "pg_replication_lag_seconds" || name == "cnpg_pg_replication_lag" || name == "pg_replication_lag":
							if lag == nil {
								lag = a
							}
						case strings.HasPrefix(name, "pg_stat_replication") || strings.HasPrefix(name, "cnpg_pg_stat_replication") ||
							strings.Contains(name, "streaming_replicas") || strings.Contains(name, "wal_receiver") || strings.HasPrefix(name, "patroni_"):
							return nil
						}
					}
				}
				if lag == nil {
					return nil
				}
				return []hit{found(lag.expr.at(), "%s is the only alert on replication", lag.title())}
			},
		},
		{
			ID: "FN710", Title: "a layer without an alert", Severity: High, Reads: reads,
			Why:  "Trap 3 of the article, blind spots: a fault of that layer is first seen by users.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Add one; `fournines up` has a rule for each layer to begin with.",
			check: func(in *Inventory) []hit {
				if len(in.alerts) == 0 {
					return nil
				}
				present := func(l layer) bool { return len(in.units) == 0 || len(in.withRole(l.roles...)) > 0 }
				var out []hit
				for _, l := range layers {
					seen := slices.ContainsFunc(in.alerts, func(a *alertRule) bool {
						return a.parsed != nil && slices.ContainsFunc(Selectors(a.parsed), func(s *parser.VectorSelector) bool { return l.metrics.MatchString(MetricName(s)) })
					})
					if !seen && present(l) {
						out = append(out, hit{place: in.alerts[0].file.at(0), message: "no rule names a metric of this layer: " + l.name})
					}
				}
				return out
			},
		},
		{
			ID: "FN711", Title: "no dead man's switch", Severity: Medium, Reads: reads,
			Why:  "When Prometheus or Alertmanager dies, silence looks like health.",
			Cost: costs(perBlind, takesUnseen, 0.3),
			Fix:  "Add `alert: Watchdog, expr: vector(1)` and send it to a service outside that alarms when it stops.",
			check: func(in *Inventory) []hit {
				if len(in.alerts) == 0 || slices.ContainsFunc(in.alerts, func(a *alertRule) bool { return a.alert && constant(a.parsed) }) {
					return nil
				}
				return []hit{found(in.alerts[0].file.at(0), "no alert that always fires")}
			},
		},
		{
			ID: "FN712", Title: "an error rate without its number of requests", Severity: Low, Reads: reads,
			Why:  "At night one failed request of ten is 10%: the alert cries wolf until somebody silences it. And a fixed 5% for 2 minutes spends 46% of a month's budget before it fires.",
			Cost: costs(perBlind, takesPerson, 0.1),
			Fix:  "Use burn rates over two windows, and a floor: `and sum(rate(…)) > 1`.",
			check: forAlerts(func(a *alertRule) []hit {
				if a.get("record").ok() || a.parsed == nil {
					return nil
				}
				for _, c := range comparisons(a.parsed) {
					if d, ok := c.side.(*parser.BinaryExpr); ok && shareOfItself(d) && len(comparisons(a.parsed)) == 1 && c.impossible() == "" {
						return []hit{found(a.expr.at(), "%s: a share alone", a.title())}
					}
				}
				return nil
			}),
		},
	}
}

var stateFail = regexp.MustCompile(`redis_cluster_state\{\s*state\s*=\s*"fail"\s*\}(\s*[>=]=?\s*[01])?`)

// mended is the edit that corrects everything in an expression that has one
// right answer: a metric's name, a duration where seconds belong.
func (a *alertRule) mended() []Edit {
	text := a.expr.text()
	for _, s := range Selectors(a.parsed) {
		if name := MetricName(s); replacements[name] != "" && strings.Count(text, name) == 1 {
			text = strings.Replace(text, name, replacements[name], 1)
		}
	}
	if m := durationAsNumber.FindStringSubmatch(text); m != nil {
		if d, err := time.ParseDuration(m[1] + m[2]); err == nil {
			text = strings.Replace(text, m[1]+m[2], fmt.Sprintf("%g", d.Seconds()), 1)
		}
	}
	if text == a.expr.text() {
		return nil
	}
	return a.expr.replace(quoteLike(a.expr, text))
}

// quoteLike puts a text into the quotes that a node has in the file.
func quoteLike(n node, text string) string {
	line, ok := n.file.line(n.y.Line)
	if !ok || n.y.Column < 1 || n.y.Column > len(line) {
		return text
	}
	switch line[n.y.Column-1] {
	case '\'':
		return "'" + strings.ReplaceAll(text, "'", "''") + "'"
	case '"':
		return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"`
	}
	return text
}
