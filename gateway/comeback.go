package gateway

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// comeback is a listener for connections that had left net/http for a stream
// and come back after its end: the server takes them for new ones, and their
// clients notice nothing.
type comeback struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu      sync.Mutex
	waiting map[net.Conn]struct{} // back, and without another request so far
	n       atomic.Int64          // of waiting
}

func newComeback(addr net.Addr) *comeback {
	return &comeback{addr: addr, conns: make(chan net.Conn), done: make(chan struct{}), waiting: map[net.Conn]struct{}{}}
}

// Accept implements net.Listener.
func (c *comeback) Accept() (net.Conn, error) {
	select {
	case conn := <-c.conns:
		return conn, nil
	case <-c.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (c *comeback) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// Addr implements net.Listener.
func (c *comeback) Addr() net.Addr { return c.addr }

// give passes conn to the server, or closes it when there is none any more.
func (c *comeback) give(conn net.Conn) {
	c.mu.Lock()
	c.waiting[conn] = struct{}{}
	c.n.Store(int64(len(c.waiting)))
	c.mu.Unlock()
	select {
	case c.conns <- conn:
	case <-c.done:
		c.forget(conn)
		_ = conn.Close()
	}
}

// state is told what the server does with a connection.
func (c *comeback) state(conn net.Conn, s http.ConnState) {
	if s != http.StateNew && c.n.Load() > 0 {
		c.forget(conn)
	}
}

func (c *comeback) forget(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, conn)
	c.n.Store(int64(len(c.waiting)))
}

// hangUp closes the connections that wait for another request: the server's
// shutdown would give each of them five seconds.
func (c *comeback) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.waiting {
		_ = conn.Close()
	}
}
