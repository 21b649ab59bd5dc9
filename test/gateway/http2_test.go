package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2 is an HTTP/2 connection of which every frame is our own.
type h2 struct {
	t *testing.T
	net.Conn
	*http2.Framer
	head *bytes.Buffer
	enc  *hpack.Encoder
}

func dialH2(t *testing.T, addr string) *h2 {
	t.Helper()
	c := connect(t, addr)
	h := &h2{t: t, Conn: c, Framer: http2.NewFramer(c, c), head: &bytes.Buffer{}}
	h.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(h.head)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

// block encodes header fields: name, value, name, value.
func (h *h2) block(fields ...string) []byte {
	h.head.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(h.head.Bytes())
}

func request(method, path string, more ...string) []string {
	return append([]string{":method", method, ":scheme", "http", ":authority", "x", ":path", path}, more...)
}

// outcome reads until the stream has an answer: its status, how it was reset, or
// how the connection ended.
func (h *h2) outcome(stream uint32) string {
	status := ""
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			status = f.Value
		}
	})
	for {
		f, err := h.ReadFrame()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				return "nothing"
			}
			return "closed"
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			_, _ = dec.Write(f.HeaderBlockFragment())
			if f.StreamID == stream {
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return "reset " + f.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return "goaway " + f.ErrCode.String()
			}
		}
	}
}

// What HTTP/2 can carry and HTTP/1.1 cannot must not become another request on
// the way to the instance.
func TestHTTP2Smuggling(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "limits: {bodyTimeout: 2s}\n", r.addr)
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	// What is declared empty may have gone before the rest showed the lie.
	const maybeEmpty = `POST /v1/a, length 0, ""`
	const refused = "400 | reset PROTOCOL_ERROR | goaway PROTOCOL_ERROR"
	cases := []struct {
		name   string
		fields []string
		body   string
		want   string
		got    string
	}{
		{"plain", request("POST", "/v1/a", "content-length", "2"), "ab", "200", `POST /v1/a, length 2, "ab"`},
		{"no length", request("POST", "/v1/a"), "ab", "200", `POST /v1/a, length 2, "ab"`},
		{"a length that is too short", request("POST", "/v1/a", "content-length", "1"), inner, refused, ""},
		{"a length that is too long", request("POST", "/v1/a", "content-length", "50"), "ab", refused, ""},
		{"two lengths", request("POST", "/v1/a", "content-length", "2", "content-length", "3"), "ab", refused, ""},
		{"a length that is none", request("POST", "/v1/a", "content-length", "+2"), "ab", refused, ""},
		{"transfer-encoding", request("POST", "/v1/a", "transfer-encoding", "chunked"), "0\r\n\r\n" + inner, refused, ""},
		{"connection", request("GET", "/v1/a", "connection", "upgrade", "upgrade", "websocket"), "", refused, ""},
		{"te", request("GET", "/v1/a", "te", "chunked"), "", refused, ""},
		{"line break in a value", request("GET", "/v1/a", "x-a", "y\r\nTransfer-Encoding: chunked"), "", refused, ""},
		{"LF in a value", request("GET", "/v1/a", "x-a", "y\nX-B: z"), "", refused, ""},
		{"NUL in a value", request("GET", "/v1/a", "x-a", "y\x00z"), "", refused, ""},
		{"line break in a name", request("GET", "/v1/a", "x-a: y\r\nx-b", "z"), "", refused, ""},
		{"upper case name", request("GET", "/v1/a", "X-A", "y"), "", refused, ""},
		{"line break in the path", request("GET", "/v1/a HTTP/1.1\r\nX: y"), "", refused, ""},
		{"a space in the path", request("GET", "/v1/a HTTP/1.1"), "", refused + " | 200", `GET /v1/a%20HTTP/1.1, none, ""`},
		{"no slash", request("GET", "v1/a"), "", refused, ""},
		{"no path", []string{":method", "GET", ":scheme", "http", ":authority", "x"}, "", refused, ""},
		{"two paths", request("GET", "/v1/a", ":path", "/v1/b"), "", refused, ""},
		{"a pseudo header behind others", []string{":method", "GET", ":scheme", "http", "x-a", "y", ":path", "/v1/a"}, "", refused, ""},
		{"a method with a line break", request("GET /v1/a HTTP/1.1\r\nX: y\r\n\r\nGET", "/v1/b"), "", refused, ""},
		{"an authority with a path", []string{":method", "GET", ":scheme", "http", ":authority", "x/y", ":path", "/v1/a"}, "", "200", `GET /v1/a, none, ""`},
		{"an authority with a line break", []string{":method", "GET", ":scheme", "http", ":authority", "x\r\nX: y", ":path", "/v1/a"}, "", refused, ""},
		{"authority and host", request("GET", "/v1/a", "host", "y"), "", "200", `GET /v1/a, none, ""`},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "evil.example:443"}, "", "405", ""},
		{"extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "x", ":path", "/v1/a"}, "", refused + " | 405", ""},
		// The last, because the instance may see it after the stream was reset:
		// before another case it would count there.
		{"a length of nothing", request("POST", "/v1/a", "content-length", "0"), inner, refused + " | 200", maybeEmpty},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r.take()
			h := dialH2(t, g.addr)
			err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(tc.fields...), EndHeaders: true, EndStream: tc.body == ""})
			if err == nil && tc.body != "" {
				err = h.WriteData(1, true, []byte(tc.body))
			}
			if err != nil {
				t.Fatal(err)
			}
			got := h.outcome(1)
			if !strings.Contains("| "+tc.want+" |", "| "+got+" |") {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			var reached []string
			for _, rec := range r.take() {
				reached = append(reached, rec.String())
			}
			if s := strings.Join(reached, "; "); s != tc.got && (s != "" || tc.got != maybeEmpty) {
				t.Errorf("the instance got %s, want %s", s, tc.got)
			}
		})
	}
	g.alive(t)
}

func TestHTTP2Floods(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "limits: {idleTimeout: 2s, writeTimeout: 2s}\n", r.addr)
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	ended := func(t *testing.T, h *h2, flood func(i int) error) {
		t.Helper()
		done := make(chan string, 1)
		go func() { done <- h.outcome(1 << 30) }()
		var err error
		for i := 0; err == nil && i < 1_000_000; i++ {
			select {
			case how := <-done:
				t.Logf("ended with %s after %d", how, i)
				return
			default:
				err = flood(i)
			}
		}
		how := <-done
		t.Logf("ended with %s (%v)", how, err)
		if how == "nothing" {
			t.Fatal("a million of them and the connection lives")
		}
	}
	t.Run("rapid reset", func(t *testing.T) {
		h := dialH2(t, g.addr)
		block := h.block(request("GET", "/v1/info")...)
		begin := time.Now()
		for i := range 20_000 {
			id := uint32(2*i + 1)
			if h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}) != nil ||
				h.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				t.Logf("ended after %d streams", i)
				break
			}
		}
		t.Logf("took %v", time.Since(begin))
	})
	t.Run("CONTINUATION", func(t *testing.T) {
		h := dialH2(t, g.addr)
		if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(request("GET", "/v1/info")...)}); err != nil {
			t.Fatal(err)
		}
		ended(t, h, func(i int) error {
			return h.WriteContinuation(1, false, h.block("x-"+strconv.Itoa(i), strings.Repeat("y", 1000)))
		})
	})
	t.Run("empty CONTINUATION", func(t *testing.T) {
		h := dialH2(t, g.addr)
		if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(request("GET", "/v1/info")...)}); err != nil {
			t.Fatal(err)
		}
		// They cost nobody memory; the connection has no stream and ends as idle.
		begin := time.Now()
		for h.WriteContinuation(1, false, nil) == nil {
			if time.Since(begin) > patience {
				t.Fatal("the connection lives")
			}
		}
	})
	t.Run("an unfinished header", func(t *testing.T) {
		h := dialH2(t, g.addr)
		if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.block(request("GET", "/v1/info")...)}); err != nil {
			t.Fatal(err)
		}
		if got := h.outcome(1); got != "closed" {
			t.Fatalf("got %s", got)
		}
	})
	t.Run("a huge header list", func(t *testing.T) {
		h := dialH2(t, g.addr)
		fields := request("GET", "/v1/info")
		for i := range 2000 {
			fields = append(fields, "x-"+strconv.Itoa(i), strings.Repeat("y", 500))
		}
		block := h.block(fields...)
		first := true
		for len(block) > 0 {
			n := min(len(block), 16<<10)
			var err error
			if first {
				err = h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:n], EndHeaders: n == len(block), EndStream: true})
			} else {
				err = h.WriteContinuation(1, n == len(block), block[:n])
			}
			first, block = false, block[n:]
			if err != nil {
				break
			}
		}
		if got := h.outcome(1); got != "431" && got != "closed" && !strings.HasPrefix(got, "goaway") {
			t.Fatalf("got %s", got)
		}
	})
	t.Run("a header list of one indexed entry", func(t *testing.T) {
		h := dialH2(t, g.addr)
		// 4 KiB in the table once, then thousands of references of one byte.
		big := h.block(append(request("GET", "/v1/info"), "x-big", strings.Repeat("y", 3900))...)
		big = append(big, bytes.Repeat([]byte{0x80 | 62}, 10_000)...)
		if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: big, EndHeaders: true, EndStream: true}); err != nil {
			t.Fatal(err)
		}
		if got := h.outcome(1); got != "431" && got != "closed" && !strings.HasPrefix(got, "goaway") {
			t.Fatalf("got %s", got)
		}
	})
	// Who sends these pays as much as we do. Acknowledgements that nobody reads
	// are merged (SETTINGS) or counted until the connection is closed (PING).
	for name, write := range map[string]func(h *h2) error{
		"SETTINGS": func(h *h2) error {
			return h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
		},
		"PING": func(h *h2) error { return h.WritePing(false, [8]byte{}) },
	} {
		t.Run(name, func(t *testing.T) {
			h := dialH2(t, g.addr)
			_ = h.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			i := 0
			_ = h.SetWriteDeadline(time.Now().Add(10 * time.Second)) // the kernel may let us hang when the connection is gone
			for begin := time.Now(); time.Since(begin) < 5*time.Second && write(h) == nil; i++ {
			}
			t.Logf("%d sent", i)
		})
	}
	t.Run("more streams than allowed", func(t *testing.T) {
		h := dialH2(t, g.addr)
		refused := 0
		for i := range 1000 {
			if h.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: h.block(request("POST", "/v1/chat-messages")...), EndHeaders: true}) != nil {
				break
			}
		}
		_ = h.SetDeadline(time.Now().Add(2 * time.Second))
		for {
			f, err := h.ReadFrame()
			if err != nil {
				break
			}
			if rst, ok := f.(*http2.RSTStreamFrame); ok && (rst.ErrCode == http2.ErrCodeRefusedStream || rst.ErrCode == http2.ErrCodeProtocol) {
				refused++
			}
			if ga, ok := f.(*http2.GoAwayFrame); ok && ga.ErrCode != http2.ErrCodeNo {
				refused++
				break
			}
		}
		if refused == 0 {
			t.Fatal("a thousand streams at a time, and none is refused")
		}
	})
	if grown := g.memory(t, "VmHWM") - before; grown > 64<<10 {
		t.Errorf("the floods cost %d KiB", grown)
	} else {
		t.Logf("the floods cost %d KiB", grown)
	}
	r.take()
	g.idle(t)
	g.alive(t)
}

// A client that gives the answer no window holds it no longer than one that does
// not read.
func TestHTTP2WithoutAWindow(t *testing.T) {
	addr, _ := startStub(t, nil)
	g := startGateway(t, "limits: {writeTimeout: 1s}\n", addr)
	h := dialH2(t, g.addr)
	if err := h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	block := h.block(request("POST", "/v1/chat-messages", "authorization", "Bearer app-test", "content-type", "application/json")...)
	if err := h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteData(1, true, []byte(question)); err != nil {
		t.Fatal(err)
	}
	if got := h.outcome(1); got != "200" {
		t.Fatalf("got %s", got)
	}
	if got := h.outcome(1); !strings.HasPrefix(got, "reset") && got != "closed" {
		t.Fatalf("got %s", got)
	}
	g.idle(t)
}
