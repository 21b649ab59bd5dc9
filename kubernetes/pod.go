package kubernetes

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func ptr[T any](v T) *T { return &v }

// resources are requests and limits: cpu, memory, and the limits of both; an
// empty limit is none.
func resources(cpu, memory, cpuLimit, memoryLimit string) corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for name, q := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory} {
			if q != "" {
				l[name] = resource.MustParse(q)
			}
		}
		return l
	}
	r := corev1.ResourceRequirements{Requests: list(cpu, memory)}
	if limits := list(cpuLimit, memoryLimit); len(limits) > 0 {
		r.Limits = limits
	}
	return r
}

// env is a variable with a value.
func env(name, value string) corev1.EnvVar { return corev1.EnvVar{Name: name, Value: value} }

// secretEnv is a variable from a key of a Secret.
func secretEnv(name, secret, key string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key,
	}}}
}

// sorted are the variables of a map, in order.
func sorted(vars map[string]string) []corev1.EnvVar {
	var out []corev1.EnvVar
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, env(name, vars[name]))
	}
	return out
}

// httpGet is a probe of a named port.
func httpGet(path, port string) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(port)}}
}

// probe asks every period seconds, waits timeout seconds for an answer, and
// gives up after that many failures.
func probe(h corev1.ProbeHandler, period, timeout, failures int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures}
}

// pause keeps a pod that is asked to stop at work until every proxy has
// forgotten it.
func pause() *corev1.Lifecycle {
	return &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: pauseSeconds}}}
}

const pauseSeconds = 20

// locked is a container without any right that it does not need.
func locked() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// user runs a pod as an account that is not root.
func user(id int64) *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		RunAsNonRoot: ptr(true), RunAsUser: ptr(id), RunAsGroup: ptr(id), FSGroup: ptr(id),
		FSGroupChangePolicy: ptr(corev1.FSGroupChangeOnRootMismatch),
		SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// scratch is a volume that goes with its pod.
func scratch(name, limit string) corev1.Volume {
	q := resource.MustParse(limit)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &q}}}
}

// workload describes a Deployment.
type workload struct {
	name string
	// replicas are kept by an autoscaler when nil.
	replicas *int32
	strategy appsv1.DeploymentStrategy
	// labels of the pods beside those of every application.
	labels map[string]string
	pod    corev1.PodSpec
	// zone pins the pods to a zone of the spec; empty spreads them over all full
	// zones.
	zone string
	// annotations of the pods.
	annotations map[string]string
}

// rolling replaces pods one by one and never has fewer of them.
func rolling() appsv1.DeploymentStrategy {
	return appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
		MaxUnavailable: ptr(intstr.FromInt32(0)), MaxSurge: ptr(intstr.FromInt32(1)),
	}}
}

// deployment makes a Deployment of w for an application.
func (b *builder) deployment(app string, w workload) *appsv1.Deployment {
	selector := b.selector(app)
	maps.Copy(selector, w.labels)
	labels := b.labels(app)
	maps.Copy(labels, w.labels)
	pod := w.pod
	pod.EnableServiceLinks = ptr(false) // REDIS_PORT=tcp://… would be Dify's setting
	pod.AutomountServiceAccountToken = ptr(false)
	b.place(&pod, selector, w.zone)
	meta := b.meta(w.name, app)
	meta.Labels = labels
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: w.replicas, Strategy: w.strategy, Selector: &metav1.LabelSelector{MatchLabels: selector},
			RevisionHistoryLimit: ptr(int32(5)), ProgressDeadlineSeconds: ptr(int32(1200)),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(labels), Annotations: w.annotations}, Spec: pod,
			},
		},
	}
}

// place says where pods go: into one zone, or evenly over all full ones; and
// apart from each other on nodes where that is possible.
func (b *builder) place(pod *corev1.PodSpec, selector map[string]string, zone string) {
	zones := []string{zone}
	if zone == "" {
		zones = b.spec.FullZones()
		pod.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{b.spread(selector)}
	}
	pod.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
			Weight:          100,
			PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: topologyHost, LabelSelector: &metav1.LabelSelector{MatchLabels: selector}},
		}},
	}}
	if zone != "" || len(zones) < len(b.spec.Zones) {
		pod.Affinity.NodeAffinity = b.inZones(zones)
	}
}

// spread puts pods evenly over zones. The nodes of a lost zone are tainted:
// without Honor its zone would still count, and replacements stay pending.
// Each rollout is spread on its own.
func (b *builder) spread(selector map[string]string) corev1.TopologySpreadConstraint {
	return corev1.TopologySpreadConstraint{
		MaxSkew: 1, TopologyKey: topologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
		NodeTaintsPolicy: ptr(corev1.NodeInclusionPolicyHonor),
		LabelSelector:    &metav1.LabelSelector{MatchLabels: selector},
		MatchLabelKeys:   []string{"pod-template-hash"},
	}
}

// inZones is the affinity to the nodes of zones of the spec.
func (b *builder) inZones(zones []string) *corev1.NodeAffinity {
	var values []string
	for _, z := range b.spec.Zones {
		if slices.Contains(zones, z.Name) {
			values = append(values, z.Label())
		}
	}
	return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
			Key: topologyZone, Operator: corev1.NodeSelectorOpIn, Values: values,
		}}}},
	}}
}

// nodeZone is the value of the nodes' zone label for a zone of the spec.
func (b *builder) nodeZone(name string) string {
	for _, z := range b.spec.Zones {
		if z.Name == name {
			return z.Label()
		}
	}
	return name
}

// budget lets a drain take one pod of an application at a time, and those that
// are not ready at any time.
func (b *builder) budget(app string) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: b.meta(app, app),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: ptr(intstr.FromInt32(1)), UnhealthyPodEvictionPolicy: ptr(policyv1.AlwaysAllow),
			Selector: &metav1.LabelSelector{MatchLabels: b.selector(app)},
		},
	}
}

// port is a port of a Service with the name of the container's port.
func port(name string, number int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromString(name), Protocol: corev1.ProtocolTCP}
}

// service is a Service that prefers the pods in the caller's zone.
func (b *builder) service(name, app string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: b.meta(name, app),
		Spec: corev1.ServiceSpec{
			Selector: b.selector(app), Ports: ports, TrafficDistribution: ptr(corev1.ServiceTrafficDistributionPreferSameZone),
		},
	}
}

// zoneService is a Service for the pods of one zone. Its pods need the label of
// their zone, which Kubernetes gives them from 1.35 on.
func (b *builder) zoneService(app, zone string, selector map[string]string, ports ...corev1.ServicePort) *corev1.Service {
	s := b.service(app+"-"+zone, app, ports...)
	s.Labels[labelZone] = zone
	s.Spec.Selector = with(selector, topologyZone, b.nodeZone(zone))
	s.Spec.TrafficDistribution = nil
	return s
}

// containerPort is a port of a container.
func containerPort(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP}
}
