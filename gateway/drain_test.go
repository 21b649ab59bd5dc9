package gateway

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// keptConn is a connection whose client never sends a request twice.
type keptConn struct {
	net.Conn
	r *bufio.Reader
}

func dialKept(tb testing.TB, address string) *keptConn {
	tb.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return &keptConn{Conn: c, r: bufio.NewReader(c)}
}

func (c *keptConn) get(path string) (resp *http.Response, body string, err error) {
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", path); err != nil {
		return nil, "", err
	}
	if resp, err = http.ReadResponse(c.r, nil); err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestHandOverKeepsIdleConnectionsForOneMoreRequest(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	cfg := testConfig(in)
	cfg.Drain = Drain{Announce: time.Hour, Timeout: time.Hour} // neither may matter
	g := start(t, cfg)
	var kept []*keptConn
	for range 20 {
		c := dialKept(t, g.addr)
		if resp, body, err := c.get("/v1/x"); err != nil || body != "one" || resp.Close {
			t.Fatalf("%q %v", body, err)
		}
		kept = append(kept, c)
	}
	g.HandOver()
	eventually.Nil(t, patience, func() error {
		c, err := net.Dial("tcp", g.addr)
		if err == nil {
			_ = c.Close()
			return fmt.Errorf("still accepts")
		}
		return nil
	})
	select {
	case err := <-g.done:
		t.Fatalf("Run returned %v while connections are open", err)
	default:
	}
	for i, c := range kept {
		resp, body, err := c.get("/v1/x")
		if err != nil || body != "one" || resp.StatusCode != http.StatusOK {
			t.Fatalf("connection %d: %q %v", i, body, err)
		}
		if !resp.Close {
			t.Errorf("connection %d: the answer does not say that it is the last", i)
		}
		if _, err := c.r.ReadByte(); err != io.EOF {
			t.Errorf("connection %d: %v instead of its end", i, err)
		}
	}
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
}

func TestHandOverLetsStreamsEnd(t *testing.T) {
	release := make(chan struct{})
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"event\":\"message\",\"answer\":\"a\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = io.WriteString(w, "data: {\"event\":\"message_end\"}\n\n")
	})
	cfg := testConfig(in)
	cfg.Drain.Timeout = time.Hour
	g := start(t, cfg)
	resp, err := client(t).Post(g.url+"/v1/chat-messages", "application/json", strings.NewReader(`{"response_mode":"streaming"}`))
	if err != nil {
		t.Fatal(err)
	}
	g.HandOver()
	eventually.Nil(t, patience, func() error {
		if !g.draining.Load() {
			return fmt.Errorf("not draining")
		}
		return nil
	})
	close(release)
	if _, body, _ := read(t, resp); !strings.HasSuffix(body, "{\"event\":\"message_end\"}\n\n") || strings.Contains(body, "error") {
		t.Errorf("stream %q", body)
	}
	client(t).CloseIdleConnections()
	g.stop() // the connection is idle now; a stop does not wait for its next request
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
}

func TestHandOverEndsWithItsTimeout(t *testing.T) {
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	cfg := testConfig(in)
	cfg.Drain.Timeout = 50 * time.Millisecond
	g := start(t, cfg)
	idle := dialKept(t, g.addr)
	resp, err := client(t).Post(g.url+"/v1/chat-messages", "application/json", strings.NewReader(`{"response_mode":"streaming"}`))
	if err != nil {
		t.Fatal(err)
	}
	g.HandOver()
	if _, body, _ := read(t, resp); !strings.Contains(body, "gateway_restart") {
		t.Errorf("stream %q", body)
	}
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.r.ReadByte(); err == nil {
		t.Error("the idle connection is still open")
	}
}

func TestHandOverTellsHTTP2Clients(t *testing.T) {
	in := newInstance(t, "zone-a", say("one"))
	cfg := testConfig(in)
	cfg.TLS = certificate(t, t.TempDir(), "one")
	cfg.Drain.Timeout = time.Hour
	g := start(t, cfg)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: patience}
	url := "https://" + g.addr + "/v1/x"
	if status, body, _ := get(t, c, url); status != http.StatusOK || body != "one" {
		t.Fatal(status, body)
	}
	g.HandOver()
	eventually.Nil(t, patience, func() error {
		if !g.draining.Load() {
			return fmt.Errorf("not draining")
		}
		return nil
	})
	if status, body, _ := post(t, c, url, "{}"); status != http.StatusOK || body != "one" { // on the same connection
		t.Fatal(status, body)
	}
	if err := g.wait(); err != nil { // GOAWAY has ended the connection
		t.Fatal(err)
	}
}
