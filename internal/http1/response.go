package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

const (
	// maxInterim bounds the 1xx answers before the real one.
	maxInterim = 8
	// maxFields bounds the header lines of an answer.
	maxFields = 1000
)

// MalformedError says what is wrong with an answer, or with a request's body.
type MalformedError struct{ What string }

// Error implements error.
func (e *MalformedError) Error() string { return "malformed message: " + e.What }

func malformed(format string, args ...any) error {
	return &MalformedError{fmt.Sprintf(format, args...)}
}

// readHead reads up to the header of the final answer.
func (b *Body) readHead(r *Request) (*http.Response, error) {
	pooled := heads.Get().(*[]byte)
	buf := (*pooled)[:0]
	for range maxInterim + 1 {
		end := 0
		for from := 0; ; {
			if end = headEnd(buf, from); end >= 0 {
				break
			}
			from = max(0, len(buf)-3)
			if len(buf) >= b.t.cfg.MaxHeaderBytes {
				putHead(pooled, buf)
				return nil, malformed("the header is longer than %d bytes", b.t.cfg.MaxHeaderBytes)
			}
			if len(buf) == cap(buf) {
				buf = append(buf, 0)[:len(buf)]
			}
			n, err := b.c.Read(buf[len(buf):min(cap(buf), max(len(buf)+1, b.t.cfg.MaxHeaderBytes))])
			buf = buf[:len(buf)+n]
			if n > 0 {
				continue
			}
			if err != nil {
				if errors.Is(err, io.EOF) && len(buf) > 0 {
					err = io.ErrUnexpectedEOF
				}
				putHead(pooled, buf)
				return nil, err
			}
		}
		resp, reuse, d, err := parseHead(string(buf[:end]), r.Method)
		if err != nil {
			putHead(pooled, buf)
			return nil, err
		}
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			buf = buf[:copy(buf, buf[end:])]
			continue
		}
		b.d, b.reuse = d, reuse
		if end < len(buf) {
			// The rest of buf is kept until the body has been read that far.
			b.pooled, b.pending = pooled, buf[end:]
			*pooled = buf[:0]
		} else {
			putHead(pooled, buf)
		}
		resp.Body = b
		if resp.StatusCode == http.StatusSwitchingProtocols {
			if r.Header.Get("Upgrade") == "" {
				b.release()
				return nil, malformed("it switches protocols unasked")
			}
			b.reuse = false
			resp.Body = &upgraded{b}
			return resp, nil
		}
		if b.d.done {
			b.finish()
		}
		return resp, nil
	}
	putHead(pooled, buf)
	return nil, malformed("more than %d interim answers", maxInterim)
}

// headEnd returns the index after the empty line that ends a head, or -1. What
// lies before from has been looked at.
func headEnd(b []byte, from int) int {
	for i := from; ; {
		j := bytes.IndexByte(b[i:], '\n')
		if j < 0 {
			return -1
		}
		i += j + 1
		switch {
		case i < len(b) && b[i] == '\n':
			return i + 1
		case i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n':
			return i + 2
		}
	}
}

// parseHead reads one whole head, which ends with its empty line. Its strings
// point into head.
func parseHead(head, method string) (resp *http.Response, reuse bool, d decoder, err error) {
	line, rest := cutLine(head)
	if len(line) < len("HTTP/1.1 200") || !strings.HasPrefix(line, "HTTP/1.") || (line[7] != '0' && line[7] != '1') || line[8] != ' ' {
		return nil, false, d, malformed("status line %.40q", line)
	}
	minor := int(line[7] - '0')
	code := line[9:12]
	status, err := strconv.Atoi(code)
	if err != nil || !digits(code) || status < 100 || len(line) > 12 && line[12] != ' ' || !fieldValue(line) {
		return nil, false, d, malformed("status line %.40q", line)
	}
	resp = &http.Response{
		Status: line[9:], StatusCode: status, Proto: line[:8], ProtoMajor: 1, ProtoMinor: minor, ContentLength: -1,
	}
	// All single values share one array, as in net/textproto.
	lines := strings.Count(rest, "\n") - 1
	if lines > maxFields {
		return nil, false, d, malformed("more than %d header lines", maxFields)
	}
	h := make(http.Header, lines)
	values := make([]string, lines)
	length, haveLength, chunked, haveTE := int64(0), false, false, false
	closes, keeps := false, false
	for {
		line, rest = cutLine(rest)
		if line == "" {
			break
		}
		colon := strings.IndexByte(line, ':')
		if colon <= 0 || !isToken(line[:colon]) {
			// A line that begins with a space would continue the one before.
			return nil, false, d, malformed("header line %.40q", line)
		}
		value := strings.Trim(line[colon+1:], " \t")
		if !fieldValue(value) {
			return nil, false, d, malformed("a control character in header %.40q", line[:colon])
		}
		name := textproto.CanonicalMIMEHeaderKey(line[:colon])
		switch name {
		case "Content-Length":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || !digits(value) {
				return nil, false, d, malformed("Content-Length %.40q", value)
			}
			if haveLength && n != length {
				return nil, false, d, malformed("several lengths")
			}
			if haveLength {
				continue
			}
			length, haveLength = n, true
		case "Transfer-Encoding":
			if haveTE || !strings.EqualFold(value, "chunked") || minor == 0 {
				return nil, false, d, malformed("Transfer-Encoding %.40q", value)
			}
			haveTE, chunked = true, true
			continue
		case "Connection":
			for token := range strings.SplitSeq(value, ",") {
				token = strings.TrimSpace(token)
				closes = closes || strings.EqualFold(token, "close")
				keeps = keeps || strings.EqualFold(token, "keep-alive")
			}
		}
		if prior, ok := h[name]; ok {
			h[name] = append(prior, value)
			continue
		}
		values[0] = value
		h[name], values = values[:1:1], values[1:]
	}
	if haveLength && haveTE {
		return nil, false, d, malformed("both Transfer-Encoding and Content-Length")
	}
	resp.Header = h
	reuse = !closes && (minor == 1 || keeps)
	resp.Close = !reuse
	if haveLength {
		resp.ContentLength = length
	}
	if chunked {
		resp.TransferEncoding = chunkedOnly
	}
	switch {
	case method == http.MethodHead:
		d.done = true
	case status < 200 || status == http.StatusNoContent || status == http.StatusNotModified:
		d.done = true
		if status == http.StatusNoContent {
			resp.ContentLength = 0
		}
	case chunked:
		d.framing = framedChunks
	case haveLength:
		d.framing, d.left, d.done = framedLength, length, length == 0
	default:
		d.framing = framedClose
		reuse = false
	}
	return resp, reuse, d, nil
}

var chunkedOnly = []string{"chunked"}

// cutLine cuts after the first LF; a CR before it is not part of the line.
func cutLine(s string) (line, rest string) {
	i := strings.IndexByte(s, '\n')
	if i < 0 {
		return s, ""
	}
	line, rest = s[:i], s[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// isToken tells whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChars[s[i]] {
			return false
		}
	}
	return s != ""
}

var tokenChars = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// fieldValue tells whether s has no control character but tabs.
func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
