package lifecycle

import (
	"strings"
	"testing"
)

// TestWithoutRoot runs everything as an ordinary account.
func TestWithoutRoot(t *testing.T) {
	s := newStack(t, "  network: loopback\n")
	s.as = unprivileged(t)
	if err := chown(s); err != nil {
		t.Fatal(err)
	}
	t.Log(lastLine(s.must(t, "up", "--detach")))
	for _, z := range s.ready(t).Zones {
		for _, c := range z.Components {
			if c.Address != "" && !strings.HasPrefix(c.Address, "127.") {
				t.Errorf("%s listens on %s", c.Name, c.Address)
			}
		}
	}
	chat(t, s.credentials(t).Gateway.AppKey)
	k := leave(t, s)
	k.found(t, s)
	out := s.must(t, "drill", "api-kill", "--hold", "3s", "--warmup", "3s")
	t.Log(out)
	out, err := s.run("zone", "cut", "a")
	if exitCode(err) <= 0 || !strings.Contains(out, "root") {
		t.Errorf("zone cut: %v\n%s", err, out)
	}
	t.Log(strings.TrimSpace(s.must(t, "down", "--delete-data", "--delete-backups")))
	s.nothingLeft(t)
}
