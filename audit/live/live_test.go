package live

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fournines/audit"
	"fournines/component/prometheus"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// findings runs the rules and returns the ids of what they found.
func findings(in *audit.Inventory) map[string]string {
	out := map[string]string{}
	for _, f := range audit.Run(in, nil).Findings {
		out[f.Rule.ID] += f.String() + ": " + f.Message + "\n"
	}
	return out
}

func expect(t *testing.T, got map[string]string, want ...string) {
	t.Helper()
	if ids := slices.Sorted(maps.Keys(got)); !slices.Equal(ids, want) {
		t.Errorf("found %v, want %v:\n%v", ids, want, got)
	}
}

// withoutPassword takes the password out of a DSN.
func withoutPassword(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

func TestPostgres(t *testing.T) {
	server := servertest.NewPostgres(t, servertest.PostgresOptions{})
	server.Exec("SELECT pg_create_physical_replication_slot('gone', true)")
	dsn := withoutPassword(t, server.DSN("monitor"))
	facts, err := Postgres(t.Context(), dsn, server.Password("monitor"))
	if err != nil {
		t.Fatal(err)
	}
	if facts.Name != server.Address() || facts.Standby || facts.Settings["max_connections"] != "100" || facts.Sessions == 0 || facts.TransactionAge == 0 {
		t.Errorf("%+v", facts)
	}
	// fsync off, no archive, slots without a limit, no standby, a dead slot, no
	// checksums: what the server of a test is like.
	got := findings(&audit.Inventory{Postgres: []audit.Postgres{facts}})
	delete(got, "FN517") // the session that made the slot may not have ended
	expect(t, got, "FN502", "FN504", "FN507", "FN510", "FN514", "FN518")

	// The superuser may read pg_hba.conf's lines too.
	if _, err := Postgres(t.Context(), withoutPassword(t, server.DSN("postgres")), server.Password("postgres")); err != nil {
		t.Error(err)
	}
	// The session cannot write, and a wrong password is an error without it.
	if _, err := Postgres(t.Context(), dsn, "not-the-password"); err == nil || strings.Contains(err.Error(), "not-the-password") {
		t.Errorf("wrong password: %v", err)
	}
}

func TestRedisCluster(t *testing.T) {
	cluster := servertest.NewRedisCluster(t)
	addr := cluster.Addrs()[0]
	facts, err := Redis(t.Context(), "redis://admin@"+addr, cluster.Password("admin"))
	if err != nil {
		t.Fatal(err)
	}
	masters, slots := 0, 0
	for _, n := range facts.Nodes {
		if n.MasterID == "" {
			masters++
			slots += n.Slots
		}
	}
	if len(facts.Nodes) != 6 || masters != 3 || slots != 16384 || facts.ClusterInfo["cluster_state"] != "ok" || facts.Settings["cluster-enabled"] != "yes" {
		t.Errorf("%+v", facts)
	}
	got := findings(&audit.Inventory{Redis: []audit.Redis{facts}})
	delete(got, "FN601") // as the cluster of the tests is set up
	expect(t, got, "FN605")

	// Without a replica left, its master is alone.
	for i, n := range facts.Nodes {
		if n.MasterID != "" {
			facts.Nodes = slices.Delete(facts.Nodes, i, i+1)
			break
		}
	}
	if got := findings(&audit.Inventory{Redis: []audit.Redis{facts}}); !strings.Contains(got["FN611"], "no replica") {
		t.Errorf("a master without a replica: %v", got)
	}
}

func TestRedisAlone(t *testing.T) {
	server := servertest.NewRedis(t)
	facts, err := Redis(t.Context(), "redis://"+server.Client(t, 0).Options().Addr, server.Client(t, 0).Options().Password)
	if err != nil {
		t.Fatal(err)
	}
	if got := findings(&audit.Inventory{Redis: []audit.Redis{facts}}); got["FN614"] == "" {
		t.Errorf("no replica: %v", got)
	}
}

func TestPrometheus(t *testing.T) {
	servertest.Need(t, "prometheus")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	host := servertest.LoopbackHost()
	unit, err := prometheus.Unit(prometheus.Config{
		Host: host, ScrapeInterval: time.Second, DataDir: filepath.Join(dir, "prometheus"), Owner: owner,
		Rules: []byte("groups: [{name: redis, rules: [{alert: RedisClusterDown, expr: redis_cluster_state == 0}]}]\n"),
		Jobs: []prometheus.Job{
			{Name: "prometheus", Targets: []prometheus.Target{{Address: host + ":9090", Component: "prometheus"}}},
			{Name: "lost", Targets: []prometheus.Target{{Address: host + ":1", Component: "lost"}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	servertest.Start(t, owner, unit)
	var facts audit.Prometheus
	eventually.Nil(t, time.Minute, func() error {
		var err error
		facts, err = Prometheus(t.Context(), "http://"+unit.Address)
		if err == nil && (!facts.Metrics["up"] || len(facts.Down) == 0) {
			err = fmt.Errorf("%d metrics, down %v", len(facts.Metrics), facts.Down)
		}
		return err
	})
	if facts.Targets != 2 || len(facts.Rules) == 0 || facts.Retention != 48*time.Hour {
		t.Errorf("%d targets, %d rules, retention %v", facts.Targets, len(facts.Rules), facts.Retention)
	}
	got := findings(&audit.Inventory{Prometheus: []audit.Prometheus{facts}})
	for id, want := range map[string]string{
		"FN730": "no series redis_cluster_state", // no exporter runs
		"FN733": "no active Alertmanager",
		"FN734": "lost " + host + ":1",
		"FN735": "PostgreSQL: none of",
		"FN737": "storageRetention 2d",
	} {
		if !strings.Contains(got[id], want) {
			t.Errorf("%s: %q is not in %q", id, want, got[id])
		}
	}
}

func TestWrongURLs(t *testing.T) {
	for name, ask := range map[string]func(ctx context.Context, url string) error{
		"postgres":   func(ctx context.Context, u string) error { _, err := Postgres(ctx, u, ""); return err },
		"redis":      func(ctx context.Context, u string) error { _, err := Redis(ctx, u, ""); return err },
		"prometheus": func(ctx context.Context, u string) error { _, err := Prometheus(ctx, u); return err },
		"gateway":    func(ctx context.Context, u string) error { _, err := Gateway(ctx, u, ""); return err },
	} {
		scheme := map[string]string{"postgres": "postgres", "redis": "redis"}[name]
		if scheme == "" {
			scheme = "http"
		}
		for u, want := range map[string]string{
			scheme + "://u:hunter2@127.0.0.1:1/x": "keep the password out of the arguments",
			"ftp://127.0.0.1:1":                   "want " + scheme + "://",
			"127.0.0.1":                           "not a URL",
		} {
			if err := ask(t.Context(), u); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s %s: %v", name, u, err)
			}
		}
		if err := ask(t.Context(), scheme+"://"+servertest.FreeAddress(t)); err == nil {
			t.Errorf("%s: nobody listens, and no error", name)
		}
	}
}

func TestClusterNodes(t *testing.T) {
	text, err := os.ReadFile("testdata/cluster-nodes.txt")
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := clusterNodes(string(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []audit.RedisNode{
		{ID: "07c37dfe", Host: "10.0.2.7", Address: "10.0.2.7:6379", MasterID: "e7d1eecc"},
		{ID: "67ed2db8", Host: "10.0.1.7", Address: "10.0.1.7:6379", Slots: 5462, Failed: true},
		{ID: "e7d1eecc", Host: "2001:db8::7", Address: "[2001:db8::7]:6379", Slots: 2},
		{ID: "91ab0c22", Host: "", Address: ":0", Failed: true},
	}
	if !slices.Equal(nodes, want) {
		t.Errorf("got  %+v\nwant %+v", nodes, want)
	}
	for _, bad := range []string{"too short", "a b:1@2 master - 0 0 1 connected five"} {
		if _, err := clusterNodes(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
