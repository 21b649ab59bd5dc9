package operator

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

const monitoringVersion = "monitoring.coreos.com/v1"

// PodMonitor is that of Prometheus Operator 0.93.
type PodMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              PodMonitorSpec `json:"spec"`
}

// NewPodMonitor returns a PodMonitor without a spec.
func NewPodMonitor(meta metav1.ObjectMeta) *PodMonitor {
	return &PodMonitor{TypeMeta: kind(monitoringVersion, "PodMonitor"), ObjectMeta: meta}
}

// PodMonitorSpec says which pods are scraped.
type PodMonitorSpec struct {
	Selector            metav1.LabelSelector `json:"selector"`
	PodMetricsEndpoints []PodMetricsEndpoint `json:"podMetricsEndpoints"`
}

// PodMetricsEndpoint is a port of theirs. Times are like "15s".
type PodMetricsEndpoint struct {
	Port          string       `json:"port,omitempty"`
	PortNumber    int          `json:"portNumber,omitempty"`
	Path          string       `json:"path"`
	Interval      string       `json:"interval"`
	ScrapeTimeout string       `json:"scrapeTimeout"`
	Relabelings   []Relabeling `json:"relabelings"`
}

// Relabeling sets a label of the target.
type Relabeling struct {
	Action       string   `json:"action"`
	SourceLabels []string `json:"sourceLabels,omitempty"`
	TargetLabel  string   `json:"targetLabel"`
	Replacement  string   `json:"replacement,omitempty"`
}

// PrometheusRule is that of Prometheus Operator 0.93. Groups are those of a rule
// file of Prometheus.
type PrometheusRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              PrometheusRuleSpec `json:"spec"`
}

// NewPrometheusRule returns a PrometheusRule without groups.
func NewPrometheusRule(meta metav1.ObjectMeta) *PrometheusRule {
	return &PrometheusRule{TypeMeta: kind(monitoringVersion, "PrometheusRule"), ObjectMeta: meta}
}

// PrometheusRuleSpec is a rule file.
type PrometheusRuleSpec struct {
	Groups []RuleGroup `json:"groups" yaml:"groups"`
}

// RuleGroup is a group of rules that are evaluated together.
type RuleGroup struct {
	Name  string `json:"name" yaml:"name"`
	Rules []Rule `json:"rules" yaml:"rules"`
}

// Rule is an alert.
type Rule struct {
	Alert       string            `json:"alert" yaml:"alert"`
	Expr        string            `json:"expr" yaml:"expr"`
	For         string            `json:"for,omitempty" yaml:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty" yaml:"annotations,omitempty"`
}
