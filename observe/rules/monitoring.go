package rules

import "time"

var monitoringAlerts = []Alert{
	{
		// Whoever receives alerts shall be alarmed when it stops.
		Name: Watchdog, Severity: None, Expr: `vector(1)`,
		Summary:     `Alerts are being delivered.`,
		Description: `This alert always fires. Route it to something outside that sounds when it stops coming.`,
	},
	{
		// An exporter answers for its server: RedisInstanceDown speaks for those.
		Name: "TargetDown", Severity: Warning, For: 20 * time.Second, Expr: `up == 0`,
		Summary:     `{{ $labels.component }}{{ with $labels.zone }} in zone {{ . }}{{ end }} does not answer Prometheus.`,
		Description: `{{ $labels.job }} at {{ $labels.instance }} has given no metrics for 20 seconds: it is down, or cannot be reached.`,
	},
	{
		// Soon, so that it holds back what its loss makes others say.
		Name: "ZoneDown", Severity: Critical, For: 10 * time.Second,
		Expr: `count by (zone) (up{zone!="", job!="redis"} == 0)
			== count by (zone) (up{zone!="", job!="redis"})`,
		Summary:     `Zone {{ $labels.zone }} is down.`,
		Description: `None of the {{ $value }} targets in zone {{ $labels.zone }} answers: it has no power or no network. The other zones serve; do not lose another one.`,
	},
	{
		Name: "NotificationsFailing", Severity: Warning,
		Expr: `sum by (integration) (increase(alertmanager_notifications_failed_total[5m])) > 0
			or sum by (component) (increase(prometheus_notifications_dropped_total[5m])) > 0`,
		Summary:     `Alerts are not delivered{{ with $labels.integration }} by {{ . }}{{ end }}.`,
		Description: `{{ $value | printf "%.0f" }} messages failed within 5 minutes. You may see this one alone.`,
	},
	{
		Name: "RulesFailing", Severity: Warning,
		Expr:        `sum by (rule_group) (increase(prometheus_rule_evaluation_failures_total[5m])) > 0`,
		Summary:     `Prometheus cannot evaluate rules of {{ $labels.rule_group }}.`,
		Description: `{{ $value | printf "%.0f" }} evaluations failed within 5 minutes: alerts of this group may stay silent.`,
	},
}
