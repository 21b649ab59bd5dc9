package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// database stands in for what all instances wait for. Health checks do not
// touch it.
type database struct {
	mu   sync.Mutex
	back chan struct{} // closed while it answers
}

func newDatabase() *database {
	d := &database{back: make(chan struct{})}
	close(d.back)
	return d
}

// fail lets every request wait until the function it returns has been called.
func (d *database) fail(tb testing.TB) (end func()) {
	tb.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	back := make(chan struct{})
	d.back = back
	end = sync.OnceFunc(func() { close(back) })
	tb.Cleanup(end)
	return end
}

// failFor does it for as long.
func (d *database) failFor(tb testing.TB, outage time.Duration) {
	tb.Helper()
	timer := time.AfterFunc(outage, d.fail(tb))
	tb.Cleanup(func() { timer.Stop() })
}

func (d *database) app(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		d.mu.Lock()
		back := d.back
		d.mu.Unlock()
		select {
		case <-back:
			_, _ = io.WriteString(w, name)
		case <-r.Context().Done():
		}
	}
}

func waitUsable(tb testing.TB, g *running, want int) {
	tb.Helper()
	eventually.Nil(tb, patience, func() error {
		if got, _ := g.pool.Healthy(); got != want {
			return fmt.Errorf("%d usable, want %d", got, want)
		}
		return nil
	})
}

func TestZoneAndDatabaseLost(t *testing.T) {
	const outage = 2 * time.Second
	db := newDatabase()
	a1, a2 := newInstance(t, "zone-a", db.app("a")), newInstance(t, "zone-a", db.app("a"))
	b1, b2 := newInstance(t, "zone-b", db.app("b")), newInstance(t, "zone-b", db.app("b"))
	cfg := testConfig(a1, a2, b1, b2)
	cfg.Retry.TryTimeout = outage / 10
	g := start(t, cfg)
	b1.kill()
	b2.kill()
	waitUsable(t, g, 2)
	db.failFor(t, outage)
	c := client(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			path, method := "/v1/parameters", http.MethodGet
			if i%4 == 0 {
				path, method = "/v1/chat-messages", http.MethodPost
			}
			req, err := http.NewRequest(method, g.url+path, strings.NewReader("{}"))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(b) != "a" {
				t.Errorf("%s: %d %q %v", path, resp.StatusCode, b, err)
			}
		})
	}
	wg.Wait()
	if usable, _ := g.pool.Healthy(); usable != 2 {
		t.Errorf("%d usable after it", usable)
	}
	for _, in := range []*instance{a1, a2} {
		for _, reason := range []string{"errors", "5xx", "share"} {
			if n := g.metric(t, g.m.ejections.WithLabelValues(in.addr, reason)); n != 0 {
				t.Errorf("%s was ejected %v times for %s", in.addr, n, reason)
			}
		}
	}
}

func TestLastAttemptWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		instances int
		spoil     func(*Config)
		cuts      int64 // attempts that may be given up
	}{
		"nobody else":     {1, func(*Config) {}, 0},
		"all tried":       {2, func(c *Config) { c.Retry.Attempts = 100 }, 1},
		"attempts spent":  {3, func(c *Config) { c.Retry.Attempts = 2 }, 1},
		"no retries":      {2, func(c *Config) { c.Retry.Attempts = 1 }, 0},
		"budget is spent": {2, func(c *Config) { c.Retry.BudgetMin, c.Retry.BudgetShare = 0, 0 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			db := newDatabase()
			var ins []*instance
			for range tc.instances {
				ins = append(ins, newInstance(t, "zone-a", db.app("a")))
			}
			cfg := testConfig(ins...)
			cfg.Retry.TryTimeout = 100 * time.Millisecond
			tc.spoil(&cfg)
			g := start(t, cfg)
			served := func() (n int64) {
				for _, in := range ins {
					n += in.served.Load()
				}
				return n
			}
			recovered := db.fail(t)
			go func() {
				for limit := time.Now().Add(patience); served() <= tc.cuts && time.Now().Before(limit); {
					time.Sleep(eventually.Poll)
				}
				time.Sleep(10 * cfg.Retry.TryTimeout) // which must not be the last attempt's end
				recovered()
			}()
			if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 200 || body != "a" {
				t.Fatalf("got %d %q", status, body)
			}
			if n := served(); n != tc.cuts+1 {
				t.Fatalf("%d attempts, want %d", n, tc.cuts+1)
			}
		})
	}
}

func TestWaitingAttemptEndsWithTheRequest(t *testing.T) {
	db := newDatabase()
	a := newInstance(t, "zone-a", db.app("a"))
	cfg := testConfig(a)
	cfg.Retry.TryTimeout, cfg.Limits.RequestTimeout = 50*time.Millisecond, 500*time.Millisecond
	g := start(t, cfg)
	db.fail(t)
	if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 504 || !strings.Contains(body, `"status":504`) {
		t.Fatalf("got %d %q", status, body)
	}
}

func TestWaitingAttemptLeavesWhenSomebodyComes(t *testing.T) {
	db := newDatabase()
	a, b := newInstance(t, "zone-a", db.app("a")), newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Retry.TryTimeout = 50 * time.Millisecond
	g := start(t, cfg)
	b.healthy.Store(false)
	waitUsable(t, g, 1)
	db.fail(t)
	go func() {
		for limit := time.Now().Add(patience); a.served.Load() == 0 && time.Now().Before(limit); {
			time.Sleep(eventually.Poll)
		}
		time.Sleep(4 * cfg.Retry.TryTimeout) // nowhere to go at first
		b.healthy.Store(true)
	}()
	if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 200 || body != "b" {
		t.Fatalf("got %d %q", status, body)
	}
}

// Who leaves a slow instance and meets a dead one goes back and waits.
func TestLeavingForADeadInstance(t *testing.T) {
	db := newDatabase()
	a, b := newInstance(t, "zone-a", db.app("a")), newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Health.Interval = time.Hour // nobody knows that b is dead
	cfg.Retry.TryTimeout, cfg.Retry.Attempts = 100*time.Millisecond, 2
	g := start(t, cfg)
	b.kill()
	db.failFor(t, time.Second)
	if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 200 || body != "a" {
		t.Fatalf("got %d %q", status, body)
	}
}

func TestErrorShareEjects(t *testing.T) {
	for name, bad := range map[string]http.HandlerFunc{
		"5xx":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"reset": func(w http.ResponseWriter, _ *http.Request) { abort(w) },
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1)%2 == 0 {
					bad(w, r)
				}
			})
			b := newInstance(t, "zone-a", say("b"))
			cfg := testConfig(a, b)
			cfg.Ejection.BaseTime, cfg.Ejection.ErrorWindow = time.Minute, time.Minute
			cfg.Ejection.MinRequests = 6 // the balance sends a bad instance few
			g := start(t, cfg)
			c := client(t)
			ejected := func() float64 { return g.metric(t, g.m.ejections.WithLabelValues(a.addr, "share")) }
			eventually.Nil(t, time.Minute, func() error {
				for range 20 {
					post(t, c, g.url+"/console/api/x", `{}`)
				}
				if ejected() != 1 {
					return fmt.Errorf("not ejected after %d requests", n.Load())
				}
				return nil
			})
			for range 20 {
				if status, body, _ := post(t, c, g.url+"/console/api/x", `{}`); status != 200 || body != "b" {
					t.Fatalf("after the ejection: %d %q", status, body)
				}
			}
		})
	}
}
