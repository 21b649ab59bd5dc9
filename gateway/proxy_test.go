package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

func TestLocalZoneFirst(t *testing.T) {
	a1, a2 := newInstance(t, "zone-a", say("a")), newInstance(t, "zone-a", say("a"))
	b := newInstance(t, "zone-b", say("b"))
	g := start(t, testConfig(a1, a2, b))
	c := client(t)
	for range 60 {
		status, body, h := get(t, c, g.url+"/v1/parameters")
		if status != 200 || body != "a" {
			t.Fatalf("got %d %q", status, body)
		}
		if h.Get("X-Upstream-Zone") != "zone-a" || h.Get("X-Fournines-Zone") != "zone-a" || h.Get("X-Request-Id") == "" {
			t.Fatalf("headers %v", h)
		}
	}
	if a1.served.Load() == 0 || a2.served.Load() == 0 || b.served.Load() != 0 {
		t.Fatalf("served: %d, %d local and %d remote", a1.served.Load(), a2.served.Load(), b.served.Load())
	}
}

func TestSpillOverWhenLocalIsIll(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	b := newInstance(t, "zone-b", say("b"))
	g := start(t, testConfig(a, b))
	a.healthy.Store(false)
	eventually.Nil(t, patience, func() error {
		if usable, _ := g.pool.Healthy(); usable != 1 {
			return fmt.Errorf("%d usable", usable)
		}
		return nil
	})
	c := client(t)
	for range 10 {
		if _, body, _ := get(t, c, g.url+"/v1/parameters"); body != "b" {
			t.Fatalf("got %q", body)
		}
	}
	// Nobody healthy: everybody is tried rather than nobody.
	b.healthy.Store(false)
	eventually.Nil(t, patience, func() error {
		if usable, _ := g.pool.Healthy(); usable != 0 {
			return fmt.Errorf("%d usable", usable)
		}
		return nil
	})
	if status, _, _ := get(t, c, g.url+"/v1/parameters"); status != 200 {
		t.Fatalf("in panic mode: status %d", status)
	}
}

func TestKillLosesNoIdempotentRequest(t *testing.T) {
	slow := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(5 * time.Millisecond) // work that a kill can interrupt
			_, _ = io.WriteString(w, name)
		}
	}
	a1, a2 := newInstance(t, "zone-a", slow("a1")), newInstance(t, "zone-a", slow("a2"))
	b := newInstance(t, "zone-b", slow("b"))
	g := start(t, testConfig(a1, a2, b))
	c := client(t)
	var wg sync.WaitGroup
	var failed atomic.Int64
	var first atomic.Pointer[string]
	for worker := range 8 {
		wg.Go(func() {
			for i := range 60 {
				if worker == 0 && i == 20 {
					a1.kill()
				}
				if worker == 0 && i == 40 {
					a2.kill()
				}
				resp, err := c.Get(g.url + "/v1/parameters")
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err == nil && resp.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", resp.StatusCode)
					}
				}
				if err != nil {
					failed.Add(1)
					s := err.Error()
					first.CompareAndSwap(nil, &s)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n != 0 {
		t.Fatalf("%d failed, the first: %s", n, *first.Load())
	}
	if b.served.Load() == 0 {
		t.Fatal("the other zone served nothing")
	}
}

func TestIdempotentRetryOnStatusAndCut(t *testing.T) {
	cases := map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"reset": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			abort(w)
		},
		"cut in the body": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
	}
	for name, bad := range cases {
		t.Run(name, func(t *testing.T) {
			a := newInstance(t, "zone-a", bad)
			b := newInstance(t, "zone-b", say("b"))
			cfg := testConfig(a, b)
			cfg.Ejection.Consecutive5xx, cfg.Ejection.ConsecutiveErrors = 1000, 1000
			g := start(t, cfg)
			c := client(t)
			for _, call := range []func() (int, string, http.Header){
				func() (int, string, http.Header) { return get(t, c, g.url+"/v1/info") },
				func() (int, string, http.Header) {
					return post(t, c, g.url+"/v1/datasets/1/retrieve", `{"query":"q"}`)
				},
			} {
				if status, body, _ := call(); status != 200 || body != "b" {
					t.Fatalf("got %d %q", status, body)
				}
			}
			if a.served.Load() != 2 {
				t.Fatalf("the bad instance was asked %d times", a.served.Load())
			}
		})
	}
}

func TestPostIsNotSentTwice(t *testing.T) {
	bad := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		abort(w)
	}
	a, b := newInstance(t, "zone-a", bad), newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Ejection.ConsecutiveErrors = 1000
	g := start(t, cfg)
	c := client(t)
	for _, path := range []string{"/v1/chat-messages", "/v1/workflows/run", "/v1/files/upload", "/v1/datasets"} {
		for _, body := range []string{`{"response_mode":"blocking"}`, `{"response_mode":"streaming"}`} {
			if path == "/v1/chat-messages" && strings.Contains(body, "streaming") {
				continue // has its own rule
			}
			status, answer, _ := post(t, c, g.url+path, body)
			var e dify.Error
			if err := json.Unmarshal([]byte(answer), &e); err != nil || status != 502 || e.Status != 502 || e.Code != "bad_gateway" {
				t.Fatalf("%s: got %d %q (%v)", path, status, answer, err)
			}
		}
	}
	if a.served.Load() != 7 || b.served.Load() != 0 {
		t.Fatalf("served %d and %d", a.served.Load(), b.served.Load())
	}
}

func TestPostGoesOnWhenRefused(t *testing.T) {
	a, b := newInstance(t, "zone-a", say("a")), newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Health.Interval = time.Hour // only what requests meet
	g := start(t, cfg)
	c := client(t)
	// Warm connections to the instance that is about to die: late bytes on them
	// are never acknowledged, so these requests may go on, too.
	for range 3 {
		post(t, c, g.url+"/v1/chat-messages", `{}`)
	}
	a.kill()
	for range 5 {
		if status, body, _ := post(t, c, g.url+"/v1/chat-messages", `{"query":"q"}`); status != 200 || body != "b" {
			t.Fatalf("got %d %q", status, body)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	g := start(t, testConfig(a))
	a.kill()
	status, body, h := post(t, client(t), g.url+"/v1/chat-messages", `{}`)
	if status != 503 || !strings.Contains(body, `"code":"service_unavailable"`) || h.Get("Retry-After") == "" {
		t.Fatalf("got %d %q %v", status, body, h)
	}
}

func TestTryTimeoutGoesOn(t *testing.T) {
	release := make(chan struct{})
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	a, b := newInstance(t, "zone-a", hang), newInstance(t, "zone-b", say("b"))
	defer close(release)
	cfg := testConfig(a, b)
	cfg.Retry.TryTimeout = 200 * time.Millisecond
	g := start(t, cfg)
	if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 200 || body != "b" {
		t.Fatalf("got %d %q", status, body)
	}
}

func TestInternalErrorIsAskedElsewhereOnce(t *testing.T) {
	wrong := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }
	a, b := newInstance(t, "zone-a", wrong), newInstance(t, "zone-b", say("b"))
	g := start(t, testConfig(a, b))
	c := client(t)
	if status, body, _ := get(t, c, g.url+"/v1/parameters"); status != 200 || body != "b" {
		t.Errorf("an instance that fails alone: %d %q", status, body)
	}
	if status, _, _ := post(t, c, g.url+"/v1/chat-messages", `{}`); status != 500 {
		t.Errorf("a post: status %d, want the instance's own 500", status)
	}
	one, two, three := newInstance(t, "zone-a", wrong), newInstance(t, "zone-a", wrong), newInstance(t, "zone-a", wrong)
	all := start(t, testConfig(one, two, three))
	if status, _, _ := get(t, c, all.url+"/v1/parameters"); status != 500 {
		t.Errorf("an app that fails everywhere: status %d", status)
	}
	if n := one.served.Load() + two.served.Load() + three.served.Load(); n != 2 {
		t.Errorf("%d instances were asked, want 2", n)
	}
}

func TestEjection(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	b := newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Ejection.Consecutive5xx, cfg.Ejection.BaseTime = 3, time.Minute
	g := start(t, cfg)
	c := client(t)
	for range 3 {
		if status, _, _ := post(t, c, g.url+"/console/api/x", `{}`); status != 500 {
			t.Fatalf("status %d", status)
		}
	}
	if status, body, _ := post(t, c, g.url+"/console/api/x", `{}`); status != 200 || body != "b" {
		t.Fatalf("after the ejection: %d %q", status, body)
	}
	if got := g.metric(t, g.m.ejections.WithLabelValues(a.addr, "5xx")); got != 1 {
		t.Fatalf("ejections = %v", got)
	}
}

func TestOverloadQueuesThenRefuses(t *testing.T) {
	enter, release := make(chan struct{}, 10), make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, _ *http.Request) {
		enter <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "a")
	})
	cfg := testConfig(a)
	cfg.Limits.MaxInFlight, cfg.Limits.MaxQueue, cfg.Limits.QueueTimeout = 1, 1, patience
	g := start(t, cfg)
	c := client(t)
	answers := make(chan int, 2)
	ask := func() {
		resp, err := c.Get(g.url + "/v1/meta")
		if err != nil {
			answers <- -1
			return
		}
		_ = resp.Body.Close()
		answers <- resp.StatusCode
	}
	go ask()
	<-enter
	go ask()
	eventually.Nil(t, patience, func() error {
		if n := g.admit.Waiting(); n != 1 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	status, body, h := get(t, c, g.url+"/v1/meta")
	if status != 503 || !strings.Contains(body, "overloaded") || h.Get("Retry-After") == "" {
		t.Fatalf("got %d %q", status, body)
	}
	close(release)
	for range 2 {
		if got := <-answers; got != 200 {
			t.Fatalf("a queued request got %d", got)
		}
	}
}

func TestHeaders(t *testing.T) {
	seen := make(chan http.Header, 1)
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Got-Host", r.Host)
		seen <- r.Header.Clone()
		w.Header().Set("Connection", "X-Private")
		w.Header().Set("X-Private", "1")
	})
	g := start(t, testConfig(a))
	req, err := http.NewRequest(http.MethodGet, g.url+"/v1/meta?x=%2F", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "dify.example"
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for k, v := range map[string]string{
		"Connection": "X-Drop", "X-Drop": "1", "Te": "trailers", "Traceparent": trace,
		"X-Forwarded-For": "192.0.2.1", "X-Request-Id": "abc-1", "Authorization": "Bearer app-very-secret", "Proxy-Authorization": "x",
	} {
		req.Header.Set(k, v)
	}
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _, out := read(t, resp)
	h := <-seen
	for k, want := range map[string]string{
		"X-Drop": "", "Te": "", "Proxy-Authorization": "", "Traceparent": trace, "X-Forwarded-For": "192.0.2.1, 127.0.0.1",
		"X-Forwarded-Host": "dify.example", "X-Forwarded-Proto": "http", "X-Request-Id": "abc-1", "Got-Host": "dify.example",
		"Authorization": "Bearer app-very-secret",
	} {
		if got := h.Get(k); got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if out.Get("X-Private") != "" || out.Get("X-Request-Id") != "abc-1" {
		t.Errorf("answer headers %v", out)
	}
	g.stop()
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
	if log := g.logs.String(); strings.Contains(log, "secret") || !strings.Contains(log, dify.KeyID("app-very-secret")) {
		t.Errorf("log has the key, or not its name:\n%s", log)
	}
}

func TestBodyLimit(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	cfg := testConfig(a)
	cfg.Limits.MaxBodyBytes, cfg.Limits.ReplayBytes = 1000, 100
	g := start(t, cfg)
	big := strings.Repeat("x", 1001)
	c := client(t)
	status, body, _ := post(t, c, g.url+"/v1/files/upload", big)
	if status != 413 || !strings.Contains(body, `"status":413`) {
		t.Fatalf("declared: %d %q", status, body)
	}
	// The same without saying so first.
	resp, err := c.Post(g.url+"/v1/files/upload", "text/plain", io.MultiReader(strings.NewReader(big)))
	if err != nil {
		t.Fatal(err)
	}
	if status, body, _ := read(t, resp); status != 413 {
		t.Fatalf("chunked: %d %q", status, body)
	}
	if status, _, _ := post(t, c, g.url+"/v1/files/upload", big[:1000]); status != 200 {
		t.Fatalf("at the limit: %d", status)
	}
}

func TestHeaderLimit(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	g := start(t, testConfig(a))
	req, err := http.NewRequest(http.MethodGet, g.url+"/v1/meta", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Big", strings.Repeat("x", 1<<20))
	resp, err := client(t).Do(req)
	if err != nil {
		return // the server may close before the client has sent it all
	}
	if status, _, _ := read(t, resp); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Fatalf("status %d", status)
	}
}

func TestLargeUploadIsStreamed(t *testing.T) {
	const size = 96 << 20
	var got atomic.Int64
	first := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(buf)
			if got.Add(int64(n)) == int64(n) && n > 0 {
				close(first)
			}
			if err != nil {
				break
			}
		}
		_, _ = fmt.Fprint(w, got.Load())
	})
	g := start(t, testConfig(a))
	var before, during runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	pr, pw := io.Pipe()
	go func() {
		chunk := make([]byte, 256<<10)
		for sent := 0; sent < size; sent += len(chunk) {
			if sent == len(chunk)*8 {
				<-first // the instance reads while the client still sends
			}
			if sent == size/2 {
				runtime.GC()
				runtime.ReadMemStats(&during)
			}
			if _, err := pw.Write(chunk); err != nil {
				return
			}
		}
		_ = pw.Close()
	}()
	resp, err := client(t).Post(g.url+"/v1/files/upload", "application/octet-stream", pr)
	if err != nil {
		t.Fatal(err)
	}
	if status, body, _ := read(t, resp); status != 200 || body != fmt.Sprint(size) {
		t.Fatalf("got %d %q", status, body)
	}
	if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Fatalf("the heap grew by %d MiB", grown>>20)
	}
}

// raw sends bytes on a new connection and returns all that comes back until
// the server closes it.
func raw(t *testing.T, addr, data string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, data); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatalf("the server did not close the connection: %v (after %q)", err, b)
	}
	return string(b)
}

func TestSmuggling(t *testing.T) {
	var smuggled atomic.Bool
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "smuggled") {
			smuggled.Store(true)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})
	g := start(t, testConfig(a))
	inner := "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	cases := map[string]struct{ head, body, want string }{
		"CL and TE":        {fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len("0\r\n\r\n"+inner)), "0\r\n\r\n" + inner, "200"},
		"two lengths":      {"Content-Length: 0\r\nContent-Length: 5\r\n", inner, "400"},
		"length list":      {"Content-Length: 0, 5\r\n", inner, "400"},
		"signed length":    {"Content-Length: +0\r\n", inner, "400"},
		"unknown coding":   {"Transfer-Encoding: xchunked\r\n", inner, "501"},
		"two codings":      {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", inner, "501"},
		"space in name":    {"Transfer-Encoding : chunked\r\n", inner, "400"},
		"folded":           {"X: y\r\n Transfer-Encoding: chunked\r\nConnection: close\r\n", "", "200"},
		"bare CR in value": {"X: a\rTransfer-Encoding: chunked\r\n", inner, "400"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := raw(t, g.addr, "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\n"+tc.head+"\r\n"+tc.body)
			if !strings.HasPrefix(got, "HTTP/1.1 "+tc.want) || strings.Count(got, "HTTP/1.1 ") != 1 {
				t.Fatalf("got %q, want one answer %s", got, tc.want)
			}
		})
	}
	if smuggled.Load() {
		t.Fatal("a smuggled request reached the instance")
	}
}

func TestSlowClients(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	cfg := testConfig(a)
	cfg.Limits.HeaderTimeout, cfg.Limits.BodyTimeout = time.Second, 300*time.Millisecond
	g := start(t, cfg)
	if got := raw(t, g.addr, "GET /v1/meta HTTP/1.1\r\nHost: x\r\nX-Sl"); strings.Contains(got, "200 OK") {
		t.Fatalf("an unfinished header got %q", got)
	}
	got := raw(t, g.addr, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"q")
	if !strings.HasPrefix(got, "HTTP/1.1 408") {
		t.Fatalf("an unfinished body got %q", got)
	}
	if n := a.served.Load(); n != 0 {
		t.Fatalf("%d unfinished requests reached the instance", n)
	}
}

func TestWebSocketPasses(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, brw)
	})
	g := start(t, testConfig(a))
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	// The first bytes of the new protocol come along with the request.
	_, _ = io.WriteString(conn, "GET /socket.io/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("X-Upstream-Zone") != "zone-a" {
		t.Fatalf("got %v %v", resp, err)
	}
	for _, word := range []string{"hello", strings.Repeat("\x00\xff", 40_000)} {
		if word != "hello" {
			if _, err := io.WriteString(conn, word); err != nil {
				t.Fatal(err)
			}
		}
		back := make([]byte, len(word))
		if _, err := io.ReadFull(br, back); err != nil || string(back) != word {
			t.Fatalf("echo of %d bytes: %v", len(word), err)
		}
	}
}

func TestDrain(t *testing.T) {
	enter, release := make(chan struct{}), make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/slow" {
			close(enter)
			<-release
		}
		_, _ = io.WriteString(w, "a")
	})
	cfg := testConfig(a)
	// The load balancer below may pause for as long between its look and its request.
	cfg.Drain = Drain{Announce: 2 * time.Second, Timeout: patience}
	g := start(t, cfg)
	c := client(t)
	slow := make(chan error, 1)
	go func() {
		resp, err := c.Get(g.url + "/v1/slow")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		slow <- err
	}()
	<-enter

	// A load balancer: sends until it sees "not ready".
	var failed, sent int
	stopped := make(chan struct{})
	begun := make(chan struct{})
	go func() {
		defer close(stopped)
		for g.Ready() == nil {
			resp, err := c.Get(g.url + "/v1/meta")
			if sent++; err != nil {
				failed++
			} else {
				_, _ = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			if sent == 20 {
				close(begun)
			}
		}
	}()
	<-begun
	g.stop()
	<-stopped
	if failed != 0 {
		t.Fatalf("%d of %d failed", failed, sent)
	}
	eventually.Nil(t, patience, func() error {
		conn, err := net.Dial("tcp", g.addr)
		if err == nil {
			_ = conn.Close()
			return errors.New("still accepting")
		}
		return nil
	})
	close(release)
	if err := <-slow; err != nil {
		t.Fatalf("the request in work: %v", err)
	}
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
}

func TestHTTP2ClearText(t *testing.T) {
	a := newInstance(t, "zone-a", say("a"))
	g := start(t, testConfig(a))
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get(g.url + "/v1/meta")
	if err != nil {
		t.Fatal(err)
	}
	if resp.ProtoMajor != 2 {
		t.Fatalf("answered over %s", resp.Proto)
	}
	if status, body, _ := read(t, resp); status != 200 || body != "a" {
		t.Fatalf("got %d %q", status, body)
	}
}

func TestClientDisconnectCancelsBlockingCall(t *testing.T) {
	enter, gone := make(chan struct{}), make(chan struct{})
	a := newInstance(t, "zone-a", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(enter)
		<-r.Context().Done()
		close(gone)
	})
	g := start(t, testConfig(a))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 1)
	c := client(t)
	go func() {
		resp, err := c.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		errs <- err
	}()
	<-enter
	cancel()
	<-errs
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the instance was not told")
	}
}

func TestHungInstanceIsLeft(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	enter := make(chan struct{}, 10)
	a := newInstance(t, "zone-a", func(_ http.ResponseWriter, r *http.Request) {
		enter <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	b := newInstance(t, "zone-b", say("b"))
	cfg := testConfig(a, b)
	cfg.Retry.TryTimeout = time.Hour // only the probes can tell
	g := start(t, cfg)
	go func() {
		<-enter
		a.healthy.Store(false)
	}()
	if status, body, _ := get(t, client(t), g.url+"/v1/meta"); status != 200 || body != "b" {
		t.Fatalf("got %d %q", status, body)
	}
}

func TestWriteDeadlineEndsWithItsAnswer(t *testing.T) {
	const gap = 1200 * time.Millisecond // longer than the deadline, on purpose
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/empty":
			w.WriteHeader(http.StatusNoContent)
		case "/v1/chat-messages":
			send := emit(w, r)
			time.Sleep(gap)
			send(frame("message", "") + frame("message_end", ""))
		case "/v1/slow":
			rc := http.NewResponseController(w)
			_, _ = io.WriteString(w, "one")
			_ = rc.Flush()
			time.Sleep(gap)
			_, _ = io.WriteString(w, "two")
		default:
			_, _ = io.WriteString(w, "a")
		}
	})
	cfg := testConfig(a)
	cfg.Limits.WriteTimeout = time.Second
	g := start(t, cfg)
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	defer h2.CloseIdleConnections()
	for name, c := range map[string]*http.Client{"HTTP/1.1": client(t), "HTTP/2": {Transport: h2, Timeout: patience}} {
		get(t, c, g.url+"/v1/meta")
		time.Sleep(gap) // the connection outlives the first answer's deadline
		if status, _, _ := get(t, c, g.url+"/v1/empty"); status != http.StatusNoContent {
			t.Fatalf("%s: status %d", name, status)
		}
		if _, body, _ := get(t, c, g.url+"/v1/slow"); body != "onetwo" {
			t.Fatalf("%s: got %q", name, body)
		}
		if _, body, _ := post(t, c, g.url+"/v1/chat-messages", chatBody); !strings.HasSuffix(body, frame("message_end", "")) {
			t.Fatalf("%s: got %q", name, body)
		}
	}
}

func TestClientThatDoesNotReadIsCut(t *testing.T) {
	ended := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, _ *http.Request) {
		defer close(ended)
		chunk := make([]byte, 1<<20)
		for range 1 << 10 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	cfg := testConfig(a)
	cfg.Limits.WriteTimeout = 300 * time.Millisecond
	g := start(t, cfg)
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /v1/files/1 HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the instance still sends")
	}
}
