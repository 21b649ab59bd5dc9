package kubernetes

import (
	_ "embed"
	"fmt"
	"maps"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fournines/kubernetes/operator"
	"fournines/spec"
)

const (
	appMonitoring = "monitoring"
	// scrapeInterval of everything: an alert needs two scrapes, and 52 minutes a
	// year do not last long.
	scrapeInterval = "15s"
)

// rules are the alerts. Those of layers that somebody else runs are left out.
//
//go:embed rules.yml
var rules []byte

// ruleFile returns the rules of an installation.
func (b *builder) ruleFile() (operator.PrometheusRuleSpec, error) {
	var file, kept operator.PrometheusRuleSpec
	text := strings.ReplaceAll(string(rules), "NAMESPACE", b.k.Namespace)
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		return kept, fmt.Errorf("read the rules: %w", err)
	}
	for _, g := range file.Groups {
		var list []operator.Rule
		for _, r := range g.Rules {
			if strings.Contains(r.Expr, "cnpg_") && b.k.Postgres.Provider != spec.ProviderOperator ||
				strings.Contains(r.Expr, "redis_") && b.k.Redis.Provider != spec.ProviderOperator ||
				strings.Contains(r.Expr, "milvus_") && b.k.Vectors.Provider != spec.ProviderOperator {
				continue
			}
			list = append(list, r)
		}
		if len(list) > 0 {
			kept.Groups = append(kept.Groups, operator.RuleGroup{Name: g.Name, Rules: list})
		}
	}
	return kept, nil
}

// observabilityLayer has Prometheus Operator scrape everything and evaluate the
// rules, or leaves both to a Prometheus that finds pods by their annotations.
func (b *builder) observabilityLayer() ([]File, error) {
	file, err := b.ruleFile()
	if err != nil {
		return nil, err
	}
	if b.k.Observability.Provider != spec.ProviderOperator {
		text, err := yaml.Marshal(file)
		if err != nil {
			return nil, fmt.Errorf("write the rules: %w", err)
		}
		return []File{{"rules.yaml", []Object{b.configMap("dify-rules", map[string]string{"dify.rules.yml": string(text)})}}}, nil
	}
	rule := operator.NewPrometheusRule(b.monitoringMeta("dify"))
	rule.Spec = file
	var monitors []Object
	for _, app := range []string{appGateway, appPGProxy, appRedisproxy} {
		monitors = append(monitors, b.podMonitor(app, metav1.LabelSelector{MatchLabels: b.selector(app)}, operator.PodMetricsEndpoint{Port: portMetrics}))
	}
	if b.k.Postgres.Provider == spec.ProviderOperator {
		monitors = append(monitors, b.podMonitor(appPostgres, metav1.LabelSelector{MatchLabels: postgresPods()}, operator.PodMetricsEndpoint{Port: portMetrics}))
	}
	if b.k.Redis.Provider == spec.ProviderOperator {
		monitors = append(monitors, b.podMonitor(appRedis, metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: "app", Operator: metav1.LabelSelectorOpIn, Values: redisRoles(),
		}}}, operator.PodMetricsEndpoint{PortNumber: redisExporterPort}))
	}
	if b.k.Vectors.Provider == spec.ProviderOperator {
		monitors = append(monitors, b.podMonitor(appMilvus, metav1.LabelSelector{MatchLabels: map[string]string{labelInstance: appMilvus}}, operator.PodMetricsEndpoint{Port: portMetrics}))
	}
	return []File{{"monitors.yaml", monitors}, {"rules.yaml", []Object{rule}}}, nil
}

// monitoringMeta is the head of an object that a Prometheus selects by labels.
func (b *builder) monitoringMeta(name string) metav1.ObjectMeta {
	m := b.meta(name, appMonitoring)
	maps.Copy(m.Labels, b.k.Observability.Labels)
	return m
}

// podMonitor scrapes the pods of an application as the job of its name, with the
// zone that each stands in.
func (b *builder) podMonitor(app string, pods metav1.LabelSelector, e operator.PodMetricsEndpoint) Object {
	e.Path, e.Interval, e.ScrapeTimeout = "/metrics", scrapeInterval, "10s"
	e.Relabelings = []operator.Relabeling{
		{Action: "replace", TargetLabel: "job", Replacement: app},
		{Action: "replace", SourceLabels: []string{"__meta_kubernetes_pod_label_topology_kubernetes_io_zone"}, TargetLabel: "zone"},
	}
	m := operator.NewPodMonitor(b.monitoringMeta(app))
	m.Spec = operator.PodMonitorSpec{Selector: pods, PodMetricsEndpoints: []operator.PodMetricsEndpoint{e}}
	return m
}
