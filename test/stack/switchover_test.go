package stack

import (
	"strings"
	"testing"
	"time"
)

// TestSwitchoverFindsTheStack checks that `fournines switchover` knows the
// stack's proxies, agents and secrets; internal/cli tests the switchover itself.
func TestSwitchoverFindsTheStack(t *testing.T) {
	primary := component(t, theStack.status(t), "postgres", "primary").Name
	out, err := theStack.run(time.Minute, "switchover", "--check")
	if err != nil || !strings.Contains(out, primary+" is the primary") || !strings.Contains(out, "2 proxies follow") {
		t.Errorf("switchover --check: %v\n%s", err, out)
	}
}
