package limit

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	logging.Disable() // the tests kill servers; the client says so line by line
	goleak.VerifyTestMain(m,
		// Of a client that was closed while a node was dead; it ends within a second.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

func newRuleForTest(l Limit) *rule {
	m, err := newMetrics(prometheus.NewRegistry(), &Limiter{})
	if err != nil {
		panic(err)
	}
	return newRule(l, m)
}

func newLimiter(tb testing.TB, client *redis.ClusterClient, limits ...Limit) *Limiter {
	tb.Helper()
	l, err := New(client, DefaultSharing(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		tb.Fatal(err)
	}
	l.Update(limits, DefaultSharing())
	return l
}

func rate(tb testing.TB, s string) Rate {
	tb.Helper()
	r, err := ParseRate(s)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func chat(app, user string) Request {
	return Request{App: app, User: user, Class: "chat", Path: "/v1/chat-messages", Address: netip.MustParseAddr("203.0.113.9")}
}

// admitted counts how many of n requests pass.
func admitted(l *Limiter, n int, q Request) int {
	ok := 0
	for range n {
		if d := l.Admit(context.Background(), q); d.Refused == "" {
			ok++
		}
	}
	return ok
}

func TestOneGatewayAdmitsTheRate(t *testing.T) {
	for _, tc := range []struct {
		rate     string
		burst    int64
		first    int // what one minute admits, from a full budget
		second   int // and the next one
		interval time.Duration
	}{
		{"100 per minute", 0, 110, 100, 50 * time.Millisecond},
		{"100 per minute", 1, 100, 100, 50 * time.Millisecond},
		{"100 per second", 0, 6010, 6000, time.Millisecond},
		{"7 per second", 3, 423, 420, time.Millisecond},
		{"60000 per hour", 100, 1100, 1000, 5 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, tc.rate), Burst: tc.burst, By: ByApp})
			minute := func() int {
				n := 0
				for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(tc.interval) {
					n += admitted(l, 1, chat("a", ""))
				}
				return n
			}
			near := func(got, want int) bool { return got >= want-1 && got <= want+1 }
			if got := minute(); !near(got, tc.first) {
				t.Errorf("%s: %d in the first minute, want %d", tc.rate, got, tc.first)
			}
			if got := minute(); !near(got, tc.second) {
				t.Errorf("%s: %d in the second minute, want %d", tc.rate, got, tc.second)
			}
		})
	}
}

func TestWhoSharesABudget(t *testing.T) {
	v6 := func(s string) Request {
		return Request{Address: netip.MustParseAddr(s), Class: "read", Path: "/v1/meta"}
	}
	for _, tc := range []struct {
		by   string
		qs   []Request
		pass int
	}{
		{ByApp, []Request{chat("a", ""), chat("a", "u"), chat("b", "")}, 2},
		{ByApp, []Request{chat("", ""), chat("", "")}, 2}, // without a key the limit says nothing
		{ByUser, []Request{chat("a", "u"), chat("a", "v"), chat("b", "u"), chat("a", "u")}, 3},
		{ByUser, []Request{chat("a", ""), chat("a", "")}, 2},
		{ByAddress, []Request{v6("2001:db8::1"), v6("2001:db8::2"), v6("2001:db8:0:1::1")}, 2},
		{ByAddress, []Request{{}, {}}, 2},
		{ByRoute, []Request{chat("a", ""), chat("b", ""), v6("::1")}, 2},
		{ByAll, []Request{chat("a", "u"), v6("::1")}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "1 per minute"), By: tc.by})
			pass := 0
			for _, q := range tc.qs {
				pass += admitted(l, 1, q)
			}
			if pass != tc.pass {
				t.Errorf("%s: %d of %d pass, want %d", tc.by, pass, len(tc.qs), tc.pass)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "1 per minute"), By: ByAll,
			Match: Match{Apps: []string{"a"}, Classes: []string{"chat", "workflow"}, PathPrefix: "/v1/"}})
		for name, q := range map[string]Request{
			"another app":   chat("b", ""),
			"another class": {App: "a", Class: "read", Path: "/v1/meta"},
			"another path":  {App: "a", Class: "chat", Path: "/api/chat-messages"},
		} {
			if got := admitted(l, 3, q); got != 3 {
				t.Errorf("%s: %d of 3", name, got)
			}
		}
		if got := admitted(l, 3, chat("a", "")); got != 1 {
			t.Errorf("%d of 3 that match", got)
		}
	})
}

func TestWhatOneLimitRefusesIsNotChargedToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil,
			Limit{Name: "all", Rate: rate(t, "100 per minute"), Burst: 10, By: ByAll},
			Limit{Name: "user", Rate: rate(t, "1 per minute"), By: ByUser},
			Limit{Name: "app", Rate: rate(t, "100 per minute"), Burst: 10, By: ByApp})
		if got := admitted(l, 1000, chat("a", "greedy")); got != 1 {
			t.Fatalf("%d admitted", got)
		}
		n := 0
		for _, user := range []string{"b", "c", "d", "e", "f", "g", "h", "i", "j"} {
			n += admitted(l, 1, chat("a", user))
		}
		if n != 9 {
			t.Errorf("the other nine users: %d admitted", n)
		}
		d := l.Admit(t.Context(), chat("a", "k"))
		if d.Refused != "all" || d.RetryAfter <= 0 || d.RetryAfter > time.Second {
			t.Errorf("got %q after %v", d.Refused, d.RetryAfter)
		}
	})
}

func TestTokensAreChargedAfterTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "600 per minute"), Burst: 100, By: ByApp, Unit: Tokens})
		one, two := l.Admit(t.Context(), chat("a", "")), l.Admit(t.Context(), chat("a", ""))
		if one.Refused != "" || two.Refused != "" || !one.CountsTokens() {
			t.Fatal("a budget without debt refuses")
		}
		one.Charge(150, false)
		d := l.Admit(t.Context(), chat("a", ""))
		if d.Refused != "x" || d.RetryAfter < 4*time.Second || d.RetryAfter > 6*time.Second {
			t.Errorf("in debt by 50 of 10 a second: %q, %v", d.Refused, d.RetryAfter)
		}
		two.Charge(50, true)
		d.Charge(1000, false) // a refused request has no cost
		time.Sleep(9 * time.Second)
		if admitted(l, 1, chat("a", "")) != 0 {
			t.Error("admitted a second before the debt is paid")
		}
		time.Sleep(2 * time.Second)
		if admitted(l, 1, chat("a", "")) != 1 {
			t.Error("refused a second after the debt was paid")
		}
	})
}

func TestHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil,
			Limit{Name: "minute", Rate: rate(t, "100 per minute"), Burst: 2, By: ByApp},
			Limit{Name: "slow", Rate: rate(t, "1.5 per second"), By: ByAll},
			Limit{Name: "tokens", Rate: rate(t, "60000 per hour"), Burst: 500, By: ByApp, Unit: Tokens})
		l.Update(append([]Limit{}, l.limitsForTest()[:1]...), DefaultSharing())
		d := l.Admit(t.Context(), chat("a", ""))
		policy, state := d.Headers()
		if policy != `"minute";q=100;w=60` || state != `"minute";r=1;t=1` {
			t.Errorf("first: %s, %s", policy, state)
		}
		l.Admit(t.Context(), chat("a", ""))
		d = l.Admit(t.Context(), chat("a", ""))
		if _, state = d.Headers(); d.Refused != "minute" || state != `"minute";r=0;t=1` {
			t.Errorf("refused: %q, %s", d.Refused, state)
		}
		if p := newRuleForTest(Limit{Name: "slow", Rate: rate(t, "1.5 per second"), By: ByAll}).policy; p != `"slow";q=3;w=2` {
			t.Errorf("a fraction: %s", p)
		}
		if p := newRuleForTest(Limit{Name: "t", Rate: rate(t, "60000 per hour"), By: ByAll, Unit: Tokens}).policy; p != `"t";q=60000;w=3600;qu="tokens"` {
			t.Errorf("tokens: %s", p)
		}
		var none Decision
		if p, s := none.Headers(); p != "" || s != "" {
			t.Errorf("no limit: %q %q", p, s)
		}
	})
}

func (l *Limiter) limitsForTest() (out []Limit) {
	for _, r := range *l.rules.Load() {
		out = append(out, r.Limit)
	}
	return out
}

func TestReloadKeepsWhatWasSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "1 per day"), Burst: 5, By: ByApp})
		if got := admitted(l, 10, chat("a", "")); got != 5 {
			t.Fatalf("%d", got)
		}
		l.Update([]Limit{{Name: "x", Rate: rate(t, "60 per minute"), Burst: 5, By: ByApp}}, DefaultSharing())
		if got := admitted(l, 10, chat("a", "")); got != 0 {
			t.Errorf("%d admitted at once: the budget was spent", got)
		}
		time.Sleep(time.Second + time.Millisecond)
		if got := admitted(l, 10, chat("a", "")); got != 1 {
			t.Errorf("%d admitted a second later at 1 per second", got)
		}
		l.Update(nil, DefaultSharing())
		if got := admitted(l, 10, chat("a", "")); got != 10 {
			t.Errorf("%d of 10 without limits", got)
		}
	})
}

func TestBudgetsInMemoryAreBounded(t *testing.T) {
	l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "1 per minute"), By: ByApp})
	for i := range 3 * tableParts * maxPerPart / 2 {
		l.Admit(t.Context(), Request{App: string(rune('a'+i%26)) + time.Duration(i).String()})
	}
	if n := l.keys.size(); n > tableParts*maxPerPart {
		t.Errorf("%d budgets", n)
	}
}

func TestSweepForgetsFullBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, nil, Limit{Name: "x", Rate: rate(t, "1 per hour"), Burst: 2, By: ByApp})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		admitted(l, 1, chat("a", ""))
		time.Sleep(30 * time.Minute)
		if l.keys.size() != 1 {
			t.Error("a budget that is not full was forgotten")
		}
		time.Sleep(31 * time.Minute)
		if l.keys.size() != 0 {
			t.Error("a full budget is still there")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
