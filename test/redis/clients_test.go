package redis

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/redisproxy"
	"fournines/topology"
)

// throughProxy starts a cluster and a proxy before it, and returns the cluster
// and a file that tells the scripts of test/clients where the proxy is.
func throughProxy(t *testing.T, change func(*redisproxy.Config)) (c *servertest.RedisCluster, address, credentials string) {
	t.Helper()
	c = servertest.NewRedisCluster(t)
	cfg := redisproxy.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	for _, a := range c.Addrs()[:3] {
		cfg.Nodes = append(cfg.Nodes, topology.Endpoint{Address: a})
	}
	cfg.Upstream = redisproxy.Upstream{User: "redisproxy", PasswordFile: c.PasswordFile("redisproxy")}
	cfg.Users = []redisproxy.User{{Name: "dify", PasswordFile: c.PasswordFile("dify")}}
	cfg.Timeouts.Hold = 30 * time.Second // the machine may be loaded
	if change != nil {
		change(&cfg)
	}
	p, err := redisproxy.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the proxy ended: %v", err)
		}
	})
	eventually.Nil(t, time.Minute, p.Ready)
	address = ln.Addr().String()
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.Atoi(port)
	text, err := json.Marshal(map[string]any{
		"redis": map[string]any{"host": host, "port": number, "user": "dify", "password": c.Password("dify")},
	})
	if err != nil {
		t.Fatal(err)
	}
	credentials = filepath.Join(t.TempDir(), "credentials.json")
	if err := os.WriteFile(credentials, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return c, address, credentials
}

// script runs one of test/clients, which prints "ok" at its end.
func script(t *testing.T, credentials, program, name string) {
	t.Helper()
	servertest.Need(t, program)
	cmd := exec.CommandContext(t.Context(), program, name)
	cmd.Dir = "../clients"
	cmd.Env = append(os.Environ(), "FOURNINES_CREDENTIALS="+credentials, "PYTHONDONTWRITEBYTECODE=1", "NODE_PATH="+absolute(t, "../../.tools/node/node_modules"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "ok\n") {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestClients(t *testing.T) {
	c, address, credentials := throughProxy(t, nil)
	python := absolute(t, "../../.tools/venv/bin/python")
	for _, s := range []struct{ name, program, file string }{
		{"redis-py as Dify uses it", python, "redis_client.py"},
		{"redis-py", python, "redis_typical.py"},
		{"node-redis", "node", "redis_client.cjs"},
		{"kombu", python, "kombu_client.py"},
		{"Celery", python, "celery_client.py"},
	} {
		t.Run(s.name, func(t *testing.T) { script(t, credentials, s.program, s.file) })
	}
	t.Run("go-redis", func(t *testing.T) { goRedis(t, "redis://dify:"+c.Password("dify")+"@"+address+"/2") })
	t.Run("asynq", func(t *testing.T) {
		// Its scripts make names of keys themselves, so only database 0 will do.
		asynqQueue(t, asynq.RedisClientOpt{Addr: address, Username: "dify", Password: c.Password("dify")})
	})
}
