package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

const chatBody = `{"query":"q","response_mode":"streaming","user":"u"}`

func frame(event, more string) string {
	return fmt.Sprintf("data: {\"event\": %q, \"task_id\": \"t1\", \"message_id\": \"m1\", \"conversation_id\": \"c1\"%s}\n\n", event, more)
}

// emit begins an event stream and returns a function that sends a piece of it.
func emit(w http.ResponseWriter, r *http.Request) func(string) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	return func(s string) {
		_, _ = io.WriteString(w, s)
		_ = rc.Flush()
	}
}

// whole is an instance's complete stream.
func whole(w http.ResponseWriter, r *http.Request) {
	send := emit(w, r)
	send(frame("message", `, "answer": "hello"`))
	send(frame("message_end", ""))
}

func openStream(t *testing.T, g *running, path, body string) (*http.Response, *bufio.Reader) {
	t.Helper()
	resp, err := client(t).Post(g.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp, bufio.NewReader(resp.Body)
}

// errorEvent checks that a stream's text is well formed and ends with an error
// event, and returns it.
func errorEvent(t *testing.T, text string) map[string]any {
	t.Helper()
	blocks := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n")
	var last map[string]any
	for _, b := range blocks {
		data, ok := strings.CutPrefix(strings.TrimLeft(b, "\n"), "data: ")
		if !ok {
			continue
		}
		last = nil
		if err := json.Unmarshal([]byte(data), &last); err != nil {
			t.Fatalf("malformed event %q: %v", b, err)
		}
	}
	if last["event"] != "error" {
		t.Fatalf("the stream does not end with an error event: %q", text)
	}
	return last
}

func TestStreamPassesUnchangedAndAtOnce(t *testing.T) {
	next := make(chan string)
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		for s := range next {
			send(s)
		}
	})
	g := start(t, testConfig(a))
	resp, br := openStream(t, g, "/v1/chat-messages", chatBody)
	h := resp.Header
	if h.Get("X-Accel-Buffering") != "no" || h.Get("Cache-Control") != "no-cache" || !strings.HasPrefix(h.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("headers %v", h)
	}
	events := []string{
		"event: ping\n\n", frame("message", ""), ": comment\r\n\r\n", "data: x\r\r",
		frame("message", `, "answer": "`+strings.Repeat("long ", 30_000)+`"`), // larger than any buffer
		frame("message_end", ""),
	}
	for _, want := range events {
		next <- want
		got := make([]byte, len(want))
		// Each arrives before the next is sent.
		if _, err := io.ReadFull(br, got); err != nil || string(got) != want {
			t.Fatalf("got %.80q (%v), want %.80q", got, err, want)
		}
	}
	// An event in two pieces arrives as one, and nothing is added at the end.
	next <- "data: {\"event\":"
	next <- " \"message\"}\n\ndata: tail"
	close(next)
	rest, err := io.ReadAll(br)
	if err != nil || string(rest) != "data: {\"event\": \"message\"}\n\ndata: tail" {
		t.Fatalf("rest %q: %v", rest, err)
	}
}

func TestStreamDeathMidwayEndsInProtocol(t *testing.T) {
	deaths := map[string]func(w http.ResponseWriter, send func(string)){
		"between events": func(w http.ResponseWriter, _ func(string)) { abort(w) },
		"within an event": func(w http.ResponseWriter, send func(string)) {
			send("data: {\"event\": \"message\", \"ans")
			abort(w)
		},
		"within a UTF-8 sequence": func(w http.ResponseWriter, send func(string)) {
			send("data: {\"event\": \"message\", \"answer\": \"\xe4\xbd")
			abort(w)
		},
		"within the empty line": func(w http.ResponseWriter, send func(string)) {
			send("data: {\"event\": \"message\"}\n")
			abort(w)
		},
	}
	for name, die := range deaths {
		t.Run(name, func(t *testing.T) {
			a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
				send := emit(w, r)
				send(frame("message", ""))
				die(w, send)
			})
			b := newInstance(t, "zone-b", whole)
			g := start(t, testConfig(a, b))
			resp, br := openStream(t, g, "/v1/chat-messages", chatBody)
			text, err := io.ReadAll(br)
			if err != nil {
				t.Fatalf("the stream was cut: %v after %q", err, text)
			}
			if resp.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), frame("message", "")) {
				t.Fatalf("got %d %q", resp.StatusCode, text)
			}
			e := errorEvent(t, string(text))
			if e["code"] != "upstream_lost" || e["status"] != float64(502) || e["task_id"] != "t1" || e["message_id"] != "m1" || e["conversation_id"] != "c1" {
				t.Fatalf("error event %v", e)
			}
			if !utf8.Valid(text) {
				t.Fatalf("not UTF-8: %q", text)
			}
			if b.served.Load() != 0 {
				t.Fatal("sent again after content")
			}
			if got := g.metric(t, g.m.cuts.WithLabelValues("error_event")); got != 1 {
				t.Fatalf("cuts = %v", got)
			}
			if got := failures(t, g.reg); got != 1 {
				t.Fatalf("%v failures, want 1: the user got half an answer", got)
			}
			// The same over HTTP/2.
			over := h2client(t)
			status, again, _ := post(t, over, g.url+"/v1/workflows/run", chatBody)
			if e := errorEvent(t, again); status != 200 || e["code"] != "upstream_lost" || e["task_id"] != "t1" {
				t.Fatalf("over HTTP/2: %d %q", status, again)
			}
		})
	}
}

// h2client speaks HTTP/2 without TLS.
func h2client(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func TestStreamDeathBeforeContentIsInvisible(t *testing.T) {
	deaths := map[string]http.HandlerFunc{
		"after pings": func(w http.ResponseWriter, r *http.Request) {
			send := emit(w, r)
			send("event: ping\n\n")
			send("event: ping\n\ndata: {\"event\": \"mess")
			abort(w)
		},
		"after the header": func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)
			abort(w)
		},
		"before the header": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			abort(w)
		},
	}
	for name, die := range deaths {
		t.Run(name, func(t *testing.T) {
			a, b := newInstance(t, "zone-a", die), newInstance(t, "zone-b", whole)
			g := start(t, testConfig(a, b))
			_, br := openStream(t, g, "/v1/chat-messages", chatBody)
			text, err := io.ReadAll(br)
			got := strings.ReplaceAll(string(text), "event: ping\n\n", "")
			if want := frame("message", `, "answer": "hello"`) + frame("message_end", ""); err != nil || got != want {
				t.Fatalf("got %q (%v), want %q", got, err, want)
			}
			if a.served.Load() != 1 || b.served.Load() != 1 {
				t.Fatalf("served %d and %d", a.served.Load(), b.served.Load())
			}
		})
	}
}

func TestStreamRestartRules(t *testing.T) {
	die := func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)("event: ping\n\n")
		abort(w)
	}
	t.Run("workflow runs are not repeated", func(t *testing.T) {
		a, b := newInstance(t, "zone-a", die), newInstance(t, "zone-b", whole)
		g := start(t, testConfig(a, b))
		_, br := openStream(t, g, "/v1/workflows/run", chatBody)
		text, err := io.ReadAll(br)
		if err != nil {
			t.Fatal(err)
		}
		errorEvent(t, string(text))
		if b.served.Load() != 0 {
			t.Fatal("sent again")
		}
	})
	t.Run("turned off", func(t *testing.T) {
		a, b := newInstance(t, "zone-a", die), newInstance(t, "zone-b", whole)
		cfg := testConfig(a, b)
		cfg.Stream.Restart = RestartUnsent
		g := start(t, cfg)
		_, br := openStream(t, g, "/v1/chat-messages", chatBody)
		text, _ := io.ReadAll(br)
		errorEvent(t, string(text))
		if b.served.Load() != 0 {
			t.Fatal("sent again")
		}
	})
	t.Run("once", func(t *testing.T) {
		a, b := newInstance(t, "zone-a", die), newInstance(t, "zone-b", die)
		c := newInstance(t, "zone-b", die)
		g := start(t, testConfig(a, b, c))
		_, br := openStream(t, g, "/v1/chat-messages", chatBody)
		text, _ := io.ReadAll(br)
		errorEvent(t, string(text))
		if n := a.served.Load() + b.served.Load() + c.served.Load(); n != 2 {
			t.Fatalf("sent %d times", n)
		}
	})
	t.Run("a refusal becomes the error", func(t *testing.T) {
		a := newInstance(t, "zone-a", die)
		b := newInstance(t, "zone-b", func(w http.ResponseWriter, _ *http.Request) {
			dify.Error{Code: "provider_quota_exceeded", Message: "no money", Status: 400}.Write(w)
		})
		g := start(t, testConfig(a, b))
		_, br := openStream(t, g, "/v1/chat-messages", chatBody)
		text, _ := io.ReadAll(br)
		if e := errorEvent(t, string(text)); e["code"] != "provider_quota_exceeded" || e["status"] != float64(400) {
			t.Fatalf("error event %v", e)
		}
	})
}

func TestStreamCompleteBeforeDeathIsNoError(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		send(frame("message", "") + frame("message_end", ""))
		abort(w)
	})
	g := start(t, testConfig(a))
	_, br := openStream(t, g, "/v1/chat-messages", chatBody)
	text, err := io.ReadAll(br)
	if err != nil || strings.Contains(string(text), `"error"`) {
		t.Fatalf("got %q, %v", text, err)
	}
}

func TestStreamHeartbeatAndSilence(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)(frame("message", ""))
		<-r.Context().Done() // hangs until the gateway gives up
	})
	cfg := testConfig(a)
	cfg.Stream.Heartbeat, cfg.Stream.IdleTimeout = 100*time.Millisecond, time.Second
	g := start(t, cfg)
	_, br := openStream(t, g, "/v1/chat-messages", chatBody)
	text, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n\n: keepalive\n\n") {
		t.Fatalf("no heartbeat in %q", text)
	}
	if e := errorEvent(t, string(text)); e["code"] != "upstream_silent" || e["status"] != float64(504) {
		t.Fatalf("error event %v", e)
	}
}

func TestStreamClientDisconnectCancelsUpstream(t *testing.T) {
	gone := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)(frame("message", ""))
		<-r.Context().Done()
		close(gone)
	})
	cfg := testConfig(a)
	cfg.Stream.StopOnDisconnect = false
	g := start(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(chatBody))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the instance was not told")
	}
	eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
}

func TestDrainEndsStreamsInProtocol(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		send(frame("message", ""))
		if r.URL.Path == "/v1/completion-messages" {
			time.Sleep(100 * time.Millisecond) // ends by itself during the drain
			send(frame("message_end", ""))
			return
		}
		<-r.Context().Done()
	})
	cfg := testConfig(a)
	cfg.Drain = Drain{Timeout: 2 * time.Second}
	g := start(t, cfg)
	_, long := openStream(t, g, "/v1/chat-messages", chatBody)
	_, short := openStream(t, g, "/v1/completion-messages", chatBody)
	for _, br := range []*bufio.Reader{long, short} {
		if _, err := br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	g.stop()
	text, err := io.ReadAll(short)
	if err != nil || !strings.Contains(string(text), "message_end") || strings.Contains(string(text), `"error"`) {
		t.Fatalf("short stream: %q, %v", text, err)
	}
	text, err = io.ReadAll(long)
	if err != nil {
		t.Fatalf("long stream was cut: %v after %q", err, text)
	}
	if e := errorEvent(t, string(text)); e["code"] != "gateway_restart" {
		t.Fatalf("error event %v", e)
	}
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
}

func TestReloadKeepsStreams(t *testing.T) {
	more := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			_, _ = io.WriteString(w, "a")
			return
		}
		send := emit(w, r)
		send(frame("message", ""))
		<-more
		send(frame("message_end", ""))
	})
	b := newInstance(t, "zone-a", say("b"))
	g := start(t, testConfig(a))
	_, br := openStream(t, g, "/v1/chat-messages", chatBody)
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	bad := testConfig(b)
	bad.Listen, bad.Retry.Attempts = "127.0.0.1:1", 0
	if err := g.Reload(bad); err == nil || !strings.Contains(err.Error(), "retry.attempts") {
		t.Fatalf("a wrong configuration gave %v", err)
	}
	bad.Retry.Attempts = 1
	if err := g.Reload(bad); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Fatalf("another address gave %v", err)
	}
	c := client(t)
	if _, body, _ := get(t, c, g.url+"/v1/meta"); body != "a" {
		t.Fatalf("a refused reload changed the upstreams: %q", body)
	}
	if err := g.Reload(testConfig(b)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, body, _ := get(t, c, g.url+"/v1/meta"); body != "b" {
			t.Fatalf("after the reload: %q", body)
		}
	}
	close(more)
	rest, err := io.ReadAll(br)
	if err != nil || !strings.Contains(string(rest), "message_end") {
		t.Fatalf("the old stream: %q, %v", rest, err)
	}
}

func TestManyStreamsWithOneDeath(t *testing.T) {
	release := make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		send("event: ping\n\n")
		select {
		case <-release:
		case <-r.Context().Done():
			return
		}
		send(frame("message", "") + frame("message_end", ""))
	}
	a, b := newInstance(t, "zone-a", handler), newInstance(t, "zone-b", handler)
	cfg := testConfig(a, b)
	cfg.Retry.BudgetMin = 1000
	g := start(t, cfg)
	const n = 40
	var wg sync.WaitGroup
	texts := make([]string, n)
	for i := range n {
		_, br := openStream(t, g, "/v1/chat-messages", chatBody)
		wg.Go(func() {
			b, err := io.ReadAll(br)
			texts[i] = fmt.Sprintf("%s%v", b, err)
		})
	}
	a.kill()
	eventually.Nil(t, patience, func() error {
		if got := b.served.Load(); got != n {
			return fmt.Errorf("%d of %d streams moved", got, n)
		}
		return nil
	})
	close(release)
	wg.Wait()
	want := frame("message", "") + frame("message_end", "") + "<nil>"
	for i, text := range texts {
		if strings.ReplaceAll(text, "event: ping\n\n", "") != want {
			t.Fatalf("stream %d: %q", i, text)
		}
	}
}
