package cache

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNormal(t *testing.T) {
	const same = `{"query":"Hello  World","retrieval_model":{"top_k":4,"score_threshold":0.50}}`
	cases := []struct {
		name, mode, a, b string
		alike            bool
	}{
		{"white space and order of members", NormaliseNone, same, ` { "retrieval_model" : {"score_threshold":0.50, "top_k":4 }, "query":"Hello\u0020 World" } `, true},
		{"spaces in the text", NormaliseNone, same, strings.Replace(same, "  ", " ", 1), false},
		{"spaces in the text", NormaliseSpace, same, strings.Replace(same, "Hello  ", " Hello\\n\\t", 1), true},
		{"case", NormaliseSpace, same, strings.ToLower(same), false},
		{"case", NormaliseFold, same, strings.ToLower(same), true},
		{"case and form", NormaliseFold, `{"query":"STRASSE Ⅳ"}`, `{"query":"straße iv"}`, true},
		{"another top_k", NormaliseFold, same, strings.Replace(same, "4", "5", 1), false},
		{"one member more", NormaliseFold, `{"query":"q"}`, `{"query":"q","attachment_ids":[]}`, false},
		{"the last of two counts", NormaliseNone, `{"query":"x","query":"q"}`, `{"query":"q"}`, true},
		{"numbers that a float cannot tell apart", NormaliseNone, `{"query":"q","n":9007199254740993}`, `{"query":"q","n":9007199254740992}`, false},
	}
	for _, tc := range cases {
		a, okA := Normal([]byte(tc.a), tc.mode)
		b, okB := Normal([]byte(tc.b), tc.mode)
		if !okA || !okB || (string(a) == string(b)) != tc.alike {
			t.Errorf("%s, %s: %s and %s", tc.name, tc.mode, a, b)
		}
	}
	for _, bad := range []string{
		"", "[]", `"query"`, `{}`, `{"query":""}`, `{"query":7}`, `{"query":"q"} {}`, `{"query":"q"`, "{\"query\":\"\xff\"}", `{"query":"\ud800"}`,
		`{"query":"q","x":"\udfff"}`, `{"query":"` + strings.Repeat("q", MaxQuestionBytes) + `"}`,
	} {
		if got, ok := Normal([]byte(bad), NormaliseNone); ok {
			t.Errorf("%.40q: got %.40q", bad, got)
		}
	}
}

func FuzzNormal(f *testing.F) {
	f.Add([]byte(`{"query":"Hello  World","retrieval_model":{"top_k":4}}`))
	f.Add([]byte(`{"query":"\u00e9\ud83d\ude00","a":[1e400,null,true,{"b":"<"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, mode := range []string{NormaliseNone, NormaliseSpace, NormaliseFold} {
			once, ok := Normal(body, mode)
			if !ok {
				continue
			}
			twice, ok := Normal(once, mode)
			if ok && string(once) != string(twice) {
				t.Fatalf("%s: %q, and again %q", mode, once, twice)
			}
		}
	})
}

func TestKeysTellApart(t *testing.T) {
	seen := map[Key]string{}
	for _, q := range [][3]string{{"k", "d", "q"}, {"k2", "d", "q"}, {"k", "d2", "q"}, {"k", "d", "q2"}, {"kd", "", "q"}, {"", "kd", "q"}} {
		k := KeyOf(q[0], q[1], []byte(q[2]))
		if other, ok := seen[k]; ok {
			t.Errorf("%v and %s have one key", q, other)
		}
		seen[k] = fmt.Sprint(q)
	}
}

func TestControl(t *testing.T) {
	for _, tc := range []struct {
		name string
		h    http.Header
		want Control
	}{
		{"nothing", http.Header{}, Control{}},
		{"several", http.Header{"Cache-Control": {"No-Cache, foo=bar", "max-age=7"}}, Control{NoCache: true, HasMaxAge: true, MaxAge: 7 * time.Second}},
		{"no-store", http.Header{"Cache-Control": {"no-store"}}, Control{NoStore: true}},
		{"only-if-cached", http.Header{"Cache-Control": {"only-if-cached, stale-if-error=\"60\""}}, Control{OnlyIfCached: true, HasStaleIfError: true, StaleIfError: time.Minute}},
		{"pragma", http.Header{"Pragma": {"no-cache"}}, Control{NoCache: true}},
		{"pragma does not count beside", http.Header{"Pragma": {"no-cache"}, "Cache-Control": {"max-age=1"}}, Control{HasMaxAge: true, MaxAge: time.Second}},
		{"no number", http.Header{"Cache-Control": {"max-age=x"}}, Control{}},
		{"beyond all", http.Header{"Cache-Control": {"max-age=99999999999"}}, Control{HasMaxAge: true, MaxAge: maxSeconds * time.Second}},
	} {
		if got := ParseControl(tc.h); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestStorable(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		h      http.Header
		want   bool
	}{
		"plain":      {200, http.Header{"Content-Type": {"application/json"}, "Vary": {"Origin"}}, true},
		"created":    {201, nil, false},
		"error":      {500, nil, false},
		"cookie":     {200, http.Header{"Set-Cookie": {"a=b"}}, false},
		"packed":     {200, http.Header{"Content-Encoding": {"gzip"}}, false},
		"forbidden":  {200, http.Header{"Cache-Control": {"No-Store"}}, false},
		"varies":     {200, http.Header{"Vary": {"*"}}, false},
		"its maxage": {200, http.Header{"Cache-Control": {"max-age=60"}}, true},
	} {
		if got := Storable(tc.status, tc.h); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestConfigRanges(t *testing.T) {
	for field, set := range map[string]func(*Config){
		"":                      func(*Config) {},
		"cache.maxBytes":        func(c *Config) { c.MaxBytes, c.MaxEntryBytes = 1, 1<<10 },
		"cache.maxEntryBytes":   func(c *Config) { c.MaxEntryBytes = c.MaxBytes },
		"cache.ttl":             func(c *Config) { c.TTL = 0 },
		"cache.staleIfError":    func(c *Config) { c.StaleIfError = -1 },
		"cache.staleAfter":      func(c *Config) { c.StaleAfter = 0 },
		"cache.retryAfter":      func(c *Config) { c.RetryAfter = time.Hour },
		"cache.maxStaleness":    func(c *Config) { c.MaxStaleness = time.Hour },
		"cache.settle":          func(c *Config) { c.Settle = -1 },
		"cache.indexingTimeout": func(c *Config) { c.IndexingTimeout = 0 },
		"cache.normalise":       func(c *Config) { c.Normalise = "lower" },
	} {
		cfg := DefaultConfig()
		set(&cfg)
		var got []string
		cfg.Validate(func(field, _ string, _ ...any) { got = append(got, field) })
		if strings.Join(got, " ") != field {
			t.Errorf("%s: got %v", field, got)
		}
	}
}

// newTest makes a cache without a Redis.
func newTest(t *testing.T, change func(*Config)) *Cache {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Enabled, cfg.Settle = true, 0
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg, nil, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func ask(name string) *Question {
	return &Question{Key: KeyOf("key", "set", []byte(name)), Dataset: "set", App: "app"}
}

func visit(t *testing.T, c *Cache, q *Question, want Result) *Visit {
	t.Helper()
	v, err := c.Visit(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != want {
		t.Fatalf("got %s, want %s", v.Result, want)
	}
	return v
}

func keep(t *testing.T, c *Cache, q *Question) {
	t.Helper()
	visit(t, c, q, Miss).Keep(nil, []byte("answer"))
}

func TestFreshStaleAndGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTest(t, func(cfg *Config) { cfg.TTL, cfg.StaleIfError, cfg.RetryAfter = time.Minute, time.Hour, time.Second })
		q := ask("q")
		keep(t, c, q)
		time.Sleep(time.Minute)
		visit(t, c, q, Hit)
		time.Sleep(time.Millisecond)
		v := visit(t, c, q, Miss)
		if e := v.Failed(); e == nil || v.Result != Stale {
			t.Fatal("nothing to fall back on")
		}
		visit(t, c, q, Stale) // the instances are left alone
		time.Sleep(time.Second)
		v = visit(t, c, q, Miss) // one may try
		visit(t, c, q, Stale)
		v.Succeeded()
		v.End()
		visit(t, c, q, Miss).End()

		none := ask("q")
		none.Control = Control{HasStaleIfError: true}
		if e := visit(t, c, none, Miss).Failed(); e != nil {
			t.Error("a stale answer for a client that wants none")
		}
		time.Sleep(time.Hour)
		if e := visit(t, c, q, Miss).Failed(); e != nil {
			t.Error("staler than configured")
		}
		c.sweep()
		if n := len(c.Top(10)); n != 0 {
			t.Errorf("%d entries after the sweep", n)
		}
	})
}

func TestClientsWishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTest(t, nil)
		with := func(ctl Control) *Question { q := ask("q"); q.Control = ctl; return q }
		visit(t, c, with(Control{OnlyIfCached: true}), Absent)
		visit(t, c, with(Control{NoStore: true}), Bypass).End()
		visit(t, c, with(Control{NoCache: true}), Miss).Keep(nil, []byte("new"))
		visit(t, c, with(Control{OnlyIfCached: true}), Hit)
		time.Sleep(2 * time.Second)
		visit(t, c, with(Control{HasMaxAge: true, MaxAge: 2 * time.Second}), Hit)
		visit(t, c, with(Control{HasMaxAge: true, MaxAge: time.Second}), Miss).End()
		visit(t, c, with(Control{NoCache: true}), Miss).End()
	})
}

func TestWritesMakeVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTest(t, func(cfg *Config) { cfg.Settle = 10 * time.Second })
		q, other := ask("q"), &Question{Key: KeyOf("key", "other", []byte("q")), Dataset: "other", App: "app2"}
		keep(t, c, q)
		keep(t, c, other)

		// An answer that was asked for before the write is not kept after it.
		late := visit(t, c, ask("late"), Miss)
		c.Wrote(t.Context(), "set")
		late.Keep(nil, []byte("old"))

		v := visit(t, c, q, Bypass) // settling
		if v.Failed() != nil {
			t.Error("a void answer was given as stale")
		}
		visit(t, c, other, Hit)
		time.Sleep(11 * time.Second)
		visit(t, c, ask("late"), Miss).End()
		keep(t, c, q)
		visit(t, c, q, Hit)

		if p := c.Purge(t.Context(), "", "app2"); p.Entries != 1 || p.Shared {
			t.Errorf("purge: %+v", p)
		}
		visit(t, c, other, Miss).End()
		visit(t, c, q, Hit)
		if p := c.Purge(t.Context(), "", ""); p.Entries != 1 {
			t.Errorf("purge of all: %+v", p)
		}
		visit(t, c, q, Miss).End()

		keep(t, c, q)
		off := *c.cfg.Load()
		off.Enabled = false
		c.Update(off)
		on := off
		on.Enabled = true
		c.Update(on)
		visit(t, c, q, Miss).End()
	})
}

func TestOneAsksForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTest(t, nil)
		q := ask("q")
		first := visit(t, c, q, Miss)
		results := make(chan Result, 10)
		for range 10 {
			go func() {
				v, err := c.Visit(context.Background(), q)
				if err != nil {
					t.Error(err)
				}
				results <- v.Result
			}()
		}
		synctest.Wait()
		first.Left() // its client went: another one asks
		synctest.Wait()
		second := <-results
		if second != Miss || len(results) != 0 {
			t.Fatalf("got %s and %d more", second, len(results))
		}
		c.flightMu.Lock()
		f := c.flights[q.Key]
		c.flightMu.Unlock()
		(&Visit{c: c, q: q, flight: f, keep: true, scopes: scopes{c.book.find(everything, 1), c.book.find("d:set", 1), c.book.find("k:app", 1)}}).Keep(nil, []byte("x"))
		for range 9 {
			if r := <-results; r != Shared {
				t.Errorf("got %s", r)
			}
		}

		// What cannot be shared lets them ask by themselves, at once.
		q = ask("q2")
		first = visit(t, c, q, Miss)
		for range 3 {
			go func() {
				v, _ := c.Visit(context.Background(), q)
				results <- v.Result
			}()
		}
		synctest.Wait()
		first.End()
		for range 3 {
			if r := <-results; r != Miss {
				t.Errorf("got %s", r)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first = visit(t, c, ask("q3"), Miss)
		go cancel()
		if _, err := c.Visit(ctx, ask("q3")); err == nil {
			t.Error("waited on for a client that left")
		}
		first.End()
	})
}

func TestMemoryIsBounded(t *testing.T) {
	c := newTest(t, func(cfg *Config) { cfg.MaxBytes = 1 << 20; cfg.MaxEntryBytes = 64 << 10 })
	for i := range 1000 {
		v := visit(t, c, ask(fmt.Sprint(i)), Miss)
		if !v.Keeps(200, nil, 10<<10) || v.Keeps(200, nil, 65<<10) || v.Keeps(404, nil, 10) {
			t.Fatal("what is kept")
		}
		v.Keep(http.Header{"Content-Type": {"application/json"}}, make([]byte, 10<<10))
	}
	c.store.CleanUp()
	if s := c.Stats(); s.Bytes > 1<<20 || s.Entries < 50 || s.Evictions < 800 {
		t.Errorf("%+v", s)
	}
	c.book.max = 10
	for i := range 100 {
		c.book.find(fmt.Sprint("d:", i), int64(i))
	}
	if n := len(c.book.all); n > 10 {
		t.Errorf("%d scopes", n)
	}
	// Entries of a forgotten data set do not come back.
	c = newTest(t, nil)
	q := ask("q")
	keep(t, c, q)
	c.book.max = 2
	for i := range 100 {
		c.book.find(fmt.Sprint("d:", i), c.now()+int64(i))
	}
	visit(t, c, q, Miss).End()
}
