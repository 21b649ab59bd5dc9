package spec

// Observability configures Prometheus and Alertmanager.
type Observability struct {
	// ScrapeInterval is how often Prometheus reads each target and evaluates
	// its rules.
	ScrapeInterval Duration `yaml:"scrapeInterval" range:"1s..5m"`
	// Retention is how long Prometheus keeps its data.
	Retention Duration `yaml:"retention" range:"1h..3650d"`
	// AlertWebhook is the URL that Alertmanager posts alerts to; empty means
	// that alerts are only shown. Such URLs often carry a token, so it is
	// never printed.
	AlertWebhook Secret `yaml:"alertWebhook"`
}

func defaultObservability() Observability {
	return Observability{ScrapeInterval: Duration(5 * second), Retention: Duration(15 * day)}
}

// SLO is the objective of the installation.
type SLO struct {
	// Objective is the share of requests that must succeed; 0.9999 allows
	// 52.6 minutes of full outage in a year.
	Objective float64 `yaml:"objective" range:"0.9..0.99999"`
	// Window over which it is measured, rolling.
	Window Duration `yaml:"window" range:"1d..90d"`
}

func defaultSLO() SLO {
	return SLO{Objective: 0.9999, Window: Duration(30 * day)}
}
