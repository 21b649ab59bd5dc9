package http1

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fournines/internal/reactor"
)

// countingConn counts what was sent to a server and remembers how much of it
// the server's machine had acknowledged when it closed the connection.
//
// While a loop waits for its bytes, the runtime's poller does not have it (see
// leave): it would be woken by them, too, and find nobody who waits.
type countingConn struct {
	net.Conn                 // not *net.TCPConn: its ReadFrom would go past the count; nil while it is bare, and after that when it is closed
	raw      syscall.RawConn // of Conn; nil when it has none
	fd       int             // valid until the connection is closed; -1 where sockets are not used directly

	mu       sync.Mutex // held while Conn changes, and by those who do not own the connection
	bare     bool       // the runtime's poller does not have it: fd is ours
	deadline time.Time

	begun   atomic.Int64 // writes
	ended   atomic.Int64 // writes without an error
	written atomic.Int64 // bytes
	once    sync.Once
	acked   atomic.Int64 // bytes; -1 when unknown
}

func newCountingConn(nc net.Conn) *countingConn {
	c := &countingConn{}
	c.acked.Store(-1)
	c.use(nc)
	return c
}

// use makes nc the connection.
func (c *countingConn) use(nc net.Conn) {
	c.Conn, c.raw, c.fd = nc, nil, -1
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.raw = raw
			if direct {
				_ = raw.Control(func(u uintptr) { c.fd = int(u) })
			}
		}
	}
}

// SetDeadline implements net.Conn. Anybody may call it.
func (c *countingConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.Conn == nil {
		return nil // for join
	}
	return c.Conn.SetDeadline(t)
}

// Close implements net.Conn. Anybody may call it as long as no loop waits.
func (c *countingConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bare {
		return c.closeBare()
	}
	if c.Conn == nil {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

// Read implements net.Conn.
func (c *countingConn) Read(p []byte) (int, error) {
	if err := c.join(); err != nil {
		return 0, err
	}
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
	if !errors.Is(err, io.EOF) || c.raw == nil && !c.bare {
		return
	}
	acked := c.ackedBytes()
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
