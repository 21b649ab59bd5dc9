package balance

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

type recorder struct {
	mu      sync.Mutex
	ejected []string
	removed []string
}

func (*recorder) Health(*Endpoint, bool) {}

func (r *recorder) Ejected(e *Endpoint, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ejected = append(r.ejected, e.Name+" "+reason)
}

func (r *recorder) Removed(e *Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(r.removed, e.Name)
}

func testConfig() Config {
	return Config{
		Zone: "a", LocalThreshold: 0.7, SlowStart: 10 * time.Second,
		HealthPath: "/health", HealthInterval: 50 * time.Millisecond, HealthTimeout: 5 * time.Second, Rise: 2, Fall: 2,
		ConsecutiveErrors: 3, Consecutive5xx: 5,
		ErrorShare: 0.4, OthersErrorShare: 0.1, ErrorWindow: 10 * time.Second, MinRequests: 20,
		EjectionBase: 5 * time.Second, EjectionMax: time.Minute, MaxEjectedShare: 0.5,
	}
}

func target(name, zone string) Target {
	return Target{Endpoint: topology.Endpoint{Name: name, Zone: zone, Address: name + ":1"}, Scheme: "http"}
}

// pool makes one whose endpoints are all healthy.
func pool(cfg Config, obs Observer, targets ...Target) *Pool {
	p := New(cfg, targets, slog.New(slog.DiscardHandler), obs, nil)
	for _, e := range p.Endpoints() {
		p.probed(e, nil)
	}
	return p
}

// share runs n choices and returns how many went to each endpoint.
func share(t *testing.T, p *Pool, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		var slot Slot
		if took := p.Take(nil, Kind{}, &slot); took != Took {
			t.Fatalf("Take: %v", took)
		}
		got[slot.Name]++
		slot.Release()
	}
	return got
}

func TestZones(t *testing.T) {
	p := pool(testConfig(), &recorder{}, target("a1", "a"), target("a2", "a"), target("b1", "b"), target("b2", "b"))
	if got := share(t, p, 400); got["b1"]+got["b2"] != 0 || got["a1"] < 100 || got["a2"] < 100 {
		t.Fatalf("all healthy: %v", got)
	}
	ill(p, 0)
	// Half of the local ones are left: 0.5/0.7 of the requests stay local.
	got := share(t, p, 4000)
	if got["a1"] != 0 || got["a2"] < 2600 || got["a2"] > 3100 {
		t.Fatalf("half local: %v", got)
	}
	ill(p, 1)
	if got := share(t, p, 100); got["b1"]+got["b2"] != 100 {
		t.Fatalf("none local: %v", got)
	}
	ill(p, 2, 3)
	if got := share(t, p, 400); len(got) != 4 {
		t.Fatalf("panic: %v", got)
	}
	// Tried ones are not chosen again; when all are, there is nobody.
	if took := p.Take(p.Endpoints(), Kind{}, new(Slot)); took != Exhausted {
		t.Fatalf("all tried: %v", took)
	}
}

func TestPrefersTheFaster(t *testing.T) {
	p := pool(testConfig(), &recorder{}, target("a1", "a"), target("a2", "a"))
	p.Endpoints()[0].Observe(200 * time.Millisecond)
	p.Endpoints()[1].Observe(10 * time.Millisecond)
	if got := share(t, p, 100); got["a2"] != 100 {
		t.Fatalf("by latency: %v", got)
	}
	// Work in hand counts as well.
	p = pool(testConfig(), &recorder{}, target("a1", "a"), target("a2", "a"))
	got := map[string]int{}
	for range 100 {
		var slot Slot
		if took := p.Take(nil, Kind{}, &slot); took != Took {
			t.Fatal(took)
		}
		got[slot.Name]++
	}
	if got["a1"] != 50 {
		t.Fatalf("by work in hand: %v", got)
	}
}

func TestLatencyPeaksAndDecays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(target("x", "a"))
		e.Observe(10 * time.Millisecond)
		e.Observe(time.Second)
		if got := e.decayed(time.Now()); got != float64(time.Second) {
			t.Fatalf("a peak counts in full: %v", time.Duration(got))
		}
		time.Sleep(5 * ewmaTau)
		if got := time.Duration(e.decayed(time.Now())); got > 10*time.Millisecond {
			t.Fatalf("after a while: %v", got)
		}
	})
}

func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEndpoint(target("x", "a"))
		e.recovered.Store(e.age(time.Now()))
		full := minLatency
		if got := e.cost(time.Now(), 10*time.Second); got < 9.9*full {
			t.Fatalf("at the start: %v", got/full)
		}
		time.Sleep(5 * time.Second)
		if got := e.cost(time.Now(), 10*time.Second); got < 1.9*full || got > 2.1*full {
			t.Fatalf("half way: %v", got/full)
		}
		time.Sleep(6 * time.Second)
		if got := e.cost(time.Now(), 10*time.Second); got != full {
			t.Fatalf("at the end: %v", got/full)
		}
	})
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		p := pool(testConfig(), rec, target("a1", "a"), target("a2", "a"), target("a3", "a"), target("a4", "a"))
		es := p.Endpoints()
		report(p, es[0], Failure, 2)
		report(p, es[0], Success, 1)
		report(p, es[0], Failure, 2)
		if es[0].Ejected(time.Now()) {
			t.Fatal("a success between must start the count anew")
		}
		report(p, es[0], Failure, 1)
		if !es[0].Ejected(time.Now()) {
			t.Fatal("three in a row did not eject")
		}
		if got := share(t, p, 200); got["a1"] != 0 {
			t.Fatalf("an ejected endpoint was chosen: %v", got)
		}
		report(p, es[1], ServerError, 5)
		report(p, es[2], Failure, 3)
		if !es[1].Ejected(time.Now()) || es[2].Ejected(time.Now()) {
			t.Fatal("half may be ejected, and no more")
		}
		time.Sleep(5*time.Second + time.Millisecond)
		p.readmit(time.Now())
		if usable, _ := p.Healthy(); usable != 4 {
			t.Fatalf("%d usable after the ejection's time", usable)
		}
		// The second ejection lasts twice as long.
		report(p, es[0], Failure, 3)
		time.Sleep(6 * time.Second)
		p.readmit(time.Now())
		if !es[0].Ejected(time.Now()) {
			t.Fatal("the second ejection was not longer")
		}
		time.Sleep(5 * time.Second)
		p.readmit(time.Now())
		if es[0].Ejected(time.Now()) {
			t.Fatal("still ejected")
		}
		// Two quiet stretches later it counts as the first again.
		for range 3 {
			time.Sleep(61 * time.Second)
			p.readmit(time.Now())
		}
		report(p, es[0], Failure, 3)
		time.Sleep(5*time.Second + time.Millisecond)
		p.readmit(time.Now())
		if es[0].Ejected(time.Now()) {
			t.Fatal("an old ejection still counted")
		}
	})
	rec := &recorder{}
	p := pool(testConfig(), rec, target("a1", "a"))
	for range 10 {
		p.Report(p.Endpoints()[0], Failure)
	}
	if len(rec.ejected) != 0 {
		t.Fatal("the only endpoint was ejected")
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Budget
		for range 100 {
			b.Request()
		}
		got := 0
		for b.Retry(0.2, 3) {
			got++
		}
		if got != 20 {
			t.Fatalf("%d retries for 100 requests", got)
		}
		time.Sleep(11 * time.Second)
		got = 0
		for b.Retry(0.2, 3) {
			got++
		}
		if got != 3 {
			t.Fatalf("%d retries after a quiet window", got)
		}
	})
}

func TestProbesAndUpdate(t *testing.T) {
	var status atomic.Int64
	status.Store(200)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(ln) }()
	defer func() { _ = srv.Close(); <-served }()

	alive := Target{Endpoint: topology.Endpoint{Name: "alive", Zone: "a", Address: ln.Addr().String()}, Scheme: "http"}
	dead := Target{Endpoint: topology.Endpoint{Name: "dead", Zone: "a", Address: "127.0.0.1:1"}, Scheme: "http"}
	rec := &recorder{}
	p := New(testConfig(), []Target{alive, dead}, slog.New(slog.DiscardHandler), rec, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	usable := func(want int) {
		t.Helper()
		eventually.Nil(t, patience, func() error {
			if got, _ := p.Healthy(); got != want {
				return fmt.Errorf("%d usable, want %d", got, want)
			}
			return nil
		})
	}
	usable(1)
	status.Store(500)
	usable(0)
	status.Store(204)
	usable(1)
	kept := p.Endpoints()[0]
	p.Update(testConfig(), []Target{alive})
	if p.Endpoints()[0] != kept || len(rec.removed) != 1 || rec.removed[0] != "dead" {
		t.Fatalf("after the update: %v, removed %v", p.Endpoints(), rec.removed)
	}
	usable(1)
}
