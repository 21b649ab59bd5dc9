package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/internal/eventually"
	"fournines/topology"
)

const limit = 30 * time.Second

// fakeStack is a supervisor whose state a test sets.
type fakeStack struct {
	mu      sync.Mutex
	status  topology.Status
	err     error
	changed chan struct{}
}

func (f *fakeStack) Status(context.Context) (topology.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, f.err
}

func (f *fakeStack) Watch(ctx context.Context, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed:
			changed()
		}
	}
}

func (f *fakeStack) set(change func(*topology.Status)) {
	f.mu.Lock()
	change(&f.status)
	f.mu.Unlock()
	f.changed <- struct{}{}
}

func aStack() *fakeStack {
	return &fakeStack{changed: make(chan struct{}, 1), status: topology.Status{
		Name: "shop", State: topology.Ready, DataDir: "/secret/place", CredentialsFile: "/secret/place/credentials.json",
		Endpoints: map[string]string{"gateway": "http://127.0.0.1:8480"},
		Zones: []topology.Zone{
			{Name: "a", Power: "on", Link: "up", Components: []topology.Component{
				{Name: "gateway-a", Kind: "gateway", State: topology.Ready, Address: "10.1.1.50:8080", PID: 7},
				{Name: "postgres-a", Kind: "postgres", Role: "primary", State: topology.Ready, PID: 8},
			}},
			{Name: "b", Power: "on", Link: "up", Components: []topology.Component{
				{Name: "redis-b-2", Kind: "redis", Role: "replica", State: topology.Ready, Address: "10.1.2.31:6379", PID: 9},
			}},
		},
	}}
}

// fakePrometheus answers queries by the metric that is in them.
func fakePrometheus(t *testing.T, asked func(path, expr string)) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		expr := r.URL.Query().Get("query")
		if asked != nil {
			asked(r.URL.Path, expr)
		}
		answer := `[]`
		if r.URL.Path == "/api/v1/query" {
			switch {
			case strings.HasPrefix(expr, "sum by (component) (rate(fournines_gateway_requests_total{component"):
				answer = `[{"metric":{"component":"gateway-a"},"value":[1,"12.5"]},{"metric":{"component":"stranger"},"value":[1,"1"]}]`
			case strings.HasPrefix(expr, "histogram_quantile(0.99, sum by (le)"):
				answer = `[{"metric":{},"value":[1,"NaN"]}]`
			case strings.HasPrefix(expr, "max by (slave_ip)"):
				answer = `[{"metric":{"slave_ip":"10.1.2.31"},"value":[1,"640"]}]`
			case strings.HasPrefix(expr, "sum by (app) (rate(fournines_gateway_app_admitted"):
				answer = `[{"metric":{"app":"shop"},"value":[1,"3"]}]`
			case strings.Contains(expr, "[2592000s]") && strings.HasPrefix(expr, "(sum(increase("):
				answer = `[{"metric":{},"value":[1,"0.00002"]}]`
			case strings.Contains(expr, "[1h]"):
				answer = `[{"metric":{},"value":[1,"0.0002"]}]`
			}
		} else {
			end := time.Now().Truncate(15 * time.Second).Unix()
			answer = fmt.Sprintf(`[{"metric":{},"values":[[%d,"1"],[%d,"2"],[%d.000,"NaN"]]}]`, end-30, end-15, end)
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"x","result":%s}}`, answer)
	}))
	t.Cleanup(srv.Close)
	return srv
}

const twoAlerts = `[
 {"fingerprint":"w","startsAt":"2026-01-01T00:00:00Z","labels":{"alertname":"Watchdog","severity":"none"},"annotations":{},"status":{"state":"active"}},
 {"fingerprint":"x","startsAt":"2026-01-01T00:00:00Z","labels":{"alertname":"TargetDown","severity":"warning","component":"gateway-a","zone":"a"},
  "annotations":{"summary":"gone"},"status":{"state":"suppressed"}},
 {"fingerprint":"y","startsAt":"2026-01-01T00:00:00Z","labels":{"alertname":"PostgresNoPrimary","severity":"critical"},"annotations":{},"status":{"state":"active"}}]`

func fakeAlertmanager(t *testing.T, body string) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	t.Cleanup(srv.Close)
	return srv
}

var page = fstest.MapFS{
	"index.html":       {Data: []byte("<!doctype html>")},
	"assets/app-1.js":  {Data: bytes.Repeat([]byte("let a=1;"), 500)},
	"assets/app-1.css": {Data: []byte("b{}")},
}

type running struct {
	*Server
	url   string
	stack *fakeStack
	reg   *client.Registry
}

func start(t *testing.T, change func(*Config)) *running {
	t.Helper()
	cfg := DefaultConfig()
	cfg.StackDir = "/var/lib/fournines"
	cfg.Prometheus = fakePrometheus(t, nil).URL
	cfg.Alertmanager = fakeAlertmanager(t, twoAlerts).URL
	if change != nil {
		change(&cfg)
	}
	r := &running{stack: aStack(), reg: client.NewRegistry()}
	var err error
	r.Server, err = New(cfg, Options{Version: "test", Stack: r.stack, Page: page, Logger: slog.New(slog.DiscardHandler), Registerer: r.reg})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url = "http://" + ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(limit):
			t.Error("the console does not end")
		}
	})
	return r
}

// watch opens the live stream and returns its snapshots.
func (r *running) watch(t testing.TB) <-chan Snapshot {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/api/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" || resp.StatusCode != http.StatusOK {
		t.Fatalf("live: status %d, type %q", resp.StatusCode, got)
	}
	out := make(chan Snapshot, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var s Snapshot
				if err := json.Unmarshal([]byte(data), &s); err != nil {
					t.Errorf("snapshot: %v", err)
				}
				out <- s
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = resp.Body.Close()
		<-done
	})
	return out
}

// await reads snapshots until one pleases check.
func await(t testing.TB, from <-chan Snapshot, check func(Snapshot) bool) Snapshot {
	t.Helper()
	timeout := time.After(limit)
	var last Snapshot
	for {
		select {
		case last = <-from:
			if check(last) {
				return last
			}
		case <-timeout:
			text, _ := json.Marshal(last)
			t.Fatalf("not seen; the last snapshot was %s", text)
		}
	}
}

func (r *running) get(t *testing.T, path string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

func find(s Snapshot, name string) Component {
	for _, z := range s.Stack.Zones {
		for _, c := range z.Components {
			if c.Name == name {
				return c
			}
		}
	}
	return Component{}
}

func TestSnapshotHasAllSources(t *testing.T) {
	r := start(t, nil)
	s := await(t, r.watch(t), func(s Snapshot) bool {
		return find(s, "gateway-a").Figures["rps"] > 0 && len(s.Alerts) > 0 && s.SLO.Left != nil && len(s.Apps) > 0
	})
	if got := find(s, "gateway-a").Figures["rps"]; got != 12.5 {
		t.Errorf("requests of gateway-a: %v, want 12.5", got)
	}
	if got := find(s, "redis-b-2").Figures["lagBytes"]; got != 640 {
		t.Errorf("the replica that is known by its address is %v bytes behind, want 640", got)
	}
	if _, known := s.Totals["p99"]; known {
		t.Error("a quantile of nothing is shown")
	}
	if got := s.Alerts[0].Name; got != "PostgresNoPrimary" {
		t.Errorf("first alert %q, want the critical one", got)
	}
	if len(s.Alerts) != 2 || !s.Alerts[1].Muted || !s.Sources.Watchdog {
		t.Errorf("alerts %+v, watchdog %v: want two, the second muted, and the watchdog apart", s.Alerts, s.Sources.Watchdog)
	}
	if left := *s.SLO.Left; left < 0.799 || left > 0.801 {
		t.Errorf("budget left %v, want 0.8: a fifth of the allowed ratio failed", left)
	}
	var hour *float64
	for _, b := range s.SLO.Burn {
		if b.Window == "1h" {
			hour = b.Factor
		}
	}
	if hour == nil || *hour < 1.99 || *hour > 2.01 {
		t.Errorf("burn over an hour %v, want 2", hour)
	}
	if len(s.Apps) != 1 || s.Apps[0].Name != "shop" || s.Apps[0].Figures["rps"] != 3 {
		t.Errorf("apps %+v", s.Apps)
	}
	if text := string(r.feed.frame.Load().json); strings.Contains(text, "/secret/place") {
		t.Error("the snapshot names files of the stack")
	}
}

func TestChangesArriveAndAreRemembered(t *testing.T) {
	history := filepath.Join(t.TempDir(), "timeline.jsonl")
	r := start(t, func(c *Config) { c.HistoryFile = history })
	live := r.watch(t)
	await(t, live, func(s Snapshot) bool { return find(s, "gateway-a").State == topology.Ready })
	r.stack.set(func(s *topology.Status) {
		s.State = topology.Degraded
		s.Zones = []topology.Zone{{Name: "a", Power: "on", Link: "down", Components: []topology.Component{
			{Name: "gateway-a", Kind: "gateway", State: topology.Degraded, Reason: "killed", Restarts: 1},
			{Name: "postgres-a", Kind: "postgres", State: topology.Ready},
		}}}
		s.Actions = []topology.Action{{Seq: 1, Verb: "kill", Component: "gateway-a", AgeSeconds: 0.5}}
	})
	await(t, live, func(s Snapshot) bool { return find(s, "gateway-a").State == topology.Degraded })
	r.stack.set(func(s *topology.Status) { s.Zones[0].Components[1].Role = "standby" })
	s := await(t, live, func(s Snapshot) bool { return find(s, "postgres-a").Role == "standby" && len(s.Events) >= 6 })
	var got []string
	for _, e := range s.Events {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s%s %s %s", e.Kind, e.Component, e.Zone, e.From, e.To)))
	}
	want := "role postgres-aa primary standby; stack  ready degraded; restart gateway-aa; state gateway-aa ready degraded; zone a up down; action gateway-a  kill"
	if text := strings.Join(got, "; "); text != want {
		t.Errorf("timeline, newest first:\n%s\nwant\n%s", text, want)
	}

	// The next process goes on with it, and leaves out what it cannot read.
	file, err := os.OpenFile(history, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"id":9,"kin`); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	tl, err := openTimeline(history)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.close()
	if len(tl.events) != 6 || tl.last != 6 {
		t.Errorf("%d events in the file, last %d; want 6", len(tl.events), tl.last)
	}
	// The supervisor still shows the order, which is known already.
	again := tl.stack(nil, topology.Status{Actions: []topology.Action{{Seq: 1, Verb: "kill", Component: "gateway-a", AgeSeconds: time.Since(time.UnixMilli(tl.events[0].At)).Seconds()}}}, time.Now())
	if len(again) != 0 {
		t.Errorf("seen twice: %+v", again)
	}
	// A supervisor that starts anew counts from one.
	fresh := tl.stack(nil, topology.Status{}, time.Now())
	fresh = append(fresh, tl.stack(nil, topology.Status{Actions: []topology.Action{{Seq: 1, Verb: "stop", Component: "gateway-a"}}}, time.Now())...)
	if len(fresh) != 1 || fresh[0].To != "stop" {
		t.Errorf("after a restart of the supervisor: %+v, want the stop", fresh)
	}
}

func TestTimelineIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "timeline.jsonl")
	tl, err := openTimeline(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tl.close()
	for range 6 * keptEvents {
		if err := tl.add([]Event{{Kind: EventStack}}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(text, []byte("\n")); len(tl.events) != keptEvents || lines > 4*keptEvents {
		t.Errorf("%d events in memory and %d lines in the file; want %d and at most %d", len(tl.events), lines, keptEvents, 4*keptEvents)
	}
	if got := tl.newest(1)[0].ID; got != 6*keptEvents {
		t.Errorf("the newest is %d, want %d", got, 6*keptEvents)
	}
}

func TestSourcesThatAreAwayAreNamed(t *testing.T) {
	r := start(t, func(c *Config) { c.Prometheus, c.Alertmanager = "http://127.0.0.1:1", "http://127.0.0.1:1" })
	live := r.watch(t)
	s := await(t, live, func(s Snapshot) bool {
		return s.Sources.Prometheus.Error != "" && s.Sources.Alertmanager.Error != "" && s.Stack.Name != ""
	})
	if !strings.Contains(s.Sources.Prometheus.Error, "connection refused") || strings.Contains(s.Sources.Prometheus.Error, "query=") {
		t.Errorf("error %q: want the cause without the query", s.Sources.Prometheus.Error)
	}
	r.stack.mu.Lock()
	r.stack.err = fmt.Errorf("no supervisor")
	r.stack.mu.Unlock()
	r.stack.changed <- struct{}{}
	s = await(t, live, func(s Snapshot) bool { return s.Sources.Stack.Error != "" })
	if find(s, "gateway-a").Name == "" || s.Sources.Stack.At == 0 {
		t.Error("what was known of the stack is not shown any more")
	}
	if n := testutil.ToFloat64(r.metrics.errors.WithLabelValues(sourceStack)); n < 1 {
		t.Errorf("%v errors of the stack counted", n)
	}
}

// TestOneSnapshotForAll: what 50 open pages get is made once.
func TestOneSnapshotForAll(t *testing.T) {
	r := start(t, nil)
	const pages = 50
	var all []<-chan Snapshot
	for range pages {
		all = append(all, r.watch(t))
	}
	for _, p := range all {
		await(t, p, func(s Snapshot) bool { return s.Stack.Name == "shop" })
	}
	if n := testutil.CollectAndCount(r.reg, "fournines_console_viewers"); n != 1 || r.feed.count() != pages {
		t.Fatalf("%d viewers, want %d", r.feed.count(), pages)
	}
	r.stack.set(func(s *topology.Status) { s.Name = "shop-2" })
	seen := map[int64]bool{}
	for _, p := range all {
		seen[await(t, p, func(s Snapshot) bool { return s.Stack.Name == "shop-2" }).Seq] = true
	}
	r.mu.Lock()
	made, highest := testutil.ToFloat64(r.metrics.updates), r.seq
	r.mu.Unlock()
	// One may be under way.
	if made < float64(highest-1) || made > float64(highest) {
		t.Errorf("%v snapshots were made for %d numbers: each has to be made once", made, highest)
	}
	// A page may have missed the first with the new name, not more than a few.
	if len(seen) > 5 {
		t.Errorf("%d pages saw %d different snapshots", pages, len(seen))
	}
}

func TestSeries(t *testing.T) {
	var mu sync.Mutex
	var exprs []string
	prom := fakePrometheus(t, func(path, expr string) {
		if strings.HasSuffix(path, "query_range") {
			mu.Lock()
			exprs = append(exprs, expr)
			mu.Unlock()
		}
	})
	r := start(t, func(c *Config) { c.Prometheus = prom.URL })
	await(t, r.watch(t), func(s Snapshot) bool { return s.Stack.Name != "" && len(s.Apps) > 0 })
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if code, _, body := r.get(t, "/api/series?range=1h"); code != http.StatusOK {
				t.Errorf("status %d: %s", code, body)
			}
		})
	}
	wait.Wait()
	mu.Lock()
	if len(exprs) > 2*len(charts) { // once, or twice around the end of a step
		t.Errorf("%d questions for 20 pages, want %d", len(exprs), len(charts))
	}
	exprs = nil
	mu.Unlock()
	_, _, body := r.get(t, "/api/series?range=1h")
	var got Series
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	ok := got.Lines["ok"]
	if len(got.T) != 241 || len(ok) != 241 || ok[240] != nil || ok[239] == nil && ok[238] == nil || ok[0] != nil {
		t.Errorf("%d points, line %v: want 241, known near the end and null elsewhere", len(got.T), ok)
	}

	if code, _, body := r.get(t, "/api/series?range=1h&component=redis-b-2"); code != http.StatusOK {
		t.Errorf("component: status %d: %s", code, body)
	}
	if code, _, body := r.get(t, "/api/series?range=1h&app=shop"); code != http.StatusOK {
		t.Errorf("app: status %d: %s", code, body)
	}
	mu.Lock()
	all := strings.Join(exprs, "\n")
	mu.Unlock()
	for _, want := range []string{`slave_ip="10.1.2.31"`, `component="redis-b-2"`, `app="shop"`} {
		if !strings.Contains(all, want) {
			t.Errorf("no question selects %s:\n%s", want, all)
		}
	}
	for _, bad := range []string{"range=2h", "range=1h&component=x", "range=1h&app=%22%7D", ""} {
		if code, _, body := r.get(t, "/api/series?"+bad); code != http.StatusNotFound {
			t.Errorf("%q: status %d: %s", bad, code, body)
		}
	}
}

func TestNothingIsTakenButQuestions(t *testing.T) {
	r := start(t, nil)
	for _, path := range []string{"/api/snapshot", "/api/live", "/api/series", "/api/events", "/", "/api/units/gateway-a/kill"} {
		resp, err := http.Post(r.url+path, "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: status %d, want 405", path, resp.StatusCode)
		}
	}
}

func TestHeadersAndNames(t *testing.T) {
	r := start(t, nil)
	code, h, _ := r.get(t, "/")
	policy := h.Get("Content-Security-Policy")
	if code != http.StatusOK || !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("status %d, policy %q", code, policy)
	}
	if h.Get("Cache-Control") != "no-cache" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers of the page: %v", h)
	}
	code, h, body := r.get(t, "/assets/app-1.js", "Accept-Encoding", "gzip")
	if code != http.StatusOK || h.Get("Content-Encoding") != "gzip" || !strings.Contains(h.Get("Cache-Control"), "immutable") || len(body) > 1000 {
		t.Errorf("script: status %d, %d bytes, headers %v", code, len(body), h)
	}
	if code, _, _ := r.get(t, "/assets/app-1.js", "If-None-Match", h.Get("ETag")); code != http.StatusNotModified {
		t.Errorf("known script: status %d, want 304", code)
	}
	if code, _, _ := r.get(t, "/assets/../../etc/passwd"); code == http.StatusOK {
		t.Error("a file outside the page is served")
	}
	// A name that somebody else resolves to this machine.
	for _, path := range []string{"/", "/api/snapshot"} {
		if code, _, _ := r.get(t, path, "Host", "evil.example:8490"); code != http.StatusForbidden {
			t.Errorf("%s by a foreign name: status %d, want 403", path, code)
		}
	}
}

func TestToken(t *testing.T) {
	const token = "a-token-of-32-characters-at-least"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(c *Config) { c.TokenFile, c.Listen = file, "0.0.0.0:0" })
	for _, path := range []string{"/api/snapshot", "/api/live", "/api/series?range=1h", "/api/events"} {
		if code, _, body := r.get(t, path); code != http.StatusUnauthorized || strings.Contains(body, "shop") {
			t.Errorf("%s without the token: status %d: %s", path, code, body)
		}
		if code, _, _ := r.get(t, path, "Authorization", "Bearer wrong"); code != http.StatusUnauthorized {
			t.Errorf("%s with a wrong token: status %d", path, code)
		}
	}
	if code, _, _ := r.get(t, "/", "Host", "shop.example"); code != http.StatusOK {
		t.Errorf("the page that asks for the token: status %d", code)
	}
	if code, _, _ := r.get(t, "/api/snapshot", "Authorization", "Bearer "+token); code != http.StatusOK {
		t.Errorf("with the token: status %d", code)
	}
	login := func(body string, header ...string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/login", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	if resp := login("wrong"); resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies()) > 0 {
		t.Errorf("login with a wrong token: status %d", resp.StatusCode)
	}
	if resp := login(token, "Sec-Fetch-Site", "cross-site"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("login from another site: status %d", resp.StatusCode)
	}
	if resp := login(strings.Repeat("x", 2*maxLogin)); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("long login: status %d", resp.StatusCode)
	}
	resp := login(token)
	cookies := resp.Cookies()
	if resp.StatusCode != http.StatusNoContent || len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteStrictMode || strings.Contains(cookies[0].Value, token) {
		t.Fatalf("login: status %d, cookies %v", resp.StatusCode, cookies)
	}
	if code, _, _ := r.get(t, "/api/snapshot", "Cookie", cookies[0].Name+"="+cookies[0].Value); code != http.StatusOK {
		t.Errorf("with the cookie: status %d", code)
	}
	if text := string(r.feed.frame.Load().json); strings.Contains(text, token) {
		t.Error("the token is in the snapshot")
	}
}

func TestTooManyPages(t *testing.T) {
	r := start(t, nil)
	for range maxViewers {
		if v, _ := r.feed.join(); v == nil {
			t.Fatal("refused too early")
		}
	}
	if code, h, _ := r.get(t, "/api/live"); code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" {
		t.Errorf("status %d, want 503 with Retry-After", code)
	}
}

// TestNobodyWatches: figures are asked for when somebody looks.
func TestNobodyWatches(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	prom := fakePrometheus(t, func(string, string) {
		mu.Lock()
		asked++
		mu.Unlock()
	})
	r := start(t, func(c *Config) { c.Prometheus, c.ScrapeInterval = prom.URL, time.Second })
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
	// Each question once at the start.
	eventually.Nil(t, limit, func() error {
		if s := r.snapshot(time.Now()); s.SLO.Left == nil || s.Sources.Prometheus.At == 0 {
			return fmt.Errorf("not asked yet")
		}
		return nil
	})
	before := count()
	r.stack.set(func(s *topology.Status) { s.Name = "later" })
	eventually.Nil(t, limit, func() error {
		if s := r.snapshot(time.Now()); s.Stack.Name != "later" {
			return fmt.Errorf("the stack is %q", s.Stack.Name)
		}
		return nil
	})
	if got := count(); got != before {
		t.Errorf("%d questions to Prometheus while nobody watched", got-before)
	}
	r.watch(t)
	eventually.Nil(t, limit, func() error {
		if count() == before {
			return fmt.Errorf("nothing is asked although somebody watches")
		}
		return nil
	})
}

func TestConfig(t *testing.T) {
	bad := DefaultConfig()
	bad.Listen, bad.StackDir, bad.Prometheus, bad.ScrapeInterval, bad.Objective, bad.Window = "0.0.0.0:8490", "here", "ftp://x", time.Millisecond, 2, time.Hour
	bad.AdminListen, bad.HistoryFile, bad.Alertmanager = "nowhere", "there", ""
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`tokenFile: needed because other machines can reach listen "0.0.0.0:8490"`, `stackDir: "here" is not an absolute path`,
		`prometheus: "ftp://x" is not a URL`, `alertmanager: "" is not a URL`, "scrapeInterval: 1ms is not between", "objective: 2 is not between",
		"window: 1h0m0s is not between", `adminListen: "nowhere" is not host:port`, `historyFile: "there" is not`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	good := DefaultConfig()
	good.StackDir = "/var/lib/fournines"
	if err := good.Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
}

func TestSelectionIsQuoted(t *testing.T) {
	f := figure{by: "app", expr: `sum(x{$s}[$w])`}
	if got, want := fill(f.expr, 30*time.Second, f.only("a\"}\n\\")), `sum(x{app="a\"}\n\\"}[30s])`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// BenchmarkUpdate is one change of the stack seen by 50 open pages, the pages'
// side of the connections included.
func BenchmarkUpdate(b *testing.B) {
	// The pages' own reading of 50 connections is in the figure, so it is an upper bound.
	r := &running{stack: aStack(), reg: client.NewRegistry()}
	cfg := DefaultConfig()
	cfg.StackDir = "/var/lib/fournines"
	var err error
	if r.Server, err = New(cfg, Options{Stack: r.stack, Page: page, Logger: slog.New(slog.DiscardHandler), Registerer: r.reg}); err != nil {
		b.Fatal(err)
	}
	status := r.stack.status
	for len(status.Zones[0].Components) < 60 { // a large stack
		c := topology.Component{Name: fmt.Sprintf("dify-api-a-%d", len(status.Zones[0].Components)), Kind: "dify-api", State: topology.Ready, Address: "10.1.1.61:5001", PID: 4711, MemoryBytes: 1 << 27}
		status.Zones[0].Components = append(status.Zones[0].Components, c)
	}
	r.status = &status
	closing := make(chan struct{})
	srv := httptest.NewServer(r.handler(closing))
	defer srv.Close()
	defer close(closing)
	r.url = srv.URL
	var readers []*bufio.Reader
	for range 50 {
		resp, err := http.Get(srv.URL + "/api/live")
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		readers = append(readers, bufio.NewReaderSize(resp.Body, 1<<16))
	}
	read := func(reader *bufio.Reader, seq int64) {
		want := fmt.Sprintf("id: %d", seq)
		for {
			text, err := reader.ReadString('\n')
			if err != nil {
				b.Error(err)
				return
			}
			if strings.TrimSpace(text) == want {
				return
			}
		}
	}
	b.ResetTimer()
	for b.Loop() {
		r.publish()
		for _, reader := range readers {
			read(reader, r.seq)
		}
	}
	b.ReportMetric(float64(len(r.feed.frame.Load().json)), "B/snapshot")
}
