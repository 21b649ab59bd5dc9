package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// streamOf answers every chat with n events.
func streamOf(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		for i := range n {
			send(frame("message", fmt.Sprintf(`, "answer": "%d"`, i)))
		}
		send(frame("message_end", ""))
	}
}

// A connection that has served a stream takes the next request.
func TestConnectionIsKeptAfterAStream(t *testing.T) {
	a := newInstance(t, "zone-a", streamOf(3))
	g := start(t, testConfig(a))
	c := client(t)
	for i := range 5 {
		reused := false
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(chatBody))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		status, body, h := read(t, resp)
		if status != 200 || strings.Count(body, "data:") != 4 || h.Get("Date") == "" || h.Get("X-Upstream-Zone") != "zone-a" {
			t.Fatalf("%d %q %v", status, body, h)
		}
		if reused != (i > 0) {
			t.Fatalf("request %d: connection reused: %v", i, reused)
		}
	}
}

func TestStreamOverHTTP10AndWithClose(t *testing.T) {
	a := newInstance(t, "zone-a", streamOf(3))
	g := start(t, testConfig(a))
	for name, head := range map[string]string{
		"1.0":           "POST /v1/chat-messages HTTP/1.0\r\n",
		"1.1 and close": "POST /v1/chat-messages HTTP/1.1\r\nConnection: close\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = fmt.Fprintf(conn, "%sHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", head, len(chatBody), chatBody)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !resp.Close {
				t.Fatal("the connection is said to stay open")
			}
			if _, body, _ := read(t, resp); strings.Count(body, "data:") != 4 {
				t.Fatalf("got %q", body)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Fatal("the connection stayed open")
			}
		})
	}
}

// A client that stops reading and goes on later gets every byte, and does not
// stop the others meanwhile.
func TestSlowClientOfAStream(t *testing.T) {
	const events = 20_000
	a := newInstance(t, "zone-a", streamOf(events))
	g := start(t, testConfig(a))
	slow, err := client(t).Post(g.url+"/v1/chat-messages", "application/json", strings.NewReader(chatBody))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Body.Close()
	h := streamOf(3)
	a.handler.Store(&h)
	for range 5 {
		if _, body, _ := post(t, client(t), g.url+"/v1/chat-messages", chatBody); strings.Count(body, "data:") != 4 {
			t.Fatalf("got %q", body)
		}
	}
	want := 0
	lines := bufio.NewScanner(slow.Body)
	for lines.Scan() {
		if line := lines.Text(); strings.Contains(line, `"message"`) {
			if !strings.Contains(line, fmt.Sprintf(`"answer": "%d"`, want)) {
				t.Fatalf("event %d is %q", want, line)
			}
			want++
		}
	}
	if lines.Err() != nil || want != events {
		t.Fatalf("%d events, %v", want, lines.Err())
	}
}

// A client that never reads is given up after writeTimeout.
func TestClientThatReadsNothing(t *testing.T) {
	gone := make(chan struct{}, 10) // the stop call ends here, too
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		big := frame("message", `, "answer": "`+strings.Repeat("x", 30_000)+`"`)
		for r.Context().Err() == nil {
			send(big)
		}
		gone <- struct{}{}
	})
	cfg := testConfig(a)
	cfg.Limits.WriteTimeout = 200 * time.Millisecond
	g := start(t, cfg)
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chatBody), chatBody)
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("the stream goes on")
	}
}

// openFiles counts this process's files.
func openFiles(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}

// What is parked for a silent stream: one goroutine, no buffer, and its two
// connections.
func TestSilentStreamsParkLittle(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs the loop")
	}
	const streams = 50
	hold := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)(frame("message", `, "answer": "x"`))
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	g := start(t, testConfig(a))
	const probes = 10 // their connections come and go
	before := openFiles(t)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range streams {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = fmt.Fprintf(conn, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chatBody), chatBody)
		br := bufio.NewReader(conn)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data:") {
				break
			}
		}
	}
	eventually.Nil(t, patience, func() error {
		stacks := make([]byte, 8<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		parked, others := 0, 0
		for s := range strings.SplitSeq(string(stacks), "\n\n") {
			switch {
			case strings.Contains(s, "http1.(*Body).EachOn("):
				parked++
			case strings.Contains(s, "http1.(*served)"), strings.Contains(s, "gateway.(*exchange)"):
				others++
			}
		}
		if parked != streams || others > 0 {
			return fmt.Errorf("%d goroutines wait on a loop for %d streams, %d others", parked, streams, others)
		}
		return nil
	})
	// Both ends of both connections are this process's.
	if more := openFiles(t) - before; more > 4*streams+probes {
		t.Errorf("%d streams hold %d files", streams, more)
	}
	close(hold)
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
	}
	for _, c := range conns {
		_ = c.(*net.TCPConn).CloseWrite()
	}
	wg.Wait()
	eventually.Nil(t, patience, func() error {
		if more := openFiles(t) - before; more > probes {
			return fmt.Errorf("%d files more than before are open", more)
		}
		return nil
	})
}

// A connection that has served a stream and waits is closed when the gateway
// stops.
func TestWaitingConnectionsAreHungUp(t *testing.T) {
	a := newInstance(t, "zone-a", streamOf(3))
	g := start(t, testConfig(a))
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = fmt.Fprintf(conn, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chatBody), chatBody)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if read(t, resp); resp.Close {
		t.Fatal("the connection is said to end")
	}
	g.stop()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

// A header that was held too long is sent by a timer, while the loop waits for
// the first content; with -race this finds what both touch.
func TestHeldHeaderGoesOutBeforeContent(t *testing.T) {
	gone := make(chan struct{})
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		send := emit(w, r)
		send("event: ping\n\n")
		select {
		case <-gone:
		case <-r.Context().Done():
			return
		}
		send(frame("message", `, "answer": "late"`))
		send(frame("message_end", ""))
	})
	cfg := testConfig(a)
	cfg.Stream.Hold = 20 * time.Millisecond
	g := start(t, cfg)
	resp, err := client(t).Post(g.url+"/v1/chat-messages", "application/json", strings.NewReader(chatBody))
	if err != nil {
		t.Fatal(err)
	}
	close(gone) // the header is here
	if status, body, _ := read(t, resp); status != 200 || !strings.Contains(body, "late") {
		t.Fatalf("%d %q", status, body)
	}
}
