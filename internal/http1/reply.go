package http1

import (
	"bufio"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// outBytes is up to where an answer is gathered to be written at once.
	outBytes = 8 << 10
	// maxRest bounds what waits for a client that does not read; beyond it a write
	// of a stream waits for the client.
	maxRest = 64 << 10
	// keptOut is how large a buffer of answers may have grown to be kept.
	keptOut = 64 << 10
)

// outs are what answers are gathered in.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// replyFraming says how the end of an answer's body is told.
type replyFraming uint8

const (
	replyOpen   replyFraming = iota // not decided: it may be short
	replyLength                     // as long as Content-Length says
	replyChunks
	replyClose // by the end of the connection, for HTTP/1.0
	replyNone  // there is none
)

// Reply is the answer to one request, an http.ResponseWriter. An answer that is
// short goes out in one piece when its handler returns. Header values with line
// breaks get spaces instead; Connection is passed on as far as it says "close";
// 1xx answers and trailers cannot be sent, and no Content-Type is guessed.
//
// It is not safe for concurrent use, but for the deadlines of reading.
type Reply struct {
	// What each event of a stream needs, in one place.
	fd        int // of c
	err       error
	wrote     bool // WriteHeader has been called
	closes    bool // the connection ends with this answer
	taken     bool // by Hijack
	stream    bool
	continues bool // the client has said "Expect: 100-continue"
	framing   replyFraming
	out       *[]byte // from outs: what has not been written; nil for nothing
	rest      []byte  // of a stream: what the client has not taken yet

	c        *served
	r        *http.Request
	body     *requestBody // nil without one
	header   http.Header
	left     int64 // of the length
	tail     int   // where in out the header's last lines belong, while the framing is open
	deadline time.Time
	timeout  time.Duration // of each wait when there is no deadline
}

// answerHeaders are the headers of answers, empty.
var answerHeaders = sync.Pool{New: func() any { return make(http.Header, 12) }}

// Header implements http.ResponseWriter.
func (w *Reply) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}

// SetWriteTimeout bounds each wait for the client that has no deadline, instead
// of ServerConfig.WriteTimeout. It must be positive.
func (w *Reply) SetWriteTimeout(d time.Duration) { w.timeout = d }

// SetReadDeadline serves http.ResponseController: it bounds the next reads of
// the request's body.
func (w *Reply) SetReadDeadline(t time.Time) error {
	w.c.setBodyDeadline(t)
	return nil
}

// SetWriteDeadline serves http.ResponseController: it bounds the next wait for
// the client, whose timeout does not count then.
func (w *Reply) SetWriteDeadline(t time.Time) error {
	w.deadline = t
	return nil
}

// WriteHeader implements http.ResponseWriter.
func (w *Reply) WriteHeader(status int) {
	if w.wrote || w.taken || status < http.StatusOK {
		return
	}
	w.wrote = true
	w.closes = w.closes || w.body != nil && w.body.ends() || w.c.s.closing.Load()
	if w.r.Method == http.MethodHead || status == http.StatusNoContent || status == http.StatusNotModified {
		w.framing = replyNone
	}
	w.out = outs.Get().(*[]byte)
	b := (*w.out)[:0]
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	if text := http.StatusText(status); text != "" {
		b = append(b, text...)
	} else {
		b = append(b, "status code "...)
		b = strconv.AppendInt(b, int64(status), 10)
	}
	b = append(b, "\r\n"...)
	dated := false
	for name, values := range w.header {
		switch name {
		case "Transfer-Encoding", "Trailer":
			continue
		case "Content-Length":
			n, err := strconv.ParseInt(values[0], 10, 64)
			if err != nil || n < 0 || status == http.StatusNoContent {
				continue
			}
			if w.framing == replyOpen {
				w.framing, w.left = replyLength, n
			}
			values = values[:1]
		case "Connection":
			for _, v := range values {
				for token := range strings.SplitSeq(v, ",") {
					w.closes = w.closes || strings.EqualFold(strings.TrimSpace(token), "close")
				}
			}
			continue
		case "Date":
			dated = true
		}
		for _, v := range values {
			b = append(b, name...)
			b = append(b, ": "...)
			from := len(b)
			b = append(b, v...)
			if strings.IndexByte(v, '\n') >= 0 || strings.IndexByte(v, '\r') >= 0 {
				for i, c := range b[from:] {
					if c == '\n' || c == '\r' {
						b[from+i] = ' '
					}
				}
			}
			b = append(b, "\r\n"...)
		}
	}
	if !dated {
		b = append(b, *w.c.s.date.Load()...)
	}
	*w.out, w.tail = b, len(b)
	if w.stream {
		w.header = nil // it is not needed while a stream lasts
	}
	if w.framing != replyOpen {
		w.closeHead()
	}
}

// closeHead ends the header, before what has been written of the body.
func (w *Reply) closeHead() {
	var lines [64]byte
	b := lines[:0]
	switch w.framing {
	case replyChunks:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case replyClose:
		w.closes = true
	case replyOpen, replyLength, replyNone:
	}
	switch {
	case w.closes:
		b = append(b, "Connection: close\r\n"...)
	case w.r.ProtoMinor == 0:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	w.insert(append(b, "\r\n"...))
}

// insert puts b at the header's end.
func (w *Reply) insert(b []byte) {
	out := *w.out
	body := len(out) - w.tail
	out = append(out, b...)
	if body > 0 {
		copy(out[w.tail+len(b):], out[w.tail:w.tail+body])
		copy(out[w.tail:], b)
	}
	w.tail += len(b)
	*w.out = out
}

// decide ends the header of an answer whose length is not known; what has been
// written of the body becomes its first piece.
func (w *Reply) decide() {
	if w.framing != replyOpen {
		return
	}
	if w.r.ProtoMinor == 0 {
		w.framing = replyClose
		w.closeHead()
		return
	}
	w.framing = replyChunks
	w.closeHead()
	if n := len(*w.out) - w.tail; n > 0 {
		var size [20]byte
		w.insert(append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...))
		*w.out = append(*w.out, "\r\n"...)
	}
}

// Write implements http.ResponseWriter.
func (w *Reply) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.taken:
		return 0, http.ErrHijacked
	case w.err != nil:
		return 0, w.err
	case len(p) == 0:
		return 0, nil
	case w.framing == replyNone:
		if w.r.Method != http.MethodHead {
			return 0, http.ErrBodyNotAllowed
		}
		return len(p), nil
	}
	if w.stream {
		w.decide()
		if len(w.rest) > maxRest && w.Drain() != nil {
			return 0, w.err
		}
	}
	if w.framing == replyOpen && len(*w.out)-w.tail+len(p) > outBytes {
		w.decide()
	}
	if w.framing == replyLength {
		if int64(len(p)) > w.left {
			w.send() // what is too long must not look like a whole answer
			w.err = http.ErrContentLength
			return 0, w.err
		}
		w.left -= int64(len(p))
	}
	if w.add(p); w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// add passes on a piece of the body, or keeps it to be sent with more.
func (w *Reply) add(p []byte) {
	if w.framing != replyChunks && len(p) > outBytes && !w.stream {
		w.send() // what is long is not copied
		if w.err == nil {
			w.err = w.write(p)
		}
		return
	}
	if w.out == nil {
		w.out = outs.Get().(*[]byte)
		*w.out = (*w.out)[:0]
	}
	out := *w.out
	if w.framing == replyChunks {
		out = strconv.AppendInt(out, int64(len(p)), 16)
		out = append(out, "\r\n"...)
		out = append(out, p...)
		out = append(out, "\r\n"...)
	} else {
		out = append(out, p...)
	}
	*w.out = out
	if w.stream || w.framing != replyOpen && len(out) > outBytes {
		w.send()
	}
}

// send writes what has been gathered.
func (w *Reply) send() {
	if w.out == nil {
		return
	}
	out := *w.out
	if w.continues {
		w.c.says.Lock()
		w.c.said = true
		w.c.says.Unlock()
	}
	switch {
	case w.err != nil:
	case w.stream:
		w.push(out)
	default:
		w.err = w.write(out)
	}
	if cap(out) <= keptOut {
		*w.out = out
		outs.Put(w.out)
	}
	w.out = nil
}

// write waits for the client where it has to.
func (w *Reply) write(p []byte) error {
	n, err := w.c.writeNow(p)
	if err != nil || n == len(p) {
		return err
	}
	return w.wait(p[n:])
}

// wait writes p to a client that is behind.
func (w *Reply) wait(p []byte) error {
	deadline := w.deadline
	if deadline.IsZero() {
		deadline = time.Now().Add(w.timeout)
	}
	return w.c.writeUntil(p, deadline)
}

// FlushError serves http.ResponseController.
func (w *Reply) FlushError() error {
	w.WriteHeader(http.StatusOK)
	if w.taken {
		return http.ErrHijacked
	}
	w.decide()
	w.send()
	return w.err
}

// finish ends the answer and tells whether it is whole.
func (w *Reply) finish() bool {
	w.WriteHeader(http.StatusOK)
	if w.framing == replyOpen {
		n := len(*w.out) - w.tail
		w.framing = replyLength
		var line [40]byte
		b := strconv.AppendInt(append(line[:0], "Content-Length: "...), int64(n), 10)
		w.insert(append(b, "\r\n"...))
		w.closeHead()
	}
	if w.framing == replyChunks {
		if w.out == nil {
			w.out = outs.Get().(*[]byte)
			*w.out = (*w.out)[:0]
		}
		*w.out = append(*w.out, "0\r\n\r\n"...)
	}
	w.send()
	_ = w.Drain()
	return w.err == nil && w.left == 0
}

// Hijack serves http.ResponseController. The context of the request does not
// tell of the client's leaving any more.
func (w *Reply) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.taken || w.wrote {
		return nil, nil, http.ErrHijacked
	}
	if w.body != nil {
		w.body.close()
	}
	w.taken = true
	nc, rw := w.c.hijacked()
	return nc, rw, nil
}

// Stream makes each Write go out at once, with one call to the kernel, and not
// wait for the client as long as not much is behind: it may then be called where
// nothing must block. What the client's socket does not take is kept; Behind and
// Drain are for that.
func (w *Reply) Stream() { w.stream = true }

// push gives out to the socket, and keeps what it does not take.
func (w *Reply) push(out []byte) {
	n := 0
	if len(w.rest) == 0 {
		if n, w.err = writeNow(w.fd, out); w.err != nil {
			return
		}
	}
	w.rest = append(w.rest, out[n:]...)
}

// Behind tells whether the client of a stream has not taken everything.
func (w *Reply) Behind() bool { return len(w.rest) > 0 && w.err == nil }

// Drain waits until the client has taken everything, or for the deadline.
func (w *Reply) Drain() error {
	if w.err != nil || len(w.rest) == 0 {
		return w.err
	}
	w.err = w.wait(w.rest)
	w.rest = nil
	return w.err
}
