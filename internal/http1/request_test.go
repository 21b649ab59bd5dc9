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
)

// question is everything that a handler can see of a request.
type question struct {
	Method, Target, Path, Query, Host, Proto string
	Header                                   http.Header
	Length                                   int64
	Chunked, Close                           bool
	Body, End                                string // End is "" or the error's text
	Behind                                   string // what is left on the connection
}

// hear reads one request that comes in pieces; status says why it is refused.
func hear(how int, pieces ...[]byte) (q question, status int) {
	s := &script{pieces: slices.Clone(pieces)}
	c := &served{s: NewServer(ServerConfig{HeaderTimeout: time.Hour, IdleTimeout: time.Hour, MaxHeaderBytes: testHeaderBytes}), fd: -1, nc: s, below: s, tcp: new(net.TCPConn)}
	defer c.release()
	c.begin()
	n, err := s.Read((*c.pooled)[:cap(*c.pooled)])
	if c.end(n, err); n == 0 {
		return q, -1
	}
	head, bad := c.head()
	if head == nil && bad == nil {
		return q, -1
	}
	var r *http.Request
	var a asked
	if bad == nil {
		r, a, bad = parseRequest(context.Background(), string(head))
		c.took(len(head))
	}
	if bad != nil {
		return q, bad.status
	}
	q = question{Method: r.Method, Target: r.RequestURI, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Proto: r.Proto,
		Header: r.Header, Length: r.ContentLength, Chunked: len(r.TransferEncoding) > 0, Close: r.Close}
	if !a.d.done {
		b := &requestBody{c: c, d: a.d}
		var all []byte
		buf := make([]byte, how)
		for err == nil {
			n, err = b.Read(buf)
			all = append(all, buf[:n]...)
		}
		q.Body = string(all)
		if !errors.Is(err, io.EOF) {
			q.End = err.Error()
		}
	}
	rest, _ := io.ReadAll(s)
	q.Behind = string(c.pending) + string(rest)
	return q, 0
}

const (
	get11  = "GET / HTTP/1.1\r\nHost: h\r\n"
	post11 = "POST / HTTP/1.1\r\nHost: h\r\n"
)

func TestRequests(t *testing.T) {
	q := func(method, target string, change func(*question)) question {
		path, query, _ := strings.Cut(target, "?")
		q := question{Method: method, Target: target, Path: path, Query: query, Host: "h", Proto: "HTTP/1.1", Header: http.Header{}}
		if change != nil {
			change(&q)
		}
		return q
	}
	chunked := func(body string) func(*question) {
		return func(q *question) { q.Length, q.Chunked, q.Body = -1, true, body }
	}
	cases := []struct {
		name, in string
		want     question
	}{
		{"plain", "GET /v1/info HTTP/1.1\r\nHost: h\r\n\r\n", q("GET", "/v1/info", nil)},
		{"query", "GET /a?b=%20c&d HTTP/1.1\r\nHost: h\r\n\r\n", q("GET", "/a?b=%20c&d", nil)},
		{"escaped path", "GET /%61%0d%0a HTTP/1.1\r\nHost: h\r\n\r\n", q("GET", "/%61%0d%0a", func(q *question) { q.Path = "/a\r\n" })},
		{"no path", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", q("OPTIONS", "*", nil)},
		{"authority", "CONNECT a.example:443 HTTP/1.1\r\nHost: h\r\n\r\n", q("CONNECT", "a.example:443", func(q *question) { q.Path, q.Host = "", "a.example:443" })},
		{"absolute", "GET http://e.example/p HTTP/1.1\r\nHost: h\r\n\r\n", q("GET", "http://e.example/p", func(q *question) { q.Path, q.Host = "/p", "e.example" })},
		{"two slashes", "GET //e.example/p HTTP/1.1\r\nHost: h\r\n\r\n", q("GET", "//e.example/p", nil)},
		{"values", get11 + "a: 1\r\nA:\t2 \r\nb:\r\n\r\n", q("GET", "/", func(q *question) { q.Header = http.Header{"A": {"1", "2"}, "B": {""}} })},
		{"folded", get11 + "a: 1\r\n\t 2\r\n \r\nb: c\r\n\r\n", q("GET", "/", func(q *question) { q.Header = http.Header{"A": {"1 2"}, "B": {"c"}} })},
		{"bare LF", "GET / HTTP/1.1\nHost: h\nA: b\n\n", q("GET", "/", func(q *question) { q.Header = http.Header{"A": {"b"}} })},
		{"closes", get11 + "Connection: x, Close\r\n\r\n", q("GET", "/", func(q *question) { q.Header, q.Close = http.Header{"Connection": {"x, Close"}}, true })},
		{"http 1.0", "GET / HTTP/1.0\r\n\r\n", q("GET", "/", func(q *question) { q.Host, q.Proto, q.Close = "", "HTTP/1.0", true })},
		{"http 1.0 kept", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", q("GET", "/", func(q *question) {
			q.Host, q.Proto, q.Header = "", "HTTP/1.0", http.Header{"Connection": {"keep-alive"}}
		})},
		{"http 1.0 both", "GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", q("GET", "/", func(q *question) {
			q.Host, q.Proto, q.Header, q.Close = "", "HTTP/1.0", http.Header{"Connection": {"keep-alive, close"}}, true
		})},
		{"http 1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", q("GET", "/", func(q *question) { q.Proto = "HTTP/1.2" })},
		{"length", post11 + "Content-Length: 5\r\n\r\nhelloGET", q("POST", "/", func(q *question) {
			q.Header, q.Length, q.Body, q.Behind = http.Header{"Content-Length": {"5"}}, 5, "hello", "GET"
		})},
		{"length twice the same", post11 + "Content-Length: 2\r\ncontent-length: 2\r\n\r\nhi", q("POST", "/", func(q *question) {
			q.Header, q.Length, q.Body = http.Header{"Content-Length": {"2"}}, 2, "hi"
		})},
		{"length of none", post11 + "Content-Length: 0\r\n\r\nGET", q("POST", "/", func(q *question) {
			q.Header, q.Behind = http.Header{"Content-Length": {"0"}}, "GET"
		})},
		{"short of its length", post11 + "Content-Length: 9\r\n\r\nhello", q("POST", "/", func(q *question) {
			q.Header, q.Length, q.Body, q.End = http.Header{"Content-Length": {"9"}}, 9, "hello", io.ErrUnexpectedEOF.Error()
		})},
		{"chunks", post11 + "Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nT: u\r\n\r\nGET", q("POST", "/", func(q *question) { chunked("hello!")(q); q.Behind = "GET" })},
		{"chunks, upper case and tab", post11 + "TRANSFER-ENCODING:\tCHUNKED\r\n\r\n0\r\n\r\n", q("POST", "/", chunked(""))},
		{"chunks and length", post11 + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET", q("POST", "/", func(q *question) {
			chunked("hi")(q)
			q.Close, q.Behind = true, "GET"
		})},
		{"chunks in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", q("POST", "/", func(q *question) {
			q.Host, q.Proto, q.Header, q.Close, q.Behind = "", "HTTP/1.0", http.Header{"Connection": {"keep-alive"}}, true, "0\r\n\r\n"
		})},
		{"chunks without the last", post11 + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", q("POST", "/", func(q *question) {
			chunked("hello")(q)
			q.End = io.ErrUnexpectedEOF.Error()
		})},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			in := []byte(tc.in)
			check := func(how int, pieces ...[]byte) {
				t.Helper()
				got, status := hear(how, pieces...)
				if status != 0 {
					t.Fatalf("refused with %d", status)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
			}
			for _, how := range []int{1, 3, 512} {
				check(how, in)
				check(how, bytes.SplitAfter(in, nil)...)
				for i := range in {
					check(how, in[:i], in[i:])
				}
			}
		})
	}
}

func TestRequestsRefused(t *testing.T) {
	long := strings.Repeat("x", testHeaderBytes)
	cases := []struct {
		name, in string
		status   int
	}{
		{"TLS", "\x16\x03\x01", 400},
		{"empty line first", "\r\n" + get11 + "\r\n", 400},
		{"no version", "GET /\r\n\r\n", 400},
		{"version in lower case", "GET / http/1.1\r\nHost: h\r\n\r\n", 400},
		{"version of letters", "GET / HTTP/a.b\r\nHost: h\r\n\r\n", 400},
		{"version with more", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400},
		{"version 0.9", "GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505},
		{"version 2", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
		{"preface", preface, 505},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"space behind", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400},
		{"tab for a space", "GET /\tHTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"method", "G\x01T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"no method", " / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"no target", "GET  HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"no slash", "GET v1/info HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"at sign", "GET @evil/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"CR in the target", "GET /\rx HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"two hosts", get11 + "Host: h\r\n\r\n", 400},
		{"bad host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
		{"host with a slash", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		{"several lengths", post11 + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", 400},
		{"list of lengths", post11 + "Content-Length: 2, 2\r\n\r\nhi", 400},
		{"signed length", post11 + "Content-Length: +2\r\n\r\nhi", 400},
		{"negative length", post11 + "Content-Length: -2\r\n\r\nhi", 400},
		{"hex length", post11 + "Content-Length: 0x2\r\n\r\nhi", 400},
		{"empty length", post11 + "Content-Length:\r\n\r\nhi", 400},
		{"huge length", post11 + "Content-Length: 99999999999999999999\r\n\r\nhi", 400},
		{"two words of length", post11 + "Content-Length: 2 2\r\n\r\nhi", 400},
		{"folded length", post11 + "Content-Length: 2\r\n 2\r\n\r\nhi", 400},
		{"other coding", post11 + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"unknown coding", post11 + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		{"coding twice", post11 + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
		{"quoted coding", post11 + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501},
		{"empty coding", post11 + "Transfer-Encoding:\r\n\r\n0\r\n\r\n", 501},
		{"coding with VT", post11 + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
		{"space before colon", post11 + "Content-Length : 2\r\n\r\nhi", 400},
		{"folded first", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
		{"no colon", get11 + "A\r\n\r\n", 400},
		{"no name", get11 + ": x\r\n\r\n", 400},
		{"name that is no token", get11 + "A(b): x\r\n\r\n", 400},
		{"bare CR", get11 + "A: b\rContent-Length: 2\r\n\r\n", 400},
		{"CR before the line's end", get11 + "A: b\r\r\n\r\n", 400},
		{"NUL in a value", get11 + "A: b\x00\r\n\r\n", 400},
		{"NUL in a name", get11 + "A\x00: b\r\n\r\n", 400},
		{"control in a folded line", get11 + "A: b\r\n \x01\r\n\r\n", 400},
		{"unknown expectation", post11 + "Expect: 200-ok\r\nContent-Length: 2\r\n\r\nhi", 417},
		{"too long", get11 + "A: " + long + "\r\n\r\n", 431},
		{"target too long", "GET /" + long + " HTTP/1.1\r\nHost: h\r\n\r\n", 431},
		{"never ends", strings.Repeat("x", 4*testHeaderBytes), 431},
		{"too many lines", get11 + strings.Repeat("a:\r\n", maxFields+1) + "\r\n", 431},
		{"ends in the middle", get11 + "A: b\r\n", 400},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if q, status := hear(64, []byte(tc.in)); status != tc.status {
				t.Fatalf("got %d, want %d: %+v", status, tc.status, q)
			}
			if q, status := hear(64, bytes.SplitAfter([]byte(tc.in), nil)...); status != tc.status {
				t.Fatalf("byte by byte: got %d, want %d: %+v", status, tc.status, q)
			}
		})
	}
}

func TestRequestChunksRefused(t *testing.T) {
	cases := map[string]string{
		"no size":          "\r\nhello\r\n0\r\n\r\n",
		"sign":             "-5\r\nhello\r\n0\r\n\r\n",
		"0x":               "0x5\r\nhello\r\n0\r\n\r\n",
		"bare LF":          "5\nhello\r\n0\r\n\r\n",
		"longer than said": "5\r\nhello!\r\n0\r\n\r\n",
		"huge":             "fffffffffffffffff\r\nhello",
		"endless size":     strings.Repeat("0", 32<<10),
		"endless trailer":  "0\r\n" + strings.Repeat("a: b\r\n", maxTrailer) + "\r\n",
		"more extensions than data": strings.Repeat("1;"+strings.Repeat("e", 200)+"\r\nx\r\n", 200) +
			"0\r\n\r\n",
	}
	for name, in := range cases {
		t.Run(name, func(t *testing.T) {
			for _, how := range []int{1, 512} {
				if q, status := hear(how, []byte(post11+"Transfer-Encoding: chunked\r\n\r\n"), []byte(in)); status != 0 || q.End == "" {
					t.Fatalf("accepted: %d, %+v", status, q)
				}
			}
		})
	}
	// Small chunks are no attack: a client that writes byte by byte is served.
	small := strings.Repeat("1\r\nx\r\n", 64<<10)
	if q, status := hear(512, []byte(post11+"Transfer-Encoding: chunked\r\n\r\n"+small+"0\r\n\r\n")); status != 0 || q.End != "" || len(q.Body) != 64<<10 {
		t.Fatalf("chunks of one byte: %d, %q after %d", status, q.End, len(q.Body))
	}
}

// FuzzRequest holds against net/http: what is accepted here is read the same way
// there, in whatever pieces it comes, and ends at the same byte.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(post11+"Content-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n"), uint16(30))
	f.Add([]byte(post11+"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5;x\r\nhello\r\n0\r\na: b\r\n\r\n"), uint16(80))
	f.Add([]byte("GET http://a/b?c#d HTTP/1.0\nConnection: keep-alive\nA: b\n c\n\n"), uint16(1))
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n"), uint16(3))
	f.Add([]byte("GET /%41/%2f//x;y HTTP/1.2\r\nHost: [::1]:80\r\nPragma: no-cache\r\nExpect: 100-continue\r\n\r\n"), uint16(3))
	f.Fuzz(func(t *testing.T, in []byte, at uint16) {
		cut := min(int(at), len(in))
		got, status := hear(512, in)
		split, sstatus := hear(7, in[:cut], in[cut:])
		if status > 0 && sstatus > 0 {
			return
		}
		if (status == 0) != (sstatus == 0) {
			t.Fatalf("in one piece: %d; cut at %d: %d", status, cut, sstatus)
		}
		if status != 0 {
			return
		}
		if got.End != "" && split.End != "" { // how much comes before an error is not promised
			split.Body, split.Behind, split.End = got.Body, got.Behind, got.End
		}
		if diff := cmp.Diff(got, split); diff != "" {
			t.Fatalf("cut at %d (-whole +cut):\n%s", cut, diff)
		}
		br := bufio.NewReader(bytes.NewReader(in))
		r, err := http.ReadRequest(br)
		if err != nil {
			if len(got.Header["Trailer"]) > 0 {
				return // looked into there
			}
			t.Fatalf("net/http refuses what was accepted: %v", err)
		}
		want := question{Method: r.Method, Target: r.RequestURI, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Proto: r.Proto,
			Header: r.Header, Length: r.ContentLength, Chunked: len(r.TransferEncoding) > 0, Close: got.Close}
		if r.Close && !got.Close {
			t.Fatal("net/http closes the connection")
		}
		body, err := io.ReadAll(r.Body)
		want.Body = string(body)
		if err == nil {
			rest, _ := io.ReadAll(br)
			want.Behind = string(rest)
		} else {
			want.End = err.Error()
		}
		switch {
		case got.End != "" && want.End != "":
			want.Body, want.Behind, want.End = got.Body, got.Behind, got.End
		case got.End != "" && got.Chunked: // framing passes there that does not pass here
			return
		case want.End != "" && got.Chunked: // trailers, which are dropped here, are parsed there
			want.End, want.Behind = got.End, got.Behind
		}
		if got.Chunked && len(got.Header["Trailer"]) > 0 {
			return // announced trailers are taken out of the header there
		}
		delete(got.Header, "Trailer")
		delete(want.Header, "Trailer")
		if p := got.Header["Pragma"]; len(p) > 0 && p[0] == "no-cache" && len(got.Header["Cache-Control"]) == 0 {
			delete(want.Header, "Cache-Control") // made there for old clients
		}
		for _, h := range []http.Header{got.Header, want.Header} {
			for _, values := range h {
				for i, v := range values {
					values[i] = strings.Join(strings.Fields(v), " ") // folded lines may leave more spaces there
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-net/http +got):\n%s", diff)
		}
	})
}
