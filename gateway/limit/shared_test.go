package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// calm gives Redis time: these tests are about what is decided.
func calm(tb testing.TB, limiters ...*Limiter) {
	tb.Helper()
	for _, l := range limiters {
		l.sharing.Store(&Sharing{Timeout: 10 * time.Second, Gateways: 1})
	}
}

func TestWhatOneLimitRefusesIsNotChargedInRedis(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limits := []Limit{
		{Name: "all", Rate: rate(t, "1 per day"), Burst: 10, By: ByAll},
		{Name: "user", Rate: rate(t, "1 per day"), By: ByUser},
		{Name: "app", Rate: rate(t, "1 per day"), Burst: 10, By: ByApp},
		{Name: "app-too", Rate: rate(t, "1 per day"), Burst: 10, By: ByApp},
	}
	one, two := start(t, connect(t, c), 1, limits...), start(t, connect(t, c), 2, limits...)
	calm(t, one, two)
	if got := admitted(one, 50, chat("a", "greedy")) + admitted(two, 50, chat("a", "greedy")); got != 1 {
		t.Fatalf("%d of 100 admitted for a user who has one", got)
	}
	n := 0
	for i, user := range []string{"b", "c", "d", "e", "f", "g", "h", "i", "j"} {
		user := chat("a", user)
		eventually.Nil(t, patience, func() error { // what was taken back is told to Redis a moment later
			d := []*Limiter{one, two}[i%2].Admit(t.Context(), user)
			if d.Refused != "" || d.Degraded {
				return fmt.Errorf("user %d: %q, degraded %v", i, d.Refused, d.Degraded)
			}
			n++
			return nil
		})
	}
	if d := one.Admit(t.Context(), chat("a", "k")); d.Refused == "" || d.Refused == "user" {
		t.Errorf("the eleventh: %q", d.Refused)
	}
	// A budget has one key, and all of a tenant's lie in one slot.
	slots := map[int64]bool{}
	for _, name := range []string{"app", "app-too"} {
		key := keyPrefix + "{app:a}:" + name
		slot, err := c.Client(t, 0).ClusterKeySlot(t.Context(), key).Result()
		if err != nil {
			t.Fatal(err)
		}
		slots[slot] = true
		if ttl := one.client.PTTL(t.Context(), key).Val(); ttl < 9*24*time.Hour || ttl > 11*24*time.Hour {
			t.Errorf("%s lives for %v, which is not the time until its budget is full", key, ttl)
		}
	}
	if len(slots) != 1 {
		t.Errorf("an app's budgets lie in %d slots", len(slots))
	}
}

func TestTokensAreChargedThroughRedis(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limit := Limit{Name: "t", Rate: rate(t, "1 per day"), Burst: 100, By: ByApp, Unit: Tokens}
	one, two := start(t, connect(t, c), 1, limit), start(t, connect(t, c), 2, limit)
	calm(t, one, two)
	d := one.Admit(t.Context(), chat("a", ""))
	d.Charge(150, false)
	eventually.Nil(t, patience, func() error {
		if d := two.Admit(t.Context(), chat("a", "")); d.Refused == "" || d.RetryAfter < 49*24*time.Hour || d.RetryAfter > 51*24*time.Hour {
			return fmt.Errorf("the other gateway: %q, %v", d.Refused, d.RetryAfter)
		}
		return nil
	})
}

func TestReloadKeepsTheMeaningOfWhatIsInRedis(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	slow := Limit{Name: "x", Rate: rate(t, "1 per day"), Burst: 10, By: ByApp}
	l := start(t, connect(t, c), 1, slow)
	calm(t, l)
	if got := admitted(l, 20, chat("a", "")); got != 10 {
		t.Fatalf("%d", got)
	}
	fast := slow
	fast.Rate, fast.Burst = rate(t, "1 per minute"), 14
	l.Update([]Limit{fast}, *l.sharing.Load())
	// Ten units are spent, of fourteen: they are not ten days of debt.
	if got := admitted(l, 10, chat("a", "")); got < 4 || got > 5 {
		t.Errorf("%d admitted after the reload, want 4 and what half minutes have brought", got)
	}
	l.Update([]Limit{slow}, *l.sharing.Load())
	if got := admitted(l, 10, chat("a", "")); got != 0 {
		t.Errorf("%d admitted with the old rate again", got)
	}
}

func TestScriptsAreLoadedAgain(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limit := Limit{Name: "x", Rate: rate(t, "1 per day"), Burst: 1000, By: ByApp}
	tokens := Limit{Name: "t", Rate: rate(t, "1 per day"), Burst: 1000, By: ByApp, Unit: Tokens}
	l := start(t, connect(t, c), 1, limit, tokens)
	calm(t, l)
	for range 3 {
		for i := range c.Nodes {
			if err := c.Client(t, i).ScriptFlush(t.Context()).Err(); err != nil && !strings.Contains(err.Error(), "READONLY") {
				t.Fatal(err)
			}
		}
		d := l.Admit(t.Context(), chat("a", ""))
		if d.Refused != "" || d.Degraded {
			t.Fatalf("%+v", d)
		}
		for i := range c.Nodes {
			_ = c.Client(t, i).ScriptFlush(t.Context())
		}
		d.Charge(1, false)
	}
	eventually.Nil(t, patience, func() error {
		v, err := l.client.Get(t.Context(), keyPrefix+"{app:a}:t").Result()
		if err != nil || v == "" {
			return fmt.Errorf("no charge in Redis: %q, %w", v, err)
		}
		return nil
	})
}

// TestNobodyWaitsForRedis pauses it: those who are asking wait for the timeout,
// all others not at all.
func TestNobodyWaitsForRedis(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limit := Limit{Name: "x", Rate: rate(t, "1000000 per second"), By: ByApp}
	l := start(t, connect(t, c), 1, limit)
	if d := l.Admit(t.Context(), chat("a", "")); d.Refused != "" {
		t.Fatal(d.Refused)
	}
	for i := range c.Nodes {
		c.Pause(t, i)
	}
	eventually.Nil(t, patience, func() error {
		if d := l.Admit(t.Context(), chat("a", "")); !d.Degraded {
			return errors.New("still shared")
		}
		return nil
	})
	// Counted, not timed: what is decided alone asks nobody.
	errorsBefore := testutil.ToFloat64(l.m.redisErrors.WithLabelValues("timeout"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if d := l.Admit(t.Context(), chat("a", "")); !d.Degraded || d.Refused != "" {
					t.Errorf("%q, degraded %v", d.Refused, d.Degraded)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := testutil.ToFloat64(l.m.redisErrors.WithLabelValues("timeout")) - errorsBefore; n > 8 { // one each, if the first was chance
		t.Errorf("%v of 4000 requests waited for Redis", n)
	}
	for i := range c.Nodes {
		c.Resume(t, i)
	}
	calm(t, l)
	eventually.Nil(t, patience, func() error {
		if d := l.Admit(t.Context(), chat("a", "")); d.Degraded {
			return errors.New("still alone")
		}
		return nil
	})
	if got := testutil.ToFloat64(l.m.degradedDecisions); got < 4000 {
		t.Errorf("%v decisions counted as degraded", got)
	}
}

// TestSharesFollowTheDemand looks at what gateways would do alone.
func TestSharesFollowTheDemand(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	limit := Limit{Name: "x", Rate: rate(t, "10 per second"), By: ByApp}
	two := []*Limiter{start(t, connect(t, c), 1, limit), start(t, connect(t, c), 2, limit)}
	calm(t, two...)
	share := func(l *Limiter) float64 {
		e := l.keys.get((*l.rules.Load())[0], "app:a")
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.agreedAt == 0 {
			return 0
		}
		return e.agreed
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { flood(ctx, chat("a", ""), two, []int{270, 30}) })
	eventually.Nil(t, patience, func() error {
		if a, b := share(two[0]), share(two[1]); math.Abs(a-0.9) > 0.05 || math.Abs(a+b-1) > 0.05 {
			return fmt.Errorf("shares %.3f and %.3f, want 0.9 and 0.1", a, b)
		}
		return nil
	})
	cancel()
	wg.Wait()
}

func BenchmarkAdmit(b *testing.B) {
	limits := []Limit{
		{Name: "app", Rate: rate(b, "1000000 per second"), Burst: 1e9, By: ByApp},
		{Name: "user", Rate: rate(b, "1000000 per second"), Burst: 1e9, By: ByUser},
	}
	b.Run("local", func(b *testing.B) {
		l := newLimiter(b, nil, limits...)
		b.ReportAllocs()
		for b.Loop() {
			l.Admit(context.Background(), chat("a", "u"))
		}
	})
	b.Run("refused", func(b *testing.B) {
		l := newLimiter(b, nil, Limit{Name: "x", Rate: rate(b, "1 per day"), By: ByApp})
		b.ReportAllocs()
		for b.Loop() {
			l.Admit(context.Background(), chat("a", "u"))
		}
	})
	b.Run("redis", func(b *testing.B) {
		c := servertest.NewRedisCluster(b)
		l := start(b, connect(b, c), 1, limits[0])
		calm(b, l)
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				l.Admit(context.Background(), chat("a", "u"))
			}
		})
	})
}
