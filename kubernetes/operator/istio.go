package operator

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DestinationRule is that of Istio 1.30, which Higress reads too.
type DestinationRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              DestinationRuleSpec `json:"spec"`
}

// NewDestinationRule returns a DestinationRule without a spec.
func NewDestinationRule(meta metav1.ObjectMeta) *DestinationRule {
	return &DestinationRule{TypeMeta: kind("networking.istio.io/v1", "DestinationRule"), ObjectMeta: meta}
}

// DestinationRuleSpec says how requests to a Service are spread.
type DestinationRuleSpec struct {
	Host          string        `json:"host"`
	TrafficPolicy TrafficPolicy `json:"trafficPolicy"`
}

// TrafficPolicy chooses among the pods of a Service.
type TrafficPolicy struct {
	LoadBalancer     LoadBalancer     `json:"loadBalancer"`
	OutlierDetection OutlierDetection `json:"outlierDetection"`
}

// LoadBalancer is how one is chosen.
type LoadBalancer struct {
	Simple            string   `json:"simple"`
	LocalityLBSetting Locality `json:"localityLbSetting"`
}

// Locality prefers pods whose nodes share the values of labels, the more of them
// the better.
type Locality struct {
	Enabled          bool     `json:"enabled"`
	FailoverPriority []string `json:"failoverPriority"`
}

// OutlierDetection takes out pods that fail. Without it localities have no effect.
type OutlierDetection struct {
	Consecutive5xxErrors int    `json:"consecutive5xxErrors"`
	Interval             string `json:"interval"`
	BaseEjectionTime     string `json:"baseEjectionTime"`
	MaxEjectionPercent   int    `json:"maxEjectionPercent"`
}
