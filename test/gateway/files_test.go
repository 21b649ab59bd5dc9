package gateway

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// pattern is an endless stream of bytes that is always the same.
func pattern(seed uint64) io.Reader { return rand.NewChaCha8([32]byte{byte(seed)}) }

func TestGigabytes(t *testing.T) {
	const size = 1 << 30
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			h := sha256.New()
			n, err := io.Copy(h, r.Body)
			fmt.Fprint(w, n, " ", hex.EncodeToString(h.Sum(nil)), " ", err)
		default:
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = io.CopyN(w, pattern(2), size)
		}
	})
	g := startGateway(t, fmt.Sprintf("limits: {maxBodyBytes: %d}\n", size), in)
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	h := sha256.New()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/v1/files/upload", io.TeeReader(io.LimitReader(pattern(1), size), h))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	back, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if want := fmt.Sprint(size, " ", hex.EncodeToString(h.Sum(nil)), " <nil>"); err != nil || string(back) != want {
		t.Fatalf("uploaded %s (%v), want %s", back, err, want)
	}
	resp, err = http.Get(g.url + "/v1/files/1")
	if err != nil {
		t.Fatal(err)
	}
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, resp.Body)
	_ = resp.Body.Close()
	_, _ = io.CopyN(want, pattern(2), size)
	if err != nil || n != size || string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Fatalf("downloaded %d (%v)", n, err)
	}
	grown := g.memory(t, "VmHWM") - before
	t.Logf("a gibibyte up and one down cost %d KiB", grown)
	if grown > 32<<10 {
		t.Errorf("a gibibyte cost %d KiB of memory", grown)
	}
}

func TestRanges(t *testing.T) {
	content := strings.Repeat("0123456789", 1000)
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "file.txt", time.Unix(1.7e9, 0), strings.NewReader(content))
	})
	g := startGateway(t, "", in)
	for _, tc := range []struct {
		headers map[string]string
		status  int
		want    string // in the body
		rng     string
	}{
		{map[string]string{"Range": "bytes=5-14"}, 206, "5678901234", "bytes 5-14/10000"},
		{map[string]string{"Range": "bytes=-3"}, 206, "789", "bytes 9997-9999/10000"},
		{map[string]string{"Range": "bytes=0-1,10-11"}, 206, "multipart", ""},
		{map[string]string{"Range": "bytes=20000-"}, 416, "", "bytes */10000"},
		{map[string]string{"Range": "bytes=5-14", "If-Range": `"v0"`}, 200, content, ""},
		{map[string]string{"If-None-Match": `"v1"`}, 304, "", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/files/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range tc.headers {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		body := string(raw)
		if tc.want == "multipart" {
			body = resp.Header.Get("Content-Type")
		}
		if err != nil || resp.StatusCode != tc.status || !strings.Contains(body, tc.want) || resp.Header.Get("Content-Range") != tc.rng {
			t.Errorf("%v: %d %q %v (%v)", tc.headers, resp.StatusCode, body[:min(len(body), 100)], resp.Header, err)
		}
	}
}

func TestWebSocket(t *testing.T) {
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Sec-Websocket-Key") == "" {
			w.WriteHeader(http.StatusUpgradeRequired)
			return
		}
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		_, _ = io.Copy(conn, brw)
	})
	g := startGateway(t, "limits: {idleTimeout: 1s, writeTimeout: 1s}\n", in)
	c := connect(t, g.addr)
	_, _ = io.WriteString(c, "GET /socket.io/?EIO=4 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatalf("got %v (%v)", resp, err)
	}
	// 64 MiB there and back, and a pause that is longer than any timeout.
	const size = 64 << 20
	g.forgetPeak(t)
	before := g.memory(t, "VmRSS")
	time.Sleep(1500 * time.Millisecond)
	go func() { _, _ = io.CopyN(c, pattern(3), size) }()
	got, want := sha256.New(), sha256.New()
	if _, err := io.CopyN(got, br, size); err != nil {
		t.Fatal(err)
	}
	_, _ = io.CopyN(want, pattern(3), size)
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Fatal("not what was sent")
	}
	if grown := g.memory(t, "VmHWM") - before; grown > 32<<10 {
		t.Errorf("it cost %d KiB", grown)
	}
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(br); err != nil || len(rest) != 0 {
		t.Fatalf("%d bytes behind the end (%v)", len(rest), err)
	}
	g.idle(t)
}
