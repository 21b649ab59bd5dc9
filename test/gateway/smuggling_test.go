package gateway

import (
	"fmt"
	"strings"
	"testing"
)

func TestSmuggling(t *testing.T) {
	r := startRecorder(t)
	g := startGateway(t, "limits: {bodyTimeout: 2s}\n", r.addr)
	const inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	post := func(head, body string) string {
		return "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\n" + head + "\r\n" + body
	}
	const upload = "POST /v1/files/upload"
	cases := []struct {
		name, data string
		want       string // statuses
		open       bool   // the connection stays
		got        string // what the instance got, "" for nothing
	}{
		{"length and chunks, CL.TE", post(fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", 5+len(inner)), "0\r\n\r\n"+inner), "200", false, upload + `, length 0, ""`},
		{"chunks and length, TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "2\r\nab\r\n0\r\n\r\n"+inner), "200", false, upload + `, length 2, "ab"`},
		{"chunks alone", post("Transfer-Encoding: chunked\r\n", "2\r\nab\r\n0\r\n\r\n"+inner), "200", false, upload + `, length 2, "ab"`},
		{"TE.TE, second unknown", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nContent-Length: 4\r\n", "0\r\n\r\n"+inner), "501", false, ""},
		{"TE.TE, list", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"+inner), "501", false, ""},
		{"TE.TE, identity first", post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"+inner), "501", false, ""},
		{"TE, unknown", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"+inner), "501", false, ""},
		{"TE, quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"+inner), "501", false, ""},
		{"TE, vertical tab", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"+inner), "400", false, ""},
		{"TE, tab", post("Transfer-Encoding:\tchunked\r\n", "0\r\n\r\n"+inner), "200", false, upload + `, length 0, ""`},
		{"TE, upper case", post("TRANSFER-ENCODING: CHUNKED\r\n", "0\r\n\r\n"+inner), "200", false, upload + `, length 0, ""`},
		{"TE, space before the colon", post("Transfer-Encoding : chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"+inner), "400", false, ""},
		{"TE, underscore", post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"+inner), "200 200", true, upload + `, length 5, "0\r\n\r\n"; GET /smuggled, none, ""`},
		{"TE in HTTP/1.0", "POST /v1/files/upload HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, "200", false, upload + `, length 0, ""`},
		{"two lengths", post("Content-Length: 0\r\nContent-Length: 5\r\n", inner), "400", false, ""},
		{"the same length twice", post("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"), "200", true, upload + `, length 2, "ab"`},
		{"a list of lengths", post("Content-Length: 2, 2\r\n", "ab"), "400", false, ""},
		{"a signed length", post("Content-Length: +2\r\n", "ab"), "400", false, ""},
		{"a negative length", post("Content-Length: -2\r\n", "ab"), "400", false, ""},
		{"a length in hex", post("Content-Length: 0x2\r\n", "ab"), "400", false, ""},
		{"an empty length", post("Content-Length: \r\n", "ab"), "400", false, ""},
		{"a length with spaces around", post("Content-Length:   2 \r\n", "ab"), "200", true, upload + `, length 2, "ab"`},
		{"a length with a space inside", post("Content-Length: 2 2\r\n", "ab"), "400", false, ""},
		{"a length beyond 64 bits", post("Content-Length: 18446744073709551618\r\n", "ab"), "400", false, ""},
		{"a length on GET", "GET /v1/info HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" + inner, "200 200", true, `GET /v1/info, length 2, "ab"; GET /smuggled, none, ""`},
		{"a body shorter than its length", post("Content-Length: 9\r\nConnection: close\r\n", "ab"), "408", false, ""},
		{"folded header", post("X-A: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", "ab"), "200", true, upload + `, length 2, "ab"`},
		{"a bare LF ends a header line", post("X-A: y\nX-B: z\r\nContent-Length: 2\r\n", "ab"), "200", true, upload + `, length 2, "ab"`},
		{"a bare CR in a header", post("X-A: y\rTransfer-Encoding: chunked\r\n", inner), "400", false, ""},
		{"NUL in a value", post("X-A: y\x00\r\n", inner), "400", false, ""},
		{"NUL in a name", post("X-A\x00: y\r\n", inner), "400", false, ""},
		{"NUL in the target", "GET /v1/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"no name", post(": y\r\n", inner), "400", false, ""},
		{"no colon", post("Content-Length\r\n", inner), "400", false, ""},
		{"a space begins the header", "GET /v1/info HTTP/1.1\r\n Host: x\r\n\r\n", "400", false, ""},
		{"chunk with an extension", post("Transfer-Encoding: chunked\r\n", "2;a=b\r\nab\r\n0\r\n\r\n"), "200", false, upload + `, length 2, "ab"`},
		{"chunk with a bare LF", post("Transfer-Encoding: chunked\r\n", "2\nab\r\n0\r\n\r\n"), "400", false, ""},
		{"chunk without an end", post("Transfer-Encoding: chunked\r\n", "2\r\nabX\r\n0\r\n\r\n"), "400", false, ""},
		{"chunk of a negative size", post("Transfer-Encoding: chunked\r\n", "-2\r\nab\r\n0\r\n\r\n"), "400", false, ""},
		{"chunk in 0x form", post("Transfer-Encoding: chunked\r\n", "0x2\r\nab\r\n0\r\n\r\n"), "400", false, ""},
		{"chunk beyond 64 bits", post("Transfer-Encoding: chunked\r\n", "10000000000000002\r\nab\r\n0\r\n\r\n"), "400", false, ""},
		{"a length in the trailer", post("Transfer-Encoding: chunked\r\n", "2\r\nab\r\n0\r\nContent-Length: 50\r\n\r\n"+inner), "200", false, upload + `, length 2, "ab"`},
		{"h2c by upgrade", "GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200", true, `GET /v1/info, none, ""`},
		{"hop-by-hop length", post("Connection: Content-Length\r\nContent-Length: 2\r\n", "ab"), "200", true, upload + `, length 2, "ab"`},
		{"pipelined", "GET /v1/a HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/b HTTP/1.1\r\nHost: x\r\n\r\n", "200 200", true, `GET /v1/a, none, ""; GET /v1/b, none, ""`},
		{"two hosts", "GET /v1/info HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400", false, ""},
		{"no host", "GET /v1/info HTTP/1.1\r\n\r\n", "400", false, ""},
		{"a bad host", "GET /v1/info HTTP/1.1\r\nHost: x y\r\n\r\n", "400", false, ""},
		{"absolute form", "GET http://evil.example/v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "200", true, `GET /v1/info, none, ""`},
		{"authority in the path", "GET //evil.example/v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "200", true, `GET //evil.example/v1/info, none, ""`},
		{"at sign as the target", "GET @evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"no slash", "GET v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"two spaces in the line", "GET  /v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"a header in the target", "GET /v1/info\tHTTP/1.1\r\nX: y HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"line break in the query, escaped", "GET /v1/info?a=%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n", "200", true, `GET /v1/info?a=%0d%0aX:%20y, none, ""`},
		{"line break in the path, escaped", "GET /v1/%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n", "200", true, `GET /v1/%0d%0aX:%20y, none, ""`},
		{"HTTP/0.9", "GET /v1/info\r\n\r\n", "400", false, ""},
		{"HTTP/1.0", "GET /v1/info HTTP/1.0\r\n\r\n", "200", false, `GET /v1/info, none, ""`},
		{"HTTP/1.2", "GET /v1/info HTTP/1.2\r\nHost: x\r\n\r\n", "200", true, `GET /v1/info, none, ""`},
		{"HTTP/3.0", "GET /v1/info HTTP/3.0\r\nHost: x\r\n\r\n", "505", false, ""},
		{"HTTP/1.1 in lower case", "GET /v1/info http/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", "405", true, ""},
		{"TRACE", "TRACE /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: secret\r\n\r\n", "405", true, ""},
		{"a method that is none", "G\x01T /v1/info HTTP/1.1\r\nHost: x\r\n\r\n", "400", false, ""},
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", "400", false, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r.take()
			back, open := talk(t, g.addr, tc.data)
			if got := statuses(back); got != tc.want {
				t.Errorf("answers %q, want %s: %q", got, tc.want, back)
			}
			if open != tc.open && tc.want == "200" {
				t.Errorf("the connection stays open: %v, want %v", open, tc.open)
			}
			var got []string
			for _, rec := range r.take() {
				got = append(got, rec.String())
				if n := strings.Count(strings.ToLower(rec.head), "\r\ncontent-length:") + strings.Count(strings.ToLower(rec.head), "\r\ntransfer-encoding:"); n > 1 {
					t.Errorf("%d framing headers: %q", n, rec.head)
				}
				for _, name := range []string{"upgrade", "http2-settings", "keep-alive", "te", "trailer", "proxy-connection"} {
					if strings.Contains(strings.ToLower(rec.head), "\r\n"+name+":") {
						t.Errorf("the instance got %s: %q", name, rec.head)
					}
				}
			}
			if strings.Join(got, "; ") != tc.got {
				t.Errorf("the instance got %s, want %s", strings.Join(got, "; "), tc.got)
			}
		})
	}
	g.alive(t)
}
