package balance

import (
	"context"
	"errors"
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
		MaxQueue: 10, QueueTimeout: patience,
	}
}

func target(name, zone string) Target {
	return Target{Endpoint: topology.Endpoint{Name: name, Zone: zone, Address: name + ":1"}, Scheme: "http"}
}

// pool makes one whose endpoints are all healthy.
func pool(cfg Config, obs Observer, targets ...Target) *Pool {
	p := New(cfg, targets, slog.New(slog.DiscardHandler), obs)
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
		e, err := p.Acquire(t.Context(), nil)
		if err != nil || e == nil {
			t.Fatalf("Acquire: %v, %v", e, err)
		}
		got[e.Name]++
		p.Release(e)
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
	e, err := p.Acquire(t.Context(), p.Endpoints())
	if e != nil || err != nil {
		t.Fatalf("all tried: %v, %v", e, err)
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
		e, err := p.Acquire(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name]++
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

func TestQueue(t *testing.T) {
	cfg := testConfig()
	cfg.MaxInFlight, cfg.MaxQueue = 2, 3
	p := pool(cfg, &recorder{}, target("a1", "a"))
	ctx := t.Context()
	var held []*Endpoint
	for range 2 {
		e, err := p.Acquire(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, e)
	}
	results := make(chan error, 3)
	for range 3 {
		go func() {
			e, err := p.Acquire(ctx, nil)
			if err == nil && e == nil {
				err = errors.New("no endpoint")
			}
			results <- err
			if e != nil {
				p.Release(e)
			}
		}()
	}
	eventually.Nil(t, patience, func() error {
		if n := p.Waiting(); n != 3 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	if _, err := p.Acquire(ctx, nil); !errors.Is(err, ErrOverloaded) {
		t.Fatalf("a full queue gave %v", err)
	}
	p.Release(held[0])
	for range 3 {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	// A caller that leaves the queue leaves nothing behind.
	e, err := p.Acquire(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Acquire(gone, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a caller that left got %v", err)
	}
	if p.Waiting() != 0 {
		t.Fatalf("%d still wait", p.Waiting())
	}
	p.Release(e)
	p.Release(held[1])
	if n := p.Endpoints()[0].InFlight(); n != 0 {
		t.Fatalf("%d in flight at the end", n)
	}
}

func TestQueueUnderLoad(t *testing.T) {
	cfg := testConfig()
	cfg.MaxInFlight, cfg.MaxQueue = 2, 1000
	p := pool(cfg, &recorder{}, target("a1", "a"), target("a2", "a"))
	var wg sync.WaitGroup
	var over atomic.Int64
	for range 16 {
		wg.Go(func() {
			for range 200 {
				e, err := p.Acquire(context.Background(), nil)
				if err != nil || e == nil {
					t.Errorf("Acquire: %v, %v", e, err)
					return
				}
				// The count may stand above the bound for the moment in which a
				// loser takes its place back.
				if e.InFlight() > cfg.MaxInFlight+16 {
					over.Add(1)
				}
				p.Release(e)
			}
		})
	}
	wg.Wait()
	if over.Load() != 0 {
		t.Fatalf("the bound was passed %d times", over.Load())
	}
	for _, e := range p.Endpoints() {
		if e.InFlight() != 0 {
			t.Fatalf("%d in flight at the end", e.InFlight())
		}
	}
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
	p := New(testConfig(), []Target{alive, dead}, slog.New(slog.DiscardHandler), rec)
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
