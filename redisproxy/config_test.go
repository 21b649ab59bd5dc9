package redisproxy_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/strictyaml"
	"fournines/redisproxy"
)

func TestConfigReportsEveryProblem(t *testing.T) {
	cfg := redisproxy.DefaultConfig()
	text := `
listen: nowhere
nodes: [{address: "redis://x:1"}]
upstream: {user: redisproxy}
users: [{name: a, passwordFile: x}, {name: a}]
defaultUser: b
tls: {enabled: true}
timeouts: {hold: 1ms}
limits: {maxClients: 0, maxPipelined: 1000000}
onLost: shrug
connectionsPerNode: 100
`
	if err := strictyaml.Unmarshal("redisproxy.yaml", []byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{
		"listen", "nodes[0].address", "upstream.passwordFile", "users[1].name", "users[1].passwordFile", "defaultUser", "tls",
		"timeouts.hold", "limits.maxClients", "limits.maxPipelined", "onLost", "connectionsPerNode",
	} {
		if !strings.Contains(err.Error(), field+": ") {
			t.Errorf("no word about %s in:\n%v", field, err)
		}
	}
}

func TestPasswordFiles(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{empty, filepath.Join(dir, "absent")} {
		cfg := redisproxy.DefaultConfig()
		text := "{listen: 127.0.0.1:0, nodes: [{address: 127.0.0.1:1}], users: [{name: dify, passwordFile: " + file + "}]}"
		if err := strictyaml.Unmarshal("c", []byte(text), &cfg); err != nil {
			t.Fatal(err)
		}
		if cfg.Timeouts.Hold != 8*time.Second {
			t.Fatalf("default lost: %v", cfg.Timeouts.Hold)
		}
		_, err := redisproxy.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
