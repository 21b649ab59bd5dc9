package operator

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ExternalSecret is that of External Secrets, version v1 of its API.
type ExternalSecret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              ExternalSecretSpec `json:"spec"`
}

// NewExternalSecret returns an ExternalSecret without a spec.
func NewExternalSecret(meta metav1.ObjectMeta) *ExternalSecret {
	return &ExternalSecret{TypeMeta: kind("external-secrets.io/v1", "ExternalSecret"), ObjectMeta: meta}
}

// ExternalSecretSpec says where the values of a Secret come from.
type ExternalSecretSpec struct {
	RefreshInterval string                `json:"refreshInterval"`
	SecretStoreRef  SecretStoreReference  `json:"secretStoreRef"`
	Target          ExternalSecretTarget  `json:"target"`
	DataFrom        []ExternalSecretValue `json:"dataFrom"`
}

// SecretStoreReference names a store.
type SecretStoreReference struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
}

// ExternalSecretTarget is the Secret that is made.
type ExternalSecretTarget struct {
	Name     string                 `json:"name"`
	Template ExternalSecretTemplate `json:"template"`
}

// ExternalSecretTemplate sets its type.
type ExternalSecretTemplate struct {
	Type corev1.SecretType `json:"type"`
}

// ExternalSecretValue takes all keys of one entry of the store.
type ExternalSecretValue struct {
	Extract ExternalSecretExtract `json:"extract"`
}

// ExternalSecretExtract names that entry.
type ExternalSecretExtract struct {
	Key string `json:"key"`
}
