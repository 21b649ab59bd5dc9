package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"fournines/internal/eventually"
)

func TestProxyProtocol(t *testing.T) {
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-For"))
	})
	cfg := testConfig(in)
	cfg.ProxyProtocol = ProxyProtocol{Mode: ProxyProtocolAccept, From: []string{"127.0.0.1", "127.5.0.0/16"}}
	cfg.Drain.Timeout = time.Hour
	g := start(t, cfg)
	client := &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4711}
	here := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}
	ask := func(from string, header []byte) (int, string) {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		step := len(header) // version 1 must come in one segment
		if len(header) > 0 && header[0] == '\r' {
			step = 1 // version 2 may come as it likes
		}
		for ; len(header) > 0; header = header[step:] {
			if _, err := c.Write(header[:step]); err != nil {
				return 0, err.Error()
			}
		}
		if _, err := io.WriteString(c, "GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			return 0, err.Error()
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	formatted := func(version byte) []byte {
		t.Helper()
		b, err := proxyproto.HeaderProxyFromAddrs(version, client, here).Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tc := range []struct {
		name, from string
		header     []byte
		status     int
		address    string
	}{
		{"version 1", "127.0.0.1", formatted(1), 200, "203.0.113.7"},
		{"version 2", "127.5.6.7", formatted(2), 200, "203.0.113.7"},
		{"none", "127.5.6.7", nil, 200, "127.5.6.7"},
		{"unknown client", "127.0.0.1", []byte("PROXY UNKNOWN\r\n"), 200, "127.0.0.1"},
		{"from a stranger", "127.6.0.1", formatted(1), 400, ""},
		{"a stranger without one", "127.6.0.1", nil, 200, "127.6.0.1"},
		{"broken", "127.0.0.1", []byte("PROXY TCP4 nonsense\r\n"), 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, body := ask(tc.from, tc.header)
			if status != tc.status || tc.status == 200 && body != tc.address {
				t.Errorf("%d %q, want %d %q", status, body, tc.status, tc.address)
			}
		})
	}
	eventually.Nil(t, patience, func() error {
		if !strings.Contains(g.logs.String(), "client=203.0.113.7:4711") {
			return fmt.Errorf("the access log does not know the client")
		}
		return nil
	})
	// Whom to trust follows a reload.
	cfg.ProxyProtocol.From = []string{"127.5.0.0/16"}
	if err := g.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if status, _ := ask("127.0.0.1", formatted(1)); status != 400 {
		t.Errorf("status %d from one that is not trusted any more", status)
	}
}

func TestProxyProtocolConfig(t *testing.T) {
	for says, p := range map[string]ProxyProtocol{
		"proxyProtocol.from: needed": {Mode: ProxyProtocolAccept},
		"proxyProtocol.mode":         {Mode: "maybe"},
		"proxyProtocol.from[1]":      {Mode: ProxyProtocolAccept, From: []string{"10.0.0.0/8", "everywhere"}},
	} {
		cfg := testConfig(newInstance(t, "zone-a", say("a")))
		cfg.ProxyProtocol = p
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// A proxied connection serves streams like any other, and its client keeps its
// address from request to request.
func TestProxyProtocolWithAStream(t *testing.T) {
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "data: {\"event\":\"message\",\"answer\":%q}\n\n", r.Header.Get("X-Forwarded-For"))
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "data: {\"event\":\"message_end\"}\n\n")
	})
	cfg := testConfig(in)
	cfg.ProxyProtocol = ProxyProtocol{Mode: ProxyProtocolAccept, From: []string{"127.0.0.0/8"}}
	g := start(t, cfg)
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	h, err := proxyproto.HeaderProxyFromAddrs(2, &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 4711}, c.RemoteAddr()).Format()
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"response_mode":"streaming"}`
	r := bufio.NewReader(c)
	for range 3 {
		if _, err := fmt.Fprintf(c, "%sPOST /v1/chat-messages HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", h, len(body), body); err != nil {
			t.Fatal(err)
		}
		h = nil
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(b), "203.0.113.7") || !strings.HasSuffix(string(b), "message_end\"}\n\n") || resp.Close {
			t.Errorf("stream %q, %v, close %v", b, err, resp.Close)
		}
	}
}
