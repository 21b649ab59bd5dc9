package sse

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// collect feeds the pieces and describes every event as "type|data|bytes".
func collect(tb testing.TB, pieces ...[]byte) (events []string, atBoundary bool) {
	tb.Helper()
	var s Scanner
	var block []byte
	for _, p := range pieces {
		for len(p) > 0 {
			n, ev, ok := s.Next(p)
			if n <= 0 || n > len(p) {
				tb.Fatalf("Next took %d of %d bytes", n, len(p))
			}
			if !ok && n != len(p) {
				tb.Fatalf("Next stopped after %d of %d bytes without an event", n, len(p))
			}
			block = append(block, p[:n]...)
			p = p[n:]
			if ok {
				events = append(events, fmt.Sprintf("%s|%v", ev.Type, ev.Data))
				block = block[:0]
			}
		}
	}
	return events, s.AtBoundary()
}

func TestScanner(t *testing.T) {
	cases := []struct {
		name, in string
		want     []string
		boundary bool
	}{
		{"dify message", "data: {\"event\": \"message\", \"answer\": \"hi\"}\n\n", []string{"message|true"}, true},
		{"dify ping", "event: ping\n\n", []string{"ping|false"}, true},
		{"comment", ": keepalive\n\n", []string{"|false"}, true},
		{"event member last", "data: {\"answer\":\"{\\\"event\\\":\\\"x\\\"}\",\"d\":{\"event\":\"y\"},\"a\":[\"event\",\"z\"],\"event\":\"message_end\"}\n\n", []string{"message_end|true"}, true},
		{"value that reads like the name", "data: {\"a\":\"event\",\"b\":\"q\"}\n\n", []string{"|true"}, true},
		{"member is no string", "data: {\"event\": 7, \"x\": \"y\"}\n\n", []string{"|true"}, true},
		{"not json", "data: hello\n\n", []string{"|true"}, true},
		{"done marker", "data: [DONE]\n\n", []string{"|true"}, true},
		{"member beats field", "event: a\ndata: {\"event\":\"b\"}\n\n", []string{"b|true"}, true},
		{"field alone", "event:message\ndata: x\nid: 4\nretry: 10\n\n", []string{"message|true"}, true},
		{"last field wins", "event: a\nevent: bb\ndata: x\n\n", []string{"bb|true"}, true},
		{"no space", "data:{\"event\":\"m\"}\n\n", []string{"m|true"}, true},
		{"two data lines", "data: {\"event\":\ndata: \"x\"}\n\n", []string{"|true"}, true},
		{"crlf", "event: ping\r\n\r\ndata: {\"event\":\"m\"}\r\n\r\n", []string{"ping|false", "m|true"}, true},
		{"cr", "event: ping\r\rdata: {\"event\":\"m\"}\r\r", []string{"ping|false", "m|true"}, true},
		{"mixed", "event: ping\r\n\ndata: {\"event\":\"m\"}\n\r\n", []string{"ping|false", "m|true"}, true},
		{"byte order mark", "\xef\xbb\xbfdata: {\"event\":\"m\"}\n\n", []string{"m|true"}, true},
		{"unfinished", "data: {\"event\":\"m\"}\n", nil, false},
		{"unfinished line", "data: {\"event\":\"m\"}\n\ndata: {\"ev", []string{"m|true"}, false},
		{"field without colon", "data\n\n", []string{"|true"}, true},
		{"longer names", "eventual: x\ndatax: y\nevents: z\n\n", []string{"|false"}, true},
		{"only empty lines", "\n\n", []string{"|false", "|false"}, true},
		{"escape in name", "data: {\"\\u0065vent\":\"m\",\"event\":\"n\"}\n\n", []string{"n|true"}, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, boundary := collect(t, []byte(tc.in))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Fatalf("events (-want +got):\n%s", diff)
			}
			if boundary != tc.boundary {
				t.Fatalf("AtBoundary = %v, want %v", boundary, tc.boundary)
			}
			// The same stream in two pieces, cut at every byte, and in single bytes.
			for i := range len(tc.in) + 1 {
				split, b := collect(t, []byte(tc.in[:i]), []byte(tc.in[i:]))
				// A CRLF cut in two may end the event at the CR; the LF is then no event.
				if diff := cmp.Diff(tc.want, split); diff != "" || b != tc.boundary {
					t.Fatalf("cut at %d: boundary %v, events (-want +got):\n%s", i, b, diff)
				}
			}
			single, b := collect(t, bytes.SplitAfter([]byte(tc.in), nil)...)
			if diff := cmp.Diff(tc.want, single); diff != "" || b != tc.boundary {
				t.Fatalf("single bytes: boundary %v, events (-want +got):\n%s", b, diff)
			}
		})
	}
}

func TestScannerLongType(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for _, in := range []string{"event: " + long + "\n\n", "data: {\"event\":\"" + long + "\"}\n\n"} {
		var s Scanner
		n, ev, ok := s.Next([]byte(in))
		if !ok || n != len(in) || len(ev.Type) != MaxTypeBytes {
			t.Fatalf("n=%d ok=%v type of %d bytes, want all %d and %d", n, ok, len(ev.Type), len(in), MaxTypeBytes)
		}
	}
}

func TestScannerDoesNotAllocate(t *testing.T) {
	in := []byte("data: {\"event\": \"message\", \"answer\": \"" + strings.Repeat("word ", 30) + "\"}\n\n")
	var s Scanner
	if got := testing.AllocsPerRun(100, func() { s.Next(in) }); got != 0 {
		t.Fatalf("%v allocations per event, want 0", got)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add([]byte("data: {\"event\": \"message\"}\n\nevent: ping\r\n\r\n: c\r\r"), uint8(3))
	f.Add([]byte("\xef\xbb\xbf\ndata\n\n"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		whole, wholeEnd := collect(t, in)
		size := int(step)%7 + 1
		var pieces [][]byte
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		cut, cutEnd := collect(t, pieces...)
		if diff := cmp.Diff(whole, cut); diff != "" || wholeEnd != cutEnd {
			t.Fatalf("pieces of %d bytes differ (boundary %v, %v):\n%s", size, wholeEnd, cutEnd, diff)
		}
	})
}

func BenchmarkScanner(b *testing.B) {
	in := []byte("data: {\"event\": \"message\", \"answer\": \"" + strings.Repeat("word ", 24) + "\"}\n\n")
	var s Scanner
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		s.Next(in)
	}
}
