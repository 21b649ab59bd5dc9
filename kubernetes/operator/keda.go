package operator

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const kedaVersion = "keda.sh/v1alpha1"

// ScaledObject is that of KEDA 2.20.
type ScaledObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ScaledObjectSpec `json:"spec"`
}

// NewScaledObject returns a ScaledObject without a spec.
func NewScaledObject(meta metav1.ObjectMeta) *ScaledObject {
	return &ScaledObject{TypeMeta: kind(kedaVersion, "ScaledObject"), ObjectMeta: meta}
}

// ScaledObjectSpec says what is scaled by what. Times are in seconds.
type ScaledObjectSpec struct {
	ScaleTargetRef  LocalReference `json:"scaleTargetRef"`
	MinReplicaCount int            `json:"minReplicaCount"`
	MaxReplicaCount int            `json:"maxReplicaCount"`
	PollingInterval int            `json:"pollingInterval"`
	Fallback        KEDAFallback   `json:"fallback"`
	Advanced        KEDAAdvanced   `json:"advanced"`
	Triggers        []KEDATrigger  `json:"triggers"`
}

// KEDAFallback is what happens while a trigger cannot be read.
type KEDAFallback struct {
	FailureThreshold int    `json:"failureThreshold"`
	Replicas         int    `json:"replicas"`
	Behavior         string `json:"behavior"`
}

// KEDAAdvanced sets the HPA that KEDA makes.
type KEDAAdvanced struct {
	RestoreToOriginalReplicaCount bool          `json:"restoreToOriginalReplicaCount"`
	HorizontalPodAutoscalerConfig KEDAHPAConfig `json:"horizontalPodAutoscalerConfig"`
}

// KEDAHPAConfig is the part of it that can be set.
type KEDAHPAConfig struct {
	Behavior autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
}

// KEDATrigger is one metric.
type KEDATrigger struct {
	Type              string            `json:"type"`
	Metadata          map[string]string `json:"metadata"`
	AuthenticationRef LocalReference    `json:"authenticationRef"`
}

// TriggerAuthentication is that of KEDA 2.20.
type TriggerAuthentication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              TriggerAuthenticationSpec `json:"spec"`
}

// NewTriggerAuthentication returns a TriggerAuthentication without a spec.
func NewTriggerAuthentication(meta metav1.ObjectMeta) *TriggerAuthentication {
	return &TriggerAuthentication{TypeMeta: kind(kedaVersion, "TriggerAuthentication"), ObjectMeta: meta}
}

// TriggerAuthenticationSpec takes parameters of triggers from Secrets.
type TriggerAuthenticationSpec struct {
	SecretTargetRef []KEDASecret `json:"secretTargetRef"`
}

// KEDASecret is one parameter.
type KEDASecret struct {
	Parameter string `json:"parameter"`
	Name      string `json:"name"`
	Key       string `json:"key"`
}
