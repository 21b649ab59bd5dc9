package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/reactor"
	"fournines/internal/servertest"
)

// serving is a server under test.
type serving struct {
	*Server
	addr string
	logs *servertest.Output
}

// serveTest runs a server until the test ends.
func serveTest(tb testing.TB, change func(*ServerConfig), h http.HandlerFunc) *serving {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var loop *reactor.Loop
	if runtime.GOOS == "linux" {
		if loop, err = reactor.New(); err != nil {
			tb.Fatal(err)
		}
		wg.Go(func() { _ = loop.Run(ctx) })
	}
	logs := &servertest.Output{}
	cfg := ServerConfig{
		Handler: h, Base: ctx, Loop: func() *reactor.Loop { return loop },
		HeaderTimeout: time.Hour, IdleTimeout: time.Hour, WriteTimeout: time.Hour, MaxHeaderBytes: testHeaderBytes,
		Log: slog.New(slog.NewTextHandler(logs, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	s := &serving{Server: NewServer(cfg), addr: ln.Addr().String(), logs: logs}
	wg.Go(func() { _ = s.Run(ctx) })
	wg.Go(func() {
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			tb.Errorf("Serve: %v", err)
		}
	})
	tb.Cleanup(func() {
		s.Close()
		if err := s.Shutdown(testContext(tb)); err != nil {
			tb.Errorf("Shutdown: %v", err)
		}
		cancel()
		wg.Wait()
		if n := s.Open(); n != 0 {
			tb.Errorf("%d connections are open", n)
		}
	})
	return s
}

// dial opens a connection that ends with the test.
func (s *serving) dial(tb testing.TB) *net.TCPConn {
	tb.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func send(tb testing.TB, c net.Conn, data string) {
	tb.Helper()
	if _, err := io.WriteString(c, data); err != nil {
		tb.Fatal(err)
	}
}

// all is what comes until the connection's end, which must be an orderly one.
func all(tb testing.TB, c net.Conn) string {
	tb.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		tb.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// next reads one answer.
func next(tb testing.TB, br *bufio.Reader, method string) (*http.Response, string) {
	tb.Helper()
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("%v after %q", err, b)
	}
	return resp, string(b)
}

// undated takes the Date lines out of answers.
func undated(s string) string {
	for {
		i := strings.Index(s, "Date: ")
		if i < 0 {
			return s
		}
		j := strings.Index(s[i:], "\r\n")
		s = s[:i] + s[i+j+2:]
	}
}

// Every way in which the end of an answer is told.
func TestReplies(t *testing.T) {
	flush := func(w http.ResponseWriter) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
	}
	long := strings.Repeat("x", 3*outBytes)
	cases := []struct {
		name, method, proto string // proto "1.0+" wants to be kept
		h                   http.HandlerFunc
		want                string
		open                bool
	}{
		{"nothing", "GET", "1.1", func(http.ResponseWriter, *http.Request) {}, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
		{"short", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true},
		{"with its length", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, "hello")
		}, "HTTP/1.1 418 I'm a teapot\r\nContent-Length: 5\r\n\r\nhello", true},
		{"unknown status", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }, "HTTP/1.1 299 status code 299\r\nContent-Length: 0\r\n\r\n", true},
		{"long with its length", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(long)))
			_, _ = io.WriteString(w, long)
		}, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), true},
		{"long without", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			_, _ = io.WriteString(w, long)
		}, fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long), true},
		{"flushed", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			flush(w)
			_, _ = io.WriteString(w, "hello")
			flush(w)
		}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true},
		{"as a stream", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.(*Reply).Stream()
			_, _ = io.WriteString(w, "a")
			_, _ = io.WriteString(w, "b")
		}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", true},
		{"shorter than its length", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "he")
		}, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", false},
		{"longer than its length", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			if n, err := io.WriteString(w, "hello"); n != 0 || !errors.Is(err, http.ErrContentLength) {
				panic(fmt.Sprint(n, err))
			}
		}, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", false},
		{"head", "HEAD", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		}, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true},
		{"no content", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "hello"); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}, "HTTP/1.1 204 No Content\r\n\r\n", true},
		{"not modified", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(http.StatusNotModified)
		}, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", true},
		{"says close", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "Close") }, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false},
		{"says other things", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "x, keep-alive") }, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true},
		{"what nobody may send", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("X", "a\r\nSet-Cookie: b")
			w.Header().Set("Transfer-Encoding", "gzip")
			w.Header().Set("Trailer", "X-T")
		}, "HTTP/1.1 200 OK\r\nX: a  Set-Cookie: b\r\nContent-Length: 0\r\n\r\n", true},
		{"1.0", "GET", "1.0", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", false},
		{"1.0 kept", "GET", "1.0+", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", true},
		{"1.0 without a length", "GET", "1.0+", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "hello")
			flush(w)
		}, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", false},
		{"aborted", "GET", "1.1", func(w http.ResponseWriter, _ *http.Request) {
			flush(w)
			panic(http.ErrAbortHandler)
		}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			s := serveTest(t, nil, tc.h)
			c := s.dial(t)
			proto, kept := strings.CutSuffix(tc.proto, "+")
			head := fmt.Sprintf("%s /x HTTP/%s\r\nHost: h\r\n", tc.method, proto)
			if kept {
				head += "Connection: keep-alive\r\n"
			}
			send(t, c, head+"\r\n")
			got := make([]byte, len(tc.want)+len("Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n"))
			if n, err := io.ReadFull(c, got); err != nil || undated(string(got)) != tc.want {
				t.Fatalf("got %q, %v\nwant %q", undated(string(got[:n])), err, tc.want)
			}
			if !tc.open {
				if rest := all(t, c); rest != "" {
					t.Fatalf("behind it %q", rest)
				}
				return
			}
			send(t, c, "GET /again HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			if rest := all(t, c); !strings.HasPrefix(rest, "HTTP/1.1 ") {
				t.Fatalf("behind it %q", rest)
			}
			if s.logs.String() != "" {
				t.Fatalf("logged: %s", s.logs)
			}
		})
	}
}

// echo answers with what it got.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s %d %q", r.Method, r.RequestURI, r.ContentLength, b)
}

// Requests that come in any pieces, and ahead of their time, are answered in order.
func TestPipelining(t *testing.T) {
	s := serveTest(t, nil, echo)
	in := get11 + "\r\n" +
		"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" +
		"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" +
		"POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" +
		"GET /d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: h\r\n\r\n"
	want := []string{`GET / 0 ""`, `POST /a 5 "hello"`, `POST /b -1 "hi"`, `POST /c 0 ""`, `GET /d 0 ""`}
	for cut := range len(in) {
		c := s.dial(t)
		_ = c.SetNoDelay(true)
		send(t, c, in[:cut])
		if cut%16 == 1 {
			runtime.Gosched() // most often the pieces come apart
		}
		send(t, c, in[cut:])
		text := all(t, c)
		br := bufio.NewReader(strings.NewReader(text))
		for i, w := range want {
			resp, got := next(t, br, "GET")
			if got != w || resp.Close != (i == len(want)-1) {
				t.Fatalf("cut at %d, answer %d: %q, close %v", cut, i, got, resp.Close)
			}
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Fatalf("cut at %d: more than was asked for: %q", cut, text)
		}
		_ = c.Close()
	}
}

// A body that the handler did not want does not spoil what comes behind it.
func TestUnreadBodies(t *testing.T) {
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/some" {
			_, _ = io.ReadFull(r.Body, make([]byte, 10))
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})
	small, large := strings.Repeat("s", 64<<10), strings.Repeat("l", 2<<20)
	for _, tc := range []struct {
		name, path, framing, body string
		kept                      bool
	}{
		{"small", "/none", fmt.Sprintf("Content-Length: %d", len(small)), small, true},
		{"small, begun", "/some", fmt.Sprintf("Content-Length: %d", len(small)), small, true},
		{"chunks", "/none", "Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(small), small), true},
		{"large", "/none", fmt.Sprintf("Content-Length: %d", len(large)), large, false},
		{"large chunks", "/none", "Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(large), large), false},
		{"malformed chunks", "/none", "Transfer-Encoding: chunked", "x", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := s.dial(t)
			send(t, c, "POST "+tc.path+" HTTP/1.1\r\nHost: h\r\n"+tc.framing+"\r\n\r\n")
			go func() { _, _ = io.WriteString(c, tc.body+"GET /next HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n") }()
			br := bufio.NewReader(c)
			if _, got := next(t, br, "POST"); got != tc.path {
				t.Fatalf("got %q", got)
			}
			if !tc.kept {
				if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 { // an end, not a reset
					t.Fatalf("%q, %v", rest, err)
				}
				return
			}
			if _, got := next(t, br, "GET"); got != "/next" {
				t.Fatalf("got %q", got)
			}
		})
	}
}

// What is refused before it is a request is answered, even to those who go on
// sending.
func TestRefusalsAreRead(t *testing.T) {
	s := serveTest(t, nil, func(http.ResponseWriter, *http.Request) { t.Error("served") })
	for in, status := range map[string]int{
		get11 + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n": 431,
		"\x16\x03\x01": 400,
		"GET / HTTP/1.1\r\n\r\n" + strings.Repeat("behind it", 100_000): 400,
		post11 + "Transfer-Encoding: x\r\n\r\n":                         501,
		"GET / HTTP/2.0\r\nHost: h\r\n\r\n":                             505,
	} {
		c := s.dial(t)
		go func() { _, _ = io.WriteString(c, in) }()
		text := all(t, c)
		resp, body := next(t, bufio.NewReader(strings.NewReader(text)), "GET")
		if resp.StatusCode != status || !resp.Close || !strings.HasPrefix(body, fmt.Sprint(status)) {
			t.Fatalf("%.40q: %q", in, text)
		}
	}
}

func TestContinue(t *testing.T) {
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			echo(w, r)
		}
	})
	const head = " HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
	c := s.dial(t)
	br := bufio.NewReader(c)
	for range 2 {
		send(t, c, "POST /read"+head)
		if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if line, _ := br.ReadString('\n'); line != "\r\n" {
			t.Fatalf("%q", line)
		}
		send(t, c, "hi")
		if _, got := next(t, br, "POST"); got != `POST /read 2 "hi"` {
			t.Fatalf("got %q", got)
		}
	}
	// Nobody asks for it: whether it comes or not is not known.
	send(t, c, "POST /refused"+head)
	resp, _ := next(t, br, "POST")
	if resp.StatusCode != http.StatusOK || !resp.Close {
		t.Fatalf("%d, close %v", resp.StatusCode, resp.Close)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Fatal(err)
	}
}

// Who says nothing, or not all of it, is sent away; what is at work stays.
func TestTimeouts(t *testing.T) {
	release := make(chan struct{})
	s := serveTest(t, func(c *ServerConfig) { c.HeaderTimeout, c.IdleTimeout = 50*time.Millisecond, 80*time.Millisecond }, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
	})
	slow := s.dial(t)
	send(t, slow, "GET /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	for name, in := range map[string]string{
		"nothing":             "",
		"half a head":         "GET / HTTP/1.1\r\nHo",
		"one byte":            "G",
		"idle":                get11 + "\r\n",
		"half of the next":    get11 + "\r\nGET / HT",
		"half, pipelined far": get11 + "\r\n" + get11 + "\r\nGE",
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			send(t, c, in)
			text := all(t, c)
			if n := strings.Count(text, "HTTP/1.1 200"); n != strings.Count(in, "\r\n\r\n") || n != strings.Count(text, "HTTP/1.1") {
				t.Fatalf("got %q", text)
			}
		})
	}
	close(release)
	if text := all(t, slow); !strings.HasPrefix(text, "HTTP/1.1 200") {
		t.Fatalf("got %q", text)
	}
}

// A body that does not come ends with the handler's deadline.
func TestReadDeadline(t *testing.T) {
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(r.Body); !errors.Is(err, os.ErrDeadlineExceeded) || string(b) != "hi" {
			t.Errorf("%q, %v", b, err)
		}
		w.WriteHeader(http.StatusRequestTimeout)
	})
	c := s.dial(t)
	send(t, c, post11+"Content-Length: 5\r\n\r\nhi")
	if text := all(t, c); !strings.HasPrefix(text, "HTTP/1.1 408") || !strings.Contains(text, "Connection: close\r\n") {
		t.Fatalf("got %q", text)
	}
}

// A client that takes nothing is given up, with the handler's deadline and
// without one.
func TestWriteTimeouts(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprint("own deadline ", own), func(t *testing.T) {
			ended := make(chan error, 1)
			s := serveTest(t, func(c *ServerConfig) {
				if !own {
					c.WriteTimeout = 50 * time.Millisecond
				}
			}, func(w http.ResponseWriter, _ *http.Request) {
				for {
					if own {
						_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
					}
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						ended <- err
						return
					}
				}
			})
			c := s.dial(t)
			send(t, c, get11+"\r\n")
			select {
			case err := <-ended:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
		})
	}
}

// A stream's writes wait for nobody: what a client does not take is kept until it
// is drained.
func TestStreamNeverWaits(t *testing.T) {
	piece := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	written := make(chan int, 1)
	s := serveTest(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		r := w.(*Reply)
		r.Stream()
		n := 0
		for ; !r.Behind(); n++ {
			if _, err := r.Write(piece); err != nil {
				t.Error(err)
			}
		}
		written <- n
		if err := r.Drain(); err != nil || r.Behind() {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "end")
	})
	c := s.dial(t)
	send(t, c, get11+"\r\n")
	n := <-written
	_, body := next(t, bufio.NewReader(c), "GET")
	if body != strings.Repeat(string(piece), n)+"end" {
		t.Fatalf("%d bytes of %d pieces", len(body), n)
	}
}

// The client's leaving is known while its handler waits for something else.
func TestLeaving(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs the loop")
	}
	began, gone := make(chan struct{}), make(chan struct{})
	s := serveTest(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	for name, leave := range map[string]func(*net.TCPConn){
		"closed":      func(c *net.TCPConn) { _ = c.Close() },
		"half-closed": func(c *net.TCPConn) { _ = c.CloseWrite() },
		"reset":       func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			send(t, c, get11+"\r\n")
			<-began
			leave(c)
			select {
			case <-gone:
			case <-time.After(patience):
				t.Fatal("the handler goes on")
			}
			if name == "half-closed" {
				if text := all(t, c); text != "" { // it has said nothing, and so do we
					t.Fatalf("got %q", text)
				}
			}
		})
	}
}

// A goroutine that reads the body longer than its handler lives gets an error,
// and does not take the next request's bytes.
func TestBodyOutlivesItsHandler(t *testing.T) {
	errs := make(chan error, 1)
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			reading := make(chan struct{})
			go func() {
				close(reading)
				_, err := io.ReadAll(r.Body)
				errs <- err
			}()
			<-reading
		}
		_, _ = io.WriteString(w, r.Method)
	})
	for range 20 {
		c := s.dial(t)
		br := bufio.NewReader(c)
		send(t, c, post11+"Content-Length: 5\r\n\r\nhe")
		if _, got := next(t, br, "POST"); got != "POST" {
			t.Fatalf("got %q", got)
		}
		if err := <-errs; err == nil {
			t.Fatal("it read a body that had not come")
		}
		// The rest comes late: where the connection goes on, it is no request.
		_, _ = io.WriteString(c, "llo"+get11+"Connection: close\r\n\r\n")
		rest, err := io.ReadAll(br)
		if err == nil && len(rest) > 0 && !bytes.HasSuffix(rest, []byte("GET")) {
			t.Fatalf("got %q", rest)
		}
		_ = c.Close()
	}
}

func TestHijack(t *testing.T) {
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Error(err)
		}
		_, _ = io.WriteString(c, "yours\n")
		line, _ := rw.ReadString('\n')
		if r.Context().Err() != nil {
			t.Error("the context has ended")
		}
		_, _ = io.WriteString(c, line)
	})
	for _, ahead := range []bool{true, false} {
		c := s.dial(t)
		br := bufio.NewReader(c)
		if ahead {
			send(t, c, get11+"\r\nhello\n")
		} else {
			send(t, c, get11+"\r\n")
		}
		if line, err := br.ReadString('\n'); line != "yours\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if !ahead {
			send(t, c, "hello\n")
			_ = c.CloseWrite()
		}
		if rest, err := io.ReadAll(br); err != nil || string(rest) != "hello\n" {
			t.Fatalf("%q, %v", rest, err)
		}
	}
	eventually.Nil(t, patience, func() error {
		if n := s.Open(); n != 0 {
			return fmt.Errorf("%d connections are counted", n)
		}
		return nil
	})
}

// HTTP/2 is somebody else's, from its first byte on.
func TestPreface(t *testing.T) {
	s := serveTest(t, func(c *ServerConfig) {
		c.HTTP2 = func(c net.Conn) {
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}, func(http.ResponseWriter, *http.Request) { t.Error("served") })
	c := s.dial(t)
	for i := range preface {
		send(t, c, preface[i:i+1])
	}
	send(t, c, "SM\r\n\r\n")
	_ = c.CloseWrite()
	if got := all(t, c); got != preface+"SM\r\n\r\n" {
		t.Fatalf("got %q", got)
	}
}

// headed is a connection with a header of its own before HTTP begins.
type headed struct {
	net.Conn
	br *bufio.Reader
	to sync.Once
}

func (h *headed) TCPConn() (*net.TCPConn, bool) { return h.Conn.(*net.TCPConn), true }

func (h *headed) Read(p []byte) (int, error) {
	h.to.Do(func() { _, _ = h.br.ReadString('\n') })
	if h.br.Buffered() > 0 {
		return h.br.Read(p)
	}
	return h.Conn.Read(p)
}

type headedListener struct{ net.Listener }

func (l headedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &headed{Conn: c, br: bufio.NewReaderSize(c, 64<<10)}, nil
}

// What a layer above TCP has read already comes first.
func TestConnectionWithAHeader(t *testing.T) {
	s := serveTest(t, nil, echo)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(headedListener{ln})
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	body := strings.Repeat("x", 20<<10) // more than one read takes
	for range 3 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		br := bufio.NewReader(c)
		head := "from somewhere\n"
		for range 3 {
			send(t, c, fmt.Sprintf("%s%sContent-Length: %d\r\n\r\n%s", head, post11, len(body), body))
			head = ""
			if _, got := next(t, br, "POST"); got != fmt.Sprintf("POST / %d %q", len(body), body) {
				t.Fatalf("got %.100q", got)
			}
		}
		_ = c.Close()
	}
}

func TestShutdown(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	s := serveTest(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- struct{}{}
			<-release
		}
	})
	fresh, idle, slow := s.dial(t), s.dial(t), s.dial(t)
	br := bufio.NewReader(idle)
	send(t, idle, get11+"\r\n")
	next(t, br, "GET")
	send(t, slow, "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n"+get11+"\r\n")
	<-began
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(testContext(t)) }()
	if text := all(t, fresh); text != "" {
		t.Fatalf("got %q", text)
	}
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Fatalf("%q, %v", rest, err)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with a request in work: %v", err)
	default:
	}
	close(release)
	resp, _ := next(t, bufio.NewReader(slow), "GET")
	if !resp.Close {
		t.Fatal("the last answer does not say that it is")
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.addr); err == nil {
		_ = c.Close()
		t.Fatal("it still accepts")
	}
}

func TestClose(t *testing.T) {
	var ended atomic.Int64
	began := make(chan struct{})
	s := serveTest(t, nil, func(w http.ResponseWriter, r *http.Request) {
		defer ended.Add(1)
		began <- struct{}{}
		switch r.URL.Path {
		case "/read":
			if _, err := io.ReadAll(r.Body); err == nil {
				t.Error("a body that has not come was read")
			}
		case "/write":
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		default:
			<-r.Context().Done()
		}
	})
	for _, path := range []string{"/read", "/write", "/wait"} {
		c := s.dial(t)
		send(t, c, "POST "+path+" HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
		<-began
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	s.Close()
	if err := s.Shutdown(testContext(t)); err != nil || ended.Load() != 3 {
		t.Fatalf("%v, %d have ended", err, ended.Load())
	}
}

func TestPanicsAreLogged(t *testing.T) {
	s := serveTest(t, nil, func(http.ResponseWriter, *http.Request) { panic("oh no") })
	c := s.dial(t)
	send(t, c, get11+"\r\n")
	if text := all(t, c); text != "" {
		t.Fatalf("got %q", text)
	}
	if !strings.Contains(s.logs.String(), "oh no") {
		t.Fatalf("logged: %q", s.logs)
	}
}
