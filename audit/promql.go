package audit

import (
	"regexp"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// ParsePromQL reads an expression as Prometheus does.
func ParsePromQL(text string) (parser.Expr, error) { return promql().ParseExpr(text) }

func promql() parser.Parser { return parser.NewParser(parser.Options{}) }

// Selectors returns the vector selectors of an expression.
func Selectors(expr parser.Expr) []*parser.VectorSelector {
	var out []*parser.VectorSelector
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			out = append(out, s)
		}
		return nil
	})
	return out
}

// MetricName is the name that a selector asks for, "" for a pattern of names.
func MetricName(s *parser.VectorSelector) string {
	for _, m := range s.LabelMatchers {
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			return m.Value
		}
	}
	return s.Name
}

// WantedLabels are the labels that a series must have to be selected.
func WantedLabels(s *parser.VectorSelector) []string {
	var out []string
	for _, m := range s.LabelMatchers {
		if m.Name != model.MetricNameLabel && (m.Type == labels.MatchEqual || m.Type == labels.MatchRegexp) && !m.Matches("") {
			out = append(out, m.Name)
		}
	}
	return out
}

// alertRule is one rule of a rules file.
type alertRule struct {
	node
	group node
	// name of the alert or of the recorded series; empty when it is neither.
	name   string
	alert  bool
	expr   node
	parsed parser.Expr
	err    error
}

// alertsOf reads the groups of a rules file.
func alertsOf(root node) []*alertRule {
	var out []*alertRule
	for _, g := range root.get("groups").items() {
		for _, r := range g.get("rules").items() {
			a := &alertRule{node: r, group: g, name: r.get("alert").text(), alert: r.get("alert").ok(), expr: r.get("expr")}
			if !a.alert {
				a.name = r.get("record").text()
			}
			if a.expr.ok() {
				a.parsed, a.err = ParsePromQL(a.expr.text())
			}
			out = append(out, a)
		}
	}
	return out
}

func (a *alertRule) place() Place { return a.get("alert").atOr(a.get("record"), a.expr, a.node) }

// title names a rule in messages.
func (a *alertRule) title() string { return orDefault(a.name, "a rule without a name") }

// holds is how long the expression must be true before the alert fires.
func (a *alertRule) holds() time.Duration {
	d, err := model.ParseDuration(orDefault(a.get("for").text(), "0s"))
	if err != nil {
		return 0
	}
	return time.Duration(d)
}

// constant reports whether an expression needs no series: a dead man's switch.
func constant(e parser.Expr) bool { return e != nil && len(Selectors(e)) == 0 }

// missingMetrics are names that are written often and that no exporter has.
var missingMetrics = map[string]string{
	"pg_replication_lag":             "postgres_exporter has pg_replication_lag_seconds",
	"pg_stat_replication_lag":        "postgres_exporter has pg_stat_replication_pg_wal_lsn_diff, in bytes",
	"postgres_replication_lag":       "postgres_exporter has pg_replication_lag_seconds",
	"redis_cluster_status":           "redis_exporter has redis_cluster_state",
	"redis_master_link_status":       "redis_exporter has redis_master_link_up",
	"redis_replication_lag":          "redis_exporter has redis_connected_slave_lag_seconds",
	"milvus_search_latency":          "Milvus has milvus_proxy_sq_latency",
	"dify_http_requests_total":       "Dify exports no HTTP counters; take them from the gateway",
	"dify_request_duration_seconds":  "Dify exports no HTTP histogram; take it from the gateway",
	"celery_queue_size":              "celery-exporter has celery_queue_length",
	"kube_pod_container_restarts":    "kube-state-metrics has kube_pod_container_status_restarts_total",
	"node_memory_MemFree_percent":    "node_exporter has node_memory_MemAvailable_bytes and node_memory_MemTotal_bytes",
	"container_cpu_usage_percentage": "cAdvisor has container_cpu_usage_seconds_total",
}

// replacements are missing metrics with an equal of the same unit.
var replacements = map[string]string{"pg_replication_lag": "pg_replication_lag_seconds", "postgres_replication_lag": "pg_replication_lag_seconds"}

// missingLabels are labels that a metric does not carry.
var missingLabels = map[string]map[string]string{
	"redis_cluster_state":       {"state": "its value is 1 for ok and 0 for fail"},
	"redis_up":                  {"state": "its value is 1 or 0"},
	"pg_up":                     {"state": "its value is 1 or 0"},
	"up":                        {"state": "its value is 1 or 0", "status": "its value is 1 or 0"},
	"redis_master_link_up":      {"status": "its value is 1 or 0"},
	"patroni_primary":           {"role": "its value is 1 on the primary and 0 elsewhere"},
	"pg_replication_is_replica": {"role": "its value is 1 on a replica and 0 elsewhere"},
}

// boolean are gauges whose value is 0 or 1.
var boolean = map[string]bool{
	"up": true, "redis_up": true, "pg_up": true, "redis_cluster_state": true, "redis_master_link_up": true, "probe_success": true,
	"patroni_primary": true, "pg_replication_is_replica": true, "mysql_up": true,
}

var durationAsNumber = regexp.MustCompile(`[<>=!]=?\s*(\d+(?:\.\d+)?)(ms|s|m|h|d)\b`)

// comparison is a vector compared with a number.
type comparison struct {
	side  parser.Expr
	op    parser.ItemType
	value float64
}

// comparisons finds those of an expression.
func comparisons(e parser.Expr) []comparison {
	var out []comparison
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		b, ok := n.(*parser.BinaryExpr)
		if !ok || !b.Op.IsComparisonOperator() {
			return nil
		}
		if v, ok := bare(b.RHS).(*parser.NumberLiteral); ok {
			out = append(out, comparison{bare(b.LHS), b.Op, v.Val})
		}
		return nil
	})
	return out
}

func bare(e parser.Expr) parser.Expr {
	for {
		p, ok := e.(*parser.ParenExpr)
		if !ok {
			return e
		}
		e = p.Expr
	}
}

// impossible says why a comparison is never true; empty when it may be.
func (c comparison) impossible() string {
	low, high, what := 0.0, 0.0, ""
	switch e := c.side.(type) {
	case *parser.VectorSelector:
		if boolean[MetricName(e)] {
			low, high, what = 0, 1, MetricName(e)+" is 0 or 1"
		}
	case *parser.BinaryExpr:
		if e.Op == parser.DIV && shareOfItself(e) {
			low, high, what = 0, 1, "a share is at most 1"
		}
	}
	if what == "" {
		return ""
	}
	never := false
	switch c.op {
	case parser.GTR:
		never = c.value >= high
	case parser.GTE:
		never = c.value > high
	case parser.LSS:
		never = c.value <= low
	case parser.LTE:
		never = c.value < low
	case parser.EQLC:
		never = c.value < low || c.value > high
	}
	if never {
		return what
	}
	return ""
}

// shareOfItself reports whether a quotient is a part of one metric by all of it:
// the same metric above and below, with more matchers above.
func shareOfItself(e *parser.BinaryExpr) bool {
	up, down := Selectors(e.LHS), Selectors(e.RHS)
	if len(up) != 1 || len(down) != 1 {
		return false
	}
	return MetricName(up[0]) != "" && MetricName(up[0]) == MetricName(down[0]) && len(up[0].LabelMatchers) > len(down[0].LabelMatchers)
}
