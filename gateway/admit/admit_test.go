package admit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"fournines/gateway/balance"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type nobody struct{}

func (nobody) Health(*balance.Endpoint, bool)    {}
func (nobody) Ejected(*balance.Endpoint, string) {}
func (nobody) Removed(*balance.Endpoint)         {}

func testConfig() Config {
	return Config{MaxQueue: 100, Timeout: 5 * time.Second, Target: 500 * time.Millisecond, AppQueue: 50, MaxApps: 10}
}

// controlled makes a controller over n endpoints with the given number of places
// each. Without probes all of them are tried.
func controlled(cfg Config, apps map[string]Limits, n int, places int64) *Controller {
	var targets []balance.Target
	for i := range n {
		name := fmt.Sprintf("a%d", i+1)
		targets = append(targets, balance.Target{Endpoint: topology.Endpoint{Name: name, Zone: "a", Address: name + ":1"}, Scheme: "http"})
	}
	var c *Controller
	pool := balance.New(balance.Config{
		Zone: "a", LocalThreshold: 0.7, SlowStart: time.Second, ConsecutiveErrors: 3, Consecutive5xx: 5,
		EjectionBase: time.Second, EjectionMax: time.Minute, MaxEjectedShare: 0.5, MaxInFlight: places,
	}, targets, slog.New(slog.DiscardHandler), nobody{}, func() { c.Freed() })
	c = New(cfg, pool)
	c.Update(cfg, apps)
	return c
}

func app(c *Controller, name string) *App {
	a, _ := c.App(name, true, Unknown)
	return a
}

// client is a request of a test.
type client struct {
	c      *Controller
	ticket Ticket
	err    error
	done   chan struct{}
}

// ask acquires in the background and waits until the request stands still.
func ask(ctx context.Context, c *Controller, a *App, p Priority) *client {
	cl := &client{c: c, ticket: Ticket{App: a, Priority: p}, done: make(chan struct{})}
	go func() {
		defer close(cl.done)
		_, cl.err = c.Acquire(ctx, &cl.ticket, nil)
	}()
	synctest.Wait()
	return cl
}

func (cl *client) admitted() bool {
	select {
	case <-cl.done:
		return cl.err == nil
	default:
		return false
	}
}

func (cl *client) refused() string {
	select {
	case <-cl.done:
		var r *Refused
		if errors.As(cl.err, &r) {
			return r.Reason
		}
	default:
	}
	return ""
}

func (cl *client) close() {
	cl.c.Close(&cl.ticket)
	synctest.Wait()
}

// TestFairShares floods with one app and lets others ask for what they may have.
func TestFairShares(t *testing.T) {
	for _, tt := range []struct {
		name string
		apps map[string]Limits
		want map[string]int // of the first 40 places
	}{
		{"equal", map[string]Limits{"flood": {}, "b": {}}, map[string]int{"flood": 20, "b": 20}},
		{"weighted", map[string]Limits{"flood": {Weight: 1}, "b": {Weight: 3}}, map[string]int{"flood": 10, "b": 30}},
		{"three", map[string]Limits{"flood": {}, "b": {}, "c": {Weight: 2}}, map[string]int{"flood": 10, "b": 10, "c": 20}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				cfg.MaxQueue = 1000
				c := controlled(cfg, tt.apps, 1, 1)
				held := ask(t.Context(), c, app(c, "flood"), Interactive)
				var all []*client
				for name := range tt.apps {
					for range 45 { // the flood's come first or last, it makes no difference
						all = append(all, ask(t.Context(), c, app(c, name), Interactive))
					}
				}
				got := map[string]int{}
				for range 40 {
					held.close()
					i := slices.IndexFunc(all, (*client).admitted)
					if i < 0 {
						t.Fatal("nobody got the place")
					}
					held = all[i]
					all = slices.Delete(all, i, i+1)
					got[held.ticket.App.Label]++
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("places: %s", diff)
				}
				letAll(held, all)
			})
		})
	}
}

// letAll lets everybody through.
func letAll(held *client, all []*client) {
	held.close()
	for len(all) > 0 {
		i := slices.IndexFunc(all, (*client).admitted)
		if i < 0 {
			break // refused
		}
		all[i].close()
		all = slices.Delete(all, i, i+1)
	}
}

func TestFirstComeFirstServedWithinAnApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"a": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "a"), Interactive)
		var all []*client
		for range 5 {
			all = append(all, ask(t.Context(), c, app(c, "a"), Interactive))
		}
		for i, cl := range all {
			held.close()
			if !cl.admitted() {
				t.Fatalf("number %d did not get the place", i)
			}
			held = cl
		}
		held.close()
	})
}

func TestCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"heavy": {}, "light": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "heavy"), Interactive)
		var all []*client
		add := func(name string, cost float64) {
			cl := &client{c: c, ticket: Ticket{App: app(c, name), Cost: cost}, done: make(chan struct{})}
			go func() {
				defer close(cl.done)
				_, cl.err = c.Acquire(t.Context(), &cl.ticket, nil)
			}()
			all = append(all, cl)
			synctest.Wait()
		}
		for range 20 {
			add("heavy", 1)
			add("light", .25)
		}
		got := map[string]int{}
		for range 20 {
			held.close()
			i := slices.IndexFunc(all, (*client).admitted)
			held = all[i]
			all = slices.Delete(all, i, i+1)
			got[held.ticket.App.Label]++
		}
		if got["light"] < 15 || got["heavy"] < 4 {
			t.Errorf("places: %v, want four light ones for each heavy one", got)
		}
		letAll(held, all)
	})
}

func TestPriorities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxQueue = 8
		c := controlled(cfg, map[string]Limits{"a": {}, "b": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "a"), Interactive)
		var batch []*client
		for range 4 {
			batch = append(batch, ask(t.Context(), c, app(c, "b"), Batch))
		}
		// Batch work may have half of the queue.
		if got := ask(t.Context(), c, app(c, "b"), Batch).refused(); got != ReasonQueue {
			t.Fatalf("the fifth batch request: %q", got)
		}
		var inter []*client
		for range 4 {
			inter = append(inter, ask(t.Context(), c, app(c, "a"), Interactive))
		}
		// The queue is full now: batch work makes room, the latest first.
		inter = append(inter, ask(t.Context(), c, app(c, "a"), Interactive))
		if got := batch[3].refused(); got != ReasonDisplaced {
			t.Fatalf("the last batch request: %q", got)
		}
		for i, cl := range inter {
			held.close()
			if !cl.admitted() {
				t.Fatalf("interactive number %d did not come first", i)
			}
			held = cl
		}
		for i, cl := range batch[:3] {
			held.close()
			if !cl.admitted() {
				t.Fatalf("batch number %d did not come", i)
			}
			held = cl
		}
		held.close()
	})
}

func TestBatchIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"a": {}, "b": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "a"), Interactive)
		slow := ask(t.Context(), c, app(c, "b"), Batch)
		turns := 0
		for ; !slow.admitted(); turns++ {
			if turns > 2*batchTurn {
				t.Fatal("batch work never came")
			}
			next := ask(t.Context(), c, app(c, "a"), Interactive)
			held.close()
			if next.admitted() {
				held = next
				continue
			}
			slow.close()
			held = next
		}
		held.close()
	})
}

func TestBulkhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"a": {MaxInFlight: 2, MaxQueue: 3}, "b": {}}, 1, 10)
		var held, waiting []*client
		for range 2 {
			held = append(held, ask(t.Context(), c, app(c, "a"), Interactive))
		}
		for range 3 {
			waiting = append(waiting, ask(t.Context(), c, app(c, "a"), Interactive))
		}
		over := ask(t.Context(), c, app(c, "a"), Interactive)
		if over.refused() != ReasonBulkhead {
			t.Fatalf("one too many: %v", over.err)
		}
		var r *Refused
		if !errors.As(over.err, &r) || !r.OwnFault() || r.RetryAfter < time.Second || r.RetryAfter > time.Minute || r.RetryAfter%time.Second != 0 {
			t.Fatalf("refusal: %+v", r)
		}
		// Others do not notice, although the queue is not empty.
		other := ask(t.Context(), c, app(c, "b"), Interactive)
		if !other.admitted() {
			t.Fatal("another app waits for the bulkhead")
		}
		other.close()
		held[0].close()
		if !waiting[0].admitted() || waiting[1].admitted() {
			t.Fatal("the free place in the bulkhead did not go to the first that waits")
		}
		// The bulkhead grows.
		c.Update(testConfig(), map[string]Limits{"a": {MaxInFlight: 4, MaxQueue: 3}})
		synctest.Wait()
		if !waiting[1].admitted() || !waiting[2].admitted() {
			t.Fatal("more places did not help those that wait")
		}
		for _, cl := range append(held[1:], waiting...) {
			cl.close()
		}
		if n := app(c, "a").inFlight.Load(); n != 0 || c.Waiting() != 0 {
			t.Fatalf("%d in flight, %d wait at the end", n, c.Waiting())
		}
	})
}

func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"a": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "a"), Interactive)
		ctx, cancel := context.WithCancel(t.Context())
		gone := ask(ctx, c, app(c, "a"), Interactive)
		late := ask(t.Context(), c, app(c, "a"), Interactive)
		cancel()
		synctest.Wait()
		<-gone.done
		if !errors.Is(gone.err, context.Canceled) {
			t.Fatalf("a client that left: %v", gone.err)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		synctest.Wait()
		if late.refused() != ReasonTimeout {
			t.Fatalf("after the timeout: %v", late.err)
		}
		if c.Waiting() != 0 {
			t.Fatalf("%d still wait", c.Waiting())
		}
		held.close()
		if e := c.pool.Endpoints()[0]; e.InFlight() != 0 || e.Working() != 0 {
			t.Fatalf("%d in flight, %d working at the end", e.InFlight(), e.Working())
		}
	})
}

// TestStandingQueue: an app that has had somebody waiting for long gets a short
// queue, another one still gets the long wait.
func TestStandingQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := controlled(testConfig(), map[string]Limits{"a": {}, "b": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "a"), Interactive)
		var all []*client
		for n := range 70 { // one comes and one goes each 100 ms, ten are there
			for len(all) < 10 {
				all = append(all, ask(t.Context(), c, app(c, "a"), Interactive))
			}
			time.Sleep(100 * time.Millisecond)
			held.close()
			all = slices.DeleteFunc(all, func(cl *client) bool { return cl.refused() != "" })
			i := slices.IndexFunc(all, (*client).admitted)
			if i < 0 {
				t.Fatalf("round %d: nobody was admitted", n)
			}
			held = all[i]
			all = slices.Delete(all, i, i+1)
		}
		if n := len(all); n > 6 {
			t.Errorf("%d wait in a standing queue, want about 5", n)
		}
		got := map[string]int{}
		for range 20 {
			got[ask(t.Context(), c, app(c, "a"), Interactive).refused()]++
		}
		if got[ReasonWait] < 14 {
			t.Errorf("new ones: %v, want most refused at once", got)
		}
		if other := ask(t.Context(), c, app(c, "b"), Interactive); other.refused() != "" {
			t.Errorf("another app: %v", other.err)
		} else {
			held.close()
			if !other.admitted() {
				t.Error("another app was not next")
			}
			other.close()
		}
		time.Sleep(10 * time.Second) // the rest is admitted or has waited too long
	})
}

// TestFloodDoesNotFillTheQueue: whoever fills the queue makes room for others.
func TestFloodDoesNotFillTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxQueue = 20
		c := controlled(cfg, map[string]Limits{"flood": {}, "b": {}}, 1, 1)
		held := ask(t.Context(), c, app(c, "flood"), Interactive)
		var flood []*client
		for range 20 {
			flood = append(flood, ask(t.Context(), c, app(c, "flood"), Interactive))
		}
		if got := ask(t.Context(), c, app(c, "flood"), Interactive).refused(); got != ReasonQueue {
			t.Fatalf("one more of the flood: %q", got)
		}
		b := ask(t.Context(), c, app(c, "b"), Interactive)
		if b.refused() != "" || flood[19].refused() != ReasonDisplaced {
			t.Fatalf("another app: %v, the flood's last: %v", b.err, flood[19].err)
		}
		held.close()
		held = b
		if !b.admitted() {
			if !flood[0].admitted() {
				t.Fatal("nobody got the place")
			}
			held = flood[0]
		}
		letAll(held, append(flood, b))
	})
}

func TestMadeUpKeysShareOneQueue(t *testing.T) {
	c := controlled(testConfig(), map[string]Limits{"shop": {Weight: 2}}, 1, 1)
	one, known := c.App("111111111111", false, Unknown)
	two, _ := c.App("222222222222", false, Unknown)
	none, _ := c.App("", false, Unknown)
	if one != two || one != none || known {
		t.Fatal("keys that nobody has accepted have queues of their own")
	}
	if web, known := c.App("333333333333", false, Web); web == one || !known {
		t.Fatal("users of web apps share with unknown keys")
	}
	c.Learn("111111111111")
	if a, known := c.App("111111111111", false, Unknown); a == one || !known {
		t.Fatal("an accepted key has no queue of its own")
	}
	for i := range 100 {
		c.Learn(fmt.Sprintf("%012x", i))
	}
	if n := len(c.apps.learned); n != 10 {
		t.Fatalf("%d apps, want 10", n)
	}
	if a, known := c.App("shop", true, Unknown); !known || a.Label != "shop" {
		t.Fatal("a configured app is not known")
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		c := controlled(cfg, map[string]Limits{"shop": {MaxInFlight: 1, MaxQueue: 1}}, 1, 10)
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(c)
		a := ask(t.Context(), c, app(c, "shop"), Interactive)
		b := ask(t.Context(), c, app(c, "shop"), Interactive)
		_ = ask(t.Context(), c, app(c, "shop"), Interactive)
		for name, want := range map[string]float64{
			`fournines_gateway_queue_length{priority="interactive"}`:                 1,
			`fournines_gateway_app_requests_in_flight{app="shop"}`:                   1,
			`fournines_gateway_shed_total{priority="interactive",reason="bulkhead"}`: 1,
			`fournines_gateway_app_shed_total{app="shop"}`:                           1,
			`fournines_gateway_app_yields{app="shop"}`:                               0,
			`fournines_gateway_endpoint_requests_working{endpoint="a1",zone="a"}`:    1,
			`fournines_gateway_endpoint_concurrency_limit{endpoint="a1",zone="a"}`:   0,
			`fournines_gateway_queue_wait_seconds_count{priority="interactive"}`:     0,
		} {
			if got := value(t, reg, name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		c.mu.Lock()
		app(c, "shop").recent.yields = true
		c.mu.Unlock()
		if got := value(t, reg, `fournines_gateway_app_yields{app="shop"}`); got != 1 {
			t.Errorf("yields: %v", got)
		}
		a.close()
		b.close()
		if got := value(t, reg, `fournines_gateway_queue_wait_seconds_count{priority="interactive"}`); got != 1 {
			t.Errorf("%v waits", got)
		}
		if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
			t.Errorf("lint: %v, %v", problems, err)
		}
	})
}

// TestUnderLoad checks the books with many requests at once, real goroutines and
// real time.
func TestUnderLoad(t *testing.T) {
	cfg := testConfig()
	cfg.MaxQueue, cfg.AppQueue, cfg.Timeout = 1000, 1000, time.Minute
	apps := map[string]Limits{"a": {}, "b": {MaxInFlight: 2}, "c": {Weight: 3}}
	c := controlled(cfg, apps, 2, 2)
	var wg sync.WaitGroup
	var over, served atomic.Int64
	for i := range 24 {
		wg.Go(func() {
			name := []string{"a", "b", "c"}[i%3]
			for n := range 200 {
				ctx, cancel := context.WithCancel(context.Background())
				if n%10 == 0 {
					cancel() // some have left already
				}
				tk := Ticket{App: app(c, name), Priority: Priority(i % 2)}
				_, err := c.Acquire(ctx, &tk, nil)
				if err == nil {
					served.Add(1)
					if tk.Slot.InFlight() > 2+24 || tk.App.inFlight.Load() > 2+24 && name == "b" {
						over.Add(1)
					}
					if n%2 == 0 {
						tk.Slot.Content(true)
					}
				} else if !errors.Is(err, context.Canceled) {
					t.Errorf("Acquire: %v", err)
				}
				c.Close(&tk)
				cancel()
			}
		})
	}
	wg.Wait()
	if over.Load() != 0 || served.Load() < 24*180 {
		t.Errorf("%d over the bounds, %d served", over.Load(), served.Load())
	}
	if c.Waiting() != 0 {
		t.Errorf("%d still wait", c.Waiting())
	}
	for _, e := range c.pool.Endpoints() {
		if e.InFlight() != 0 || e.Working() != 0 {
			t.Errorf("%s has %d in flight, %d working", e.Name, e.InFlight(), e.Working())
		}
	}
	for name := range apps {
		if n := app(c, name).inFlight.Load(); n != 0 {
			t.Errorf("%s has %d in flight", name, n)
		}
	}
}

// BenchmarkAcquire is the whole way of a request through admission while places
// are free.
func BenchmarkAcquire(b *testing.B) {
	c := controlled(testConfig(), map[string]Limits{"a": {MaxInFlight: 1 << 20}}, 4, 1000)
	ctx := context.Background()
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		t := &Ticket{}
		before := cpu()
		for b.Loop() {
			pass(ctx, c, t)
		}
		// The machine may be busy with other things.
		b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			t := &Ticket{}
			for pb.Next() {
				pass(ctx, c, t)
			}
		})
	})
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func pass(ctx context.Context, c *Controller, t *Ticket) {
	t.App, _ = c.App("a", true, Unknown)
	if _, err := c.Acquire(ctx, t, nil); err != nil {
		panic(err)
	}
	t.Slot.Content(true)
	c.Close(t)
}

// value reads one series as it is exposed; 0 when there is none.
func value(t *testing.T, reg *prometheus.Registry, series string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			name := f.GetName()
			if m.GetHistogram() != nil {
				name += "_count"
			}
			if name+"{"+strings.Join(labels, ",")+"}" != series {
				continue
			}
			switch {
			case m.GetHistogram() != nil:
				return float64(m.GetHistogram().GetSampleCount())
			case m.GetCounter() != nil:
				return m.GetCounter().GetValue()
			}
			return m.GetGauge().GetValue()
		}
	}
	return 0
}

func TestDrainForgetsWhenNobodyWaited(t *testing.T) {
	var d drain
	at := time.Unix(1e9, 0)
	d.begin(at)
	for range 20 {
		at = at.Add(10 * time.Millisecond)
		d.served(at)
	}
	// Nobody waits for three seconds; then a zone is lost and many do.
	at = at.Add(3 * time.Second)
	d.begin(at)
	if rate, ok := d.perSecond(at.Add(10 * time.Millisecond)); !ok || rate < 80 || rate > 110 {
		t.Errorf("rate %v, %v; want about 95 per second, as while they waited", rate, ok)
	}
	at = at.Add(time.Minute)
	d.begin(at)
	if _, ok := d.perSecond(at.Add(time.Second)); ok {
		t.Error("a rate of a minute ago still counts")
	}
}

// TestEmptyQueueRefusesNobody: an old estimate must not keep the queue empty, or
// nothing would ever correct it.
func TestEmptyQueueRefusesNobody(t *testing.T) {
	for _, parked := range []bool{false, true} {
		t.Run(fmt.Sprintf("parked %v", parked), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				if parked {
					cfg.Timeout = time.Hour
				}
				c := controlled(cfg, map[string]Limits{"a": {}, "p": {MaxInFlight: 1}}, 1, 2)
				slow, full := ask(t.Context(), c, app(c, "p"), Interactive), (*client)(nil)
				if parked { // somebody waits all the time, but for his bulkhead
					full = ask(t.Context(), c, app(c, "p"), Interactive)
				}
				held := ask(t.Context(), c, app(c, "a"), Interactive)
				for range 2 * rateLeast {
					next := ask(t.Context(), c, app(c, "a"), Interactive)
					time.Sleep(100 * time.Millisecond)
					held.close()
					held = next
				}
				time.Sleep(10 * time.Minute) // the places are taken, and nobody asks
				cfg.Timeout = 5 * time.Second
				c.Update(cfg, map[string]Limits{"a": {}, "p": {MaxInFlight: 1}})
				late := ask(t.Context(), c, app(c, "a"), Interactive)
				if late.refused() != "" {
					t.Errorf("the first one to wait: %v", late.err)
				}
				held.close()
				slow.close()
				late.close()
				if full != nil {
					full.close()
				}
			})
		})
	}
}
