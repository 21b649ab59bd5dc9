package http1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// appendHead appends request line and header of r.
func appendHead(b []byte, r *Request) ([]byte, error) {
	if !isToken(r.Method) {
		return b, fmt.Errorf("method %q is not a token", r.Method)
	}
	if r.Target == "" || !visible(r.Target) {
		return b, errors.New("the request target has a space or a control character, or is empty")
	}
	if !fieldValue(r.Host) {
		return b, errors.New("the Host header has a control character")
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue
		}
		if !isToken(name) {
			return b, fmt.Errorf("header name %q is not a token", name)
		}
		for _, v := range values {
			if !fieldValue(v) {
				return b, fmt.Errorf("header %s has a control character", name)
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	switch {
	case r.Length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case r.Length > 0 || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, r.Length, 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// visible tells whether s consists of visible ASCII characters.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// writeChunk writes before as it is and p, when it is not empty, as one chunk.
func writeChunk(w io.Writer, before, p []byte) error {
	head := heads.Get().(*[]byte)
	buf := (*head)[:0]
	buf = append(buf, before...)
	if len(p) > 0 {
		buf = strconv.AppendInt(buf, int64(len(p)), 16)
		buf = append(buf, "\r\n"...)
		buf = append(buf, p...)
		buf = append(buf, "\r\n"...)
	}
	_, err := w.Write(buf)
	putHead(head, buf)
	return err
}

// writeTwo writes a and b with one call to the kernel where it can; over is
// the connection to write to, c itself or TLS above it.
func (c *countingConn) writeTwo(over net.Conn, a, b []byte) error {
	if len(b) == 0 {
		_, err := over.Write(a)
		return err
	}
	if over != net.Conn(c) {
		if _, err := over.Write(a); err != nil {
			return err
		}
		_, err := over.Write(b)
		return err
	}
	c.begun.Add(1)
	bufs := net.Buffers{a, b}
	n, err := bufs.WriteTo(c.Conn) // *net.TCPConn does it with writev
	c.written.Add(n)
	if err == nil {
		c.ended.Add(1)
	}
	return err
}
