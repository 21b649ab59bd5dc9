//go:build soak

package stack

import (
	"testing"
	"time"

	"fournines/topology"
)

// soakTime is how long the soak goes on breaking the stack.
const soakTime = 10 * time.Minute

// TestSoak runs one drill after another for ten minutes. Every drill must
// pass, and our own processes must not grow.
func TestSoak(t *testing.T) {
	drills := [][]string{{"api-kill"}, {"primary-kill"}, {"zone-loss", "a"}, {"zone-loss", "b"}, {"zone-loss", "c"}}
	// The first round warms everything up; growth is measured from after it.
	for _, d := range drills {
		runDrill(t, d...)
	}
	before := memory(theStack.status(t))
	for begun, n := time.Now(), 0; time.Since(begun) < soakTime; n++ {
		runDrill(t, drills[n%len(drills)]...)
	}
	for kind, after := range memory(theStack.status(t)) {
		// Processes are restarted by the drills, so a process that grew is
		// larger than any of its kind was.
		if limit := 2*before[kind] + 64<<20; after > limit {
			t.Errorf("the largest %s takes %d MiB, after the first round it was %d MiB", kind, after>>20, before[kind]>>20)
		}
	}
}

// memory is that of the largest process of each kind that is ours.
func memory(st topology.Status) map[string]int64 {
	largest := map[string]int64{}
	for _, z := range st.Zones {
		for _, c := range z.Components {
			switch c.Kind {
			case "gateway", "pgproxy", "redisproxy", "loadbalancer":
				largest[c.Kind] = max(largest[c.Kind], c.MemoryBytes)
			}
		}
	}
	return largest
}
