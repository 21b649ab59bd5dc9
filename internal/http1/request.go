package http1

import (
	"context"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// refusal is why a request is not served. It is answered in plain text, and the
// connection ends.
type refusal struct {
	status int
	what   string
}

func refuse(status int, format string, args ...any) *refusal {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, format, args...)
}

// asked is what a request's head says beside what is in http.Request.
type asked struct {
	d         decoder // of its body; done when there is none
	continues bool    // the client waits for "100 Continue"
}

// preface is how HTTP/2 without TLS begins.
const preface = "PRI * HTTP/2.0\r\n\r\n"

// parseRequest reads one whole head, which ends with its empty line. The
// request's strings point into head; Body, RemoteAddr are left to the caller.
//
// It accepts a part of what net/http does, and reads it in the same way.
func parseRequest(ctx context.Context, head string) (*http.Request, asked, *refusal) {
	var a asked
	line, rest := cutLine(head)
	method, target, minor, bad := requestLine(line)
	if bad != nil {
		return nil, a, bad
	}
	u, bad := requestURL(method, target)
	if bad != nil {
		return nil, a, bad
	}
	lines := strings.Count(rest, "\n") - 1
	if lines > maxFields {
		return nil, a, refuse(http.StatusRequestHeaderFieldsTooLarge, "more than %d header lines", maxFields)
	}
	// All single values share one array, as in net/textproto.
	h := make(http.Header, lines)
	values := make([]string, lines)
	length, haveLength := int64(0), false
	host, haveHost := "", false
	coding, codings := "", 0
	closes, keeps := false, minor > 0
	for {
		line, rest = cutLine(rest)
		if line == "" {
			break
		}
		colon := strings.IndexByte(line, ':')
		if colon <= 0 || !isToken(line[:colon]) {
			return nil, a, badRequest("header line %.40q", line)
		}
		value := strings.Trim(line[colon+1:], " \t")
		for rest[0] == ' ' || rest[0] == '\t' { // a line that goes on; rest is never empty before the empty line
			var more string
			more, rest = cutLine(rest)
			value = strings.Trim(value+" "+strings.Trim(more, " \t"), " \t")
		}
		if !fieldValue(value) {
			return nil, a, badRequest("a control character in header %.40q", line[:colon])
		}
		name := textproto.CanonicalMIMEHeaderKey(line[:colon])
		switch name {
		case "Host":
			if haveHost {
				return nil, a, badRequest("several Host headers")
			}
			host, haveHost = value, true
			if !httpguts.ValidHostHeader(host) {
				return nil, a, badRequest("Host %.40q", host)
			}
			continue
		case "Content-Length":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || !digits(value) {
				return nil, a, badRequest("Content-Length %.40q", value)
			}
			if haveLength && n != length {
				return nil, a, badRequest("several lengths")
			}
			if haveLength {
				continue
			}
			length, haveLength = n, true
		case "Transfer-Encoding":
			coding = value
			codings++
			continue
		case "Connection":
			for token := range strings.SplitSeq(value, ",") {
				token = strings.TrimSpace(token)
				closes = closes || strings.EqualFold(token, "close")
				keeps = keeps || strings.EqualFold(token, "keep-alive")
			}
		case "Expect":
			if minor > 0 {
				if !strings.EqualFold(value, "100-continue") {
					return nil, a, refuse(http.StatusExpectationFailed, "Expect %.40q", value)
				}
				a.continues = true
			}
		}
		if prior, ok := h[name]; ok {
			h[name] = append(prior, value)
			continue
		}
		values[0] = value
		h[name], values = values[:1:1], values[1:]
	}
	if minor > 0 && !haveHost && method != http.MethodConnect {
		return nil, a, badRequest("no Host header")
	}
	r := (&http.Request{
		Method: method, URL: u, Proto: protocols[minor], ProtoMajor: 1, ProtoMinor: minor,
		Header: h, Body: http.NoBody, Host: host, RequestURI: target,
	}).WithContext(ctx)
	if u.Host != "" {
		r.Host = u.Host
	}
	a.d.done = true
	switch {
	case codings > 0 && minor == 0:
		// HTTP/1.0 has no chunks. Who sends some must not have them read as a request.
		closes = true
		fallthrough
	case codings == 0:
		if haveLength {
			r.ContentLength = length
			a.d = decoder{framing: framedLength, left: length, done: length == 0}
		}
	case codings > 1 || !strings.EqualFold(coding, "chunked"):
		return nil, a, refuse(http.StatusNotImplemented, "Transfer-Encoding %.40q", coding)
	default:
		if haveLength {
			// Somebody in front of us may have believed the length. The chunks are
			// right, and nothing behind them is read as a request.
			delete(h, "Content-Length")
			closes = true
		}
		r.ContentLength, r.TransferEncoding = -1, chunkedOnly
		a.d = decoder{framing: framedChunks}
	}
	a.continues = a.continues && !a.d.done
	r.Close = closes || !keeps
	return r, a, nil
}

// protocols are the versions by their minor number.
var protocols = [10]string{
	"HTTP/1.0", "HTTP/1.1", "HTTP/1.2", "HTTP/1.3", "HTTP/1.4", "HTTP/1.5", "HTTP/1.6", "HTTP/1.7", "HTTP/1.8", "HTTP/1.9",
}

func requestLine(line string) (method, target string, minor int, bad *refusal) {
	method, rest, ok := strings.Cut(line, " ")
	target, proto, ok2 := strings.Cut(rest, " ")
	if !ok || !ok2 || !isToken(method) {
		return "", "", 0, badRequest("request line %.40q", line)
	}
	if len(proto) != len("HTTP/1.1") || proto[:5] != "HTTP/" || !digits(proto[5:6]) || proto[6] != '.' || !digits(proto[7:]) {
		return "", "", 0, badRequest("protocol %.40q", proto)
	}
	if proto[5] != '1' {
		return "", "", 0, refuse(http.StatusHTTPVersionNotSupported, "%s", proto)
	}
	return method, target, int(proto[7] - '0'), nil
}

// requestURL reads a request target.
func requestURL(method, target string) (*url.URL, *refusal) {
	if plainPath(target) {
		return &url.URL{Path: target}, nil
	}
	authority := method == http.MethodConnect && !strings.HasPrefix(target, "/")
	full := target
	if authority {
		full = "http://" + target
	}
	u, err := url.ParseRequestURI(full)
	if err != nil {
		return nil, badRequest("request target %.40q", target)
	}
	if authority {
		u.Scheme = "" // as net/http has it
	}
	return u, nil
}

// plainPath tells whether s is a path in which nothing has a meaning of its own.
func plainPath(s string) bool {
	if len(s) == 0 || s[0] != '/' || len(s) > 1 && s[1] == '/' {
		return false
	}
	for i := range len(s) {
		if !pathChars[s[i]] {
			return false
		}
	}
	return true
}

var pathChars = func() (t [256]bool) {
	for _, c := range "-._~/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()
