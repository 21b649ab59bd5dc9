package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/gateway/jobs"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// adminCall asks the lane's part of the admin API.
func adminCall(tb testing.TB, g *running, method, path string, into any) int {
	tb.Helper()
	mux := http.NewServeMux()
	for pattern, h := range g.jobs.AdminHandlers() {
		mux.Handle(pattern, h)
	}
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	if into != nil {
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			tb.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
		}
	}
	return rec.Code
}

// TestLaneLosesNothingWithAMaster kills a Redis master while jobs are being taken
// in and run: whatever was acknowledged ends, and nothing runs twice.
func TestLaneLosesNothingWithAMaster(t *testing.T) {
	const total, apps = 200, 24 // so many apps that every queue, hence every master, has some
	c := servertest.NewRedisCluster(t)
	sc := newScript()
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		// Long enough that some run when the master dies.
		timer := time.NewTimer(100 * time.Millisecond)
		defer timer.Stop()
		<-timer.C
		sc.serve(w, r)
	})
	cfg := laneConfig(t, c, jobKeyFile(t), in)
	cfg.Jobs.Workers = 4
	gateways := []*running{start(t, cfg), start(t, cfg)}

	type job struct{ url, key string }
	var mu sync.Mutex
	accepted := map[string]job{} // by query
	var count atomic.Int64
	kill := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		<-kill
		c.KillMaster(t, 1)
	}()
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				query := fmt.Sprintf("q%d", i)
				l := newLaneClient(t, fmt.Sprintf("app-%d", i%apps))
				g := gateways[i%2]
				status, body, h, err := l.try("POST", g.url+"/v1/chat-messages", laneBody(query), "Prefer", "respond-async")
				switch {
				case err != nil:
					t.Errorf("%s: %v", query, err)
				case status == http.StatusAccepted:
					mu.Lock()
					accepted[query] = job{g.url + h.Get("Location"), l.key}
					mu.Unlock()
					if count.Add(1) == total/2 {
						close(kill)
					}
				case status != http.StatusServiceUnavailable:
					t.Errorf("%s: %d %s", query, status, body)
				}
			}
		})
	}
	for i := range total {
		next <- i
	}
	close(next)
	wg.Wait()
	<-killed
	if len(accepted) < total/2 {
		t.Fatalf("only %d of %d accepted", len(accepted), total)
	}
	states := map[jobs.State]int{}
	for query, j := range accepted {
		l := newLaneClient(t, j.key)
		s := l.await(j.url, jobs.Succeeded, jobs.Failed)
		states[s.State]++
		if s.State == jobs.Failed && s.Error.Reason != "lost" {
			t.Errorf("%s failed: %+v", query, s.Error)
		}
		if n := sc.runs(query); n > 1 || s.State == jobs.Succeeded && n != 1 {
			t.Errorf("%s is %s and was run %d times", query, s.State, n)
		}
	}
	for i := range total {
		if n := sc.runs(fmt.Sprintf("q%d", i)); n > 1 {
			t.Errorf("q%d was run %d times", i, n)
		}
	}
	var dead struct{ Jobs []jobs.Listed }
	adminCall(t, gateways[0], "GET", "/v1/jobs?state=dead&limit=1000", &dead)
	if len(dead.Jobs) != states[jobs.Failed] {
		t.Errorf("%d failed, %d in the dead-letter list", states[jobs.Failed], len(dead.Jobs))
	}
	t.Logf("%d accepted of %d: %v", len(accepted), total, states)
}

func TestLaneAdmin(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	sc := newScript()
	in := newInstance(t, "zone-a", sc.serve)
	cfg := laneConfig(t, c, jobKeyFile(t), in)
	cfg.Jobs.Workers = 1
	g := start(t, cfg)
	app := newLaneClient(t, "app-one")

	open := sc.gate("long")
	defer open()
	long := app.submit(g.url, "long")
	app.await(g.url+long, jobs.Running)
	waiting := app.submit(g.url, "waiting") // there is one worker
	var all struct{ Jobs []jobs.Listed }
	if code := adminCall(t, g, "GET", "/v1/jobs", &all); code != http.StatusOK || len(all.Jobs) != 2 {
		t.Fatalf("list: %d %+v", code, all)
	}
	if j := all.Jobs[0]; "/jobs/"+j.ID != waiting || j.State != jobs.Queued || j.Class != "chat" || j.App == "" || j.Path != "/v1/chat-messages" {
		t.Errorf("newest first: %+v", j)
	}
	if code := adminCall(t, g, "POST", "/v1"+waiting+"/cancel", nil); code != http.StatusOK {
		t.Errorf("cancel: %d", code)
	}
	app.await(g.url+waiting, jobs.Canceled)
	open()
	app.await(g.url+long, jobs.Succeeded)
	if n := sc.runs("waiting"); n != 0 {
		t.Errorf("the canceled job ran %d times", n)
	}

	dead := app.submit(g.url, "die-replay")
	app.await(g.url+dead, jobs.Failed)
	var letters struct{ Jobs []jobs.Listed }
	if adminCall(t, g, "GET", "/v1/jobs?state=dead", &letters); len(letters.Jobs) != 1 || letters.Jobs[0].Error.Reason != "lost" {
		t.Fatalf("dead letters: %+v", letters)
	}
	if code := adminCall(t, g, "POST", "/v1"+long+"/replay", nil); code != http.StatusConflict {
		t.Errorf("replay of a job that is not dead: %d", code)
	}
	var done struct{ Done int }
	if adminCall(t, g, "POST", "/v1/jobs/dead/replay", &done); done.Done != 1 {
		t.Errorf("replay all: %+v", done)
	}
	if s := app.await(g.url+dead, jobs.Succeeded); s.Attempts != 2 || s.Error != nil {
		t.Errorf("after the replay: %+v", s)
	}
	app.await(g.url+app.submit(g.url, "reject"), jobs.Failed)
	if adminCall(t, g, "POST", "/v1/jobs/dead/purge", &done); done.Done != 1 {
		t.Errorf("purge: %+v", done)
	}
	if adminCall(t, g, "GET", "/v1/jobs?state=dead", &letters); len(letters.Jobs) != 0 {
		t.Errorf("after the purge: %+v", letters)
	}
	for path, want := range map[string]int{"/v1/jobs?state=odd": 400, "/v1/jobs?limit=0": 400, "/v1/jobs/j0": 404} {
		if code := adminCall(t, g, "GET", path, nil); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
}

// TestLaneDrain: a gateway that stops finishes what it runs and leaves the rest
// to others.
func TestLaneDrain(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	keyFile := jobKeyFile(t)
	sc := newScript()
	in := newInstance(t, "zone-a", sc.serve)
	cfg := laneConfig(t, c, keyFile, in)
	cfg.Jobs.Workers = 1
	a := start(t, cfg)
	app := newLaneClient(t, "app-one")
	open := sc.gate("first")
	defer open()
	first := app.submit(a.url, "first")
	app.await(a.url+first, jobs.Running)
	second := app.submit(a.url, "second")
	a.stop()
	eventually.Nil(t, patience, func() error {
		if !a.draining.Load() {
			return fmt.Errorf("not draining")
		}
		return nil
	})
	b := start(t, cfg)
	app.await(b.url+second, jobs.Succeeded)
	open()
	if err := a.wait(); err != nil {
		t.Fatal(err)
	}
	if s := app.get(b.url + first); s.State != jobs.Succeeded || s.Attempts != 1 {
		t.Errorf("the job that ran: %+v", s)
	}
	if n := sc.runs("first"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

func TestLaneIsBounded(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	sc := newScript()
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer app-unknown" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"code":"unauthorized","message":"Access token is invalid","status":401}`))
			return
		}
		sc.serve(w, r)
	})
	cfg := laneConfig(t, c, jobKeyFile(t), in)
	cfg.Jobs.Workers, cfg.Jobs.MaxPerApp, cfg.Jobs.MaxQueued = 0, 2, 3
	closed := start(t, cfg)
	a := newLaneClient(t, "app-a")
	a.submit(closed.url, "1")
	a.submit(closed.url, "2")
	status, body, h := a.do("POST", closed.url+"/v1/chat-messages", laneBody("3"), "Prefer", "respond-async")
	if status != http.StatusTooManyRequests || h.Get("Retry-After") == "" || h.Get("Preference-Applied") != "" {
		t.Errorf("over maxPerApp: %d %s %v", status, body, h)
	}
	for _, tc := range []struct {
		name, body string
		headers    []string
		want       int
	}{
		{"too large", laneBody(strings.Repeat("x", int(cfg.Jobs.MaxBodyBytes))), nil, http.StatusRequestEntityTooLarge},
		{"no JSON", "x", nil, http.StatusBadRequest},
		{"odd mode", `{"response_mode":"odd"}`, nil, http.StatusBadRequest},
		{"long Idempotency-Key", laneBody("x"), []string{"Idempotency-Key", strings.Repeat("x", 300)}, http.StatusBadRequest},
		{"webhooks are off", laneBody("x"), []string{"Webhook-Url", "https://example.org/"}, http.StatusBadRequest},
	} {
		l := newLaneClient(t, "app-odd")
		if status, body, _ := l.do("POST", closed.url+"/v1/chat-messages", tc.body, append([]string{"Prefer", "respond-async"}, tc.headers...)...); status != tc.want {
			t.Errorf("%s: %d %s, want %d", tc.name, status, body, tc.want)
		}
	}

	cfg.Jobs.Workers = 4
	g := start(t, cfg)
	unknown := newLaneClient(t, "app-unknown")
	if s := unknown.await(g.url+unknown.submit(g.url, "x"), jobs.Failed); s.Error == nil || s.Error.Status != http.StatusUnauthorized {
		t.Errorf("an unknown key: %+v", s.Error)
	}
	eventually.Nil(t, patience, func() error {
		var all struct{ Jobs []jobs.Listed }
		adminCall(t, g, "GET", "/v1/jobs", &all)
		for _, j := range all.Jobs {
			if j.State != jobs.Succeeded && j.State != jobs.Failed {
				return fmt.Errorf("%s is %s", j.ID, j.State)
			}
		}
		return nil
	})
	var dead struct{ Jobs []jobs.Listed }
	if adminCall(t, g, "GET", "/v1/jobs?state=dead", &dead); len(dead.Jobs) != 0 {
		t.Errorf("a request that Dify does not know the sender of is a dead letter: %+v", dead)
	}
	// Everything that was counted has been given back.
	for i := range 3 {
		cl := c.Client(t, i)
		iter := cl.Scan(t.Context(), 0, "fournines:gw:jobs:*:live", 1000).Iterator()
		for iter.Next(t.Context()) {
			m, err := cl.HGetAll(t.Context(), iter.Val()).Result()
			if err != nil {
				continue // another node's
			}
			for field, n := range m {
				if n != "0" {
					t.Errorf("%s: %s is %s", iter.Val(), field, n)
				}
			}
		}
	}
}
