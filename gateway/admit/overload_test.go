package admit

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fournines/gateway/balance"
	"fournines/topology"
)

// core is the processor of a Python process in virtual time: turns of 5 ms,
// first come first served.
type core struct {
	mu   sync.Mutex
	free time.Time
}

func (c *core) use(ctx context.Context, d time.Duration) {
	const slice = 5 * time.Millisecond
	for ; d > 0 && ctx.Err() == nil; d -= slice {
		part := min(d, slice)
		c.mu.Lock()
		if now := time.Now(); c.free.Before(now) {
			c.free = now
		}
		c.free = c.free.Add(part)
		until := c.free
		c.mu.Unlock()
		time.Sleep(time.Until(until))
	}
}

// stream is an open loop of one app's chats. One chat takes 100 ms of a core, 40
// of them before its first content, and a model that thinks for 500 ms on
// average.
type stream struct {
	app  string
	rate float64
}

// outcome of one stream.
type outcome struct {
	offered, refused, late int
	good                   float64   // per second: first content within 3 s, and completed
	content                []float64 // seconds until the first content of the good ones, from when they were due
	whole                  []float64 // until the end
}

func quantile(v []float64, q float64) float64 {
	slices.Sort(v)
	return v[int(q*float64(len(v)-1))]
}

// play runs the streams against n instances for warm and then for length, which
// is measured. Without protection everything goes to the instances at once.
func play(t *testing.T, gateways, n int, protected bool, seed uint64, warm, length time.Duration, streams ...stream) map[string]*outcome {
	t.Helper()
	const inTime, patience = 3 * time.Second, 10 * time.Second
	results := map[string]*outcome{}
	synctest.Test(t, func(t *testing.T) {
		limit := balance.Limit{Adaptive: protected, Min: 4, Max: 400, Initial: 10}
		cores := map[string]*core{}
		var targets []balance.Target
		for i := range n {
			name := string(rune('a' + i))
			targets = append(targets, balance.Target{Endpoint: topology.Endpoint{Name: name, Zone: "z", Address: name + ":1"}, Scheme: "http"})
			cores[name] = &core{}
		}
		apps := map[string]Limits{}
		for _, s := range streams {
			apps[s.app] = Limits{}
			results[s.app] = &outcome{}
		}
		cfg := Config{MaxQueue: 1000, Timeout: 5 * time.Second, Target: 500 * time.Millisecond, AppQueue: 500, MaxApps: 10}
		cs := make([]*Controller, gateways)
		var ticks sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		for i := range cs {
			pool := balance.New(balance.Config{
				Zone: "z", LocalThreshold: .7, SlowStart: time.Second, ConsecutiveErrors: 1 << 30, Consecutive5xx: 1 << 30, Limit: limit,
			}, targets, slog.New(slog.DiscardHandler), nobody{}, func() { cs[i].Freed() })
			cs[i] = New(cfg, pool)
			cs[i].Update(cfg, apps)
			ticks.Go(func() { // what Pool.Run does beside its probes
				for ctx.Err() == nil {
					time.Sleep(200 * time.Millisecond)
					for _, e := range pool.Endpoints() {
						begin := time.Now()
						cores[e.Name].use(ctx, time.Millisecond)
						e.ObserveProbe(time.Since(begin))
					}
					pool.Relieve(time.Now())
				}
			})
		}
		defer ticks.Wait()
		defer stop()
		var mu sync.Mutex
		var wg sync.WaitGroup
		begin := time.Now()
		chat := func(c *Controller, s stream, think time.Duration, group uint8) {
			due := time.Now()
			counts := due.Sub(begin) > warm
			r := results[s.app]
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			tk := Ticket{App: app(c, s.app), Kind: balance.Kind{Group: group, Streams: true}}
			_, err := c.Acquire(ctx, &tk, nil)
			content := time.Duration(0)
			if err == nil {
				core := cores[tk.Slot.Name]
				core.use(ctx, 40*time.Millisecond)
				time.Sleep(think)
				if ctx.Err() == nil {
					content = time.Since(due)
					tk.Slot.Observe(content)
					tk.Slot.Content(true)
				}
				for range 24 {
					if ctx.Err() != nil {
						break
					}
					time.Sleep(25 * time.Millisecond)
					core.use(ctx, 2500*time.Microsecond)
				}
			}
			c.Close(&tk)
			if !counts {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			r.offered++
			var refused *Refused
			switch {
			case errors.As(err, &refused):
				r.refused++
			case err != nil || ctx.Err() != nil || content > inTime:
				r.late++
			default:
				r.good += 1 / length.Seconds()
				r.content = append(r.content, content.Seconds())
				r.whole = append(r.whole, time.Since(due).Seconds())
			}
		}
		for i, s := range streams {
			dice := rand.New(rand.NewPCG(uint64(i), seed))
			wg.Go(func() {
				for next, k := begin, 0; ; k++ {
					next = next.Add(time.Duration(dice.ExpFloat64() / s.rate * float64(time.Second)))
					if next.Sub(begin) > warm+length {
						return
					}
					time.Sleep(time.Until(next))
					think := time.Duration(float64(500*time.Millisecond) * math.Exp(.4*dice.NormFloat64()-.08))
					c := cs[k%gateways]
					wg.Go(func() { chat(c, s, think, uint8(i+1)) })
				}
			})
		}
		wg.Wait()
	})
	return results
}

// seeds is how many runs a mean is of: the simulated instances choose at random,
// so one run says little about a few percent.
const seeds = 4

// TestGoodputUnderOverload: from one to ten times what the instances can do, what
// comes out in time stays the same, and so does its latency. Without protection
// everything is late.
func TestGoodputUnderOverload(t *testing.T) {
	const n, capacity = 4, 40.0
	var goodput []float64
	for _, load := range []float64{1, 3, 10} {
		good, late, offered := 0.0, 0, 0
		var content []float64
		for seed := range uint64(seeds) {
			r := play(t, 1, n, true, seed, time.Minute, time.Minute, stream{"a", load * capacity})["a"]
			good += r.good / seeds
			late, offered, content = late+r.late, offered+r.offered, append(content, r.content...)
		}
		goodput = append(goodput, good)
		p99 := quantile(content, .99)
		t.Logf("offered %4.1f: %.1f per second in time, %d of %d late, content p50 %.2f p99 %.2f s", load, good, late, offered, quantile(content, .5), p99)
		if late > offered/100 {
			t.Errorf("offered %v: %d of %d were admitted and late", load, late, offered)
		}
		if p99 > 2.5 {
			t.Errorf("offered %v: content after %.2f s", load, p99)
		}
	}
	peak, least := slices.Max(goodput), slices.Min(goodput)
	t.Logf("goodput never under %.1f%% of its peak, %.1f%% of the capacity", 100*least/peak, 100*least/capacity)
	if least < .95*peak || least < .8*capacity {
		t.Errorf("goodput falls from %.1f to %.1f per second", peak, least)
	}
	if r := play(t, 1, n, false, 1, 15*time.Second, 15*time.Second, stream{"a", 2 * capacity})["a"]; r.good > .5*peak {
		t.Errorf("without protection %.1f per second: the test shows nothing", r.good)
	}
}

// TestNoisyNeighbour: an app that floods the instances adds little to what
// another one waits, for the beginning of an answer and for its end.
func TestNoisyNeighbour(t *testing.T) {
	b := stream{"b", 8}
	var alone [seeds]*outcome
	for seed := range alone {
		alone[seed] = play(t, 1, 4, true, uint64(seed), 20*time.Second, 2*time.Minute, b)["b"]
	}
	for _, load := range []float64{2, 5} {
		var content, whole, good float64
		var bad, offered int
		for seed, alone := range alone {
			r := play(t, 1, 4, true, uint64(seed), 90*time.Second, 2*time.Minute, b, stream{"a", load * 40})
			content += quantile(r["b"].content, .95) / quantile(alone.content, .95) / seeds
			whole += quantile(r["b"].whole, .95) / quantile(alone.whole, .95) / seeds
			good += (r["a"].good + r["b"].good) / seeds
			bad, offered = bad+r["b"].refused+r["b"].late, offered+r["b"].offered
		}
		t.Logf("flood %4.1f: content p95 %.2f times as late as alone, end %.2f times; %d of %d refused or late; %.1f per second of both in time", load, content, whole, bad, offered, good)
		if content > 1.2 || whole > 1.2 {
			t.Errorf("flood %v: content %.2f times as late as alone, end %.2f times", load, content, whole)
		}
		if bad > offered/100 {
			t.Errorf("flood %v: %d of %d requests were refused or late", load, bad, offered)
		}
		if good < 24 {
			t.Errorf("flood %v: %.1f per second of both apps in time, of 40", load, good)
		}
	}
}

// TestGatewaysSharingInstances: a limit that is probed by one gateway is blurred
// by what others send, and still comes down.
func TestGatewaysSharingInstances(t *testing.T) {
	r := play(t, 2, 2, true, 1, 2*time.Minute, time.Minute, stream{"a", 60})["a"]
	t.Logf("%.1f per second in time, %d late, content p50 %.2f p95 %.2f s", r.good, r.late, quantile(r.content, .5), quantile(r.content, .95))
	if r.good < 10 {
		t.Errorf("%.1f per second in time, of 20", r.good)
	}
}
