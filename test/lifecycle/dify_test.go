package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// subnet is the range of the stack, with its last two numbers cut off: "10.7".
func (s *stack) subnet(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.data, "network.json"))
	if err != nil {
		t.Fatal(err)
	}
	var network struct{ Subnet string }
	if err := json.Unmarshal(text, &network); err != nil {
		t.Fatal(err)
	}
	prefix, ok := strings.CutSuffix(network.Subnet, ".0.0/16")
	if !ok {
		t.Fatalf("network.json has %s", text)
	}
	return prefix
}

// secret reads a generated secret.
func (s *stack) secret(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.data, "secrets", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// externalDify balances over instances that somebody else started, outside the
// zones that the specification gives them.
func (s *stack) externalDify(t *testing.T) {
	t.Helper()
	host := s.subnet(t) + ".0.1"
	zones := []string{"a", "b"}
	external := ""
	for i, zone := range zones {
		external += fmt.Sprintf("    - {url: \"http://%s:%d\", zone: %s}\n", host, 5001+i, zone)
	}
	s.write(t, "dify:\n  source: external\n  external:\n"+external)
	defer s.write(t, "")
	up := s.begin(t, "up", "--detach")
	// The network of the stack goes with it, so the instances come second.
	eventually.Nil(t, limit, func() error {
		ln, err := net.Listen("tcp", host+":5001")
		if err != nil {
			return err
		}
		return ln.Close()
	})
	for i, zone := range zones {
		s.startInstance(t, host, 5001+i, "somebody-else-"+zone)
	}
	if out, err := up.wait(); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	for _, z := range s.ready(t).Zones {
		for _, c := range z.Components {
			if strings.HasPrefix(c.Kind, "dify") {
				t.Errorf("the stack runs %s beside the external instances", c.Name)
			}
		}
	}
	key := "app-" + s.secret(t, "dify-app-key")
	// The public address is in no zone, so each gateway may be chosen: ask both.
	for _, zone := range zones {
		gateway := fmt.Sprintf("http://%s.%d.50:8080", s.subnet(t), strings.Index("ab", zone)+1)
		for range 3 {
			if got := chatAt(t, gateway, key); got != "somebody-else-"+zone {
				t.Errorf("the gateway in zone %s asked %q", zone, got)
			}
		}
	}
	chat(t, key)
	s.must(t, "down")
}

// startInstance runs a Dify instance until the test ends.
func (s *stack) startInstance(t *testing.T, host string, port int, name string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "difysim", "api")
	cmd.Env = []string{
		"DIFY_BIND_ADDRESS=" + host, fmt.Sprintf("DIFY_PORT=%d", port), "DIFYSIM_INSTANCE=" + name,
		"DB_HOST=" + host, "DB_PORT=5432", "DB_USERNAME=dify", "DB_DATABASE=dify", "DB_PASSWORD=" + s.secret(t, "postgres-dify"),
		"REDIS_HOST=" + host, "REDIS_PORT=6379", "REDIS_USERNAME=dify", "REDIS_PASSWORD=" + s.secret(t, "redis-dify"),
		"VECTOR_STORE=none", "STORAGE_LOCAL_PATH=" + filepath.Join(s.dir, "external-storage"),
	}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, log.String())
		}
	})
}

// TestCommandSource runs the simulator as if it were a Dify checkout: nothing
// but the generated environment tells it where everything is.
func TestCommandSource(t *testing.T) {
	s := newStack(t, "")
	const key = "app-lifecycle-command-source"
	seed := filepath.Join(s.dir, "seed.yaml")
	text := "apps:\n  - {name: shop, mode: chat, key: " + key + "}\n"
	if err := os.WriteFile(seed, []byte(text), 0o644); err != nil { //nolint:gosec // the servers' account reads it
		t.Fatal(err)
	}
	s.write(t, fmt.Sprintf(`dify:
  source: command
  command:
    workDir: %s
    migrate: [%s, difysim, migrate]
    api: [%s, difysim, api]
    worker: [%s, difysim, worker]
    env: {DIFYSIM_SEED_FILE: %s}
`, s.dir, binary, binary, binary, seed))
	s.must(t, "up", "--detach")
	instances := 0
	for _, z := range s.ready(t).Zones {
		for _, c := range z.Components {
			if c.Kind == "dify-api" || c.Kind == "dify-worker" {
				instances++
			}
		}
	}
	if instances != 5 {
		t.Errorf("%d instances, want 4 api and 1 worker", instances)
	}
	chat(t, key)

	upload(t, key, "note.txt", "kept by all replicas")
	var stored []string
	storage := filepath.Join(s.data, "storage")
	err := filepath.WalkDir(storage, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if content, err := os.ReadFile(path); err == nil && string(content) == "kept by all replicas" {
			stored = append(stored, path)
		}
		return nil
	})
	if err != nil || len(stored) != 1 {
		t.Errorf("the upload lies in %v (%v), want one file in %s", stored, err, storage)
	}
	log, err := os.ReadFile(filepath.Join(s.data, "logs", "dify-migrate.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), `"database migrated"`); n != 1 {
		t.Errorf("migrated %d times, want once:\n%s", n, log)
	}
	began := time.Now()
	s.must(t, "down", "--delete-data", "--delete-backups")
	t.Logf("down took %v", time.Since(began).Round(100*time.Millisecond))
	s.nothingLeft(t)
}
