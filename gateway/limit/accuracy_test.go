package limit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

const patience = 30 * time.Second

func connect(tb testing.TB, c *servertest.RedisCluster) *redis.ClusterClient {
	tb.Helper()
	client := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: c.Addrs(), Username: "gateway", Password: c.Password("gateway"),
		ContextTimeoutEnabled: true, DisableIdentity: true, DisableRoutingPolicies: true, Protocol: 2,
		DialTimeout: time.Second, DialerRetries: 1, ReadTimeout: time.Second,
		ReadBufferSize: 8 << 10, WriteBufferSize: 8 << 10,
	})
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// start runs a limiter until the test ends and waits until it shares.
func start(tb testing.TB, client *redis.ClusterClient, gateways int64, limits ...Limit) *Limiter {
	tb.Helper()
	l := newLimiter(tb, client, limits...)
	run(tb, l)
	eventually.Nil(tb, patience, func() error {
		if n, away := l.gateways.Load(), len(l.shards.away()); n < gateways || away > 0 {
			return fmt.Errorf("%d gateways, %d shards away", n, away)
		}
		return nil
	})
	return l
}

func run(tb testing.TB, l *Limiter) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
}

// redisTime is the clock that the limits go by.
func redisTime(tb testing.TB, c *servertest.RedisCluster, node int) time.Time {
	tb.Helper()
	now, err := c.Client(tb, node).Time(tb.Context()).Result()
	if err != nil {
		tb.Fatal(err)
	}
	return now
}

// load is what was offered and admitted.
type load struct {
	admitted, offered int64
	// stalled is time in which a busy machine offered nothing although the
	// budget was full again: beyond a burst's time and one unit's. What could
	// have been admitted then was lost to the load, not to the limit.
	stalled time.Duration
}

// flood offers requests to each limiter at its own rate per second until the
// context ends.
func flood(ctx context.Context, q Request, limiters []*Limiter, perSecond []int) load {
	r := (*limiters[0].rules.Load())[0]
	full := time.Duration((r.capacity - 1) * r.period * float64(time.Microsecond))
	var yes, all, last, stalled atomic.Int64
	begin := time.Now()
	offer := func() {
		all.Add(1)
		now := int64(time.Since(begin))
		if gap := now - last.Swap(now) - int64(full); gap > 0 {
			stalled.Add(gap)
		}
	}
	var wg sync.WaitGroup
	for i, l := range limiters {
		wg.Go(func() {
			ticker := time.NewTicker(5 * time.Millisecond)
			defer ticker.Stop()
			sent := 0
			var calls sync.WaitGroup
			defer calls.Wait()
			busy := make(chan struct{}, 512)
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				due := int(time.Since(begin).Seconds() * float64(perSecond[i]))
				for ; sent < due; sent++ {
					select {
					case busy <- struct{}{}:
					default: // the machine is behind; what is offered stays well above the rate
						continue
					}
					calls.Go(func() {
						defer func() { <-busy }()
						offer()
						if d := l.Admit(context.Background(), q); d.Refused == "" {
							yes.Add(1)
						}
					})
				}
			}
		})
	}
	wg.Wait()
	return load{yes.Load(), all.Load(), time.Duration(stalled.Load())}
}

// check compares what was admitted in elapsed time of Redis's clock with the
// rate: a full budget at the beginning gives the burst on top.
func check(t *testing.T, limiters []*Limiter, got load, elapsed time.Duration, tolerance float64) {
	t.Helper()
	l, admitted, offered := (*limiters[0].rules.Load())[0].Limit, got.admitted, got.offered
	perSecond := l.Rate.PerSecond()
	due := perSecond * elapsed.Seconds()
	low, high := (due-perSecond*got.stalled.Seconds())*(1-tolerance)-1, due*(1+tolerance)+l.burst()
	t.Logf("%s, burst %.0f: offered %d, admitted %d in %v; rate × time is %.1f; admitted/(burst+rate×time) = %.4f; the load stalled for %v",
		l.Rate, l.burst(), offered, admitted, elapsed.Round(time.Millisecond), due, float64(admitted)/(due+l.burst()), got.stalled.Round(time.Millisecond))
	for i, g := range limiters {
		t.Logf("gateway %d: %.0f decided by its share, errors of Redis: %.0f timeouts, %.0f connections, %.0f answers", i, testutil.ToFloat64(g.m.degradedDecisions),
			testutil.ToFloat64(g.m.redisErrors.WithLabelValues("timeout")), testutil.ToFloat64(g.m.redisErrors.WithLabelValues("connection")), testutil.ToFloat64(g.m.redisErrors.WithLabelValues("answer")))
	}
	if float64(admitted) < low || float64(admitted) > high {
		t.Errorf("%s: %d admitted, want %.1f to %.1f", l.Rate, admitted, low, high)
	}
	if float64(offered) < 2*due {
		t.Errorf("only %d offered", offered)
	}
}

// TestTwoGatewaysAdmitOneRate is the goal: two gateways, nine tenths of the
// load on one of them, well above the rate.
func TestTwoGatewaysAdmitOneRate(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	for name, tc := range map[string]struct {
		limit Limit
		load  int
	}{
		"100 per minute":                    {Limit{Rate: Rate{100, time.Minute}, Burst: 1}, 50},
		"100 per minute, the default burst": {Limit{Rate: Rate{100, time.Minute}}, 50},
		"100 per second":                    {Limit{Rate: Rate{100, time.Second}}, 600},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tc.limit
			l.Name, l.By = "accuracy", ByApp
			two := []*Limiter{start(t, connect(t, c), 1, l), start(t, connect(t, c), 2, l)}
			begin := redisTime(t, c, 0)
			ctx, cancel := context.WithTimeout(t.Context(), accuracyTime)
			defer cancel()
			got := flood(ctx, chat(name, ""), two, []int{tc.load * 9 / 10, tc.load / 10})
			check(t, two, got, redisTime(t, c, 0).Sub(begin), 0.01)
		})
	}
}

// TestRedisAway pauses the whole cluster in the middle: each gateway goes on
// with its share of the demand.
func TestRedisAway(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	type flow struct {
		limit Limit
		two   []*Limiter
		load  int
		got   load
	}
	flows := []*flow{
		{limit: Limit{Rate: Rate{100, time.Minute}, Burst: 1}, load: 50},
		{limit: Limit{Rate: Rate{100, time.Second}}, load: 600},
	}
	for _, f := range flows {
		f.limit.Name, f.limit.By = "away", ByApp
		f.two = []*Limiter{start(t, connect(t, c), 1, f.limit), start(t, connect(t, c), 2, f.limit)}
	}
	begin := redisTime(t, c, 0)
	ctx, cancel := context.WithTimeout(t.Context(), accuracyTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range flows {
		wg.Go(func() {
			f.got = flood(ctx, chat(f.limit.Rate.String(), ""), f.two, []int{f.load * 9 / 10, f.load / 10})
		})
	}
	third := time.NewTimer(accuracyTime / 3)
	<-third.C
	for i := range c.Nodes {
		c.Pause(t, i)
	}
	third.Reset(accuracyTime / 3)
	<-third.C
	for _, f := range flows {
		for i, l := range f.two {
			if len(l.shards.away()) == 0 {
				t.Errorf("%s: gateway %d has not noticed", f.limit.Rate, i)
			}
		}
	}
	for i := range c.Nodes {
		c.Resume(t, i)
	}
	wg.Wait()
	elapsed := redisTime(t, c, 0).Sub(begin)
	for _, f := range flows {
		check(t, f.two, f.got, elapsed, 0.1)
	}
}

// TestAMasterDies kills the master that has the budget: its replica takes over
// after some seconds, in which each gateway goes on with its share.
func TestAMasterDies(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limit := Limit{Name: "dies", Rate: Rate{100, time.Second}, By: ByApp}
	two := []*Limiter{start(t, connect(t, c), 1, limit), start(t, connect(t, c), 2, limit)}
	q := chat("one", "")
	e := two[0].keys.get((*two[0].rules.Load())[0], "app:one")
	slot, err := c.Client(t, 0).ClusterKeySlot(t.Context(), e.key).Result()
	if err != nil {
		t.Fatal(err)
	}
	owner := c.Owner(t, int(slot))
	clock := (owner + 1) % 3
	begin := redisTime(t, c, clock)
	ctx, cancel := context.WithTimeout(t.Context(), max(accuracyTime, 12*time.Second))
	defer cancel()
	var got load
	var wg sync.WaitGroup
	wg.Go(func() { got = flood(ctx, q, two, []int{540, 60}) })
	pauseFor(3 * time.Second)
	c.Kill(t, owner)
	wg.Wait()
	check(t, two, got, redisTime(t, c, clock).Sub(begin), 0.1)
	eventually.Nil(t, patience, func() error {
		if n := len(two[0].shards.away()) + len(two[1].shards.away()); n > 0 {
			return fmt.Errorf("%d shards away", n)
		}
		return nil
	})
	calm(t, two...)
	eventually.Nil(t, patience, func() error {
		if d := two[0].Admit(t.Context(), chat("two", "")); d.Degraded {
			return errors.New("still alone")
		}
		return nil
	})
}

func pauseFor(d time.Duration) { <-time.After(d) }
