package postgres_test

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/component/etcd"
	"fournines/component/postgres"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestRecoveryOfAnInterruptedFirstStart(t *testing.T) {
	servertest.Need(t, "etcd", "etcdctl")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	const host, client = "127.63.1.10", "127.63.1.10:2379"
	unit, err := etcd.Unit(etcd.Config{
		Name: "etcd", Zone: "a", Members: []etcd.Member{{Name: "etcd", Host: host}}, Cluster: "recovery-test",
		DataDir: filepath.Join(dir, "etcd"), Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	servertest.Launch(t, owner, unit)
	eventually.Nil(t, time.Minute, func() error { return unit.Ready(t.Context()) })

	node := postgres.Config{Cluster: "test", Host: "127.63.1.20", Etcd: []string{client}, DataDir: filepath.Join(dir, "postgres")}
	task, err := postgres.RecoveryTask(postgres.RecoveryConfig{Nodes: []postgres.Config{node}})
	if err != nil {
		t.Fatal(err)
	}
	const key = "/fournines/test/initialize"
	etcdctl := func(args ...string) string {
		cmd := exec.Command("etcdctl", append([]string{"--endpoints", client}, args...)...)
		cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	file := filepath.Join(node.DataDir, "data", "PG_VERSION")
	check := func(name string, wantKept bool, wantKeys string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("15\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := task.Task(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := os.Stat(file); (err == nil) != wantKept {
			t.Errorf("%s: data kept: %v, want %v", name, err == nil, wantKept)
		}
		if got := etcdctl("get", key, "--keys-only"); got != wantKeys {
			t.Errorf("%s: keys %q, want %q", name, got, wantKeys)
		}
	}

	check("a cluster without any key", true, "")
	etcdctl("put", key, "7123456789012345678")
	check("a finished cluster", true, key)

	// A later start brings the cluster-wide settings up to date and leaves alone
	// what others have put there.
	const config = "/fournines/test/config"
	etcdctl("put", config, `{"ttl": 30, "loop_wait": 2, "mine": 1, "synchronous_mode": false, "postgresql": {"parameters": {"max_connections": 7, "work_mem": "9MB"}}}`)
	check("settings of another spec", true, key)
	var settings struct {
		TTL             int  `json:"ttl"`
		Mine            int  `json:"mine"`
		SynchronousMode bool `json:"synchronous_mode"`
		PostgreSQL      struct {
			Parameters struct {
				MaxConnections int    `json:"max_connections"`
				WorkMem        string `json:"work_mem"`
			} `json:"parameters"`
		} `json:"postgresql"`
	}
	text := etcdctl("get", config, "--print-value-only")
	if err := json.Unmarshal([]byte(text), &settings); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if settings.TTL != 7 || settings.Mine != 1 || !settings.SynchronousMode ||
		settings.PostgreSQL.Parameters.MaxConnections != postgres.DefaultMaxConnections || settings.PostgreSQL.Parameters.WorkMem != "9MB" {
		t.Errorf("settings after the task: %s", text)
	}
	check("settings that are right", true, key)
	if again := etcdctl("get", config, "--print-value-only"); again != text {
		t.Errorf("settings that were right were changed to %s", again)
	}
	etcdctl("put", key, "")
	ln, err := net.Listen("tcp", "127.63.1.20:8008")
	if err != nil {
		t.Fatal(err)
	}
	check("a node that is at it", true, key)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	check("an interrupted one", false, "")
	if away, err := filepath.Glob(filepath.Join(node.DataDir, "data.incomplete-*", "PG_VERSION")); err != nil || len(away) != 1 {
		t.Errorf("moved away: %v (%v), want one", away, err)
	}
}
