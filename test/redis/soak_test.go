//go:build soak

package redis

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/redisproxy"
	"fournines/redisproxy/keyspace"
)

// maxWait is how long a command of a killed master may wait: the goal.
const maxWait = 5 * time.Second

func TestSoakFailover(t *testing.T) {
	for _, replicas := range []int{1, 0} {
		r := failovers(t, replicas, 20)
		longest := r.hit[len(r.hit)-1]
		round := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
		t.Logf("writes.replicas %d: 20 failovers, %d writes answered, %d of them gone, %d of unknown result; writers of the killed master waited %v (median) to %v, others up to %v",
			replicas, r.answered, r.lost, r.unknown, round(r.hit[len(r.hit)/2]), round(longest), round(r.others[len(r.others)-1]))
		if replicas > 0 && r.lost > 0 {
			t.Errorf("%d confirmed writes are gone", r.lost)
		}
		if longest > maxWait {
			t.Errorf("a command waited %v, more than %v", longest, maxWait)
		}
	}
}

// celery runs tasks while masters are killed one after another, the broker's
// first, and returns what the script says at its end.
func celery(t *testing.T, tasks, kills int) string {
	t.Helper()
	python := absolute(t, "../../.tools/venv/bin/python")
	servertest.Need(t, python)
	c, _, credentials := throughProxy(t, func(cfg *redisproxy.Config) { cfg.Writes.Replicas = 1 })
	done := filepath.Join(t.TempDir(), "done")
	cmd := exec.CommandContext(t.Context(), python, "celery_soak.py")
	cmd.Dir = "../clients"
	cmd.Env = append(os.Environ(), "FOURNINES_CREDENTIALS="+credentials, "PYTHONDONTWRITEBYTECODE=1", "TASKS="+strconv.Itoa(tasks), "DONE="+done, "VISIBILITY_TIMEOUT=20")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it has a worker to end
	var out servertest.Output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	var wait sync.WaitGroup
	wait.Go(func() { ended <- cmd.Wait() })
	t.Cleanup(wait.Wait)
	broker := keyspace.New(1).Slot * 3 / keyspace.Slots
	for i := range kills {
		want := tasks * (i + 1) / (kills + 1)
		eventually.Nil(t, 10*time.Minute, func() error {
			select {
			case err := <-ended:
				t.Fatalf("ended early: %v\n%s", err, out.String())
			default:
			}
			text, _ := os.ReadFile(done)
			if n := strings.Count(string(text), "\n"); n < want {
				return fmt.Errorf("%d tasks have run, the next kill is at %d\n%s", n, want, out.String())
			}
			return nil
		})
		failover(t, c, (broker+i)%3)
	}
	if err := <-ended; err != nil || !strings.HasSuffix(out.String(), "ok\n") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[len(lines)-2]
}

// failover kills the master of a third of the slots and brings it back as a replica.
func failover(t *testing.T, c *servertest.RedisCluster, shard int) {
	t.Helper()
	awaitFailover(t, c, shard, c.KillMaster(t, shard))
}

func TestSoakCelery(t *testing.T) { t.Log(celery(t, 20000, 6)) }
