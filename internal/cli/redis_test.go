package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"fournines/component/rediscluster"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestRedisCommands(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	run := func(args ...string) (int, string) {
		t.Helper()
		var out, stderr bytes.Buffer
		code := Main(t.Context(), append([]string{"redis"}, args...), strings.NewReader(""), &out, &stderr)
		return code, out.String() + stderr.String()
	}
	login := []string{"--user", "admin", "--password-file", c.PasswordFile("admin")}
	for i, a := range c.Addrs() {
		login = append(login, "--node", a+"@"+[]string{"a", "b", "c", "b", "c", "a"}[i])
	}
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status"}, 0, "ok: 16384 of 16384 slots served"},
		{[]string{"check"}, 0, "ok: 3 masters"},
		{[]string{"reshard", "--balance", "--dry-run"}, 0, "nothing to move"},
		{[]string{"reshard", "--from", c.Nodes[0].Addr, "--to", c.Nodes[1].Addr, "--slots", "2"}, 0, "2 slots with 0 keys"},
		{[]string{"reshard", "--from", c.Nodes[0].Addr, "--slots", "2"}, 2, "give --from, --to and --slots, or --balance"},
		{[]string{"failover", c.Nodes[0].Addr}, 1, "is a master already"},
		{[]string{"failover", "nobody"}, 1, `"nobody" is not a node`},
		{[]string{"status", "-o", "xml"}, 2, "want text or json"},
	} {
		if code, out := run(append(tc.args, login...)...); code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%v: %d %q, want %d and %q", tc.args, code, out, tc.code, tc.want)
		}
	}
	eventually.Nil(t, time.Minute, func() error {
		code, out := run(append([]string{"status", "-o", "json"}, login...)...)
		var s rediscluster.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 || s.State != "ok" || len(s.Shards) != 3 {
			return fmt.Errorf("%d %w %s", code, err, out)
		}
		return nil
	})
	if code, out := run("status", "--data-dir", t.TempDir()); code != 1 || !strings.Contains(out, "no stack in") {
		t.Errorf("without a stack: %d %s", code, out)
	}
	if code, out := run("commands"); code != 0 || !strings.Contains(out, "cluster nodes") || !strings.Contains(out, "refused") {
		t.Errorf("commands: %d %s", code, out)
	}
}
