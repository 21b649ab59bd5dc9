//go:build !race

package pgproxy

import (
	"math"
	"runtime"
	"sync"
	"testing"
	"time"

	"fournines/internal/servertest"
)

// TestNoAllocation: what is passed on takes no memory, also where clients wait
// for a server connection.
func TestNoAllocation(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) {
		c.Pool.Size = 2
		c.Probe.Interval = 10 * time.Second // probes allocate
	}, db)
	for name, requests := range map[string][2][]byte{"simple": {simpleRequest, simpleRequest}, "prepared": {prepareRequest, preparedRequest}} {
		t.Run(name, func(t *testing.T) {
			clients := make([]*client, 6)
			for i := range clients {
				clients[i] = newClient(t, r.dsn())
				if err := clients[i].ask(requests[0]); err != nil {
					t.Fatal(err)
				}
			}
			const each = 500
			load := func() {
				var wg sync.WaitGroup
				for _, c := range clients {
					wg.Go(func() {
						for range each {
							if err := c.ask(requests[1]); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			load()
			// What a statement takes it takes each time; the catalog is read, and
			// servers are asked, once in a while.
			least := math.Inf(1)
			for range 5 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				load()
				runtime.ReadMemStats(&after)
				if least = min(least, float64(after.Mallocs-before.Mallocs)/float64(each*len(clients))); least <= 0.25 {
					return
				}
			}
			t.Errorf("%.2f allocations for each statement", least)
		})
	}
}
