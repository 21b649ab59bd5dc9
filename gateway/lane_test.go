package gateway

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fournines/gateway/jobs"
	"fournines/gateway/limit"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// laneConfig is a gateway with the async lane on c.
func laneConfig(tb testing.TB, c *servertest.RedisCluster, keyFile string, ins ...*instance) Config {
	tb.Helper()
	cfg := testConfig(ins...)
	cfg.Redis = Redis{Nodes: c.Addrs(), User: "gateway", PasswordFile: c.PasswordFile("gateway")}
	cfg.Jobs.KeyFile = keyFile
	cfg.Jobs.Lease = 3 * time.Second
	cfg.Drain.Announce, cfg.Drain.Timeout = 0, 10*time.Second
	return cfg
}

func jobKeyFile(tb testing.TB) string {
	tb.Helper()
	return secretFile(tb, "jobs.key", jobs.NewKey())
}

func secretFile(tb testing.TB, name, line string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// script is an instance that speaks Dify's chat stream: what it does with a query
// is said by the query.
type script struct {
	mu      sync.Mutex
	begun   map[string]int // by query
	stopped map[string]int // stop calls, by task
	gates   map[string]chan struct{}
}

func newScript() *script {
	return &script{begun: map[string]int{}, stopped: map[string]int{}, gates: map[string]chan struct{}{}}
}

// gate makes the answer to query wait, after its first event, until the function
// is called.
func (s *script) gate(query string) (open func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := make(chan struct{})
	s.gates[query] = ch
	return sync.OnceFunc(func() { close(ch) })
}

func (s *script) runs(query string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun[query]
}

func (s *script) stops(task string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped[task]
}

func (s *script) serve(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Query string `json:"query"`
		Mode  string `json:"response_mode"`
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	if task, ok := strings.CutPrefix(r.URL.Path, "/v1/chat-messages/"); ok {
		s.mu.Lock()
		s.stopped[strings.TrimSuffix(task, "/stop")]++
		s.mu.Unlock()
		_, _ = io.WriteString(w, `{"result":"success"}`)
		return
	}
	s.mu.Lock()
	s.begun[body.Query]++
	n := s.begun[body.Query]
	gate := s.gates[body.Query]
	s.mu.Unlock()
	switch {
	case body.Mode != "streaming":
		http.Error(w, `{"code":"not_streaming","message":"","status":400}`, http.StatusBadRequest)
		return
	case body.Query == "reject":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"code":"invalid_param","message":"no","status":400}`)
		return
	case body.Query == "busy" && n == 1:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"code":"too_many_requests","message":"later","status":429}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, "data: "+format+"\n\n", args...)
		_ = http.NewResponseController(w).Flush()
	}
	ids := fmt.Sprintf(`"task_id":"t-%[1]s","message_id":"m-%[1]s","conversation_id":"c","created_at":1`, body.Query)
	say(`{"event":"message","answer":"Hel",%s}`, ids)
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	if strings.HasPrefix(body.Query, "die") && n == 1 {
		abort(w)
		return
	}
	say(`{"event":"message","answer":"lo","x":1,%s}`, ids)
	if body.Query == "error" {
		say(`{"event":"error","code":"provider_quota_exceeded","status":400,"message":"quota",%s}`, ids)
		return
	}
	say(`{"event":"message_end","metadata":{"usage":{"total_tokens":7}},%s}`, ids)
}

type laneClient struct {
	tb  testing.TB
	c   *http.Client
	key string
}

func newLaneClient(tb testing.TB, key string) *laneClient {
	tb.Helper()
	return &laneClient{tb: tb, c: client(tb), key: key}
}

func (l *laneClient) do(method, url, body string, headers ...string) (int, string, http.Header) {
	l.tb.Helper()
	status, text, h, err := l.try(method, url, body, headers...)
	if err != nil {
		l.tb.Fatalf("%s %s: %v", method, url, err)
	}
	return status, text, h
}

func (l *laneClient) try(method, url, body string, headers ...string) (int, string, http.Header, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Authorization", "Bearer "+l.key)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := l.c.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Header, err
}

// submit makes a job and returns its path.
func (l *laneClient) submit(base, query string, headers ...string) string {
	l.tb.Helper()
	status, body, h := l.do("POST", base+"/v1/chat-messages", laneBody(query), append([]string{"Prefer", "respond-async"}, headers...)...)
	if status != http.StatusAccepted || h.Get("Preference-Applied") != "respond-async" || !strings.HasPrefix(h.Get("Location"), "/jobs/j") {
		l.tb.Fatalf("submit %s: %d %s %v", query, status, body, h)
	}
	return h.Get("Location")
}

func laneBody(query string) string {
	return fmt.Sprintf(`{"inputs":{},"query":%q,"user":"u","response_mode":"blocking"}`, query)
}

func (l *laneClient) get(url string) jobs.Status {
	l.tb.Helper()
	status, body, _ := l.do("GET", url, "")
	var s jobs.Status
	if status != http.StatusOK || json.Unmarshal([]byte(body), &s) != nil {
		l.tb.Fatalf("GET %s: %d %s", url, status, body)
	}
	return s
}

// await polls a job until it has one of the states.
func (l *laneClient) await(url string, want ...jobs.State) jobs.Status {
	l.tb.Helper()
	var s jobs.Status
	eventually.Nil(l.tb, 2*patience, func() error {
		status, body, _, err := l.try("GET", url, "")
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		s = jobs.Status{}
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			return err
		}
		for _, w := range want {
			if s.State == w {
				return nil
			}
		}
		return fmt.Errorf("%s is %s: %s", url, s.State, body)
	})
	return s
}

type laneEvent struct{ id, name, data string }

// events reads a job's event stream to its end, or until n events came.
func (l *laneClient) events(url, after string, n int) []laneEvent {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		l.tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+l.key)
	req.Header.Set("Accept", "text/event-stream")
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	resp, err := l.c.Do(req)
	if err != nil {
		l.tb.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		l.tb.Fatalf("events: %s %v", resp.Status, resp.Header)
	}
	var all []laneEvent
	var e laneEvent
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		line := s.Text()
		switch {
		case line == "":
			if e.data != "" {
				all = append(all, e)
			}
			e = laneEvent{}
			if n > 0 && len(all) == n {
				return all
			}
		case strings.HasPrefix(line, "id: "):
			e.id = line[4:]
		case strings.HasPrefix(line, "event: "):
			e.name = line[7:]
		case strings.HasPrefix(line, "data: "):
			e.data = line[6:]
		}
	}
	return all
}

func TestLane(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	keyFile := jobKeyFile(t)
	sc := newScript()
	in := newInstance(t, "zone-a", sc.serve)

	var hookMu sync.Mutex
	var hookCalls []*http.Request
	var hookBodies []string
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		hookMu.Lock()
		defer hookMu.Unlock()
		hookCalls, hookBodies = append(hookCalls, r), append(hookBodies, string(b))
	}))
	defer hook.Close()
	secret := []byte("0123456789abcdef0123456789abcdef")

	cfg := laneConfig(t, c, keyFile, in)
	cfg.Jobs.Webhook.Hosts = []string{"127.0.0.1"}
	cfg.Jobs.Webhook.AllowHTTP = true
	cfg.Jobs.Webhook.AllowNetworks = []string{"127.0.0.0/8"}
	cfg.Jobs.Webhook.SecretFile = secretFile(t, "hook.secret", "whsec_"+base64.StdEncoding.EncodeToString(secret))
	a := start(t, cfg)
	b := start(t, cfg)
	app := newLaneClient(t, "app-one")

	t.Run("accept, poll from another gateway, result", func(t *testing.T) {
		l := *app
		l.tb = t
		loc := l.submit(a.url, "hello")
		s := l.await(b.url+loc, jobs.Succeeded)
		var answer struct {
			Answer, Mode string
			MessageID    string `json:"message_id"`
			Metadata     struct{ Usage map[string]int }
		}
		if err := json.Unmarshal(s.Result, &answer); err != nil {
			t.Fatal(err)
		}
		if answer.Answer != "Hello" || answer.Mode != "chat" || answer.MessageID != "m-hello" || answer.Metadata.Usage["total_tokens"] != 7 {
			t.Errorf("result %s", s.Result)
		}
		if s.Attempts != 1 || s.Finished == nil || sc.runs("hello") != 1 {
			t.Errorf("status %+v, runs %d", s, sc.runs("hello"))
		}
	})

	t.Run("only the app that made it sees it", func(t *testing.T) {
		l := *app
		l.tb = t
		loc := l.submit(a.url, "private")
		other := newLaneClient(t, "app-two")
		for _, method := range []string{"GET", "DELETE"} {
			if status, body, _ := other.do(method, a.url+loc, ""); status != http.StatusNotFound {
				t.Errorf("%s by another app: %d %s", method, status, body)
			}
		}
		if status, _, _ := app.do("GET", a.url+"/jobs/j0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ""); status != http.StatusNotFound {
			t.Errorf("unknown job: %d", status)
		}
		l.await(a.url+loc, jobs.Succeeded)
	})

	t.Run("events live, late, and resumed", func(t *testing.T) {
		l := *app
		l.tb = t
		open := sc.gate("events")
		defer open()
		loc := l.submit(a.url, "events")
		first := l.events(b.url+loc, "", 1)
		if len(first) != 1 || !strings.Contains(first[0].data, `"Hel"`) {
			t.Fatalf("first event %v", first)
		}
		open()
		rest := l.events(b.url+loc, first[0].id, 0)
		if len(rest) != 3 || !strings.Contains(rest[0].data, `"lo"`) || rest[2].name != "job" || rest[2].id != "end" {
			t.Fatalf("after %s: %v", first[0].id, rest)
		}
		if late := l.events(a.url+loc, "", 0); len(late) != 4 || late[0] != first[0] {
			t.Errorf("late reader: %v", late)
		}
		if status, _, _ := l.do("GET", a.url+loc, "", "Accept", "text/event-stream", "Last-Event-ID", "end"); status != http.StatusNoContent {
			t.Errorf("who has seen the end gets %d", status)
		}
	})

	t.Run("cancel reaches Dify", func(t *testing.T) {
		l := *app
		l.tb = t
		defer sc.gate("cancel")()
		loc := l.submit(a.url, "cancel")
		l.events(a.url+loc, "", 1)
		if status, body, _ := l.do("DELETE", b.url+loc, ""); status != http.StatusAccepted {
			t.Fatalf("DELETE: %d %s", status, body)
		}
		l.await(b.url+loc, jobs.Canceled)
		eventually.Nil(t, patience, func() error {
			if n := sc.stops("t-cancel"); n != 1 {
				return fmt.Errorf("%d stop calls", n)
			}
			return nil
		})
	})

	t.Run("a refusal is tried again", func(t *testing.T) {
		l := *app
		l.tb = t
		s := l.await(a.url+l.submit(a.url, "busy"), jobs.Succeeded)
		if s.Attempts != 2 || sc.runs("busy") != 2 {
			t.Errorf("attempts %d, runs %d", s.Attempts, sc.runs("busy"))
		}
	})

	t.Run("what Dify rejects", func(t *testing.T) {
		l := *app
		l.tb = t
		s := l.await(a.url+l.submit(a.url, "reject"), jobs.Failed)
		if s.Error == nil || s.Error.Code != "invalid_param" || s.Error.Reason != "rejected" || s.Error.Status != 400 {
			t.Errorf("%+v", s.Error)
		}
		s = l.await(a.url+l.submit(a.url, "error"), jobs.Failed)
		if s.Error == nil || s.Error.Code != "provider_quota_exceeded" || s.Error.Reason != "rejected" {
			t.Errorf("%+v", s.Error)
		}
	})

	t.Run("a lost run is not repeated unless the caller allows", func(t *testing.T) {
		l := *app
		l.tb = t
		s := l.await(a.url+l.submit(a.url, "die-once"), jobs.Failed)
		if s.Error == nil || s.Error.Reason != "lost" || sc.runs("die-once") != 1 {
			t.Errorf("%+v, runs %d", s.Error, sc.runs("die-once"))
		}
		s = l.await(a.url+l.submit(a.url, "die-again", "Prefer", "respond-async; repeat"), jobs.Succeeded)
		if s.Attempts != 2 || sc.runs("die-again") != 2 {
			t.Errorf("attempts %d, runs %d", s.Attempts, sc.runs("die-again"))
		}
	})

	t.Run("Idempotency-Key", func(t *testing.T) {
		l := *app
		l.tb = t
		loc := l.submit(a.url, "idem", "Idempotency-Key", "k1")
		if again := l.submit(b.url, "idem", "Idempotency-Key", "k1"); again != loc {
			t.Errorf("%s and %s", loc, again)
		}
		l.await(a.url+loc, jobs.Succeeded)
		if again := l.submit(b.url, "idem", "Idempotency-Key", "k1"); again != loc || sc.runs("idem") != 1 {
			t.Errorf("%s and %s, runs %d", loc, again, sc.runs("idem"))
		}
		status, body, _ := l.do("POST", a.url+"/v1/chat-messages", laneBody("other"), "Prefer", "respond-async", "Idempotency-Key", "k1")
		if status != http.StatusUnprocessableEntity {
			t.Errorf("another request with the key: %d %s", status, body)
		}
		other := newLaneClient(t, "app-two")
		if loc2 := other.submit(a.url, "idem2", "Idempotency-Key", "k1"); loc2 == loc {
			t.Error("two apps share a job")
		}
	})

	t.Run("webhook", func(t *testing.T) {
		l := *app
		l.tb = t
		loc := l.submit(a.url, "hook", "Webhook-Url", hook.URL+"/done")
		l.await(a.url+loc, jobs.Succeeded)
		eventually.Nil(t, patience, func() error {
			if s := l.get(a.url + loc); s.Webhook == nil || s.Webhook.State != "delivered" {
				return fmt.Errorf("webhook %+v", s.Webhook)
			}
			return nil
		})
		hookMu.Lock()
		defer hookMu.Unlock()
		if len(hookCalls) != 1 {
			t.Fatalf("%d calls", len(hookCalls))
		}
		h := hookCalls[0].Header
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(h.Get("Webhook-Id") + "." + h.Get("Webhook-Timestamp") + "." + hookBodies[0]))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); h.Get("Webhook-Signature") != want {
			t.Errorf("signature %s, want %s", h.Get("Webhook-Signature"), want)
		}
		if !strings.Contains(hookBodies[0], `"type":"job.succeeded"`) || !strings.Contains(hookBodies[0], `"answer":"Hello"`) {
			t.Errorf("body %s", hookBodies[0])
		}
		status, body, _ := l.do("POST", a.url+"/v1/chat-messages", laneBody("x"), "Prefer", "respond-async", "Webhook-Url", "https://example.org/")
		if status != http.StatusBadRequest || !strings.Contains(body, "Webhook-Url") {
			t.Errorf("a host that is not allowed: %d %s", status, body)
		}
	})

	t.Run("rate limits are asked when it is taken in, not by its runs", func(t *testing.T) {
		limited := cfg
		limited.RateLimits = []limit.Limit{{Name: "per-app", Rate: rateOf(t, "1 per day"), Burst: 2, By: limit.ByApp}}
		limited.RateLimitSharing.Timeout = time.Second // this test is not about time
		g := start(t, limited)
		l := newLaneClient(t, "app-limited")
		for _, query := range []string{"limited-1", "limited-2"} {
			l.await(a.url+l.submit(g.url, query), jobs.Succeeded)
		}
		status, body, h := l.do("POST", g.url+"/v1/chat-messages", laneBody("limited-3"), "Prefer", "respond-async")
		if status != http.StatusTooManyRequests || !strings.Contains(body, "too_many_requests") || h.Get("Preference-Applied") != "" || sc.runs("limited-3") != 0 {
			t.Errorf("beyond the limit: %d %s %v", status, body, h)
		}
	})

	t.Run("nothing of the request is readable in Redis", func(t *testing.T) {
		l := *app
		l.tb = t
		loc := l.submit(a.url, "secret-question")
		l.await(a.url+loc, jobs.Succeeded)
		for i := range 3 {
			cl := c.Client(t, i)
			iter := cl.Scan(t.Context(), 0, "*", 1000).Iterator()
			for iter.Next(t.Context()) {
				dump, err := cl.Dump(t.Context(), iter.Val()).Result()
				if err != nil {
					continue
				}
				for _, s := range []string{"app-one", "secret-question", "Hello"} {
					if strings.Contains(iter.Val()+dump, s) {
						t.Errorf("%s holds %q", iter.Val(), s)
					}
				}
			}
		}
		for _, g := range []*running{a, b} {
			if strings.Contains(g.logs.String(), "app-one") {
				t.Error("the log holds the key")
			}
		}
	})
}
