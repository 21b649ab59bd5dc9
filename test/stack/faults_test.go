package stack

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/drill"
	"fournines/internal/servertest"
	"fournines/topology"
)

// redisAdmin sends a command to one node of the cluster as its administrator.
func (s *stack) redisAdmin(t *testing.T, args ...any) string {
	t.Helper()
	st := s.status(t)
	password, err := os.ReadFile(filepath.Join(st.DataDir, "secrets", "redis-admin"))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{
		Addr: component(t, st, "redis", "master").Address, Username: "admin", Password: strings.TrimSpace(string(password)),
	})
	defer client.Close()
	text, err := client.Do(t.Context(), args...).Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// runDrill runs one drill with the real binary and returns its report.
func runDrill(t *testing.T, args ...string) *drill.Report {
	t.Helper()
	args = append([]string{"drill"}, append(args, "-o", "json", "--data-dir", theStack.data)...)
	cmd := exec.CommandContext(t.Context(), theStack.bin, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r drill.Report
	if jsonErr := json.Unmarshal(out, &r); jsonErr != nil {
		t.Fatalf("%v: %v\n%s\n%s", args, err, out, stderr.String())
	}
	t.Logf("%s %s: %d requests, %d failed, %d slow, longest outage %d ms, recovery %d ms, p99 %.0f ms, %v %v", r.Drill, r.Target,
		r.Requests.Total, r.Requests.Failed, r.Requests.Slow, r.LongestOutageMs, r.RecoveryMs, r.Requests.P99Ms, r.Requests.Reasons, r.Checks)
	if err != nil {
		t.Errorf("%v: %v: %v\n%s", args, err, r.Why, stderr.String())
	}
	if r.Verdict != "pass" || !r.SteadyStateRestored {
		t.Errorf("verdict %s, steady state restored: %v: %v", r.Verdict, r.SteadyStateRestored, r.Why)
	}
	for _, c := range r.Checks {
		if !c.OK {
			t.Errorf("check %s: %s", c.Name, c.Detail)
		}
	}
	return &r
}

// TestDrillAPIKill allows a longer outage than the drill itself: a machine that
// is busy with something else takes a second by itself. What a kill must never
// do does not depend on time.
func TestDrillAPIKill(t *testing.T) {
	r := runDrill(t, "api-kill", "--max-outage", "3s")
	if got := r.Requests.ByClass[drill.Idempotent].Failed; got != 0 {
		t.Errorf("%d idempotent requests failed, want 0: the gateway may repeat them", got)
	}
}

func TestDrillPrimaryKill(t *testing.T) {
	before := component(t, theStack.status(t), "postgres", "primary")
	r := runDrill(t, "primary-kill")
	if r.Target != before.Name {
		t.Errorf("the drill killed %s, the primary was %s", r.Target, before.Name)
	}
}

func TestDrillZoneLoss(t *testing.T) {
	for _, zone := range []string{"a", "b", "c"} {
		t.Run(zone, func(t *testing.T) { runDrill(t, "zone-loss", zone) })
	}
}

// TestSupervisorCrash kills the supervisor and nothing else: the stack serves
// on, and `up` adopts it without restarting anything.
func TestSupervisorCrash(t *testing.T) {
	before := theStack.status(t)
	servertest.KillSupervisor(t, theStack.data)
	var parameters map[string]any
	call(t, "GET", "/v1/parameters?user=crash", theStack.credentials(t).Gateway.AppKey, nil, &parameters)
	if out, err := theStack.run(2*time.Minute, "up", "--detach", "-f", theStack.spec); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	after := theStack.status(t)
	if after.State != topology.Ready {
		t.Errorf("after the adoption the stack is %s", after.State)
	}
	pids := map[string]int{}
	for _, z := range before.Zones {
		for _, c := range z.Components {
			pids[c.Name] = c.PID
		}
	}
	for _, z := range after.Zones {
		for _, c := range z.Components {
			if c.PID != pids[c.Name] {
				t.Errorf("%s was restarted: pid %d before, %d after", c.Name, pids[c.Name], c.PID)
			}
		}
	}
}

func TestUpTwiceIsHarmless(t *testing.T) {
	before := theStack.status(t)
	out, err := theStack.run(2*time.Minute, "up", "--detach", "-f", theStack.spec)
	if err != nil {
		t.Fatalf("second up: %v\n%s", err, out)
	}
	after := theStack.status(t)
	if b, a := component(t, before, "postgres", "primary"), component(t, after, "postgres", "primary"); a.PID != b.PID {
		t.Errorf("the second up restarted %s", b.Name)
	}
}
