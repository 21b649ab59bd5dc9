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

	"fournines/gateway/cache"
	"fournines/internal/eventually"
)

const (
	setA = "11111111-1111-4111-8111-111111111111"
	setB = "22222222-2222-4222-8222-222222222222"
)

// knowledge is a Dify instance with data sets that have a version each.
type knowledge struct {
	mu       sync.Mutex
	versions map[string]int
	indexing atomic.Int32 // questions about indexings to be answered with "indexing"; -1 is for ever
	broken   atomic.Bool
	hold     atomic.Pointer[chan struct{}] // retrievals wait for its end, after they have looked
	asked    atomic.Int64                  // retrievals
	statuses atomic.Int64                  // questions about indexings
}

func (k *knowledge) version(set string, add int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.versions == nil {
		k.versions = map[string]int{}
	}
	k.versions[set] += add
	return k.versions[set]
}

func (k *knowledge) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	set := strings.Split(r.URL.Path+"///", "/")[3]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case k.broken.Load():
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"code":"internal_server_error"}`)
	case strings.HasSuffix(r.URL.Path, "/retrieve"), strings.HasSuffix(r.URL.Path, "/hit-testing"):
		k.asked.Add(1)
		answer := fmt.Sprintf(`{"version":%d,"key":%q,"asked":%q}`, k.version(set, 0), r.Header.Get("Authorization"), body)
		if hold := k.hold.Load(); hold != nil {
			<-*hold
		}
		if strings.Contains(string(body), "large") {
			answer += strings.Repeat(" ", 300<<10)
		}
		if strings.Contains(string(body), "refuse") {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = io.WriteString(w, answer)
	case strings.HasSuffix(r.URL.Path, "/indexing-status"):
		k.statuses.Add(1)
		status := "completed"
		if n := k.indexing.Load(); n != 0 {
			status = "indexing"
			k.indexing.CompareAndSwap(n, max(n-1, -1))
		}
		_, _ = fmt.Fprintf(w, `{"data":[{"indexing_status":%q}]}`, status)
	case strings.Contains(string(body), "refuse"):
		w.WriteHeader(http.StatusBadRequest)
	case strings.Contains(r.URL.Path, "/document/create"):
		_, _ = fmt.Fprintf(w, `{"document":{"version":%d},"batch":"b1"}`, k.version(set, 1))
	default:
		_, _ = fmt.Fprintf(w, `{"version":%d}`, k.version(set, 1))
	}
}

func cacheConfig(ins ...*instance) Config {
	cfg := testConfig(ins...)
	cfg.Cache.Enabled = true
	cfg.Cache.Settle = 0
	return cfg
}

// call makes a request with a key, and returns status, body and how the cache answered.
func call(tb testing.TB, c *http.Client, method, url, key, body string, header ...string) (int, string, http.Header) {
	tb.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		tb.Fatal(err)
	}
	return read(tb, resp)
}

// asker asks one gateway and checks how its cache answered.
type asker struct {
	t   *testing.T
	c   *http.Client
	url string
}

func (a *asker) retrieve(want, set, key, body string, header ...string) string {
	a.t.Helper()
	status, answer, h := call(a.t, a.c, http.MethodPost, a.url+"/v1/datasets/"+set+"/retrieve", key, body, header...)
	if got := h.Get(cacheHeader); got != want {
		a.t.Fatalf("%s %s: cache says %q, want %q (status %d, %s)", set, body, got, want, status, answer)
	}
	return answer
}

func (a *asker) write(method, path, body string) int {
	a.t.Helper()
	status, _, _ := call(a.t, a.c, method, a.url+path, "key-1", body)
	return status
}

func TestRetrievalsAreCached(t *testing.T) {
	var k knowledge
	in := newInstance(t, "zone-a", k.serve)
	g := start(t, cacheConfig(in))
	a := &asker{t, client(t), g.url}
	const q = `{"query":"hot","retrieval_model":{"top_k":4}}`

	first := a.retrieve("miss", setA, "key-1", q)
	if again := a.retrieve("hit", setA, "key-1", `{"retrieval_model": {"top_k": 4}, "query": "hot"}`); again != first {
		t.Errorf("got %s, want %s", again, first)
	}
	if _, answer, h := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+strings.ToUpper(setA)+"/hit-testing", "key-1", q); answer != first ||
		h.Get("Age") != "0" || h.Get("Content-Type") != "application/json" || h.Get("X-Request-Id") == "" || h.Get("X-Upstream-Zone") != "" {
		t.Errorf("got %s, %v", answer, h)
	}

	// Nobody gets what another key was told.
	if other := a.retrieve("miss", setA, "key-2", q); !strings.Contains(other, "key-2") {
		t.Errorf("another key got %s", other)
	}
	a.retrieve("", setA, "", q)
	a.retrieve("miss", setA, "key-1", `{"query":"hot","retrieval_model":{"top_k":5}}`)
	a.retrieve("miss", setB, "key-1", q)
	a.retrieve("miss", setB, "key-1", q, "Origin", "https://a.example")

	// What is not kept.
	a.retrieve("miss", setA, "key-1", `{"query":"large"}`)
	if got := a.retrieve("miss", setA, "key-1", `{"query":"large"}`); len(got) < 300<<10 {
		t.Errorf("a large answer has %d bytes", len(got))
	}
	a.retrieve("miss", setA, "key-1", `{"query":"refuse"}`)
	a.retrieve("miss", setA, "key-1", `{"query":"refuse"}`)
	a.retrieve("", setA, "key-1", `not JSON`)
	a.retrieve("hit", setA, "key-1", q)
	a.retrieve("miss", setA, "key-1", q, "Cache-Control", "no-cache")
	a.retrieve("bypass", setA, "key-1", q, "Cache-Control", "no-store")
	if status, _, _ := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+setB+"/retrieve", "key-9", q, "Cache-Control", "only-if-cached"); status != http.StatusGatewayTimeout {
		t.Errorf("only-if-cached: %d", status)
	}

	// Writes.
	for _, w := range [][3]string{
		{http.MethodPatch, "/v1/datasets/" + setA, `{"name":"n"}`},
		{http.MethodPost, "/v1/datasets/" + setA + "/documents/d/segments", `{}`},
		{http.MethodDelete, "/console/api/datasets/" + setA + "/documents/d", ""},
		{http.MethodPost, "/v1/datasets/" + strings.ToUpper(setA) + "/documents/d/update-by-text", `{}`},
		{http.MethodDelete, "/console/api/datasets/api-keys/" + setB, ""},
	} {
		before := a.retrieve("hit", setA, "key-1", q)
		if status := a.write(w[0], w[1], w[2]); status != http.StatusOK {
			t.Fatalf("%s %s: %d", w[0], w[1], status)
		}
		if after := a.retrieve("miss", setA, "key-1", q); after == before && !strings.Contains(w[1], "api-keys") && !strings.Contains(w[1], strings.ToUpper(setA)) {
			t.Errorf("%s %s: still %s", w[0], w[1], after)
		}
	}
	a.retrieve("miss", setB, "key-1", q) // api-keys concern all
	a.retrieve("hit", setB, "key-1", q)
	a.write(http.MethodPatch, "/v1/datasets/"+setA, `{"name":"n"}`)
	a.retrieve("hit", setB, "key-1", q) // another data set's write does not
	a.retrieve("miss", setA, "key-1", q)
	if status := a.write(http.MethodPatch, "/v1/datasets/"+setA, `refuse`); status != http.StatusBadRequest {
		t.Fatal(status)
	}
	a.retrieve("hit", setA, "key-1", q) // what was refused changed nothing

	admin := adminAPI(t, g, AdminOptions{})
	var top []cache.Top
	if admin(http.MethodGet, "/v1/cache/top?n=1", &top); len(top) != 1 || top[0].Hits == 0 || top[0].Bytes == 0 || len(top[0].Key) != 16 {
		t.Errorf("top: %+v", top)
	}
	var purged cache.Purged
	if status := admin(http.MethodPost, "/v1/cache/purge?dataset="+strings.ToUpper(setA), &purged); status != http.StatusOK || purged.Entries == 0 {
		t.Errorf("purge: %d %+v", status, purged)
	}
	a.retrieve("miss", setA, "key-1", q)
	a.retrieve("hit", setB, "key-1", q)
	for _, bad := range []string{"top?n=x", "top?n=0"} {
		if status := admin(http.MethodGet, "/v1/cache/"+bad, nil); status != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, status)
		}
	}
	for _, bad := range []string{"", "?app=a&dataset=b", "?app=a%7Db"} {
		if status := admin(http.MethodPost, "/v1/cache/purge"+bad, nil); status != http.StatusBadRequest {
			t.Errorf("purge%s: %d", bad, status)
		}
	}
	var stats CacheStats
	if admin(http.MethodGet, "/v1/cache", &stats); !stats.Enabled || !stats.Alone || stats.Results[cache.Hit] == 0 || stats.HitRate <= 0 {
		t.Errorf("stats: %+v", stats)
	}

	if logs := g.logs.String(); !strings.Contains(logs, "cache=hit") || strings.Contains(logs, "hot") {
		t.Error("the access log has no word of the cache, or has the query")
	}
}

func TestRetrievalUnderWayIsNotKeptAfterAWrite(t *testing.T) {
	var k knowledge
	in := newInstance(t, "zone-a", k.serve)
	g := start(t, cacheConfig(in))
	a := &asker{t, client(t), g.url}
	hold := make(chan struct{})
	k.hold.Store(&hold)
	old := make(chan string)
	go func() {
		_, answer, _ := call(t, client(t), http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", `{"query":"q"}`)
		old <- answer
	}()
	eventually.Nil(t, patience, func() error {
		if k.asked.Load() == 0 {
			return fmt.Errorf("not asked yet")
		}
		return nil
	})
	a.write(http.MethodPatch, "/v1/datasets/"+setA, `{}`)
	k.hold.Store(nil)
	// It must not wait for the old answer either.
	if got := a.retrieve("miss", setA, "key-1", `{"query":"q"}`); !strings.Contains(got, `"version":1`) {
		t.Errorf("after the write: %s", got)
	}
	close(hold)
	if got := <-old; !strings.Contains(got, `"version":0`) {
		t.Errorf("before the write: %s", got)
	}
	if got := a.retrieve("hit", setA, "key-1", `{"query":"q"}`); !strings.Contains(got, `"version":1`) {
		t.Errorf("kept: %s", got)
	}
}

func TestOneRetrievalForMany(t *testing.T) {
	var k knowledge
	in := newInstance(t, "zone-a", k.serve)
	g := start(t, cacheConfig(in))
	hold := make(chan struct{})
	k.hold.Store(&hold)
	const askers = 20
	results := make(chan string, askers)
	for range askers {
		go func() {
			_, _, h := call(t, client(t), http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", `{"query":"q"}`)
			results <- h.Get(cacheHeader)
		}()
	}
	eventually.Nil(t, patience, func() error {
		if n := g.inFlight.Load(); n != askers {
			return fmt.Errorf("%d in flight", n)
		}
		return nil
	})
	close(hold)
	count := map[string]int{}
	for range askers {
		count[<-results]++
	}
	if count["miss"] != 1 || count["shared"]+count["hit"] != askers-1 || k.asked.Load() != 1 {
		t.Errorf("%v, the instance was asked %d times", count, k.asked.Load())
	}
}

func TestStaleWhileInstancesFail(t *testing.T) {
	var k knowledge
	in := newInstance(t, "zone-a", k.serve)
	cfg := cacheConfig(in)
	cfg.Cache.TTL, cfg.Cache.StaleAfter, cfg.Cache.RetryAfter = 100*time.Millisecond, 50*time.Millisecond, 0
	cfg.Ejection.Consecutive5xx = 1000
	cfg.Ejection.ErrorShare = 0
	g := start(t, cfg)
	a := &asker{t, client(t), g.url}
	const q = `{"query":"q"}`
	fresh := a.retrieve("miss", setA, "key-1", q)
	k.broken.Store(true)
	eventually.Nil(t, patience, func() error { // it must get old first
		status, answer, h := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q)
		if status != http.StatusOK || answer != fresh {
			return fmt.Errorf("%d %s", status, answer)
		}
		if got := h.Get(cacheHeader); got != "stale" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if status, _, _ := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", `{"query":"never asked"}`); status != http.StatusInternalServerError {
		t.Errorf("without an answer: %d", status)
	}
	// A write that may have been carried out ends it.
	if status := a.write(http.MethodPatch, "/v1/datasets/"+setA, `{}`); status != http.StatusInternalServerError {
		t.Errorf("write: %d", status)
	}
	if status, _, h := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q); status != http.StatusInternalServerError {
		t.Errorf("after the write: %d %v", status, h)
	}

	// An instance that says nothing is as bad.
	k.broken.Store(false)
	fresh = a.retrieve("miss", setA, "key-1", q)
	hold := make(chan struct{})
	defer close(hold)
	k.hold.Store(&hold)
	eventually.Nil(t, patience, func() error {
		_, answer, h := call(t, a.c, http.MethodPost, g.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q)
		if got := h.Get(cacheHeader); got != "stale" || answer != fresh {
			return fmt.Errorf("%s %s", got, answer)
		}
		return nil
	})
}

func TestIndexingIsWatched(t *testing.T) {
	var k knowledge
	in := newInstance(t, "zone-a", k.serve)
	cfg := cacheConfig(in)
	cfg.Cache.Settle = 10 * time.Minute // not in this test
	g := start(t, cfg)
	a := &asker{t, client(t), g.url}
	const q = `{"query":"q"}`
	a.retrieve("miss", setA, "key-1", q)
	k.indexing.Store(2)
	a.write(http.MethodPost, "/v1/datasets/"+setA+"/document/create_by_text", `{"name":"n","text":"t"}`)
	a.retrieve("bypass", setA, "key-1", q)
	eventually.Nil(t, patience, func() error {
		if n := k.statuses.Load(); n < 3 {
			return fmt.Errorf("asked %d times", n)
		}
		if n := g.metric(t, g.watches.count); n != 0 {
			return fmt.Errorf("%v watched", n)
		}
		return nil
	})
}
