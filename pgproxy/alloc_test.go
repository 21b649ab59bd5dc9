//go:build !race

package pgproxy

import (
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
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			load()
			runtime.ReadMemStats(&after)
			if n := float64(after.Mallocs-before.Mallocs) / float64(each*len(clients)); n > 0.25 {
				t.Errorf("%.2f allocations for each statement", n)
			}
		})
	}
}
