package spec

import "slices"

// Observability configures Prometheus and Alertmanager.
type Observability struct {
	// ScrapeInterval is how often Prometheus reads each target and evaluates
	// its rules.
	ScrapeInterval Duration `yaml:"scrapeInterval" range:"1s..5m"`
	// Retention is how long Prometheus keeps its data. The error budget can only
	// be told for what is kept.
	Retention Duration `yaml:"retention" range:"1h..3650d"`
	// RetentionSize bounds the data on disk; the oldest goes first.
	RetentionSize Bytes `yaml:"retentionSize" range:"64MiB..1TiB"`
	// AlertWebhook is the URL that Alertmanager posts alerts to; empty means
	// that alerts are only shown. Such URLs often carry a token, so it is
	// never printed.
	AlertWebhook Secret `yaml:"alertWebhook"`
}

func defaultObservability() Observability {
	return Observability{ScrapeInterval: Duration(5 * second), Retention: Duration(32 * day), RetentionSize: 4 << 30}
}

// SLO is the objective of the installation. Alerts fire by how fast its error
// budget burns, for all apps together and for each, and `fournines slo status`
// shows what is left of it.
type SLO struct {
	// Objective is the share of requests that must succeed; 0.9999 allows
	// 52.6 minutes of full outage in a year.
	Objective float64 `yaml:"objective" range:"0.9..0.99999"`
	// FirstContent is how long users may wait for the first content of an
	// answer. It is measured in steps: 500ms, 1s, 1.5s, 2s, 3s, 5s, 8s, 13s, 20s,
	// 30s or 1m.
	FirstContent Duration `yaml:"firstContent" range:"500ms..1m"`
	// FirstContentObjective is the share of answers that must begin within
	// firstContent.
	FirstContentObjective float64 `yaml:"firstContentObjective" range:"0.5..0.9999"`
	// Window over which both are measured, rolling.
	Window Duration `yaml:"window" range:"1d..90d"`
}

func defaultSLO() SLO {
	return SLO{Objective: 0.9999, FirstContent: Duration(8 * second), FirstContentObjective: 0.99, Window: Duration(30 * day)}
}

// firstContentSteps are buckets of the gateway's histogram by app.
var firstContentSteps = []Duration{
	Duration(500 * millisecond), Duration(second), Duration(1500 * millisecond), Duration(2 * second), Duration(3 * second),
	Duration(5 * second), Duration(8 * second), Duration(13 * second), Duration(20 * second), Duration(30 * second), Duration(minute),
}

// FirstContentSteps are the values that slo.firstContent may have.
func FirstContentSteps() []Duration { return slices.Clone(firstContentSteps) }

func (c *checker) slo() {
	if d := c.spec.SLO.FirstContent; !slices.Contains(firstContentSteps, d) {
		c.add("slo.firstContent", "the gateway counts in 500ms, 1s, 1.5s, 2s, 3s, 5s, 8s, 13s, 20s, 30s and 1m", "%v is between two steps of what the gateway counts", d)
	}
}
