//go:build soak

package splitting

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// fromEnv is the number that an environment variable holds, or another.
func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// seed is new each time, unless SPLITTING_SEED repeats an earlier one.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := fromEnv(t, "SPLITTING_SEED", uint64(time.Now().UnixNano())) //nolint:gosec // not a secret
	t.Logf("seed %d", n)
	return n
}

// TestSoakConsistency does a million operations, or as many as
// SPLITTING_OPERATIONS says.
func TestSoakConsistency(t *testing.T) {
	n := int(fromEnv(t, "SPLITTING_OPERATIONS", 1_000_000)) //nolint:gosec // 63 bits
	c := newCluster(t)
	mustExec(t, c.direct(t), "CREATE TABLE probe ()", "CREATE TABLE registers (k int)")
	checkConsistency(t, c, n, 32, seed(t))
}

// TestSoakDifferential compares many more random scripts, or as many as
// SPLITTING_SCRIPTS says.
func TestSoakDifferential(t *testing.T) {
	compare(t, int(fromEnv(t, "SPLITTING_SCRIPTS", 2000)), seed(t)) //nolint:gosec // 63 bits
}
