package gateway

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fournines/internal/servertest"
)

func TestRedisSettings(t *testing.T) {
	cases := []struct {
		name string
		give Redis
		want string // in the error; "" is none
	}{
		{"none", Redis{}, ""},
		{"nodes alone", Redis{Nodes: []string{"10.0.0.1:6379", "[::1]:6379"}}, ""},
		{"no port", Redis{Nodes: []string{"10.0.0.1"}}, `redis.nodes[0]: "10.0.0.1" is not host:port`},
		{"twice", Redis{Nodes: []string{"a:1", "a:1"}}, "redis.nodes[1]: a:1 is listed twice"},
		{"user without a password", Redis{Nodes: []string{"a:1"}, User: "gateway"}, "redis.passwordFile"},
		{"password without nodes", Redis{PasswordFile: "x"}, "redis.nodes: at least one"},
	}
	for _, tc := range cases {
		cfg := DefaultConfig()
		cfg.Upstreams = []Upstream{{}}
		cfg.Upstreams[0].Address = "127.0.0.1:5001"
		cfg.Redis = tc.give
		err := cfg.Validate()
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.want)
		}
	}
}

func TestRedisClientNeedsAReadablePassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	cfg := Redis{Nodes: []string{"127.0.0.1:1"}, User: "gateway", PasswordFile: file}
	if _, err := newRedis(cfg); err == nil || !strings.Contains(err.Error(), "redis.passwordFile") {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newRedis(cfg); err == nil {
		t.Error("an empty file is a password")
	}
	if client, err := newRedis(Redis{}); client != nil || err != nil {
		t.Errorf("no nodes: %v, %v", client, err)
	}
}

func TestRedisClientUsesTheGatewaysAccount(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	client, err := newRedis(Redis{Nodes: c.Addrs()[:1], User: "gateway", PasswordFile: c.PasswordFile("gateway")})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, key := range []string{"fournines:gw:{a}:x", "fournines:gw:{b}:x", "asynq:{default}:pending"} {
		if err := client.Set(t.Context(), key, "1", 0).Err(); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := client.Set(t.Context(), "celery", "1", 0).Err(); err == nil {
		t.Error("the gateway's account may write Dify's keys")
	}
}
