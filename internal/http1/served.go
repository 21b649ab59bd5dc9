package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fournines/internal/reactor"
)

// What a connection is at.
const (
	working int32 = iota
	idling        // it waits for the first byte of a request
	woken         // it waits no more: its time is over, or the server stops
)

const (
	// lingerTime and lingerBytes bound how long a connection that ends goes on
	// reading. A kernel that has bytes for a closed socket sends a reset, which
	// can overtake the answer.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 4 << 20
)

// under is a connection on top of a TCP connection, which hands its bytes on as
// they are once it has read a header of its own.
type under interface {
	TCPConn() (*net.TCPConn, bool)
}

var errNotTCP = errors.New("not a TCP connection")

// served is one client's connection. Its goroutine alone closes it.
type served struct {
	s      *Server
	shard  *shard
	nc     net.Conn // as it was accepted
	tcp    *net.TCPConn
	below  net.Conn // tcp
	raw    syscall.RawConn
	fd     int // of tcp; -1 where sockets are not used directly
	peer   string
	ctx    context.Context
	cancel context.CancelFunc
	watch  reactor.Watch // of the client's leaving
	try    func(fd uintptr) bool

	// Of the goroutine that reads.
	over    bool    // nc may hold bytes that tcp does not have any more
	armed   bool    // a read deadline is set
	pooled  *[]byte // what pending lies in
	pending []byte  // read, and not used yet
	readErr error   // of try

	state  atomic.Int32
	due    atomic.Int64 // the turn of the sweep that ends the idling
	mu     sync.Mutex   // held while the state goes to or from woken, and for what follows
	killed bool
	cut    bool      // the reading of a body is broken off
	until  time.Time // when the reading of a body is given up; zero for never

	says sync.Mutex // held while "100 Continue" or the head of the answer is written
	said bool       // the head of the answer
}

func newServed(s *Server, nc net.Conn) (*served, error) {
	c := &served{s: s, nc: nc, fd: -1}
	tcp, ok := nc.(*net.TCPConn)
	if u, below := nc.(under); below {
		tcp, ok = u.TCPConn()
		c.over = true
	}
	if !ok {
		return nil, errNotTCP
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	c.tcp, c.below, c.raw = tcp, tcp, raw
	if direct {
		_ = raw.Control(func(u uintptr) { c.fd = int(u) })
	} else {
		c.over = true
	}
	c.ctx, c.cancel = context.WithCancel(s.cfg.Base)
	c.try = c.tryRead
	c.due.Store(s.tick.Load() + s.header)
	return c, nil
}

// serve runs from the connection's beginning to its end.
func (c *served) serve() {
	defer c.s.running.Add(-1)
	defer c.cancel()
	if loop := c.s.cfg.Loop(); loop != nil && c.fd >= 0 {
		_ = loop.Add(&c.watch, c.fd, 0, (*leaving)(c)) // without it, the next write tells
	}
	linger := false
	for wait := c.s.header; ; wait = c.s.idle {
		if len(c.pending) == 0 && !c.await(wait) {
			break
		}
		head, bad := c.head()
		if head == nil && bad == nil {
			break
		}
		if bad == nil && string(head) == preface && c.s.cfg.HTTP2 != nil {
			c.watch.Stop()
			c.s.cfg.HTTP2(c.taken())
			c.s.forget(c)
			return
		}
		var r *http.Request
		var a asked
		if bad == nil {
			r, a, bad = parseRequest(c.ctx, string(head))
			c.took(len(head))
		}
		if bad != nil {
			c.refuse(bad)
			linger = true
			break
		}
		end := c.answer(r, a)
		if end == endTaken {
			return
		}
		if end != endKept {
			linger = end == endLinger
			break
		}
	}
	c.leave()
	if linger {
		c.linger()
	}
	c.release()
	_ = c.nc.Close()
}

// leave takes the connection off all books.
func (c *served) leave() {
	c.watch.Stop()
	c.s.forget(c)
}

// leaving is a connection whose client may leave.
type leaving served

// Ready implements reactor.Handler.
func (c *leaving) Ready(reactor.Events) reactor.Next {
	c.cancel()
	return reactor.Stop
}

// await waits for the first bytes of a request, and tells whether there are any.
func (c *served) await(turns int64) bool {
	if c.armed {
		c.setReadDeadline(time.Time{})
	}
	c.due.Store(c.s.tick.Load() + turns)
	c.state.Store(idling)
	if c.s.closing.Load() {
		c.wake() // whoever stops the server may have missed this one
	}
	if c.over {
		c.begin()
		n, err := c.readOver((*c.pooled)[:cap(*c.pooled)])
		c.end(n, err)
	} else if err := c.raw.Read(c.try); err != nil {
		c.readErr = err
	}
	if !c.state.CompareAndSwap(idling, working) {
		c.mu.Lock() // whoever has woken us is through
		c.state.Store(working)
		c.mu.Unlock()
		c.setReadDeadline(time.Time{})
		if len(c.pending) == 0 && errors.Is(c.readErr, os.ErrDeadlineExceeded) && !c.over {
			c.try(uintptr(c.fd)) // what came at the last moment
		}
	}
	if len(c.pending) == 0 {
		return false
	}
	if c.peer == "" {
		c.peer = c.nc.RemoteAddr().String()
	}
	return true
}

// begin takes a buffer.
func (c *served) begin() { c.pooled = heads.Get().(*[]byte) }

// end notes what has been read into it.
func (c *served) end(n int, err error) {
	c.readErr = err
	if n == 0 {
		c.release()
		return
	}
	c.pending = (*c.pooled)[:n]
}

// tryRead reads without waiting; false means that there is nothing yet.
func (c *served) tryRead(fd uintptr) bool {
	c.begin()
	n, err := reactor.ReadNow(int(fd), (*c.pooled)[:cap(*c.pooled)])
	c.end(n, err)
	return err != reactor.ErrAgain //nolint:errorlint // never wrapped
}

// release gives the buffer back.
func (c *served) release() {
	if c.pooled != nil {
		putHead(c.pooled, *c.pooled)
		c.pooled, c.pending = nil, nil
	}
}

// took forgets the first n of the pending bytes.
func (c *served) took(n int) {
	if c.pending = c.pending[n:]; len(c.pending) == 0 {
		c.release()
	}
}

// keep makes rest what is read next. Nothing is pending.
func (c *served) keep(rest []byte) {
	if len(rest) == 0 {
		return
	}
	c.begin()
	*c.pooled = append((*c.pooled)[:0], rest...)
	c.pending = *c.pooled
}

// wake ends the idling; what has come by then is still served.
func (c *served) wake() {
	if c.state.Load() != idling {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.CompareAndSwap(idling, woken) {
		_ = c.tcp.SetReadDeadline(past)
	}
}

// kill breaks off whatever the connection is at.
func (c *served) kill() {
	c.mu.Lock()
	c.killed = true
	_ = c.tcp.SetDeadline(past)
	c.mu.Unlock()
	c.cancel()
}

// setReadDeadline bounds the reads that wait.
func (c *served) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.killed || c.cut {
		return
	}
	c.armed = !t.IsZero()
	_ = c.tcp.SetReadDeadline(t)
}

// interrupt breaks off a read of the body, and keeps others from beginning.
func (c *served) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	_ = c.tcp.SetReadDeadline(past)
}

// uninterrupt is called when nobody reads any more.
func (c *served) uninterrupt() {
	c.mu.Lock()
	c.cut = false
	c.mu.Unlock()
	c.setReadDeadline(time.Time{})
}

// bodyDeadline is what the handler has set for reading.
func (c *served) bodyDeadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until
}

func (c *served) setBodyDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = t
}

// read gives what is here, or waits until deadline.
func (c *served) read(p []byte, deadline time.Time) (int, error) {
	if c.fd >= 0 && !c.over {
		n, err := reactor.ReadNow(c.fd, p)
		if err != reactor.ErrAgain { //nolint:errorlint // never wrapped
			return n, err
		}
	}
	if c.armed || !deadline.IsZero() {
		c.setReadDeadline(deadline)
	}
	if c.over {
		return c.readOver(p)
	}
	return c.below.Read(p)
}

// readOver reads from what lies over the TCP connection; when that gives less than
// it could, it is empty.
func (c *served) readOver(p []byte) (int, error) {
	n, err := c.nc.Read(p)
	c.over = n == 0 || n == len(p) || !direct
	return n, err
}

// writeNow writes what the socket takes at once.
func (c *served) writeNow(p []byte) (int, error) {
	return writeNow(c.fd, p)
}

// writeNow writes what the socket takes at once; fd is -1 where sockets are not
// used directly.
func writeNow(fd int, p []byte) (int, error) {
	if fd < 0 {
		return 0, nil
	}
	return reactor.WriteNow(fd, p)
}

// writeUntil writes p; the client may take nothing until deadline.
func (c *served) writeUntil(p []byte, deadline time.Time) error {
	c.mu.Lock()
	if !c.killed {
		_ = c.tcp.SetWriteDeadline(deadline)
	}
	c.mu.Unlock()
	_, err := c.tcp.Write(p)
	return err
}

// say writes what is not a handler's.
func (c *served) say(text []byte) error {
	n, err := c.writeNow(text)
	if err != nil || n == len(text) {
		return err
	}
	return c.writeUntil(text[n:], time.Now().Add(c.s.cfg.WriteTimeout))
}

// head returns the pending bytes up to a head's end, after waiting for it. Neither
// a head nor a refusal means that the connection has ended.
func (c *served) head() ([]byte, *refusal) {
	deadline := time.Time{}
	for from := 0; ; {
		buf := c.pending
		if !tokenChars[buf[0]] {
			return nil, badRequest("request line %.40q", buf)
		}
		if end := headEnd(buf, from); end >= 0 {
			if end > c.s.cfg.MaxHeaderBytes {
				break
			}
			return buf[:end], nil
		}
		if len(buf) >= c.s.cfg.MaxHeaderBytes {
			break
		}
		from = max(0, len(buf)-3)
		if deadline.IsZero() {
			deadline = time.Now().Add(c.s.cfg.HeaderTimeout)
		}
		if len(buf) == cap(buf) {
			// What lies before it in the pooled buffer has been served.
			if b := *c.pooled; cap(b) > len(buf) {
				buf = append(b[:0], buf...)
			} else {
				buf = append(buf, 0)[:len(buf)]
			}
			*c.pooled = buf
		}
		n, err := c.read(buf[len(buf):cap(buf)], deadline)
		c.pending = buf[:len(buf)+n]
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				return nil, badRequest("the header ends in the middle")
			}
			return nil, nil
		}
	}
	return nil, refuse(http.StatusRequestHeaderFieldsTooLarge, "the header is longer than %d bytes", c.s.cfg.MaxHeaderBytes)
}

// refuse answers what is not a request.
func (c *served) refuse(bad *refusal) {
	body := fmt.Sprintf("%d %s: %s\n", bad.status, http.StatusText(bad.status), bad.what)
	_ = c.say(fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		bad.status, http.StatusText(bad.status), len(body), body))
}

// sayContinue asks a client for its body, unless it has been answered already.
func (c *served) sayContinue() error {
	c.says.Lock()
	defer c.says.Unlock()
	if c.said {
		return nil
	}
	return c.say([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

// end is what becomes of a connection after an answer.
type end uint8

const (
	endKept   end = iota // it takes the next request
	endClosed            // it ends
	endLinger            // it ends, and the client may be sending still
	endTaken             // it is somebody else's
)

// answer serves one request.
func (c *served) answer(r *http.Request, a asked) end {
	r.RemoteAddr = c.peer
	var body *requestBody
	if !a.d.done {
		body = &requestBody{c: c, d: a.d, continues: a.continues}
		r.Body = body
		c.said = false
		c.setBodyDeadline(time.Time{})
	}
	w := &Reply{
		c: c, fd: c.fd, r: r, body: body, continues: a.continues,
		header: answerHeaders.Get().(http.Header), closes: r.Close, timeout: c.s.cfg.WriteTimeout,
	}
	ok := c.run(w, r)
	if w.taken {
		return endTaken
	}
	if body != nil {
		body.close()
	}
	if !w.wrote && c.ctx.Err() != nil {
		return endClosed // nobody reads an answer
	}
	if !ok || !w.finish() {
		return endClosed
	}
	if w.header != nil {
		clear(w.header)
		answerHeaders.Put(w.header)
	}
	if w.closes {
		if len(c.pending) > 0 || body != nil && !body.d.done {
			return endLinger
		}
		return endClosed
	}
	if body != nil && !body.discard() {
		return endLinger
	}
	return endKept
}

// run calls the handler and tells whether it has returned in good order.
func (c *served) run(w *Reply, r *http.Request) (ok bool) {
	defer func() {
		if ok {
			return
		}
		if p := recover(); p != http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
			c.s.cfg.Log.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	c.s.cfg.Handler.ServeHTTP(w, r)
	return true
}

// linger lets a client that is still sending read its answer.
func (c *served) linger() {
	_ = c.tcp.CloseWrite()
	deadline := time.Now().Add(lingerTime)
	buf := bodies.Get().(*[bodyBytes]byte)
	defer bodies.Put(buf)
	for left := lingerBytes; left > 0 && time.Now().Before(deadline); {
		n, err := c.read(buf[:], deadline)
		left -= n
		if n == 0 && err != nil {
			return
		}
	}
}

// taken returns the connection with what has been read of it.
func (c *served) taken() net.Conn {
	c.setReadDeadline(time.Time{})
	if len(c.pending) == 0 {
		return c.nc
	}
	b := bytes.Clone(c.pending)
	c.release()
	return &begunConn{Conn: c.nc, begun: b}
}

// begunConn is a connection of which the first bytes have been read.
type begunConn struct {
	net.Conn
	begun []byte
}

// Read implements net.Conn.
func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.begun) > 0 {
		n := copy(p, c.begun)
		c.begun = c.begun[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends the sending side.
func (c *begunConn) CloseWrite() error {
	if t, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return nil
}

// hijacked returns the connection for a change of protocol.
func (c *served) hijacked() (net.Conn, *bufio.ReadWriter) {
	c.leave()
	_ = c.tcp.SetDeadline(time.Time{})
	nc := c.taken()
	return nc, bufio.NewReadWriter(bufio.NewReader(nc), bufio.NewWriter(nc))
}
