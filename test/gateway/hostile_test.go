package gateway

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// connect opens a connection that ends with the test.
func connect(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// drip writes piece after piece until the other side has had enough, and returns
// what it said.
func drip(t *testing.T, c net.Conn, every time.Duration, pieces func(i int) string) string {
	t.Helper()
	back := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(c)
		back <- string(all)
	}()
	for i := 0; ; i++ {
		select {
		case text := <-back:
			return text
		case <-time.After(every):
		}
		if _, err := io.WriteString(c, pieces(i)); err != nil {
			return <-back
		}
	}
}

func TestSlowloris(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "limits: {headerTimeout: 1s, bodyTimeout: 1s}\n", r.addr)
	const n = 200
	before := g.memory(t, "VmRSS")
	var wg sync.WaitGroup
	answers := make(chan string, n)
	for i := range n {
		c := connect(t, g.addr)
		wg.Go(func() {
			if i%2 == 0 {
				_, _ = io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\n")
				answers <- "header: " + statuses(drip(t, c, 100*time.Millisecond, func(i int) string { return fmt.Sprintf("X-%d: y\r\n", i) }))
				return
			}
			_, _ = io.WriteString(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
			answers <- "body: " + statuses(drip(t, c, 100*time.Millisecond, func(int) string { return "x" }))
		})
	}
	wg.Wait()
	close(answers)
	count := map[string]int{}
	for a := range answers {
		count[a]++
	}
	// The header has no answer: who sends it so is no client.
	if count["body: 408"] != n/2 || count["header: "]+count["header: 408"] != n/2 {
		t.Fatalf("answers %v", count)
	}
	if got := r.take(); len(got) != 0 {
		t.Fatalf("the instance got %v", got)
	}
	if grown := g.memory(t, "VmRSS") - before; grown > 64<<10 {
		t.Errorf("%d slow connections cost %d KiB", n, grown)
	}
	g.idle(t)
	g.alive(t)
}

func TestLargeHeaders(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "", r.addr)
	var many strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&many, "X-Header-%d: value\r\n", i)
	}
	for name, head := range map[string]string{
		"1 MiB in one header": "X-Big: " + strings.Repeat("x", 1<<20) + "\r\n",
		"1 MiB of one name":   strings.Repeat("x", 1<<20) + ": y\r\n",
		"10,000 headers":      many.String(),
	} {
		t.Run(name, func(t *testing.T) {
			back, _ := talk(t, g.addr, "GET /v1/info HTTP/1.1\r\nHost: x\r\n"+head+"\r\n")
			// The connection is closed with bytes unread, and the reset may
			// overtake the answer.
			if s := statuses(back); s != "431" && s != "" {
				t.Fatalf("got %q", back)
			}
		})
	}
	t.Run("1 MiB target", func(t *testing.T) {
		back, _ := talk(t, g.addr, "GET /"+strings.Repeat("x", 1<<20)+" HTTP/1.1\r\nHost: x\r\n\r\n")
		if s := statuses(back); s != "431" && s != "" {
			t.Fatalf("got %q", back)
		}
	})
	if got := r.take(); len(got) != 0 {
		t.Fatalf("the instance got %v", got)
	}
	g.alive(t)
}

func TestEndlessBodies(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "limits: {maxBodyBytes: 2097152}\n", r.addr)
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	post := "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, piece := range map[string]string{
		"chunked":          fmt.Sprintf("%x\r\n%s\r\n", 32<<10, strings.Repeat("x", 32<<10)),
		"chunks of 1 byte": strings.Repeat("1\r\nx\r\n", 8<<10),
		"extensions only":  strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 200),
		"endless size":     strings.Repeat("0", 32<<10),
		"endless trailer":  "0\r\n" + strings.Repeat("X-T: "+strings.Repeat("y", 1000)+"\r\n", 100),
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, g.addr)
			_, _ = io.WriteString(c, post)
			back := drip(t, c, 0, func(int) string { return piece })
			if s := statuses(back); s != "413" && s != "400" && s != "" {
				t.Fatalf("got %q", back)
			}
		})
	}
	t.Run("a declared gigabyte", func(t *testing.T) {
		back, open := talk(t, g.addr, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\nx")
		if statuses(back) != "413" || open {
			t.Fatalf("got %q, open %v", back, open)
		}
	})
	for _, rec := range r.take() {
		if !strings.HasPrefix(rec.line, "half") && !strings.HasPrefix(rec.line, "cut") && !strings.Contains(rec.body, "(cut)") {
			t.Errorf("a whole request reached the instance: %.200s", rec)
		}
	}
	if grown := g.memory(t, "VmHWM") - before; grown > 64<<10 {
		t.Errorf("endless bodies cost %d KiB", grown)
	}
	g.idle(t)
	g.alive(t)
}

func TestHalfClosed(t *testing.T) {
	var served atomic.Int64
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		served.Add(1)
		_, _ = io.WriteString(w, "ok")
	})
	g := startGateway(t, "", in)
	for name, tc := range map[string]struct {
		data string
		want string // one of these answers
	}{
		"after the request":    {"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "200 -"}, // as good as gone: an answer is luck
		"within the header":    {"GET /v1/info HTTP/1.1\r\nHos", "400 -"},
		"within the body":      {"POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab", "400 -"},
		"within a chunk":       {"POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "400 -"},
		"before the last one":  {"POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "400 -"},
		"without a word":       {"", "-"},
		"behind another one's": {"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/in", "200 -"},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, g.addr)
			if _, err := io.WriteString(c, tc.data); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			back, err := io.ReadAll(c)
			if err != nil {
				t.Fatalf("the connection is not closed: %v", err)
			}
			got := statuses(string(back))
			if got == "" {
				got = "-"
			}
			if !strings.Contains(" "+tc.want+" ", " "+strings.Fields(got)[0]+" ") {
				t.Fatalf("got %q", back)
			}
		})
	}
	g.idle(t)
	g.alive(t)
	if n := served.Load(); n > 3 {
		t.Fatalf("the instance served %d", n)
	}
}

// We open no archive: a bomb passes as it is, in both directions.
func TestZipBomb(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	zeros := make([]byte, 1<<20)
	for range 512 { // half a GiB of nothing
		if _, err := z.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Store(n)
		w.Header().Set("Content-Encoding", "gzip")
		if r.URL.Path == "/v1/chat-messages" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		_, _ = w.Write(bomb.Bytes())
	})
	g := startGateway(t, "stream: {blockingAsStream: true}\n", in)
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	for _, path := range []string{"/v1/files/upload", "/v1/chat-messages"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+path, bytes.NewReader(bomb.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Encoding", "gzip")
		req.Header.Set("Accept-Encoding", "gzip") // the client does not open it either
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(back, bomb.Bytes()) || got.Load() != int64(bomb.Len()) {
			t.Fatalf("%s: %d bytes there, %d back, want %d (%v)", path, got.Load(), len(back), bomb.Len(), err)
		}
	}
	if grown := g.memory(t, "VmHWM") - before; grown > 32<<10 {
		t.Errorf("a bomb of %d bytes cost %d KiB", bomb.Len(), grown)
	}
}

// Readers that take nothing of what they asked for hold little, and not for ever.
func TestSlowReaders(t *testing.T) {
	var ended atomic.Int64
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		defer ended.Add(1)
		chunk := make([]byte, 64<<10)
		if r.URL.Path == "/v1/chat-messages" {
			w.Header().Set("Content-Type", "text/event-stream")
			chunk = []byte("data: {\"event\": \"message\", \"answer\": \"" + strings.Repeat("x", 4000) + "\"}\n\n")
		}
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	g := startGateway(t, "limits: {writeTimeout: 3s}\nstream: {stopOnDisconnect: false}\n", in)
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	const n = 100
	for i := range n {
		c := connect(t, g.addr)
		_ = c.SetReadBuffer(4 << 10)
		path, body := "/v1/files/1", ""
		if i%2 == 0 {
			path, body = "/v1/chat-messages", question
		}
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	eventually.Nil(t, patience, func() error {
		if e := ended.Load(); e != n {
			return fmt.Errorf("%d of %d have ended", e, n)
		}
		return nil
	})
	g.idle(t)
	if grown := g.memory(t, "VmHWM") - before; grown > 64<<10 {
		t.Errorf("%d readers that do not read cost %d KiB", n, grown)
	}
	g.alive(t)
}
