// Package operator holds the objects of the operators that run an
// installation's databases, scale its workers, route to it and watch it. The
// types have only the fields that are rendered: the operators' own modules bring
// controller-runtime and half of Kubernetes with them. A test of the package
// kubernetes checks every rendered object against the schema of its
// CustomResourceDefinition, so a field that does not exist there is found.
package operator

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LocalReference names an object in the same namespace.
type LocalReference struct {
	Name string `json:"name"`
}

// KeyReference names a key of a Secret.
type KeyReference struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// kind makes the head of an object.
func kind(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}
