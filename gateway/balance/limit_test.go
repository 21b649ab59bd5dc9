package balance

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// oneCore is the processor of a Python process in virtual time: turns of 5 ms,
// first come first served.
type oneCore struct {
	mu   sync.Mutex
	free time.Time
	used time.Duration
}

func (c *oneCore) use(d time.Duration) {
	const slice = 5 * time.Millisecond
	for ; d > 0; d -= slice {
		part := min(d, slice)
		c.mu.Lock()
		if now := time.Now(); c.free.Before(now) {
			c.free = now
		}
		c.free = c.free.Add(part)
		c.used += part
		until := c.free
		c.mu.Unlock()
		time.Sleep(time.Until(until))
	}
}

func (c *oneCore) total() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// simulation drives one endpoint behind a queue with an open loop.
type simulation struct {
	limit     Limit
	rate      float64 // requests per second
	reads     float64 // share of reads: 5 ms of processor and no model
	think     time.Duration
	thinkAt   func(since time.Duration) time.Duration // replaces think
	warm, len time.Duration
}

type simulated struct {
	perSecond float64
	used      float64 // share of the core's time
	chats     []float64
	limits    []int
}

func (r simulated) quantile(q float64) float64 {
	return r.chats[int(q*float64(len(r.chats)-1))]
}

func (r simulated) String() string {
	return fmt.Sprintf("%.1f/s, core %.3f, content p50 %.0f p95 %.0f p99 %.0f ms, limit %d to %d, median %d", r.perSecond, r.used,
		r.quantile(.5), r.quantile(.95), r.quantile(.99), r.limits[0], r.limits[len(r.limits)-1], r.limits[len(r.limits)/2])
}

func (s simulation) run(t *testing.T) (r simulated) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Limit = s.limit
		var mu sync.Mutex
		type waiter chan *Slot
		type waiting struct {
			c    waiter
			kind Kind
		}
		var queue []waiting
		var p *Pool
		dispatch := func() {
			mu.Lock()
			defer mu.Unlock()
			for len(queue) > 0 {
				slot := &Slot{}
				if p.Take(nil, queue[0].kind, slot) != Took {
					return
				}
				queue[0].c <- slot
				queue = queue[1:]
			}
		}
		p = New(cfg, []Target{target("a1", "a")}, slog.New(slog.DiscardHandler), &recorder{}, func() {
			if p != nil {
				dispatch()
			}
		})
		e := p.Endpoints()[0]
		p.probed(e, nil)
		dice := rand.New(rand.NewPCG(1, 2))
		core := &oneCore{}
		begin := time.Now()
		var wg sync.WaitGroup
		var usedWarm time.Duration
		for next := begin; time.Since(begin) < s.len; {
			next = next.Add(time.Duration(dice.ExpFloat64() / s.rate * float64(time.Second)))
			time.Sleep(time.Until(next))
			warm := time.Since(begin) > s.warm
			if warm {
				if usedWarm == 0 {
					usedWarm = core.total()
				}
				r.limits = append(r.limits, int(e.adaptive.limit.Load()))
			}
			think := s.think
			if s.thinkAt != nil {
				think = s.thinkAt(time.Since(begin))
			}
			think = time.Duration(float64(think) * math.Exp(.4*dice.NormFloat64()-.08))
			w := waiting{make(waiter, 1), Kind{Group: 1, Streams: true}}
			if dice.Float64() < s.reads {
				w.kind = Kind{Group: 2}
			}
			mu.Lock()
			if len(queue) >= 20 {
				mu.Unlock()
				continue
			}
			queue = append(queue, w)
			mu.Unlock()
			dispatch()
			wg.Go(func() {
				slot := <-w.c
				from := time.Now()
				if w.kind.Group == 2 {
					core.use(5 * time.Millisecond)
					slot.Content(true)
				} else {
					core.use(40 * time.Millisecond)
					time.Sleep(think)
					took := time.Since(from)
					slot.Content(true)
					if warm {
						mu.Lock()
						r.chats = append(r.chats, took.Seconds()*1e3)
						mu.Unlock()
					}
					for range 24 {
						time.Sleep(25 * time.Millisecond)
						core.use(2500 * time.Microsecond)
					}
				}
				slot.Release()
				if warm && time.Since(begin) < s.len {
					mu.Lock()
					r.perSecond += 1 / (s.len - s.warm).Seconds()
					mu.Unlock()
				}
			})
		}
		r.used = (core.total() - usedWarm).Seconds() / (s.len - s.warm).Seconds()
		wg.Wait()
	})
	slices.Sort(r.chats)
	slices.Sort(r.limits)
	return r
}

// capacity is where the limit begins and what it may become in these tests.
var capacity = Limit{Adaptive: true, Min: 4, Max: 400, Initial: 10}

// TestLimitFindsCapacity: whatever is offered, and whatever the mix, the core is
// kept busy and what it works on comes out soon. A fixed limit of 7 would do best
// with a model that takes 500 ms.
func TestLimitFindsCapacity(t *testing.T) {
	for _, tt := range []struct {
		think       time.Duration
		reads, rate float64
		used, p95   float64 // at least, at most (milliseconds)
	}{
		{500 * time.Millisecond, 0, 20, .7, 2500},
		{500 * time.Millisecond, 0, 100, .7, 2500},
		{500 * time.Millisecond, .5, 50, .7, 2500},
		{500 * time.Millisecond, .9, 100, .7, 2500},
		{100 * time.Millisecond, 0, 50, .75, 2000},
		{100 * time.Millisecond, .5, 100, .75, 2000},
		// The model's time varies by more than a queue adds: a queue is hard
		// to see, so the limit must not act on what may be chance.
		{3 * time.Second, 0, 50, .4, 9500},
		{3 * time.Second, .5, 50, .4, 9500},
	} {
		t.Run(fmt.Sprintf("%v, reads %v, %v per second", tt.think, tt.reads, tt.rate), func(t *testing.T) {
			got := simulation{limit: capacity, rate: tt.rate, reads: tt.reads, think: tt.think, warm: time.Minute, len: 3 * time.Minute}.run(t)
			t.Log(got)
			if got.used < tt.used {
				t.Errorf("the core is used to %.3f, want %.2f", got.used, tt.used)
			}
			if p95 := got.quantile(.95); p95 > tt.p95 {
				t.Errorf("95%% of chats have content after %.0f ms, want %.0f", p95, tt.p95)
			}
		})
	}
}

// TestLimitLeavesRareTrafficAlone: while there is little to do, the limit keeps
// nobody waiting, not even at first.
func TestLimitLeavesRareTrafficAlone(t *testing.T) {
	for _, think := range []time.Duration{100 * time.Millisecond, 3 * time.Second} {
		got := simulation{limit: capacity, rate: 1, think: think, warm: 0, len: 5 * time.Minute}.run(t)
		if got.limits[0] < capacity.Initial {
			t.Errorf("with %v of thinking: %v", think, got)
		}
	}
}

// TestLimitFollowsTheModel: a model that becomes slower is no overload.
func TestLimitFollowsTheModel(t *testing.T) {
	got := simulation{
		limit: capacity, rate: 30, warm: 3 * time.Minute, len: 6 * time.Minute,
		thinkAt: func(since time.Duration) time.Duration {
			if since < 90*time.Second {
				return 300 * time.Millisecond
			}
			return time.Second
		},
	}.run(t)
	t.Log(got)
	if got.used < .5 {
		t.Errorf("the core is used to %.3f after the model became slower", got.used)
	}
}

// TestLimitYieldsToAStall: when nothing comes to its content any more, the
// endpoint waits for something else and can take more.
func TestLimitYieldsToAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Limit = capacity
		freed := 0
		p := New(cfg, []Target{target("a1", "a")}, slog.New(slog.DiscardHandler), &recorder{}, func() { freed++ })
		e := p.Endpoints()[0]
		e.ObserveProbe(time.Millisecond)
		slots := make([]Slot, 100)
		took := 0
		take := func() {
			for took < len(slots) && p.Take(nil, Kind{}, &slots[took]) == Took {
				took++
			}
		}
		take()
		if took != capacity.Initial {
			t.Fatalf("%d took a place, want %d", took, capacity.Initial)
		}
		for range 10 {
			time.Sleep(stallLeast)
			p.Relieve(time.Now())
			take()
		}
		if took != len(slots) || freed == 0 {
			t.Fatalf("%d took a place after a stall", took)
		}
		for i := range slots {
			slots[i].Release()
		}
		if e.Working() != 0 || e.InFlight() != 0 {
			t.Fatalf("%d working, %d in flight", e.Working(), e.InFlight())
		}
	})
}

// TestLimitCountsFailures: attempts that fail lower the limit.
func TestLimitCountsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Limit, cfg.ConsecutiveErrors = capacity, 1000
		p := New(cfg, []Target{target("a1", "a")}, slog.New(slog.DiscardHandler), &recorder{}, nil)
		e := p.Endpoints()[0]
		for i := range 2 * windowSamples {
			var slot Slot
			if p.Take(nil, Kind{}, &slot) != Took {
				t.Fatal("no place")
			}
			time.Sleep(10 * time.Millisecond)
			if i%5 == 0 {
				p.Report(e, Failure)
			} else {
				slot.Content(true)
			}
			slot.Release()
		}
		if e.Limit() >= int64(capacity.Initial) {
			t.Errorf("the limit is still %d", e.Limit())
		}
	})
}

// TestLimitKeepsPlaces: who yields leaves the last quarter of a verified limit, but
// not in each window, and the limit does not move by what was held back.
func TestLimitKeepsPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Limit = Limit{Adaptive: true, Min: 4, Max: 400, Initial: 20}
		p := New(cfg, []Target{target("a1", "a")}, slog.New(slog.DiscardHandler), &recorder{}, nil)
		a := &p.Endpoints()[0].adaptive
		fill := func(kind Kind) (slots []*Slot) {
			for {
				s := &Slot{}
				if p.Take(nil, kind, s) != Took {
					return slots
				}
				slots = append(slots, s)
			}
		}
		empty := func(slots []*Slot) {
			for _, s := range slots {
				s.Content(true)
				s.Release()
			}
		}
		yields := Kind{Yields: true}
		slots := fill(yields)
		if len(slots) != 20 {
			t.Errorf("%d places while the limit is being looked for, want 20", len(slots))
		}
		time.Sleep(100 * time.Millisecond)
		empty(slots)
		a.mu.Lock()
		a.slow, a.holds, a.due, a.base[0] = false, verifyMax, verifyMax, .1
		a.set(20)
		a.reset(time.Now())
		a.mu.Unlock()
		if slots = fill(yields); len(slots) != 15 {
			t.Errorf("%d places for who yields, want 15", len(slots))
		}
		rest := fill(Kind{})
		if len(rest) != 5 {
			t.Errorf("%d places for others, want 5", len(rest))
		}
		time.Sleep(100 * time.Millisecond)
		empty(append(slots, rest...))
		most := 0
		for range 1000 {
			slots := fill(yields)
			most = max(most, len(slots))
			if a.lifted && len(slots) == 20 {
				empty(slots)
				return
			}
			if e := p.Endpoints()[0]; e.Limit() != 20 {
				t.Fatalf("the limit went to %d", e.Limit())
			}
			time.Sleep(100 * time.Millisecond)
			empty(slots)
		}
		t.Errorf("nobody ever got more than %d places", most)
	})
}

func TestStreamCeiling(t *testing.T) {
	cfg := testConfig()
	cfg.MaxStreams = 2
	p := pool(cfg, &recorder{}, target("a1", "a"))
	streams := make([]Slot, 2)
	for i := range streams {
		if p.Take(nil, Kind{Streams: true}, &streams[i]) != Took {
			t.Fatal("no place")
		}
		streams[i].Content(true)
	}
	var slot Slot
	if got := p.Take(nil, Kind{Streams: true}, &slot); got != Full {
		t.Errorf("a third stream: %v", got)
	}
	if got := p.Take(nil, Kind{}, &slot); got != Took {
		t.Errorf("an ordinary request: %v", got)
	}
	streams[0].Release()
	if got := p.Take(nil, Kind{Streams: true}, new(Slot)); got != Took {
		t.Errorf("after one ended: %v", got)
	}
}
