package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a connection that gives what it was given, piece by piece, and
// then ends.
type script struct {
	net.Conn
	pieces [][]byte
	given  int
}

func (s *script) Read(p []byte) (int, error) {
	for len(s.pieces) > 0 && len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	s.pieces[0] = s.pieces[0][n:]
	s.given += n
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

const testHeaderBytes = 8 << 10

// answer is everything that a caller can see of an answer.
type answer struct {
	Status  int
	Header  http.Header
	Length  int64
	Chunked bool
	Body    string
	End     string // "" or the error's text
	Kept    bool   // the connection may serve another request
}

type readBody func(*Body) (string, error)

func byRead(size int) readBody {
	return func(b *Body) (string, error) {
		var all []byte
		buf := make([]byte, size)
		for {
			n, err := b.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				return string(all), err
			}
		}
	}
}

// takes is a function that is a Taker.
type takes func(p []byte) error

// Take implements Taker.
func (f takes) Take(p []byte) error { return f(p) }

func byEach(b *Body) (string, error) {
	var all []byte
	err := b.Each(takes(func(p []byte) error { all = append(all, p...); return nil }))
	return string(all), err
}

// parse reads one answer; the error is that of its head.
func parse(method string, header http.Header, how readBody, pieces ...[]byte) (answer, error) {
	t := New(Config{ConnectTimeout: time.Second, MaxHeaderBytes: testHeaderBytes, IdleTimeout: time.Hour, MaxIdle: 1})
	defer t.CloseIdle()
	s := &script{pieces: slices.Clone(pieces)}
	cc := newCountingConn(s)
	resp, err := t.exchange(context.Background(), &conn{Conn: cc, counting: cc, key: "k"},
		&Request{Method: method, Target: "/", Host: "h", Header: header})
	if err != nil {
		return answer{}, err
	}
	a := answer{Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength, Chunked: len(resp.TransferEncoding) > 0}
	if b, ok := resp.Body.(*Body); ok {
		a.Body, err = how(b)
		if err != nil {
			a.End = err.Error()
		}
	}
	_ = resp.Body.Close()
	t.idle.mu.Lock()
	a.Kept = len(t.idle.conns["k"]) == 1
	t.idle.mu.Unlock()
	return a, nil
}

const ok11 = "HTTP/1.1 200 OK\r\n"

func TestAnswers(t *testing.T) {
	eof := io.ErrUnexpectedEOF.Error()
	cases := []struct {
		name, method, in string
		want             answer
	}{
		{"length", "GET", ok11 + "Content-Length: 5\r\nX-A: b\r\n\r\nhello", answer{200, http.Header{"Content-Length": {"5"}, "X-A": {"b"}}, 5, false, "hello", "", true}},
		{"length twice the same", "GET", ok11 + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", true}},
		{"empty", "GET", ok11 + "Content-Length: 0\r\n\r\n", answer{200, http.Header{"Content-Length": {"0"}}, 0, false, "", "", true}},
		{"short of its length", "GET", ok11 + "Content-Length: 9\r\n\r\nhello", answer{200, http.Header{"Content-Length": {"9"}}, 9, false, "hello", eof, false}},
		{"says more than its length", "GET", ok11 + "Content-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", false}},
		{"closes", "GET", ok11 + "Content-Length: 2\r\nConnection: Close\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}, "Connection": {"Close"}}, 2, false, "hi", "", false}},
		{"until close", "GET", ok11 + "\r\nhello", answer{200, http.Header{}, -1, false, "hello", "", false}},
		{"http 1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", false}},
		{"http 1.0 kept", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}, "Connection": {"keep-alive"}}, 2, false, "hi", "", true}},
		{"chunks", "GET", ok11 + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6 ; x=\"y\"\r\n world\r\n000\r\nT: 1\r\nU: 2\r\n\r\n", answer{200, http.Header{}, -1, true, "hello world", "", true}},
		{"chunks without the last", "GET", ok11 + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", answer{200, http.Header{}, -1, true, "hello", eof, false}},
		{"chunks cut in a chunk", "GET", ok11 + "Transfer-Encoding: chunked\r\n\r\n9\r\nhello", answer{200, http.Header{}, -1, true, "hello", eof, false}},
		{"chunks cut in the end", "GET", ok11 + "Transfer-Encoding: chunked\r\n\r\n0\r\n", answer{200, http.Header{}, -1, true, "", eof, false}},
		{"head", "HEAD", ok11 + "Content-Length: 5\r\n\r\n", answer{200, http.Header{"Content-Length": {"5"}}, 5, false, "", "", true}},
		{"head with chunks", "HEAD", ok11 + "Transfer-Encoding: chunked\r\n\r\n", answer{200, http.Header{}, -1, true, "", "", true}},
		{"not modified", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", answer{304, http.Header{"Content-Length": {"5"}}, 5, false, "", "", true}},
		{"no content", "GET", "HTTP/1.1 204 No Content\r\n\r\n", answer{204, http.Header{}, 0, false, "", "", true}},
		{"interim", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok11 + "Content-Length: 2\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", true}},
		{"bare LF", "GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", true}},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", answer{200, http.Header{"Content-Length": {"2"}}, 2, false, "hi", "", true}},
		{"values", "GET", ok11 + "a: 1\r\nA:\t2 \r\nb:\r\nContent-Length: 0\r\n\r\n", answer{200, http.Header{"A": {"1", "2"}, "B": {""}, "Content-Length": {"0"}}, 0, false, "", "", true}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			check := func(how readBody, pieces ...[]byte) {
				t.Helper()
				got, err := parse(tc.method, nil, how, pieces...)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
			}
			in := []byte(tc.in)
			for _, how := range []readBody{byRead(1), byRead(3), byRead(512), byEach} {
				check(how, in)
				if strings.HasPrefix(tc.name, "says more") {
					continue // what comes later is found by the next request's check
				}
				check(how, bytes.SplitAfter(in, nil)...)
				for i := range in {
					check(how, in[:i], in[i:])
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("x", testHeaderBytes)
	cases := map[string]string{
		"not HTTP":             "SSH-2.0-x\r\n\r\n",
		"other version":        "HTTP/2.0 200 OK\r\n\r\n",
		"status of two digits": "HTTP/1.1 20 OK\r\n\r\n",
		"status with a sign":   "HTTP/1.1 +20 OK\r\n\r\n",
		"status under 100":     "HTTP/1.1 099 OK\r\n\r\n",
		"status of four":       "HTTP/1.1 2000 OK\r\n\r\n",
		"both lengths":         ok11 + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"several lengths":      ok11 + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
		"list of lengths":      ok11 + "Content-Length: 2, 2\r\n\r\nhi",
		"signed length":        ok11 + "Content-Length: +2\r\n\r\nhi",
		"negative length":      ok11 + "Content-Length: -2\r\n\r\nhi",
		"huge length":          ok11 + "Content-Length: 99999999999999999999\r\n\r\nhi",
		"other coding":         ok11 + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"coding twice":         ok11 + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"coding in 1.0":        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"folded":               ok11 + "A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"folded first":         ok11 + " A: b\r\nContent-Length: 0\r\n\r\n",
		"space before colon":   ok11 + "Content-Length : 2\r\n\r\nhi",
		"no colon":             ok11 + "Content-Length\r\n\r\n",
		"no name":              ok11 + ": x\r\n\r\n",
		"bare CR":              ok11 + "A: b\rContent-Length: 2\r\n\r\n",
		"NUL":                  ok11 + "A: b\x00c\r\n\r\n",
		"control in reason":    "HTTP/1.1 200 O\x01K\r\n\r\n",
		"too long":             ok11 + "A: " + long + "\r\n\r\n",
		"never ends":           strings.Repeat("x", 4*testHeaderBytes),
		"too many lines":       ok11 + strings.Repeat("a:\r\n", maxFields+1) + "\r\n",
		"switches unasked":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"interim for ever":     strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1),
		"cut":                  ok11 + "A: b\r\n",
		"nothing":              "",
	}
	for name, in := range cases {
		t.Run(name, func(t *testing.T) {
			s := &script{pieces: [][]byte{[]byte(in)}}
			if a, err := parse("GET", nil, byRead(64), s.pieces...); err == nil {
				t.Fatalf("accepted: %+v", a)
			}
			if a, err := parse("GET", nil, byRead(64), bytes.SplitAfter([]byte(in), nil)...); err == nil {
				t.Fatalf("accepted byte by byte: %+v", a)
			}
		})
	}
}

func TestChunksRefused(t *testing.T) {
	cases := map[string]string{
		"no size":          "\r\nhello\r\n0\r\n\r\n",
		"sign":             "+5\r\nhello\r\n0\r\n\r\n",
		"0x":               "0x5\r\nhello\r\n0\r\n\r\n",
		"bare LF":          "5\nhello\r\n0\r\n\r\n",
		"bare CR":          "5\rhello\r\n0\r\n\r\n",
		"bare LF behind":   "5\r\nhello\n0\r\n\r\n",
		"longer than said": "5\r\nhello!\r\n0\r\n\r\n",
		"huge":             "fffffffffffffffff\r\nhello",
		"negative":         "8000000000000000\r\nhello",
		"long extension":   "5;" + strings.Repeat("x", maxChunkLine) + "\r\nhello\r\n0\r\n\r\n",
		"control in ext":   "5;a\nb\r\nhello\r\n0\r\n\r\n",
		"long zero":        strings.Repeat("0", maxChunkLine+1) + "\r\n\r\n",
		"long trailer":     "0\r\n" + strings.Repeat("a: b\r\n", maxTrailer) + "\r\n",
		"LF ends trailers": "0\r\n\n",
	}
	for name, in := range cases {
		t.Run(name, func(t *testing.T) {
			for _, how := range []readBody{byRead(1), byRead(512), byEach} {
				a, err := parse("GET", nil, how, []byte(ok11+"Transfer-Encoding: chunked\r\n\r\n"+in))
				if err != nil {
					t.Fatal(err)
				}
				if a.End == "" || a.Kept {
					t.Fatalf("accepted: %+v", a)
				}
			}
		})
	}
}

// FuzzAnswer holds against net/http: what is accepted here is read the same way
// there, in whatever pieces it comes.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(ok11+"Content-Length: 5\r\n\r\nhello"), uint16(20), false)
	f.Add([]byte(ok11+"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\na: b\r\n\r\n"), uint16(50), false)
	f.Add([]byte("HTTP/1.0 200 OK\nConnection: keep-alive\n\nbody"), uint16(1), true)
	f.Add([]byte("HTTP/1.1 304 x\r\nEtag: y\r\n\r\n"), uint16(3), false)
	f.Fuzz(func(t *testing.T, in []byte, at uint16, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		cut := min(int(at), len(in))
		got, err := parse(method, nil, byRead(512), in)
		split, serr := parse(method, nil, byEach, in[:cut], in[cut:])
		if (err == nil) != (serr == nil) {
			t.Fatalf("in one piece: %v; cut at %d: %v", err, cut, serr)
		}
		if err != nil {
			return
		}
		// Bytes behind the body may come after the connection was given back.
		split.Kept = got.Kept
		if diff := cmp.Diff(got, split); diff != "" {
			t.Fatalf("cut at %d (-whole +cut):\n%s", cut, diff)
		}
		br := bufio.NewReader(bytes.NewReader(in))
		var resp *http.Response
		for {
			resp, err = http.ReadResponse(br, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("net/http refuses what was accepted: %v", err)
			}
			if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
				break
			}
		}
		body, err := io.ReadAll(resp.Body)
		want := answer{Status: resp.StatusCode, Header: resp.Header, Length: resp.ContentLength,
			Chunked: len(resp.TransferEncoding) > 0, Body: string(body), Kept: got.Kept}
		if err != nil {
			want.End = err.Error()
		}
		if (want.End == "") != (got.End == "") {
			// Trailers, which are dropped here, are parsed there; framing
			// passes there that does not pass here.
			if got.Chunked && got.End == "" && got.Body == want.Body {
				return
			}
			if want.End != "" || !strings.HasPrefix(got.End, "malformed") {
				t.Fatalf("ended with %q, net/http with %q", got.End, want.End)
			}
			return
		}
		if got.End != "" && (strings.HasPrefix(want.Body, got.Body) || strings.HasPrefix(got.Body, want.Body)) {
			want.Body = got.Body // how much comes before an error is not promised
		}
		want.End = got.End
		if len(resp.Trailer) > 0 || resp.Header.Get("Trailer") != "" || got.Header.Get("Trailer") != "" {
			return // announced trailers are taken out of the header there
		}
		if want.Length != got.Length && (head || resp.StatusCode == http.StatusNotModified || got.Length == -1 && want.Body == "") {
			want.Length = got.Length // "unknown" and "none" are not told apart there
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-net/http +got):\n%s", diff)
		}
	})
}
