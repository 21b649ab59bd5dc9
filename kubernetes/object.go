package kubernetes

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is what a file holds: an object of Kubernetes or of an operator.
type Object interface {
	metav1.Object
	GetObjectKind() schema.ObjectKind
}

// generated is the first line of every file.
const generated = "# Rendered by fournines; change the spec and render again.\n"

// encode writes objects as a stream of YAML documents with sorted keys.
func encode(objects []Object) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(generated)
	for i, o := range objects {
		if i > 0 {
			out.WriteString("---\n")
		}
		plain, err := plainObject(o)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
		}
		enc := yaml.NewEncoder(&out)
		enc.SetIndent(2)
		if err := enc.Encode(plain); err != nil {
			return nil, fmt.Errorf("%s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
		}
	}
	return out.Bytes(), nil
}

// plainObject is an object as the API server takes it: without the state, which
// is the cluster's.
func plainObject(o Object) (map[string]any, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var plain map[string]any
	if err := dec.Decode(&plain); err != nil {
		return nil, err
	}
	delete(plain, "status")
	clean(plain)
	return plain, nil
}

// clean turns numbers into integers where they are, and drops the times of
// creation that Kubernetes's types write for objects which do not exist yet.
func clean(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if key == "creationTimestamp" && value == nil {
				delete(v, key)
				continue
			}
			v[key] = clean(value)
		}
	case []any:
		for i, value := range v {
			v[i] = clean(value)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // the decoder has checked the form
		return f
	}
	return v
}

// The labels of everything that is rendered.
const (
	labelName     = "app.kubernetes.io/name"
	labelInstance = "app.kubernetes.io/instance"
	labelPart     = "app.kubernetes.io/part-of"
	labelManaged  = "app.kubernetes.io/managed-by"
	// labelZone is the zone of the spec that a proxy belongs to.
	labelZone = "fournines.io/zone"

	topologyZone = "topology.kubernetes.io/zone"
	topologyHost = "kubernetes.io/hostname"
	// namespaceName is the label that every namespace has.
	namespaceName = "kubernetes.io/metadata.name"
)

// selector is what the pods of an application have and keep.
func (b *builder) selector(app string) map[string]string {
	return map[string]string{labelName: app, labelInstance: b.spec.Name}
}

func (b *builder) labels(app string) map[string]string {
	l := b.selector(app)
	l[labelPart], l[labelManaged] = "dify", "fournines"
	return l
}

// meta is the head of an object of an application.
func (b *builder) meta(name, app string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: b.k.Namespace, Labels: b.labels(app)}
}

// clusterMeta is the head of an object without a namespace.
func (b *builder) clusterMeta(name, app string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: b.labels(app)}
}

// with adds a label to a copy of labels.
func with(labels map[string]string, name, value string) map[string]string {
	out := maps.Clone(labels)
	out[name] = value
	return out
}

// hashBytes is the length of the hash in the names of ConfigMaps.
const hashBytes = 5

// configMap is a ConfigMap that never changes: its name holds a hash of its
// content. A new content is a new object, so pods of the old template keep
// what they were tested with, and a rollback finds it.
func (b *builder) configMap(app string, data map[string]string) *corev1.ConfigMap {
	text, _ := json.Marshal(data) // strings alone; keys are sorted
	sum := sha256.Sum256(text)
	return &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: b.meta(app+"-"+hex.EncodeToString(sum[:hashBytes]), app),
		Data: data, Immutable: ptr(true),
	}
}

// quantity writes bytes as Kubernetes does.
func quantity(size int64) string {
	for _, u := range []struct {
		suffix string
		size   int64
	}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}} {
		if size%u.size == 0 {
			return strconv.FormatInt(size/u.size, 10) + u.suffix
		}
	}
	return strconv.FormatInt(size, 10)
}
