package kubernetes

import (
	"maps"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fournines/gateway/limit"
	"fournines/kubernetes/operator"
	"fournines/spec"
)

const higressClass = "higress"

// apiPaths are those that Dify's api serves.
func apiPaths() []string {
	return []string{"/console/api", "/api", "/v1", "/files", "/mcp", "/triggers"}
}

// edgeLayer are Higress's routes to the gateways, the web pages and the plugin
// daemon. Limits are counted in the gateways; see routeLimit for what Higress
// does of them.
func (b *builder) edgeLayer() ([]File, error) {
	if b.k.Edge.Provider == spec.ProviderNone {
		return nil, nil
	}
	// The gateway repeats what may be repeated; a second layer of it would
	// multiply.
	annotations := map[string]string{"higress.io/proxy-next-upstream": "off"}
	maps.Copy(annotations, b.routeLimit())
	routes := []Object{
		b.route(appGateway, annotations, "http", apiPaths()...),
		b.route(appWeb, nil, "http", "/"),
	}
	rules := []Object{b.destination(appGateway), b.destination(appWeb)}
	if b.version.plugins() {
		routes = append(routes, b.route(appPlugins, nil, "http", "/e/"))
	}
	return []File{{"routes.yaml", routes}, {"zones.yaml", rules}}, nil
}

// route sends paths to a Service.
func (b *builder) route(app string, annotations map[string]string, port string, paths ...string) *networkingv1.Ingress {
	var list []networkingv1.HTTPIngressPath
	for _, p := range paths {
		list = append(list, networkingv1.HTTPIngressPath{
			Path: p, PathType: ptr(networkingv1.PathTypePrefix),
			Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: app, Port: networkingv1.ServiceBackendPort{Name: port}}},
		})
	}
	meta := b.meta(app, "edge")
	meta.Annotations = annotations
	in := &networkingv1.Ingress{
		TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "Ingress"}, ObjectMeta: meta,
		Spec: networkingv1.IngressSpec{
			IngressClassName: ptr(higressClass),
			Rules: []networkingv1.IngressRule{{
				Host: b.k.Host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: list}},
			}},
		},
	}
	if b.k.Edge.TLSSecret != "" {
		in.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{b.k.Host}, SecretName: b.k.Edge.TLSSecret}}
	}
	return in
}

// destination keeps requests in the zone of the Higress pod that got them, until
// its pods fail.
func (b *builder) destination(app string) Object {
	d := operator.NewDestinationRule(b.meta(app, "edge"))
	d.Spec = operator.DestinationRuleSpec{
		Host: app + "." + b.k.Namespace + ".svc.cluster.local",
		TrafficPolicy: operator.TrafficPolicy{
			LoadBalancer: operator.LoadBalancer{
				Simple:            "LEAST_REQUEST",
				LocalityLBSetting: operator.Locality{Enabled: true, FailoverPriority: []string{corev1.LabelTopologyRegion, corev1.LabelTopologyZone}},
			},
			OutlierDetection: operator.OutlierDetection{Consecutive5xxErrors: 5, Interval: "5s", BaseEjectionTime: "30s", MaxEjectionPercent: 50},
		},
	}
	return d
}

// routeLimit is the tightest limit over all requests that Higress can count: per
// second or per minute. Each of its pods counts for itself, so it lets through at
// least what the gateways do and only keeps a flood away from them. Limits by
// key, user or tokens stay with the gateways: Higress's plugins for those want
// keys or Redis's password in clear in their objects, and know tokens only in
// OpenAI's form of an answer.
func (b *builder) routeLimit() map[string]string {
	best, annotations := 0.0, map[string]string(nil)
	for _, l := range b.spec.Gateway.RateLimits {
		m := l.Match
		if l.By != limit.ByAll || l.Unit != "requests" || len(m.Apps)+len(m.Classes) > 0 || m.PathPrefix != "" {
			continue
		}
		number, window, ok := strings.Cut(strings.Replace(l.Rate, " per ", "/", 1), "/")
		n, err := strconv.ParseUint(number, 10, 32)
		name, perSecond := "", float64(n)
		switch window {
		case "second":
			name = "higress.io/route-limit-rps"
		case "minute":
			name, perSecond = "higress.io/route-limit-rpm", float64(n)/60
		}
		if !ok || err != nil || name == "" {
			continue // a rate that Higress cannot say
		}
		if annotations != nil && perSecond >= best {
			continue
		}
		// The bucket holds the rate times this.
		multiplier := uint64(1)
		if burst := uint64(l.Burst); burst > n && n > 0 {
			multiplier = (burst + n - 1) / n
		}
		best = perSecond
		annotations = map[string]string{name: number, "higress.io/route-limit-burst-multiplier": strconv.FormatUint(multiplier, 10)}
	}
	return annotations
}
