package gateway

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

// pingsOnly answers at once, pings, and never says anything.
func pingsOnly(w http.ResponseWriter, r *http.Request) {
	send := emit(w, r)
	for r.Context().Err() == nil {
		send("event: ping\n\n")
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mute takes the request and does not answer at all.
func mute(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

const (
	newChat = `{"query":"q","response_mode":"streaming","user":"u"}`
	oldChat = `{"query":"q","response_mode":"streaming","user":"u","conversation_id":"c1"}`
)

func TestFirstContentDeadline(t *testing.T) {
	cases := []struct {
		name       string
		path, body string
		first      http.HandlerFunc
		hold       time.Duration
		another    bool // there is a second instance
		restart    string
		restarted  bool
		status     int
	}{
		{name: "a new chat goes elsewhere", path: "/v1/chat-messages", body: newChat, first: pingsOnly, another: true, restarted: true, status: 200},
		{name: "even without an answer's header", path: "/v1/completion-messages", body: newChat, first: mute, another: true, restarted: true, status: 200},
		{name: "with the header held", path: "/v1/chat-messages", body: newChat, first: pingsOnly, hold: time.Minute, another: true, restarted: true, status: 200},
		{name: "a conversation is not run twice", path: "/v1/chat-messages", body: oldChat, first: pingsOnly, another: true, status: 200},
		{name: "nor is a workflow", path: "/v1/workflows/run", body: newChat, first: pingsOnly, another: true, status: 200},
		{name: "turned off", path: "/v1/chat-messages", body: newChat, first: pingsOnly, another: true, restart: RestartUnsent, status: 200},
		{name: "nowhere to go", path: "/v1/chat-messages", body: newChat, first: pingsOnly, status: 200},
		{name: "a held header becomes a status", path: "/v1/chat-messages", body: oldChat, first: pingsOnly, hold: time.Minute, another: true, status: 504},
		{name: "no header, no stream", path: "/v1/chat-messages", body: oldChat, first: mute, another: true, status: 504},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			a, b := newInstance(t, "zone-a", tc.first), newInstance(t, "zone-b", whole)
			cfg := testConfig(a, b)
			if !tc.another {
				cfg = testConfig(a)
			}
			cfg.Stream.FirstContentTimeout, cfg.Stream.Hold = 300*time.Millisecond, tc.hold
			if tc.restart != "" {
				cfg.Stream.Restart = tc.restart
			}
			g := start(t, cfg)
			resp, br := openStream(t, g, tc.path, tc.body)
			raw, err := io.ReadAll(br)
			if err != nil || resp.StatusCode != tc.status {
				t.Fatalf("got %d %q (%v)", resp.StatusCode, raw, err)
			}
			text := strings.ReplaceAll(string(raw), "event: ping\n\n", "")
			switch {
			case tc.restarted:
				if want := frame("message", `, "answer": "hello"`) + frame("message_end", ""); text != want {
					t.Fatalf("got %q, want %q", text, want)
				}
			case tc.status == 200:
				if e := errorEvent(t, string(raw)); e["code"] != "first_content_timeout" || e["status"] != 504.0 {
					t.Fatalf("error event %v", e)
				}
			default:
				var e dify.Error
				if err := json.Unmarshal(raw, &e); err != nil || e.Code != "first_content_timeout" {
					t.Fatalf("got %q", raw)
				}
			}
			if got := b.served.Load(); (got == 1) != tc.restarted {
				t.Fatalf("the other instance served %d", got)
			}
			eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
		})
	}
}

// Only the wait for the first content is bounded: a slow answer is not.
func TestFirstContentDeadlineEndsWithContent(t *testing.T) {
	const limit = 300 * time.Millisecond
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		send(frame("message", ""))
		time.Sleep(3 * limit) // a model that is slow once it has begun
		send(frame("message_end", ""))
	})
	cfg := testConfig(a)
	cfg.Stream.FirstContentTimeout = limit
	g := start(t, cfg)
	for _, body := range []string{newChat, `{"query":"q"}`} {
		_, br := openStream(t, g, "/v1/chat-messages", body)
		if text, err := io.ReadAll(br); err != nil || strings.Contains(string(text), `"error"`) {
			t.Fatalf("got %q (%v)", text, err)
		}
	}
}

func TestHeldHeader(t *testing.T) {
	die := func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)("event: ping\n\n")
		abort(w)
	}
	held := func(ins ...*instance) Config {
		cfg := testConfig(ins...)
		cfg.Stream.Hold = time.Minute
		return cfg
	}
	t.Run("goes with the first content, pings first", func(t *testing.T) {
		a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
			send := emit(w, r)
			send("event: ping\n\n")
			send(": note\n\n")
			send(frame("message", ""))
			<-r.Context().Done() // nothing else may be needed
		})
		g := start(t, held(a))
		resp, br := openStream(t, g, "/v1/chat-messages", newChat)
		want := "event: ping\n\n: note\n\n" + frame("message", "")
		got := make([]byte, len(want))
		if _, err := io.ReadFull(br, got); err != nil || string(got) != want || resp.Header.Get("X-Accel-Buffering") != "no" {
			t.Fatalf("got %q (%v) %v", got, err, resp.Header)
		}
	})
	t.Run("goes when the time is over", func(t *testing.T) {
		a := newInstance(t, "zone-a", pingsOnly)
		cfg := held(a)
		cfg.Stream.Hold = 100 * time.Millisecond
		g := start(t, cfg)
		resp, br := openStream(t, g, "/v1/chat-messages", newChat)
		if line, err := br.ReadString('\n'); err != nil || line != "event: ping\n" || resp.StatusCode != http.StatusOK {
			t.Fatalf("got %q (%v)", line, err)
		}
	})
	t.Run("goes when the stream ends", func(t *testing.T) {
		a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) { emit(w, r)("event: ping\n\n") })
		g := start(t, held(a))
		resp, br := openStream(t, g, "/v1/chat-messages", newChat)
		if text, err := io.ReadAll(br); err != nil || string(text) != "event: ping\n\n" || resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d %q (%v)", resp.StatusCode, text, err)
		}
	})
	t.Run("a death is a status", func(t *testing.T) {
		a := newInstance(t, "zone-a", die)
		g := start(t, held(a))
		status, body, h := post(t, client(t), g.url+"/v1/workflows/run", newChat)
		if status != 502 || !strings.Contains(body, "upstream_lost") || h.Get("Content-Type") != "application/json" {
			t.Fatalf("got %d %q %v", status, body, h)
		}
	})
	t.Run("a second instance's refusal passes as it is", func(t *testing.T) {
		a := newInstance(t, "zone-a", die)
		b := newInstance(t, "zone-b", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Own", "1")
			dify.Error{Code: "provider_quota_exceeded", Message: "no money", Status: 400}.Write(w)
		})
		g := start(t, held(a, b))
		status, body, h := post(t, client(t), g.url+"/v1/chat-messages", newChat)
		if status != 400 || !strings.Contains(body, "no money") || h.Get("X-Own") != "1" || h.Get("X-Upstream-Zone") != "zone-b" {
			t.Fatalf("got %d %q %v", status, body, h)
		}
	})
	t.Run("heartbeats do not open it", func(t *testing.T) {
		a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)
			time.Sleep(300 * time.Millisecond) // time for several heartbeats
			abort(w)
		})
		cfg := held(a)
		cfg.Stream.Heartbeat = 20 * time.Millisecond
		g := start(t, cfg)
		if status, body, _ := post(t, client(t), g.url+"/v1/workflows/run", newChat); status != 502 {
			t.Fatalf("got %d %q", status, body)
		}
	})
}

// stopCall is what an instance was told.
type stopCall struct{ path, auth, body string }

// stopping wraps an instance's handler and notes the stop calls.
func stopping(calls chan<- stopCall, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/stop") {
			next(w, r)
			return
		}
		raw, _ := io.ReadAll(r.Body)
		calls <- stopCall{r.URL.Path, r.Header.Get("Authorization"), string(raw)}
		_, _ = io.WriteString(w, `{"result":"success"}`)
	}
}

func TestStopOnDisconnect(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat-messages":       "/v1/chat-messages/t1/stop",
		"/v1/completion-messages": "/v1/completion-messages/t1/stop",
		"/v1/workflows/run":       "/v1/workflows/tasks/t1/stop",
	} {
		t.Run(path, func(t *testing.T) {
			calls := make(chan stopCall, 10)
			a := newInstance(t, "zone-a", stopping(calls, func(w http.ResponseWriter, r *http.Request) {
				emit(w, r)(frame("message", ""))
				<-r.Context().Done()
			}))
			g := start(t, testConfig(a))
			leaveStream(t, g, path, frame("message", ""))
			select {
			case got := <-calls:
				if got != (stopCall{want, "Bearer app-1", `{"user":"u"}`}) {
					t.Fatalf("got %+v", got)
				}
			case <-time.After(patience):
				t.Fatal("no stop call")
			}
			eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
			g.stops.end()
			if n := g.metric(t, g.m.stops.WithLabelValues("disconnect", "ok")); n != 1 {
				t.Fatalf("%v calls counted", n)
			}
		})
	}
}

func TestNoStopCall(t *testing.T) {
	first := frame("message", "")
	cases := []struct {
		name, sends string
		off         bool
	}{
		{name: "turned off", sends: first, off: true},
		{name: "the task is not known", sends: "data: {\"event\":\"message\"}\n\n"},
		{name: "a task id that is no id", sends: "data: {\"event\":\"message\",\"task_id\":\"../../x\"}\n\n"},
		{name: "the answer is complete", sends: first + frame("message_end", "")},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			calls := make(chan stopCall, 10)
			a := newInstance(t, "zone-a", stopping(calls, func(w http.ResponseWriter, r *http.Request) {
				emit(w, r)(tc.sends)
				<-r.Context().Done()
			}))
			cfg := testConfig(a)
			cfg.Stream.StopOnDisconnect = !tc.off
			g := start(t, cfg)
			leaveStream(t, g, "/v1/chat-messages", tc.sends)
			eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
			g.stops.end()
			if len(calls) != 0 {
				t.Fatalf("a stop call: %+v", <-calls)
			}
		})
	}
}

// The instance that runs the task is gone from the network but not dead: another
// one sets the flag.
func TestStopCallGoesToAHealthyInstance(t *testing.T) {
	calls := make(chan stopCall, 10)
	var stopsSeen atomic.Int64
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/stop") {
			stopsSeen.Add(1)
			abort(w)
			return
		}
		emit(w, r)(frame("message", ""))
		<-r.Context().Done()
	})
	b := newInstance(t, "zone-b", stopping(calls, whole))
	g := start(t, testConfig(a, b))
	leaveStream(t, g, "/v1/chat-messages", frame("message", ""))
	select {
	case <-calls:
	case <-time.After(patience):
		t.Fatal("no stop call")
	}
	if stopsSeen.Load() != 1 {
		t.Fatalf("the first instance saw %d stop calls", stopsSeen.Load())
	}
}

func TestStopCallsAreBounded(t *testing.T) {
	release := make(chan struct{})
	var s stops
	for range maxStops {
		if !s.begin(func() { <-release }) {
			t.Fatal("refused too early")
		}
	}
	if s.begin(func() {}) {
		t.Fatal("no bound")
	}
	close(release)
	s.end()
	if s.begin(func() {}) {
		t.Fatal("begun after the end")
	}
}

// leaveStream opens a stream, reads want from it and leaves.
func leaveStream(t *testing.T, g *running, path, want string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+path, strings.NewReader(newChat))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer app-1")
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, len(want))); err != nil {
		t.Fatal(err)
	}
}
