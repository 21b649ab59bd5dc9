package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/diff"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"fournines/audit"
	"fournines/gateway"
	"fournines/internal/strictyaml"
	"fournines/kubernetes/operator"
	"fournines/pgproxy"
	"fournines/redisproxy"
	"fournines/spec"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

// example is a spec that can be rendered.
func example(t *testing.T, more string) *spec.Spec {
	t.Helper()
	s, err := parse(more)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(more string) (*spec.Spec, error) {
	return spec.Parse("fournines.yaml", []byte(`
kubernetes:
  image: registry.example.com/fournines:1.0.0
  host: dify.example.com
  objectStorage: {endpoint: "https://s3.example.com", region: eu-central-1, bucket: dify-data}
`+more))
}

// combination is one way to install Dify.
type combination struct {
	name      string
	spec      *spec.Spec
	manifests *Manifests
	tree      map[string][]byte
}

// combinations are the oldest and the newest version with every layer of its own
// or brought along, in two and three full zones, half of them with all that is
// optional and half with none of it; and every other version once.
func combinations(t *testing.T) []combination {
	t.Helper()
	all, err := combined()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// combined renders them once for all tests.
var combined = sync.OnceValues(func() ([]combination, error) {
	var all []combination
	add := func(name, version string, change func(s *spec.Spec)) error {
		s, err := parse("dify: {version: " + version + "}\n")
		if err != nil {
			return err
		}
		change(s)
		if err := s.Validate(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c := combination{name: name, spec: s}
		if c.manifests, err = Render(s); err == nil {
			c.tree, err = c.manifests.Tree()
		}
		all = append(all, c)
		return err
	}
	var errs []error
	versions := Versions()
	for _, version := range versions {
		errs = append(errs, add(version, version, func(*spec.Spec) {}))
	}
	for _, version := range []string{versions[0], versions[len(versions)-1]} {
		for layers := range uint(1 << 4) {
			errs = append(errs, add(fmt.Sprintf("%s/%04b", version, layers), version, func(s *spec.Spec) { vary(s, layers) }))
		}
	}
	return all, errors.Join(errs...)
})

// vary takes from each bit who runs a layer, and how many zones are full.
func vary(s *spec.Spec, layers uint) {
	has := func(bit int) bool { return layers>>bit&1 == 1 }
	provider := map[bool]spec.Provider{true: spec.ProviderOperator, false: spec.ProviderExternal}
	optional := bits.OnesCount(layers)%2 == 0
	k := &s.Kubernetes
	k.Postgres.Provider, k.Redis.Provider, k.Vectors.Provider = provider[has(0)], provider[has(1)], provider[has(2)]
	if !has(0) {
		k.Postgres.Servers, k.Postgres.TLS, k.Postgres.CASecret = []string{"db-1.example.com:5432@a", "db-2.example.com:5432@b"}, "verify-full", "db-ca"
	}
	if !has(1) {
		k.Redis.Nodes, k.Redis.TLS = []string{"cache.example.com:6379"}, optional
	}
	if !has(2) {
		k.Vectors.URI = "https://milvus.example.com:19530"
	}
	if has(3) {
		s.Zones[2].Role = spec.RoleFull
		for i, label := range []string{"eu-central-1a", "eu-central-1b", "eu-central-1c"} {
			s.Zones[i].NodeLabel = label
		}
		// Three zones share what two had.
		s.Postgres.Proxy.PoolSize = 60
	}
	if optional {
		k.Secrets.Store, k.StorageClass = "vault", "zonal-ssd"
		k.Observability.Labels = map[string]string{"release": "kube-prometheus-stack"}
		k.Edge.TLSSecret, k.ObjectStorage.AddressStyle = "dify-tls", "path"
		k.Dify.Env = map[string]string{"LOG_LEVEL": "DEBUG"}
	} else {
		k.Edge.Provider, k.Observability.Provider, s.Backup.Enabled = spec.ProviderNone, spec.ProviderNone, false
		s.Gateway.Jobs.Enabled, s.Postgres.Synchronous, k.Operators = false, false, nil
	}
}

func render(t *testing.T, s *spec.Spec) *Manifests {
	t.Helper()
	m, err := Render(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// builtin are the kinds of Kubernetes itself that are rendered.
var builtin = map[string]func() any{
	"v1 Namespace":                           func() any { return new(corev1.Namespace) },
	"v1 ConfigMap":                           func() any { return new(corev1.ConfigMap) },
	"v1 Secret":                              func() any { return new(corev1.Secret) },
	"v1 Service":                             func() any { return new(corev1.Service) },
	"apps/v1 Deployment":                     func() any { return new(appsv1.Deployment) },
	"batch/v1 Job":                           func() any { return new(batchv1.Job) },
	"autoscaling/v2 HorizontalPodAutoscaler": func() any { return new(autoscalingv2.HorizontalPodAutoscaler) },
	"policy/v1 PodDisruptionBudget":          func() any { return new(policyv1.PodDisruptionBudget) },
	"networking.k8s.io/v1 NetworkPolicy":     func() any { return new(networkingv1.NetworkPolicy) },
	"networking.k8s.io/v1 Ingress":           func() any { return new(networkingv1.Ingress) },
	"scheduling.k8s.io/v1 PriorityClass":     func() any { return new(schedulingv1.PriorityClass) },
}

// TestEveryObjectIsStrictlyValid decodes what is written, field by field, in all
// combinations: into Kubernetes's own types without a field that they do not
// have, and against the schemas of the operators.
func TestEveryObjectIsStrictlyValid(t *testing.T) {
	schemas := definitions(t)
	used := map[string]bool{}
	seen := map[string]bool{}
	for _, c := range combinations(t) {
		for file, text := range c.tree {
			// The same file in several combinations is looked at once.
			if path.Base(file) == kustomizationFile || seen[string(text)] {
				continue
			}
			seen[string(text)] = true
			for _, o := range documents(t, text) {
				kind := fmt.Sprint(o["apiVersion"], " ", o["kind"])
				used[kind] = true
				var err error
				if make, ok := builtin[kind]; ok {
					err = strict(o, make())
				} else if schema, ok := schemas[kind]; ok {
					err = schema.Validate(plainJSON(t, o))
				} else {
					err = errors.New("neither a kind of Kubernetes nor one with a definition in " + crdDirectory)
				}
				if err != nil {
					t.Errorf("%s: %s: %s: %v", c.name, file, kind, err)
				}
			}
		}
	}
	for kind := range schemas {
		if !used[kind] {
			t.Errorf("no combination has a %s: its definition is not needed", kind)
		}
	}
}

// strict decodes a document into a type of Kubernetes and refuses fields that it
// does not have.
func strict(o map[string]any, into any) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}

// operatorPods are labels of pods that operators make.
var operatorPods = []map[string]string{
	postgresPods(), {"app": redisRoles()[0]}, {"app": redisRoles()[1]}, {labelInstance: appMilvus}, {labelInstance: appMilvus + "-etcd"},
}

// TestReferencesLeadSomewhere follows every name from one object to another.
func TestReferencesLeadSomewhere(t *testing.T) {
	for _, c := range combinations(t) {
		g := newGraph(t, c)
		for _, o := range c.manifests.Objects() {
			g.follow(o)
		}
	}
}

type graph struct {
	t           *testing.T
	name        string
	spec        *spec.Spec
	deployments map[string]*appsv1.Deployment
	configMaps  map[string]*corev1.ConfigMap
	services    map[string]*corev1.Service
	priorities  map[string]bool
	secrets     map[string][]string
	pods        []map[string]string
}

func newGraph(t *testing.T, c combination) *graph {
	t.Helper()
	m := c.manifests
	g := &graph{
		t: t, name: c.name, spec: c.spec, deployments: map[string]*appsv1.Deployment{}, configMaps: map[string]*corev1.ConfigMap{},
		services: map[string]*corev1.Service{}, priorities: map[string]bool{}, secrets: map[string][]string{}, pods: slices.Clone(operatorPods),
	}
	version, err := versionOf(c.spec.Dify.Version)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{spec: c.spec, k: &c.spec.Kubernetes, version: version}
	for _, s := range b.secrets() {
		g.secrets[s.name] = s.keys
		if s.username != "" {
			g.secrets[s.name] = append(slices.Clone(s.keys), keyUsername)
		}
	}
	g.secrets["db-ca"], g.secrets[appPostgres+"-ca"] = []string{caKey}, []string{caKey} // given, and made by the operator
	seen := map[string]bool{}
	for _, o := range m.Objects() {
		id := o.GetObjectKind().GroupVersionKind().String() + o.GetName()
		if seen[id] {
			g.errorf("%s is there twice", id)
		}
		seen[id] = true
		if n := o.GetNamespace(); n != m.Namespace && n != "" {
			g.errorf("%s is in namespace %s", id, n)
		}
		switch o := o.(type) {
		case *appsv1.Deployment:
			g.deployments[o.Name] = o
			g.pods = append(g.pods, o.Spec.Template.Labels)
		case *batchv1.Job:
			g.pods = append(g.pods, o.Spec.Template.Labels)
		case *corev1.ConfigMap:
			g.configMaps[o.Name] = o
		case *corev1.Service:
			g.services[o.Name] = o
		case *schedulingv1.PriorityClass:
			g.priorities[o.Name] = true
		}
	}
	return g
}

func (g *graph) errorf(format string, args ...any) {
	g.t.Helper()
	g.t.Errorf(g.name+": "+format, args...)
}

// selects reports whether a selector picks any of our pods or an operator's. The
// label of a pod's zone is Kubernetes's.
func (g *graph) selects(selector map[string]string) bool {
	want := maps.Clone(selector)
	delete(want, topologyZone)
	return slices.ContainsFunc(g.pods, func(labels map[string]string) bool {
		for k, v := range want {
			if labels[k] != v {
				return false
			}
		}
		return true
	})
}

func (g *graph) follow(o Object) {
	g.t.Helper()
	switch o := o.(type) {
	case *appsv1.Deployment:
		if !maps.Equal(o.Spec.Selector.MatchLabels, intersect(o.Spec.Template.Labels, o.Spec.Selector.MatchLabels)) {
			g.errorf("Deployment %s does not select its own pods", o.Name)
		}
		g.pod(o.Name, o.Spec.Template.Spec)
	case *batchv1.Job:
		g.pod(o.Name, o.Spec.Template.Spec)
	case *corev1.Service:
		if !g.selects(o.Spec.Selector) {
			g.errorf("Service %s selects nothing: %v", o.Name, o.Spec.Selector)
		}
		g.ports(o)
	case *policyv1.PodDisruptionBudget:
		if !g.selects(o.Spec.Selector.MatchLabels) {
			g.errorf("PodDisruptionBudget %s selects nothing", o.Name)
		}
	case *autoscalingv2.HorizontalPodAutoscaler:
		if d := g.deployments[o.Spec.ScaleTargetRef.Name]; d == nil || d.Spec.Replicas != nil {
			g.errorf("HorizontalPodAutoscaler %s: no Deployment without replicas", o.Name)
		}
	case *operator.ScaledObject:
		if d := g.deployments[o.Spec.ScaleTargetRef.Name]; d == nil || d.Spec.Replicas != nil {
			g.errorf("ScaledObject %s: no Deployment without replicas", o.Name)
		}
	case *networkingv1.Ingress:
		for _, p := range o.Spec.Rules[0].HTTP.Paths {
			s := g.services[p.Backend.Service.Name]
			if s == nil || !slices.ContainsFunc(s.Spec.Ports, func(sp corev1.ServicePort) bool { return sp.Name == p.Backend.Service.Port.Name }) {
				g.errorf("Ingress %s: there is no Service %s with a port %s", o.Name, p.Backend.Service.Name, p.Backend.Service.Port.Name)
			}
		}
	case *operator.DestinationRule:
		if name, rest, _ := strings.Cut(o.Spec.Host, "."); g.services[name] == nil || rest != g.spec.Kubernetes.Namespace+".svc.cluster.local" {
			g.errorf("DestinationRule %s: there is no Service %s", o.Name, o.Spec.Host)
		}
	case *operator.PodMonitor:
		for k, v := range o.Spec.Selector.MatchLabels {
			if !g.selects(map[string]string{k: v}) {
				g.errorf("PodMonitor %s selects nothing", o.Name)
			}
		}
	case *networkingv1.NetworkPolicy:
		if len(o.Spec.PodSelector.MatchLabels) > 0 && !g.selects(o.Spec.PodSelector.MatchLabels) {
			g.errorf("NetworkPolicy %s is for no pod", o.Name)
		}
		for _, r := range o.Spec.Ingress {
			if len(r.From) == 0 {
				g.errorf("NetworkPolicy %s lets in everybody", o.Name)
			}
			for _, p := range r.From {
				if p.PodSelector != nil && !g.selects(p.PodSelector.MatchLabels) {
					g.errorf("NetworkPolicy %s lets in nobody: %v", o.Name, p.PodSelector.MatchLabels)
				}
			}
		}
	}
}

func intersect(labels, names map[string]string) map[string]string {
	out := map[string]string{}
	for k := range names {
		if v, ok := labels[k]; ok {
			out[k] = v
		}
	}
	return out
}

// ports checks that a Service's target ports are ports of the pods it selects.
func (g *graph) ports(s *corev1.Service) {
	selector := maps.Clone(s.Spec.Selector)
	delete(selector, topologyZone)
	for _, d := range g.deployments {
		if !maps.Equal(selector, intersect(d.Spec.Template.Labels, selector)) {
			continue
		}
		for _, p := range s.Spec.Ports {
			found := false
			for _, c := range d.Spec.Template.Spec.Containers {
				for _, cp := range c.Ports {
					found = found || cp.Name == p.TargetPort.StrVal
				}
			}
			if !found {
				g.errorf("Service %s: Deployment %s has no port %s", s.Name, d.Name, p.TargetPort.StrVal)
			}
		}
	}
}

// pod checks what a pod mounts and reads, and what every pod of ours has.
func (g *graph) pod(name string, pod corev1.PodSpec) {
	g.t.Helper()
	secret := func(name, key string) {
		if !slices.Contains(g.secrets[name], key) {
			g.errorf("%s: there is no key %s in a Secret %s", name, key, name)
		}
	}
	if !g.priorities[pod.PriorityClassName] {
		g.errorf("%s has no priority: %q", name, pod.PriorityClassName)
	}
	if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		g.errorf("%s gets variables of Services or a token of the API server", name)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil && g.configMaps[v.ConfigMap.Name] == nil {
			g.errorf("%s: there is no ConfigMap %s", name, v.ConfigMap.Name)
		}
		if v.Secret != nil {
			for _, i := range v.Secret.Items {
				secret(v.Secret.SecretName, i.Key)
			}
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				for _, i := range s.Secret.Items {
					secret(s.Secret.Name, i.Key)
				}
			}
		}
	}
	for _, c := range pod.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				g.errorf("%s mounts %s, which is no volume", name, m.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil {
				secret(e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key)
			}
		}
		for _, e := range c.EnvFrom {
			if g.configMaps[e.ConfigMapRef.Name] == nil {
				g.errorf("%s: there is no ConfigMap %s", name, e.ConfigMapRef.Name)
			}
		}
		if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
			g.errorf("%s, container %s has no requests, or no limit of its memory", name, c.Name)
		}
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
			g.errorf("%s, container %s has rights that it does not need", name, c.Name)
		}
		if name == appSandbox {
			continue // it needs root and its disk, see there
		}
		if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || pod.SecurityContext.RunAsNonRoot == nil || !*pod.SecurityContext.RunAsNonRoot {
			g.errorf("%s, container %s runs as root or writes to its image", name, c.Name)
		}
	}
}

// TestProxiesTakeTheirConfigurations: each proxy reads what it gets as it would in
// its pod.
func TestProxiesTakeTheirConfigurations(t *testing.T) {
	for _, c := range combinations(t) {
		found := map[string]int{}
		for _, o := range c.manifests.Objects() {
			m, ok := o.(*corev1.ConfigMap)
			if !ok || m.Data[configName] == "" {
				continue
			}
			app, text := m.Labels[labelName], []byte(m.Data[configName])
			found[app]++
			var err error
			switch app {
			case appGateway:
				cfg := gateway.DefaultConfig()
				err = strictyaml.UnmarshalValid(m.Name, text, &cfg)
			case appPGProxy:
				cfg := pgproxy.DefaultConfig()
				err = strictyaml.UnmarshalValid(m.Name, text, &cfg)
				if total := len(c.spec.FullZones()) * c.spec.Kubernetes.ProxiesPerZone * cfg.Pool.Size; total > c.spec.Postgres.MaxConnections-spec.ReservedConnections {
					t.Errorf("%s: all pgproxies together open %d connections", c.name, total)
				}
			case appRedisproxy:
				cfg := redisproxy.DefaultConfig()
				err = strictyaml.UnmarshalValid(m.Name, text, &cfg)
			}
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		zones := len(c.spec.FullZones())
		if diff := cmp.Diff(map[string]int{appGateway: zones, appPGProxy: zones, appRedisproxy: zones}, found); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// TestAuditFindsNothing: what we render has none of the mistakes that we look for
// in what others write, but those that the spec asks for. Images are named by tag,
// which is a low one: their digests are for the user to say.
func TestAuditFindsNothing(t *testing.T) {
	for _, c := range combinations(t) {
		in := &audit.Inventory{}
		for _, name := range slices.Sorted(maps.Keys(c.tree)) {
			if err := in.Add(name, c.tree[name], nil); err != nil {
				t.Fatalf("%s: %s: %v", c.name, name, err)
			}
		}
		want := map[string]bool{"FN221": true}
		if c.spec.Kubernetes.Postgres.Provider == spec.ProviderOperator {
			if !c.spec.Backup.Enabled {
				want["FN344"] = true
			}
			if !c.spec.Postgres.Synchronous {
				want["FN343"] = true
			}
		}
		got := map[string]bool{}
		for _, f := range audit.Run(in, nil).Findings {
			got[f.Rule.ID] = true
			if !want[f.Rule.ID] {
				t.Errorf("%s: %s %s: %s: %s", c.name, f.Place, f.Rule.ID, f.Rule.Title, f.Message)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// TestSameSpecSameFiles: nothing of the moment goes into the files, and the stream
// holds the same objects.
func TestSameSpecSameFiles(t *testing.T) {
	for _, c := range combinations(t)[:len(Versions())] {
		m := render(t, c.spec)
		again, err := m.Tree()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.tree, again); diff != "" {
			t.Fatalf("%s: %s", c.name, diff)
		}
		stream, err := m.Stream()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(documents(t, stream)), len(m.Objects()); got != want {
			t.Errorf("%s: %d documents in the stream, want %d", c.name, got, want)
		}
	}
}

// TestKustomizationsNameEveryFile: kustomize finds all that is written, and
// nothing that is not.
func TestKustomizationsNameEveryFile(t *testing.T) {
	tree, err := render(t, example(t, "")).Tree()
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	var visit func(dir string)
	visit = func(dir string) {
		file := filepath.Join(dir, kustomizationFile)
		text, ok := tree[file]
		if !ok {
			t.Fatalf("there is no %s", file)
		}
		named[file] = true
		for _, r := range documents(t, text)[0]["resources"].([]any) {
			path := filepath.Join(dir, r.(string))
			if strings.HasSuffix(path, ".yaml") {
				named[path] = true
			} else {
				visit(path)
			}
		}
	}
	visit("")
	if diff := cmp.Diff(slices.Sorted(maps.Keys(tree)), slices.Sorted(maps.Keys(named))); diff != "" {
		t.Errorf("files and resources differ: %s", diff)
	}
}

func TestNothingSecretIsWritten(t *testing.T) {
	s := example(t, "")
	s.Dify.Version = Versions()[len(Versions())-1]
	stream, given, err := GenerateSecrets(s, rand.NewChaCha8([32]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Given{{secretStorage, []string{keyStorageAccess, keyStorageSecret}}}, given); diff != "" {
		t.Error(diff)
	}
	manifests, err := render(t, s).Stream()
	if err != nil {
		t.Fatal(err)
	}
	names, values := map[string]bool{}, map[string]bool{}
	for _, o := range documents(t, stream) {
		names[o["metadata"].(map[string]any)["name"].(string)] = true
		for key, v := range o["stringData"].(map[string]any) {
			value := v.(string)
			if key == keyUsername {
				continue
			}
			if len(value) < 32 || values[value] {
				t.Errorf("%s: %q is short, or there twice", key, value)
			}
			values[value] = true
			if bytes.Contains(manifests, []byte(value)) {
				t.Errorf("%s is in the manifests", key)
			}
		}
	}
	want := map[string]bool{secretDify: true, secretPostgresDify: true, secretPostgresProbe: true, secretRedisCluster: true, secretRedisDify: true, secretProxies: true, secretMilvus: true}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if _, _, err := GenerateSecrets(s, strings.NewReader("short")); err == nil {
		t.Error("secrets without randomness")
	}
}

func TestRenderSaysWhatIsMissing(t *testing.T) {
	s := spec.Default()
	s.Kubernetes.Postgres.Provider, s.Kubernetes.Postgres.TLS = spec.ProviderExternal, "verify-ca"
	s.Kubernetes.Redis.Provider, s.Kubernetes.Vectors.Provider = spec.ProviderExternal, spec.ProviderExternal
	_, err := Render(&s)
	if err == nil {
		t.Fatal("rendered")
	}
	for _, field := range []string{
		"kubernetes.image", "kubernetes.host", "kubernetes.objectStorage.endpoint", "kubernetes.objectStorage.bucket",
		"kubernetes.postgres.servers", "kubernetes.postgres.caSecret", "kubernetes.redis.nodes", "kubernetes.vectors.uri",
	} {
		if !strings.Contains(err.Error(), field+": needed") {
			t.Errorf("%s is not named in: %v", field, err)
		}
	}
	ok := example(t, "dify: {version: 1.0.0}\n")
	if _, err := Render(ok); err == nil || !strings.Contains(err.Error(), `dify.version: "1.0.0" cannot be rendered`) || !strings.Contains(err.Error(), "1.17.1") {
		t.Errorf("an unknown version: %v", err)
	}
}

// TestRouteLimits: what Higress counts lets through at least what the gateways do.
func TestRouteLimits(t *testing.T) {
	for name, test := range map[string]struct {
		limits string
		want   map[string]string
	}{
		"none":             {"[]", nil},
		"per second":       {"[{name: a, rate: 100 per second, by: all}]", map[string]string{"rps": "100", "burst-multiplier": "1"}},
		"per minute":       {"[{name: a, rate: 100/minute, by: all}]", map[string]string{"rpm": "100", "burst-multiplier": "1"}},
		"a larger burst":   {"[{name: a, rate: 100 per second, burst: 250, by: all}]", map[string]string{"rps": "100", "burst-multiplier": "3"}},
		"the tightest":     {"[{name: a, rate: 10 per second, by: all}, {name: b, rate: 300 per minute, by: all}, {name: c, rate: 6 per second, by: all}]", map[string]string{"rpm": "300", "burst-multiplier": "1"}},
		"not all requests": {"[{name: a, rate: 1 per second, by: app}, {name: b, rate: 1 per second, by: all, match: {pathPrefix: /v1/}}]", nil},
		"tokens":           {"[{name: a, rate: 1 per second, by: all, unit: tokens}]", nil},
		"not in its words": {"[{name: a, rate: 0.5 per second, by: all}, {name: b, rate: 100 per day, by: all}]", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := &builder{spec: example(t, "gateway: {rateLimits: "+test.limits+"}\n")}
			var got map[string]string
			for k, v := range b.routeLimit() {
				if got == nil {
					got = map[string]string{}
				}
				got[strings.TrimPrefix(k, "higress.io/route-limit-")] = v
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestGolden compares a few files with what they were; -update rewrites them.
func TestGolden(t *testing.T) {
	newest := example(t, "dify: {version: 1.17.1}\n")
	oldest := example(t, "zones: [{name: a, nodeLabel: eu-1a}, {name: b, nodeLabel: eu-1b}, {name: c, nodeLabel: eu-1c}]\npostgres: {proxy: {poolSize: 60}}\n")
	for file, s := range map[string]*spec.Spec{
		"dify/api.yaml": newest, "postgres/cluster.yaml": newest, "migration/migration.yaml": oldest, "dify/workers.yaml": oldest,
	} {
		t.Run(file, func(t *testing.T) {
			tree, err := render(t, s).Tree()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "golden", strings.ReplaceAll(file, "/", "-"))
			if *update {
				if err := os.WriteFile(golden, tree[file], 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff.Diff(golden, want, "rendered", tree[file]); len(d) > 0 {
				t.Errorf("%s", d)
			}
		})
	}
}
