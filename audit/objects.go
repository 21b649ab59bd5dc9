package audit

import (
	"slices"
	"strings"

	"fournines/internal/strictyaml"
)

// object is one Kubernetes object.
type object struct {
	node
	kind, apiVersion, name, namespace string
	// kindAt is where the kind stands, or should.
	kindAt Place
	// written is the kind as it is written, when it had to be guessed.
	written string
	guessed bool
	// fix renames the key or the value of a misspelt kind.
	fix []Edit
}

// knownKinds are the kinds that the rules look at, for slips of the pen.
var knownKinds = []string{
	"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod", "Service", "Ingress", "ConfigMap", "Secret", "PersistentVolumeClaim",
	"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount", "Namespace",
	"Cluster", "ScheduledBackup", "Pooler", "RedisCluster", "RedisReplication", "RedisSentinel", "Milvus", "ScaledObject",
	"WasmPlugin", "McpBridge", "DestinationRule", "VirtualService", "EnvoyFilter", "PrometheusRule", "ServiceMonitor", "PodMonitor", "AlertmanagerConfig",
	"GrafanaDashboard",
}

func (in *Inventory) addObject(root node) {
	if root.get("kind").text() == "List" {
		for _, item := range root.get("items").items() {
			in.addObject(item)
		}
		return
	}
	o := &object{node: root, apiVersion: root.get("apiVersion").text(), name: root.get("metadata", "name").text(), namespace: root.get("metadata", "namespace").text()}
	kind := root.get("kind")
	o.kind, o.kindAt = kind.text(), kind.atOr(root.get("apiVersion"), root)
	switch {
	case !kind.ok():
		o.guessed, o.kind = true, guessKind(root)
		for _, p := range root.pairs() {
			if n := p.name(); p.scalar() && n != "apiVersion" && (strictyaml.Nearest(n, []string{"kind"}) != "" || strings.HasPrefix(strings.ToLower(n), "kind")) {
				o.written, o.kindAt = n, p.at()
				if slices.Contains(knownKinds, p.text()) {
					o.kind, o.fix = p.text(), p.rename("kind")
				}
			}
		}
	case !slices.Contains(knownKinds, o.kind):
		if near := strictyaml.Nearest(o.kind, knownKinds); near != "" && builtin(o.apiVersion) {
			o.guessed, o.written, o.kind, o.fix = true, o.kind, near, kind.replace(near)
		}
	}
	in.objects = append(in.objects, o)
}

// builtin reports whether an API version belongs to an API whose kinds the
// rules know; elsewhere a name that looks like a slip may be another kind.
func builtin(apiVersion string) bool {
	group, _, ok := strings.Cut(apiVersion, "/")
	return !ok || slices.Contains([]string{"apps", "batch", "autoscaling", "policy", "networking.k8s.io"}, group)
}

// guessKind tells the kind from what the object has.
func guessKind(root node) string {
	spec := root.get("spec")
	switch {
	case spec.get("scaleTargetRef").ok():
		return "HorizontalPodAutoscaler"
	case spec.get("template").ok():
		return "Deployment"
	case spec.get("ports").ok():
		return "Service"
	case spec.get("selector").ok() && (spec.get("minAvailable").ok() || spec.get("maxUnavailable").ok()):
		return "PodDisruptionBudget"
	}
	return ""
}

func (o *object) title() string { return o.kind + " " + o.name }

// place is where the object is reported: its name, or its first line.
func (o *object) place() Place { return o.get("metadata", "name").atOr(o.node) }

// podSpec is the spec of the pods of a workload.
func (o *object) podSpec() node {
	switch o.kind {
	case "Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet":
		return o.get("spec", "template", "spec")
	case "CronJob":
		return o.get("spec", "jobTemplate", "spec", "template", "spec")
	case "Pod":
		return o.get("spec")
	}
	return node{}
}

// longRunning reports whether the object's pods are to run always.
func (o *object) longRunning() bool {
	return o.kind == "Deployment" || o.kind == "StatefulSet"
}

// replicas of the object, without an autoscaler.
func (o *object) replicas() int { return o.get("spec", "replicas").intOr(1) }

func (o *object) podLabels() map[string]string {
	out := map[string]string{}
	for _, p := range o.get("spec", "template", "metadata", "labels").pairs() {
		out[p.name()] = p.text()
	}
	return out
}

// selects reports whether a label selector's matchLabels, or a Service's
// selector, picks the labels. An empty selector picks nothing here.
func selects(selector node, labels map[string]string) bool {
	pairs := selector.pairs()
	for _, p := range pairs {
		if labels[p.name()] != p.text() {
			return false
		}
	}
	return len(pairs) > 0
}

func (in *Inventory) ofKind(kinds ...string) []*object {
	var out []*object
	for _, o := range in.objects {
		if slices.Contains(kinds, o.kind) {
			out = append(out, o)
		}
	}
	return out
}

// named finds an object by kind and name in a namespace.
func (in *Inventory) named(kind, name, namespace string) *object {
	for _, o := range in.ofKind(kind) {
		if o.name == name && o.namespace == namespace {
			return o
		}
	}
	return nil
}

// autoscaler returns the HPA or ScaledObject that sets the replicas of o.
func (in *Inventory) autoscaler(o *object) *object {
	for _, a := range in.ofKind("HorizontalPodAutoscaler", "ScaledObject") {
		ref := a.get("spec", "scaleTargetRef")
		if ref.get("name").text() == o.name && a.namespace == o.namespace {
			return a
		}
	}
	return nil
}

// leastReplicas is how many pods of a workload there are at least.
func (in *Inventory) leastReplicas(o *object) int {
	a := in.autoscaler(o)
	switch {
	case a == nil:
		return o.replicas()
	case a.kind == "ScaledObject":
		return a.get("spec", "minReplicaCount").intOr(0)
	}
	return a.get("spec", "minReplicas").intOr(1)
}

// containersOf returns the containers of a workload.
func (in *Inventory) containersOf(o *object) []*unit {
	pod := o.podSpec()
	var out []*unit
	for _, c := range pod.get("containers").items() {
		u := &unit{
			object: o, name: c.get("name").text(), at: c.get("name").atOr(c, o.node), node: c, workload: pod,
			image: c.get("image"), env: map[string]envVar{}, replicas: in.leastReplicas(o),
		}
		for _, name := range []string{"command", "args"} {
			if a := c.get(name); a.ok() {
				u.args = append(u.args, a.texts()...)
				u.argsNode = a
			}
		}
		for _, from := range c.get("envFrom").items() {
			if ref := from.get("configMapRef", "name").text(); ref != "" {
				if m := in.named("ConfigMap", ref, o.namespace); m != nil {
					for _, p := range m.get("data").pairs() {
						u.env[p.name()] = envVar{value: p.text(), node: p, literal: true}
					}
				}
			}
		}
		for _, e := range c.get("env").items() {
			v := envVar{value: e.get("value").text(), node: e.get("value"), literal: true}
			if !v.node.ok() {
				v.node, v.literal = e.get("name"), false
			}
			u.env[e.get("name").text()] = v
		}
		u.setRole()
		out = append(out, u)
	}
	return out
}
