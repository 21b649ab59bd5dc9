package exporter_test

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"fournines/component/exporter"
	"fournines/internal/process"
	"fournines/internal/servertest"
)

func TestPostgres(t *testing.T) {
	servertest.Need(t, "prometheus-postgres-exporter")
	server := servertest.NewPostgres(t, servertest.PostgresOptions{})
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	unit := must(t)(exporter.Postgres(exporter.PostgresConfig{
		Config: exporter.Config{Name: "postgres-exporter-a", Host: "127.65.1.21", DataDir: filepath.Join(dir, "exporter"), Owner: owner},
		Target: server.Address(), PasswordFile: servertest.Secret(t, owner, dir, "monitor", server.Password("monitor")),
	}))
	u := servertest.Start(t, owner, unit)
	for _, want := range []string{"pg_stat_database_xact_commit{", "pg_settings_max_connections{", "pg_stat_activity_count{"} {
		if body := get(t, "http://"+unit.Address+"/metrics"); !strings.Contains(body, want) {
			t.Errorf("no metric %s", want)
		}
	}
	leaks(t, u, server.Password("monitor"))
	u.Stop()
}

func TestRedis(t *testing.T) {
	servertest.Need(t, "prometheus-redis-exporter")
	cluster := servertest.NewRedisCluster(t)
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	unit := must(t)(exporter.Redis(exporter.RedisConfig{
		Config:  exporter.Config{Name: "redis-exporter", Host: "127.65.1.32", DataDir: filepath.Join(dir, "exporter"), Owner: owner},
		Targets: cluster.Addrs(), PasswordFile: servertest.Secret(t, owner, dir, "monitor", cluster.Password("monitor")),
	}))
	u := servertest.Start(t, owner, unit)
	for _, addr := range cluster.Addrs() {
		body := get(t, "http://"+unit.Address+"/scrape?target=redis://"+addr)
		for _, want := range []string{"redis_up 1", "redis_cluster_state 1", "redis_cluster_slots_ok 16384", "redis_connected_clients "} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: no metric %s", addr, want)
			}
		}
	}
	leaks(t, u, cluster.Password("monitor"))
	u.Stop()
}

func TestNode(t *testing.T) {
	servertest.Need(t, "prometheus-node-exporter")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	unit := must(t)(exporter.Node(exporter.Config{Name: "node-exporter", Host: "127.65.1.4", DataDir: filepath.Join(dir, "exporter"), Owner: owner}))
	u := servertest.Start(t, owner, unit)
	body := get(t, "http://"+unit.Address+"/metrics")
	for _, want := range []string{"node_load1 ", "node_memory_MemAvailable_bytes ", "node_cpu_seconds_total{", "node_filesystem_avail_bytes{"} {
		if !strings.Contains(body, want) {
			t.Errorf("no metric %s", want)
		}
	}
	u.Stop()
}

func TestRefusesBadConfig(t *testing.T) {
	_, err := exporter.Redis(exporter.RedisConfig{})
	for _, want := range []string{"Name", "Host", "DataDir", "Targets", "PasswordFile"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func must(t *testing.T) func(process.Unit, error) process.Unit {
	t.Helper()
	return func(u process.Unit, err error) process.Unit {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func leaks(t *testing.T, u *servertest.Unit, password string) {
	t.Helper()
	if strings.Contains(u.ArgsOf(), password) || strings.Contains(u.Log(), password) {
		t.Errorf("the password is in the arguments or the log of %s", u.Name)
	}
}
