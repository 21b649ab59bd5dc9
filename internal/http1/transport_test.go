package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// patience bounds every wait: the machine may be busy.
const patience = 30 * time.Second

func testTransport(tb testing.TB) *Transport {
	tb.Helper()
	t := New(Config{ConnectTimeout: patience, UserTimeout: 10 * time.Second, IdleTimeout: time.Hour, MaxIdle: 8, MaxHeaderBytes: 64 << 10})
	tb.Cleanup(t.CloseIdle)
	return t
}

func testContext(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	return ctx
}

// server answers and counts its connections.
func server(tb testing.TB, h http.HandlerFunc) (addr string, conns *atomic.Int64) {
	tb.Helper()
	conns = new(atomic.Int64)
	s := httptest.NewUnstartedServer(h)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	tb.Cleanup(s.Close)
	return s.Listener.Addr().String(), conns
}

// raw accepts connections and gives each to h.
func raw(tb testing.TB, h func(*net.TCPConn)) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				h(c.(*net.TCPConn))
			})
		}
	})
	tb.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func request(addr, method, body string) *Request {
	return &Request{Scheme: "http", Address: addr, Method: method, Target: "/x?y=1", Host: "dify.example",
		Header: http.Header{"X-A": {"1", "2"}}, Body: []byte(body), Length: int64(len(body))}
}

func do(tb testing.TB, t *Transport, r *Request) string {
	tb.Helper()
	resp, err := t.Do(testContext(tb), r)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	_ = resp.Body.Close()
	return string(b)
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	addr, conns := server(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %v %s %d", r.Method, r.RequestURI, r.Host, r.Header["X-A"], b, r.ContentLength)
	})
	tr := testTransport(t)
	for _, tc := range []struct{ method, body, want string }{
		{"GET", "", "GET /x?y=1 dify.example [1 2]  0"},
		{"POST", "hello", "POST /x?y=1 dify.example [1 2] hello 5"},
		{"POST", "", "POST /x?y=1 dify.example [1 2]  0"},
		{"HEAD", "", ""},
		{"DELETE", "d", "DELETE /x?y=1 dify.example [1 2] d 1"},
	} {
		for range 3 {
			if got := do(t, tr, request(addr, tc.method, tc.body)); got != tc.want {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
		}
	}
	if n := conns.Load(); n != 1 {
		t.Fatalf("%d connections", n)
	}
}

func TestBodies(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %d %v", n, r.ContentLength, err)
	})
	tr := testTransport(t)
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for name, r := range map[string]*Request{
		"whole":             {Body: []byte(big), Length: int64(len(big))},
		"rest":              {Rest: strings.NewReader(big), Length: int64(len(big))},
		"whole and rest":    {Body: []byte(big[:100]), Rest: strings.NewReader(big[100:]), Length: int64(len(big))},
		"chunked":           {Rest: strings.NewReader(big), Length: -1},
		"chunked with more": {Body: []byte(big[:100]), Rest: strings.NewReader(big[100:]), Length: -1},
	} {
		t.Run(name, func(t *testing.T) {
			r.Scheme, r.Address, r.Method, r.Target, r.Host = "http", addr, "POST", "/", "h"
			want := fmt.Sprintf("%d %d <nil>", len(big), r.Length)
			if got := do(t, tr, r); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		})
	}
}

func TestBodyErrors(t *testing.T) {
	addr, _ := server(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	tr := testTransport(t)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		rest   io.Reader
		length int64
		want   error
	}{
		"reader fails": {io.MultiReader(strings.NewReader("abc"), iotestError{broken}), -1, broken},
		"too short":    {strings.NewReader("abc"), 5, io.ErrUnexpectedEOF},
		"too long":     {strings.NewReader("abcdef"), 5, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(addr, "POST", "")
			r.Rest, r.Length = tc.rest, tc.length
			_, err := tr.Do(testContext(t), r)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

type iotestError struct{ err error }

func (e iotestError) Read([]byte) (int, error) { return 0, e.err }

// A server that answers before it has read the body must not deadlock with us.
func TestEarlyAnswer(t *testing.T) {
	addr := raw(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
		_, _ = io.Copy(io.Discard, c) // until we hang up
	})
	tr := testTransport(t)
	r := request(addr, "POST", "")
	r.Rest, r.Length = neverEnds{}, -1
	resp, err := tr.Do(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || string(body) != "big" {
		t.Fatalf("%d %q %v", resp.StatusCode, body, err)
	}
	_ = resp.Body.Close()
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) { return len(p), nil }

func TestFailures(t *testing.T) {
	nobody := servertest.FreeAddress(t)
	readAndDie := raw(t, func(c *net.TCPConn) { _, _ = http.ReadRequest(bufio.NewReader(c)) })
	garbage := raw(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "hello\r\n\r\n")
	})
	tr := testTransport(t)
	for name, tc := range map[string]struct {
		r    *Request
		want Failed
	}{
		"refused":      {request(nobody, "POST", "x"), NotConnected},
		"read and die": {request(readAndDie, "POST", "x"), Lost},
		"garbage":      {request(garbage, "POST", "x"), Lost},
		"bad method":   {request(readAndDie, "A B", ""), Unsent},
		"bad target":   {&Request{Scheme: "http", Address: readAndDie, Method: "GET", Target: "/ x", Host: "h"}, Unsent},
		"bad header":   {&Request{Scheme: "http", Address: readAndDie, Method: "GET", Target: "/", Host: "h", Header: http.Header{"A": {"b\r\nc: d"}}}, Unsent},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tr.Do(testContext(t), tc.r)
			var e *Error
			if !errors.As(err, &e) || e.Failed != tc.want {
				t.Fatalf("got %v, want failure %d", err, tc.want)
			}
		})
	}
}

// A connection that the server closed while it was kept costs no request.
func TestStaleConnections(t *testing.T) {
	for _, how := range []string{"closed", "said something"} {
		t.Run(how, func(t *testing.T) {
			var conns atomic.Int64
			addr := raw(t, func(c *net.TCPConn) {
				n := conns.Add(1)
				br := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", n)
					if n == 1 && how == "said something" {
						_, _ = io.WriteString(c, "HTTP/1.1 408 Timeout\r\n\r\n")
						continue
					}
					if n == 1 {
						return
					}
				}
			})
			tr := testTransport(t)
			if got := do(t, tr, request(addr, "POST", "x")); got != "1" {
				t.Fatalf("got %q", got)
			}
			eventually.Nil(t, patience, func() error {
				tr.idle.mu.Lock()
				defer tr.idle.mu.Unlock()
				for _, c := range tr.idle.conns[addr] {
					if c.counting.quiet() {
						return errors.New("still quiet")
					}
				}
				return nil
			})
			if got := do(t, tr, request(addr, "POST", "x")); got != "2" {
				t.Fatalf("got %q", got)
			}
		})
	}
}

func TestIdleConnectionsGo(t *testing.T) {
	addr, _ := server(t, func(http.ResponseWriter, *http.Request) {})
	tr := New(Config{ConnectTimeout: patience, IdleTimeout: 50 * time.Millisecond, MaxIdle: 8, MaxHeaderBytes: 64 << 10})
	defer tr.CloseIdle()
	do(t, tr, request(addr, "GET", ""))
	eventually.Nil(t, patience, func() error {
		tr.idle.mu.Lock()
		defer tr.idle.mu.Unlock()
		if n := len(tr.idle.conns); n > 0 || tr.idle.timer != nil {
			return fmt.Errorf("%d addresses, timer %v", n, tr.idle.timer != nil)
		}
		return nil
	})
}

// The end of the context reaches whatever blocks.
func TestCancel(t *testing.T) {
	begun := make(chan struct{}, 1)
	hang := raw(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		if r, err := http.ReadRequest(br); err != nil || r.URL.Path == "/deaf" {
			begun <- struct{}{}
			// Until we hang up; nothing is read meanwhile.
			eventually.Nil(t, patience, func() error {
				_ = c.SetDeadline(time.Now().Add(time.Second))
				if _, err := c.Write([]byte("x")); err != nil {
					return nil //nolint:nilerr // this is what is waited for
				}
				return errors.New("still there")
			})
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
		begun <- struct{}{}
		_, _ = io.Copy(io.Discard, br)
	})
	cause := errors.New("enough")
	t.Run("in the body", func(t *testing.T) {
		// Both call seen when they have something, so that the end comes while
		// they wait for more.
		read := func(b *Body, seen func()) (got string, err error) {
			buf := make([]byte, 64)
			for err == nil {
				var n int
				n, err = b.Read(buf)
				if got += string(buf[:n]); n > 0 {
					seen()
				}
			}
			return got, err
		}
		each := func(b *Body, seen func()) (got string, err error) {
			err = b.Each(takes(func(p []byte) error { got += string(p); seen(); return nil }))
			return got, err
		}
		for name, how := range map[string]func(*Body, func()) (string, error){"read": read, "each": each} {
			t.Run(name, func(t *testing.T) {
				tr := testTransport(t)
				ctx, cancel := context.WithCancelCause(testContext(t))
				resp, err := tr.Do(ctx, request(hang, "GET", ""))
				if err != nil {
					t.Fatal(err)
				}
				<-begun
				got, err := how(resp.Body.(*Body), func() { time.AfterFunc(10*time.Millisecond, func() { cancel(cause) }) })
				if got != "x" || !errors.Is(err, cause) {
					t.Fatalf("got %q, %v", got, err)
				}
				_ = resp.Body.Close()
			})
		}
	})
	t.Run("in the request", func(t *testing.T) {
		tr := testTransport(t)
		ctx, cancel := context.WithCancelCause(testContext(t))
		r := request(hang, "POST", "")
		r.Target, r.Rest, r.Length = "/deaf", neverEnds{}, -1
		go func() { <-begun; cancel(cause) }()
		if _, err := tr.Do(ctx, r); err == nil {
			t.Fatal("no error")
		}
	})
	t.Run("before", func(t *testing.T) {
		tr := testTransport(t)
		ctx, cancel := context.WithCancelCause(testContext(t))
		cancel(cause)
		_, err := tr.Do(ctx, request(hang, "GET", ""))
		var e *Error
		if !errors.As(err, &e) || e.Failed == Lost || !errors.Is(err, cause) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestUpgrade(t *testing.T) {
	addr := raw(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nhello ")
		_, _ = io.Copy(c, br)
	})
	r := request(addr, "GET", "")
	r.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"echo"}}
	resp, err := testTransport(t).Do(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	rwc := resp.Body.(io.ReadWriteCloser)
	_, _ = io.WriteString(rwc, "world")
	got := make([]byte, len("hello world"))
	if _, err := io.ReadFull(rwc, got); err != nil || string(got) != "hello world" {
		t.Fatalf("%q %v", got, err)
	}
	_ = rwc.Close()
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	defer s.Close()
	cfg := s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.ServerName = "example.com"
	tr := New(Config{ConnectTimeout: patience, IdleTimeout: time.Hour, MaxIdle: 1, MaxHeaderBytes: 64 << 10, TLS: cfg})
	defer tr.CloseIdle()
	for range 2 {
		r := request(s.Listener.Addr().String(), "GET", "")
		r.Scheme = "https"
		if got := do(t, tr, r); got != "hello" {
			t.Fatalf("got %q", got)
		}
	}
	r := request(s.Listener.Addr().String(), "GET", "")
	r.Scheme = "https"
	plain := testTransport(t) // does not know the certificate
	_, err := plain.Do(testContext(t), r)
	var e *Error
	if !errors.As(err, &e) || e.Failed != NotConnected {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkDo(b *testing.B) {
	addr, _ := server(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})
	tr := testTransport(b)
	r := request(addr, "POST", string(bytes.Repeat([]byte("x"), 1024)))
	b.ReportAllocs()
	for b.Loop() {
		resp, err := tr.Do(context.Background(), r)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}
