//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

func TestBodyInPieces(t *testing.T) {
	for name, tc := range map[string]struct {
		message, want string
		fails         bool
	}{
		"length":            {"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "hello", false},
		"empty":             {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", false},
		"chunks":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", "hello", false},
		"trailer":           {"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n", "hello", false},
		"bad chunk size":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nhello", "", true},
		"no end of a chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhellohello\r\n", "", true},
		"bad length":        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "", true},
		"no colon":          {"HTTP/1.1 200 OK\r\nContent\r\n\r\n", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			// Cut in two at each place, the first part may be too short, never wrong.
			for cut := range len(tc.message) + 1 {
				if got, ok, err := readWhole(tc.message[:cut]); ok && got != tc.want {
					t.Fatalf("the first %d bytes read %q, %v", cut, got, err)
				}
			}
			got, ok, err := readWhole(tc.message)
			if tc.fails != (err != nil) || got != tc.want || ok == tc.fails {
				t.Errorf("got %q, whole %v, error %v", got, ok, err)
			}
			// The same, as a stream that comes byte by byte.
			if h, ok, err := parseHead([]byte(tc.message)); ok && err == nil && !tc.fails {
				var text, pending []byte
				for _, b := range []byte(tc.message[h.size:]) {
					pending = append(pending, b)
					for {
						piece, used, _, err := h.body.next(pending)
						if err != nil {
							t.Fatal(err)
						}
						text, pending = append(text, piece...), pending[used:]
						if used == 0 || len(pending) == 0 {
							break
						}
					}
				}
				if string(text) != tc.want {
					t.Errorf("byte by byte: %q", text)
				}
			}
		})
	}
}

func readWhole(message string) (text string, ok bool, err error) {
	h, ok, err := parseHead([]byte(message))
	if !ok || err != nil {
		return "", false, err
	}
	b, _, ok, err := h.body.whole([]byte(message[h.size:]), nil)
	return string(b), ok, err
}

func TestWhatIsOnTheWireHasItsSize(t *testing.T) {
	text, at := request("127.0.0.1:80", -1)
	h, ok, err := parseHead(text)
	if err != nil || !ok || h.body.left != requestBytes || len(text)-h.size != requestBytes || at != h.size+requestIDAt {
		t.Errorf("request: %+v, %v, %v: %s", h, ok, err, text)
	}
	if long, _ := request("127.0.0.1:80", 20); !strings.Contains(string(long), "bench_rate=20 ") || !strings.HasSuffix(string(long), `"response_mode":"streaming"}`) {
		t.Errorf("request for a stream: %s", long)
	}
	chunk, at := event()
	putID(chunk[at+streamAt:], 7)
	putID(chunk[at+numberAt:], 8)
	now := time.Now().UnixNano()
	putID(chunk[at+timeAt:], uint64(now))
	d := body{chunked: true}
	piece, used, _, err := d.next(chunk)
	if err != nil || len(piece) != eventBytes || used != len(chunk)-2 {
		t.Fatalf("event: %q, %d, %v", piece, used, err)
	}
	if sent, err := checkEvent(piece, 7, 8); err != nil || sent != now {
		t.Errorf("event sent at %d, not %d: %v", sent, now, err)
	}
	for _, wrong := range [][2]uint64{{6, 8}, {7, 9}} {
		if _, err := checkEvent(piece, wrong[0], wrong[1]); err == nil {
			t.Errorf("event 8 of stream 7 passes as event %d of stream %d", wrong[1], wrong[0])
		}
	}
}
