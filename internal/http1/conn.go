package http1

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"fournines/internal/reactor"
)

// countingConn counts what was sent to a server and remembers how much of it
// the server's machine had acknowledged when it closed the connection.
type countingConn struct {
	net.Conn                 // not *net.TCPConn: its ReadFrom would go past the count
	raw      syscall.RawConn // of Conn; nil when it has none
	fd       int             // of Conn, valid until it is closed; -1 where sockets are not used directly
	begun    atomic.Int64    // writes
	ended    atomic.Int64    // writes without an error
	written  atomic.Int64    // bytes
	once     sync.Once
	acked    atomic.Int64 // bytes; -1 when unknown
}

func newCountingConn(nc net.Conn) *countingConn {
	c := &countingConn{Conn: nc, fd: -1}
	c.acked.Store(-1)
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			if direct {
				_ = raw.Control(func(u uintptr) { c.fd = int(u) })
			}
		}
	}
	return c
}

// Read implements net.Conn.
func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.met(err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *countingConn) Write(p []byte) (int, error) {
	c.begun.Add(1)
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	if err == nil {
		c.ended.Add(1)
	}
	return n, err
}

// writeNow is Write for whoever alone may close the connection.
func (c *countingConn) writeNow(p []byte) error {
	if c.fd < 0 {
		_, err := c.Write(p)
		return err
	}
	c.begun.Add(1)
	n, err := reactor.WriteNow(c.fd, p)
	c.written.Add(int64(n))
	if err == nil && n < len(p) {
		n, err = c.Conn.Write(p[n:])
		c.written.Add(int64(n))
	}
	if err == nil {
		c.ended.Add(1)
	}
	return err
}

// quiet tells whether an unused connection is open and has nothing to read.
func (c *countingConn) quiet() bool { return c.fd < 0 || reactor.Quiet(c.fd) }

// met takes note of the first error of reading.
func (c *countingConn) met(err error) { c.once.Do(func() { c.lost(err) }) }

// lost looks at the socket once, before anybody closes it. Only an orderly end
// (FIN) says what the other side had received when it closed, because it
// carries an acknowledgement; what a reset carries the kernel does not look at.
// A write that failed may have swallowed the reset's error, so that reading
// seems to meet an orderly end: then nothing is known either.
func (c *countingConn) lost(err error) {
	if !errors.Is(err, io.EOF) || c.raw == nil {
		return
	}
	acked := ackedBytes(c.raw)
	if c.begun.Load() == c.ended.Load() {
		c.acked.Store(acked)
	}
}

// untouched tells whether the server provably received nothing of what was
// sent after the first `before` bytes: nothing was written, or it closed the
// connection before any of it arrived (a killed process's late bytes are never
// acknowledged). The kernel counts the opening SYN as one byte.
func (c *countingConn) untouched(before int64) bool {
	if c.written.Load() == before {
		return true
	}
	acked := c.acked.Load()
	return acked >= 0 && acked <= before+1
}
