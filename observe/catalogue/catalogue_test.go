package catalogue_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"fournines/backup"
	"fournines/difysim"
	"fournines/gateway"
	"fournines/gateway/jobs"
	"fournines/internal/docpage"
	"fournines/internal/zonenet"
	"fournines/loadbalancer"
	"fournines/observe/catalogue"
	"fournines/pgproxy"
	"fournines/redisproxy"
	"fournines/topology"
)

var update = flag.Bool("update", false, "rewrite metrics.json and docs/metrics.md")

// secret writes a file with one line.
func secret(t *testing.T, line string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// nobody is an address where nobody is asked: nothing runs in this test.
const nobody = "127.0.0.1:1"

// processes makes every process as its command does, without running it, with a
// registry that notes what it registers.
func processes(t *testing.T) map[string]*docpage.Metrics {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	all := map[string]*docpage.Metrics{}
	registry := func(name string) *docpage.Metrics {
		all[name] = docpage.NewMetrics()
		return all[name]
	}
	made := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	gw := gateway.DefaultConfig()
	u, err := gateway.ParseUpstream(nobody)
	made(u, err)
	gw.Upstreams = []gateway.Upstream{u}
	gw.Redis.Nodes = []string{nobody}
	gw.Jobs.KeyFile = secret(t, jobs.NewKey())
	made(gateway.New(gw, log, registry(catalogue.Gateway)))

	pg := pgproxy.DefaultConfig()
	pg.Listen = nobody
	pg.Backends = []topology.Endpoint{{Name: "postgres-a", Zone: "a", Address: nobody}}
	pg.Users = []pgproxy.User{{Name: "dify", PasswordFile: secret(t, "of dify, long enough")}}
	pg.Probe.PasswordFile = secret(t, "of the probe, long enough")
	made(pgproxy.New(pg, pgproxy.Options{}, log, registry(catalogue.PGProxy)))

	rd := redisproxy.DefaultConfig()
	rd.Listen = nobody
	rd.Nodes = []topology.Endpoint{{Name: "redis-a-1", Zone: "a", Address: nobody}}
	rd.Upstream = redisproxy.Upstream{User: "redisproxy", PasswordFile: secret(t, "of the proxy, long enough")}
	rd.Users = []redisproxy.User{{Name: "dify", PasswordFile: secret(t, "of dify, long enough")}}
	made(redisproxy.New(rd, log, registry(catalogue.RedisProxy)))

	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	made(ln, err)
	t.Cleanup(func() { _ = ln.Close() })
	lb := loadbalancer.Config{Services: []loadbalancer.Service{{
		Name: "gateway", Listen: []string{ln.Addr().String()},
		Backends: []loadbalancer.Backend{{Endpoint: topology.Endpoint{Name: "gateway-a", Zone: "a", Address: nobody}}},
	}}}
	made(loadbalancer.New(lb, loadbalancer.Listeners{"gateway": {ln}}, log, registry(catalogue.LoadBalancer)))

	bk := backup.Default()
	bk.Name, bk.StateDir, bk.Folder = "catalogue", t.TempDir(), t.TempDir()
	bk.Nodes = []backup.Node{{Name: "postgres-a", DataDir: t.TempDir(), SocketDir: t.TempDir(), Port: 5432}}
	backups, err := backup.New(bk, backup.Options{ConfigFile: "config.yaml"})
	made(backups, err)
	made(backup.NewScheduler(backups, log, registry(catalogue.Backup)))

	sim := difysim.DefaultConfig()
	made(difysim.NewAPI(sim, log, registry(catalogue.DifyAPI)))
	made(difysim.NewWorker(sim, log, registry(catalogue.DifyWorker)))

	made(zonenet.NewForwarder(zonenet.ForwarderConfig{Zones: []zonenet.ForwarderZone{
		{Name: "a", Namespace: "none-a", Subnet: "10.7.1.0/24", Source: "10.7.1.1"},
		{Name: "b", Namespace: "none-b", Subnet: "10.7.2.0/24", Source: "10.7.2.1"},
	}}, log, registry(catalogue.Zonelink)))

	registry(catalogue.Every).MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return all
}

// registered is the catalogue as the processes register it.
func registered(t *testing.T) []catalogue.Metric {
	t.Helper()
	var all []catalogue.Metric
	for process, m := range processes(t) {
		for _, f := range m.Families(t) {
			all = append(all, catalogue.Metric{
				Process: process, Name: f.Name, Type: f.Type, Unit: catalogue.UnitOf(f.Name, f.Help),
				Labels: f.Labels, Help: f.Help, Always: f.Always, Buckets: f.Buckets,
			})
		}
	}
	slices.SortFunc(all, func(a, b catalogue.Metric) int {
		return strings.Compare(a.Process+" "+a.Name, b.Process+" "+b.Name)
	})
	return all
}

func TestGeneratedFiles(t *testing.T) {
	all := registered(t)
	list, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]byte{
		"metrics.json":          append(list, '\n'),
		"../../docs/metrics.md": catalogue.Page(all),
	} {
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale (%v); run: go generate ./observe/catalogue", filepath.Clean(path), err)
		}
	}
}

var (
	metricForm = regexp.MustCompile(`^(fournines_(gateway|pgproxy|redisproxy|loadbalancer|backup|zonelink)|difysim|process)(_[a-z0-9]+)+$`)
	labelForm  = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	// bounded are all labels there may be. Before one is added, its values must
	// be bounded: by the configuration, by a list in the code, or by a cap.
	bounded = []string{
		"app", "backend", "class", "code", "database", "direction", "endpoint", "family", "from", "instance_name", "kind", "limit",
		"mode", "operation", "outcome", "priority", "queue", "reason", "result", "route", "service", "source", "state", "target",
		"task", "to", "user", "version", "zone",
	}
)

func TestNamesFollowTheConventions(t *testing.T) {
	for _, m := range catalogue.All() {
		at := m.Process + ": " + m.Name
		if !metricForm.MatchString(m.Name) {
			t.Errorf("%s: the name has not the form %s", at, metricForm)
		}
		if counts := strings.HasSuffix(m.Name, "_total"); counts != (m.Type == "counter") {
			t.Errorf("%s is a %s: counters, and nothing else, end in _total", at, m.Type)
		}
		if m.Process != catalogue.Every && (len(m.Help) < 10 || !strings.HasSuffix(m.Help, ".")) {
			t.Errorf("%s: %q does not say what it means in a sentence", at, m.Help)
		}
		for _, l := range m.Labels {
			if !labelForm.MatchString(l) || !slices.Contains(bounded, l) {
				t.Errorf("%s: nothing says that the values of the label %q are bounded", at, l)
			}
		}
		if m.Type == "histogram" && m.Unit != "seconds" && m.Unit != "bytes" {
			t.Errorf("%s: a histogram's name ends in its unit", at)
		}
	}
}

// TestLinterOfPrometheusAgrees asks the linter behind `promtool check metrics`
// about what has series.
func TestLinterOfPrometheusAgrees(t *testing.T) {
	for process, m := range processes(t) {
		families, err := m.Gather()
		if err != nil {
			t.Fatal(err)
		}
		problems, err := promlint.NewWithMetricFamilies(families).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s: %s", process, p.Metric, p.Text)
		}
	}
}

func TestKnown(t *testing.T) {
	for name, want := range map[string]bool{
		"up": true, "fournines_gateway_requests_total": true, "fournines_gateway_first_content_seconds_bucket": true,
		"process_start_time_seconds": true, "redis_cluster_state": true,
		"fournines_gateway_first_content_seconds": false, "fournines_gateway_requests_total_bucket": false,
		"pg_replication_lag": false, "": false,
	} {
		if got := catalogue.Known(name); got != want {
			t.Errorf("Known(%q) = %v, want %v", name, got, want)
		}
	}
	if _, ok := catalogue.Find(catalogue.Gateway, "process_start_time_seconds"); !ok {
		t.Error("the gateway has no process_start_time_seconds")
	}
	if _, ok := catalogue.Find(catalogue.Gateway, "fournines_pgproxy_clients"); ok {
		t.Error("the gateway has a metric of pgproxy")
	}
}
