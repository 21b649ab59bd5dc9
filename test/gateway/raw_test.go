package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is an instance that keeps the very bytes of each request it gets.
type recorder struct {
	addr string

	mu  sync.Mutex
	got []recorded
}

// recorded is one request as it came in.
type recorded struct {
	line    string // method and target
	framing string // "none", "length N" or "chunked", from the header's bytes
	body    string
	head    string // all of it
}

func (r recorded) String() string { return fmt.Sprintf("%s, %s, %q", r.line, r.framing, r.body) }

func startRecorder(t *testing.T) *recorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				r.serve(c)
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return r
}

// serve reads request after request with a reader of its own: what the gateway
// sends is always in order, and what is not shows as a request of its own.
func (r *recorder) serve(c net.Conn) {
	br := bufio.NewReader(c)
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		var head bytes.Buffer
		for !bytes.HasSuffix(head.Bytes(), []byte("\r\n\r\n")) {
			b, err := br.ReadByte()
			if err != nil {
				if head.Len() > 0 {
					r.note(recorded{line: "half a request", head: head.String()})
				}
				return
			}
			head.WriteByte(b)
		}
		text := head.String()
		rec := recorded{framing: "none", head: text}
		lines := strings.Split(strings.TrimSuffix(text, "\r\n\r\n"), "\r\n")
		rec.line, _, _ = strings.Cut(lines[0], " HTTP/")
		for _, l := range lines[1:] {
			name, value, _ := strings.Cut(l, ":")
			switch value = strings.TrimSpace(value); strings.ToLower(name) {
			case "content-length":
				rec.framing = "length " + value
			case "transfer-encoding":
				rec.framing = value
			}
		}
		req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(text), br)))
		if err != nil {
			rec.line = "malformed: " + err.Error()
			r.note(rec)
			return
		}
		// The body is read from the connection itself, so that nothing is
		// buffered twice.
		if rec.framing != "none" {
			var length int
			if _, err := fmt.Sscanf(rec.framing, "length %d", &length); err == nil {
				body := make([]byte, length)
				if _, err := io.ReadFull(br, body); err != nil {
					rec.line = "cut: " + rec.line
				}
				rec.body = string(body)
			} else {
				rec.body = readChunks(br)
			}
		}
		if req.URL.Path != "/health" && req.URL.Path != "/v1/alive" {
			r.note(rec)
		}
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if req.Method == http.MethodHead {
			answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// readChunks reads a chunked body and its end, strictly.
func readChunks(br *bufio.Reader) string {
	var body bytes.Buffer
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return body.String() + " (cut)"
		}
		var n int
		if _, err := fmt.Sscanf(line, "%x\r\n", &n); err != nil {
			return body.String() + fmt.Sprintf(" (bad chunk %q)", line)
		}
		if _, err := io.CopyN(&body, br, int64(n)); err != nil {
			return body.String() + " (cut)"
		}
		if end, err := br.ReadString('\n'); err != nil || end != "\r\n" {
			return body.String() + fmt.Sprintf(" (bad end %q)", end)
		}
		if n == 0 {
			return body.String()
		}
	}
}

func (r *recorder) note(rec recorded) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, rec)
}

// take returns what came and forgets it.
func (r *recorder) take() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

// talk sends bytes on a connection of its own and returns all that comes back
// until the other side closes, or has been quiet after an answer, which open
// then tells.
func talk(t *testing.T, addr, data string) (back string, open bool) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, data); err != nil {
		t.Logf("not all was taken: %v", err) // refused in the middle
	}
	var b bytes.Buffer
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		b.Write(buf[:n])
		if b.Len() > 0 && err == nil {
			_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		}
		if err != nil {
			ne, ok := err.(net.Error) //nolint:errorlint // from the connection itself
			return b.String(), ok && ne.Timeout()
		}
	}
}

// statuses are the status codes of the answers in text, in order.
func statuses(text string) string {
	var all []string
	for rest := text; ; {
		i := strings.Index(rest, "HTTP/1.")
		if i < 0 || len(rest) < i+12 {
			return strings.Join(all, " ")
		}
		all = append(all, rest[i+9:i+12])
		rest = rest[i+12:]
	}
}
