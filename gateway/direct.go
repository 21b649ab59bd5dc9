package gateway

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"fournines/internal/reactor"
)

// maxRest bounds what waits for a client that does not read; beyond it a write
// waits for the client.
const maxRest = 64 << 10

// outs are for what goes to a client in one piece.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// direct is the answer to a client whose connection net/http has given up: its
// goroutine and buffers are gone. Write never waits for the client as long as
// not much is behind; what the socket does not take is kept, and blocked says
// so. It is not safe for concurrent use; while a stream runs the sink's lock
// guards it.
type direct struct {
	conn     *net.TCPConn
	fd       int
	header   http.Header
	wrote    bool  // WriteHeader has been called
	chunked  bool  // otherwise as long as Content-Length says
	left     int64 // of that length
	close    bool  // the connection ends with this answer
	head     []byte
	rest     []byte // what the client has not taken yet
	deadline time.Time
	err      error
	watch    *reactor.Watch // of the client's leaving
}

// Header implements http.ResponseWriter.
func (d *direct) Header() http.Header { return d.header }

// SetWriteDeadline serves http.ResponseController: it bounds the next wait for
// the client.
func (d *direct) SetWriteDeadline(t time.Time) error {
	d.deadline = t
	return nil
}

// WriteHeader implements http.ResponseWriter.
func (d *direct) WriteHeader(status int) {
	if d.wrote {
		return
	}
	d.wrote = true
	b := append([]byte(nil), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	if text := http.StatusText(status); text != "" {
		b = append(b, text...)
	} else {
		b = append(b, "status code "...)
		b = strconv.AppendInt(b, int64(status), 10)
	}
	b = append(b, "\r\n"...)
	d.chunked = true
	for name, values := range d.header {
		switch name {
		case "Transfer-Encoding", "Date":
			continue
		case "Content-Length":
			n, err := strconv.ParseInt(values[0], 10, 64)
			if err != nil || n < 0 {
				continue
			}
			d.chunked, d.left = false, n
		case "Connection":
			d.close = true // the only thing that anybody sets
			continue
		}
		for _, v := range values {
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	b = append(b, "Date: "...)
	b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\n"...)
	if d.close {
		b = append(b, "Connection: close\r\n"...)
	}
	switch {
	case status == http.StatusNoContent || status == http.StatusNotModified:
		d.chunked, d.left = false, 0
	case d.chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	b = append(b, "\r\n"...)
	d.head = b
	d.header = nil
}

// Write implements http.ResponseWriter.
func (d *direct) Write(p []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	if d.err != nil {
		return 0, d.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if len(d.rest) > maxRest && d.drain() != nil {
		return 0, d.err
	}
	pooled := outs.Get().(*[]byte)
	out := (*pooled)[:0]
	out = append(out, d.head...)
	d.head = nil
	if d.chunked {
		out = strconv.AppendInt(out, int64(len(p)), 16)
		out = append(out, "\r\n"...)
		out = append(out, p...)
		out = append(out, "\r\n"...)
	} else {
		if int64(len(p)) > d.left {
			p = p[:d.left]
			d.err = http.ErrContentLength
		}
		d.left -= int64(len(p))
		out = append(out, p...)
	}
	d.push(out)
	if cap(out) <= copyBytes {
		*pooled = out
		outs.Put(pooled)
	}
	if d.err != nil {
		return 0, d.err
	}
	return len(p), nil
}

// FlushError serves http.ResponseController: only a header can be behind.
func (d *direct) FlushError() error {
	if d.err == nil && len(d.head) > 0 {
		head := d.head
		d.head = nil
		d.push(head)
	}
	return d.err
}

// push gives out to the socket, and keeps what it does not take.
func (d *direct) push(out []byte) {
	n := 0
	if len(d.rest) == 0 {
		var err error
		if n, err = reactor.WriteNow(d.fd, out); err != nil {
			if d.err == nil {
				d.err = err
			}
			return
		}
	}
	d.rest = append(d.rest, out[n:]...)
}

// blocked tells whether the client is behind: drain waits for it.
func (d *direct) blocked() bool { return len(d.rest) > 0 && d.err == nil }

// drain waits until the client has taken everything.
func (d *direct) drain() error {
	if d.err != nil || len(d.rest) == 0 {
		return d.err
	}
	_ = d.conn.SetWriteDeadline(d.deadline)
	if _, err := d.conn.Write(d.rest); err != nil {
		d.err = err
	}
	d.rest = nil
	return d.err
}

// end completes the answer and tells whether the connection can take another
// request; if not it has closed it.
func (d *direct) end(whole bool) (again bool) {
	if whole && d.wrote && d.err == nil {
		_ = d.FlushError()
		if d.chunked {
			d.push([]byte("0\r\n\r\n"))
		}
		_ = d.drain()
	}
	if d.watch != nil {
		d.watch.Stop()
	}
	if whole && d.wrote && d.err == nil && !d.close && d.left == 0 {
		_ = d.conn.SetDeadline(time.Time{})
		return true
	}
	_ = d.conn.Close()
	return false
}
