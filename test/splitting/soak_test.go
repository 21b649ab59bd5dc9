//go:build soak

package splitting

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestSoakConsistency does a million operations, or as many as
// SPLITTING_OPERATIONS says.
func TestSoakConsistency(t *testing.T) {
	n := 1_000_000
	if s := os.Getenv("SPLITTING_OPERATIONS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("SPLITTING_OPERATIONS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // not a secret
	t.Logf("seed %d", seed)
	c := newCluster(t)
	mustExec(t, c.direct(t), "CREATE TABLE probe ()", "CREATE TABLE registers (k int)")
	checkConsistency(t, c, n, 32, seed)
}

// TestSoakDifferential compares many more random scripts.
func TestSoakDifferential(t *testing.T) {
	compare(t, 2000, uint64(time.Now().UnixNano())) //nolint:gosec // not a secret
}
