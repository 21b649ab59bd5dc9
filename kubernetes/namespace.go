package kubernetes

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fournines/spec"
)

// The priorities of pods when nodes are short, the last to go first.
const (
	priorityData    = "data"    // databases
	priorityServing = "serving" // what a user waits for
	priorityWork    = "work"    // what can be done later
)

// priority is the name of a PriorityClass; they are the whole cluster's.
func (b *builder) priority(class string) string { return b.k.Namespace + "-" + class }

// namespaceLayer is what all other layers stand on.
func (b *builder) namespaceLayer() ([]File, error) {
	ns := &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: b.clusterMeta(b.k.Namespace, "namespace"),
	}
	// The sandbox cannot do its work under a stricter level; everything else
	// keeps to "restricted", which is warned about.
	ns.Labels["pod-security.kubernetes.io/enforce"] = "baseline"
	ns.Labels["pod-security.kubernetes.io/warn"] = "restricted"
	var classes []Object
	for _, c := range []struct {
		name, what string
		value      int32
	}{
		{priorityData, "databases of Dify", 1000000},
		{priorityServing, "proxies, api and web of Dify", 900000},
		{priorityWork, "workers and sandbox of Dify", 800000},
	} {
		classes = append(classes, &schedulingv1.PriorityClass{
			TypeMeta: metav1.TypeMeta{APIVersion: "scheduling.k8s.io/v1", Kind: "PriorityClass"}, ObjectMeta: b.clusterMeta(b.priority(c.name), "namespace"),
			Value: c.value, Description: c.what, PreemptionPolicy: ptr(corev1.PreemptLowerPriority),
		})
	}
	return []File{
		{"namespace.yaml", []Object{ns}}, {"priorities.yaml", classes}, {"network.yaml", b.networkPolicies()},
	}, nil
}

// networkPolicies let in what is needed and nothing else. What goes out is free,
// but for the sandbox and its proxy, which run what users write.
func (b *builder) networkPolicies() []Object {
	apps := func(names ...string) []networkingv1.NetworkPolicyPeer {
		var peers []networkingv1.NetworkPolicyPeer
		for _, n := range names {
			peers = append(peers, podPeer(b.selector(n)))
		}
		return peers
	}
	workers := b.workerNames()
	runners := append([]string{appAPI}, workers...)
	clients := slices.Concat(runners, []string{appBeat, appMigration})
	if b.version.plugins() {
		clients = append(clients, appPlugins)
	}
	operators := b.operators()
	everybody := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}

	policies := []Object{b.policy("default", nil)}
	allow := func(app string, rules ...networkingv1.NetworkPolicyIngressRule) {
		policies = append(policies, b.policy(app, b.selector(app), rules...))
	}
	metrics := ingress(operators, metricsPort)
	allow(appGateway, ingress([]networkingv1.NetworkPolicyPeer{everybody}, gatewayPort), metrics)
	allow(appPGProxy, ingress(apps(clients...), postgresPort), metrics)
	allow(appRedisproxy, ingress(append(apps(clients...), operators...), redisPort), metrics)
	allow(appWeb, ingress([]networkingv1.NetworkPolicyPeer{everybody}, webPort))
	if b.version.plugins() {
		allow(appAPI, ingress(apps(appGateway, appPlugins), apiPort))
		allow(appPlugins, ingress([]networkingv1.NetworkPolicyPeer{everybody}, pluginPort))
	} else {
		allow(appAPI, ingress(apps(appGateway), apiPort))
	}
	allow(appSandbox, ingress(apps(runners...), sandboxPort))
	allow(appSSRFProxy, ingress(apps(append(runners, appSandbox)...), ssrfPort))
	policies = append(policies, b.dataPolicies(runners)...)
	dns := networkingv1.NetworkPolicyEgressRule{
		To:    []networkingv1.NetworkPolicyPeer{everybody},
		Ports: []networkingv1.NetworkPolicyPort{policyPort(corev1.ProtocolUDP, 53), policyPort(corev1.ProtocolTCP, 53)},
	}
	policies = append(policies,
		b.egress(appSandbox, dns, networkingv1.NetworkPolicyEgressRule{To: apps(appSSRFProxy), Ports: []networkingv1.NetworkPolicyPort{policyPort(corev1.ProtocolTCP, ssrfPort)}}),
		b.egress(appSSRFProxy, dns, networkingv1.NetworkPolicyEgressRule{To: []networkingv1.NetworkPolicyPeer{
			{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: slices.DeleteFunc(privateNetworks(), isIPv6)}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "::/0", Except: slices.DeleteFunc(privateNetworks(), func(n string) bool { return !isIPv6(n) })}},
		}}))
	return policies
}

// dataPolicies are those of the operators' pods.
func (b *builder) dataPolicies(runners []string) []Object {
	operators := b.operators()
	var policies []Object
	if b.k.Postgres.Provider == spec.ProviderOperator {
		policies = append(policies, b.policy(appPostgres, postgresPods(),
			ingress([]networkingv1.NetworkPolicyPeer{podPeer(b.selector(appPGProxy)), podPeer(postgresPods())}, postgresPort),
			ingress(append([]networkingv1.NetworkPolicyPeer{podPeer(postgresPods())}, operators...), 8000, 9187)))
	}
	if b.k.Redis.Provider == spec.ProviderOperator {
		var nodes []networkingv1.NetworkPolicyPeer
		for _, role := range redisRoles() {
			nodes = append(nodes, podPeer(map[string]string{"app": role}))
		}
		for _, role := range redisRoles() {
			policies = append(policies, b.policy(role, map[string]string{"app": role},
				ingress(slices.Concat(nodes, []networkingv1.NetworkPolicyPeer{podPeer(b.selector(appRedisproxy)), podPeer(b.selector(appGateway))}, operators), redisPort),
				ingress(nodes, 10000+redisPort), ingress(operators, redisExporterPort)))
		}
	}
	if b.k.Vectors.Provider == spec.ProviderOperator {
		milvus, etcd := map[string]string{labelInstance: appMilvus}, map[string]string{labelInstance: appMilvus + "-etcd"}
		inside := []networkingv1.NetworkPolicyPeer{podPeer(milvus), podPeer(etcd)}
		var clients []networkingv1.NetworkPolicyPeer
		for _, r := range runners {
			clients = append(clients, podPeer(b.selector(r)))
		}
		policies = append(policies,
			b.policy(appMilvus, milvus, ingress(append(inside, operators...)), ingress(clients, 19530)),
			b.policy(appMilvus+"-etcd", etcd, ingress(append(inside, operators...))))
	}
	return policies
}

// operators are the namespaces that may look into ours.
func (b *builder) operators() []networkingv1.NetworkPolicyPeer {
	if len(b.k.Operators) == 0 {
		return nil
	}
	return []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: namespaceName, Operator: metav1.LabelSelectorOpIn, Values: b.k.Operators,
	}}}}}
}

func podPeer(labels map[string]string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: maps.Clone(labels)}}
}

func policyPort(protocol corev1.Protocol, number int) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: ptr(intstr.FromInt(number))}
}

// ingress lets peers reach ports, all of them when none is named.
func ingress(peers []networkingv1.NetworkPolicyPeer, ports ...int) networkingv1.NetworkPolicyIngressRule {
	r := networkingv1.NetworkPolicyIngressRule{From: peers}
	for _, p := range ports {
		r.Ports = append(r.Ports, policyPort(corev1.ProtocolTCP, p))
	}
	return r
}

// policy lets in what the rules say and nothing else. A rule without peers is
// left out: in Kubernetes it would let in everybody.
func (b *builder) policy(name string, pods map[string]string, rules ...networkingv1.NetworkPolicyIngressRule) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}, ObjectMeta: b.meta(name, "network"),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: pods}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	for _, r := range rules {
		if len(r.From) > 0 {
			p.Spec.Ingress = append(p.Spec.Ingress, r)
		}
	}
	return p
}

// egress lets an application out to what the rules say and nothing else.
func (b *builder) egress(app string, rules ...networkingv1.NetworkPolicyEgressRule) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}, ObjectMeta: b.meta(app+"-out", "network"),
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: b.selector(app)},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: rules,
		},
	}
}

// privateNetworks are addresses that are not of the internet.
func privateNetworks() []string {
	return []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4",
		"::/127", "fc00::/7", "fe80::/10", "ff00::/8",
	}
}

func isIPv6(network string) bool { return strings.Contains(network, ":") }
