package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// upstreamIdle is how long an unused connection to an instance is kept. It
	// must be less than gunicorn's keep-alive of 2s: a connection that the
	// instance closes while a request is on its way is a lost request.
	upstreamIdle = 1500 * time.Millisecond
	// upstreamUserTimeout is how long sent bytes may stay unacknowledged, and
	// how long an instance may leave its receive window shut: the kernel treats
	// both alike, so it must be longer than an instance's worst pause in reading
	// an upload. It also bounds how long a silent stream's host may be dead.
	upstreamUserTimeout = 10 * time.Second
)

// upstreamConn counts what was sent to an instance and remembers how much of
// it the instance's machine had acknowledged when it closed the connection.
type upstreamConn struct {
	net.Conn              // not *net.TCPConn: its ReadFrom would go past the count
	begun    atomic.Int64 // writes
	ended    atomic.Int64 // writes without an error
	written  atomic.Int64 // bytes
	once     sync.Once
	acked    atomic.Int64 // bytes; -1 when unknown
}

// Read implements net.Conn.
func (c *upstreamConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { c.lost(err) })
	}
	return n, err
}

// Write implements net.Conn.
func (c *upstreamConn) Write(p []byte) (int, error) {
	c.begun.Add(1)
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	if err == nil {
		c.ended.Add(1)
	}
	return n, err
}

// lost looks at the socket once, before anybody closes it. Only an orderly end
// (FIN) says what the other side had received when it closed, because it
// carries an acknowledgement; what a reset carries the kernel does not look at.
// A write that failed may have swallowed the reset's error, so that reading
// seems to meet an orderly end: then nothing is known either.
func (c *upstreamConn) lost(err error) {
	if !errors.Is(err, io.EOF) {
		return
	}
	acked := ackedBytes(c.Conn)
	if c.begun.Load() == c.ended.Load() {
		c.acked.Store(acked)
	}
}

// untouched tells whether the instance provably received nothing of what was
// sent after the first `before` bytes: nothing was written, or it closed the
// connection before any of it arrived (a killed process's late bytes are never
// acknowledged). The kernel counts the opening SYN as one byte.
func (c *upstreamConn) untouched(before int64) bool {
	if c.written.Load() == before {
		return true
	}
	acked := c.acked.Load()
	return acked >= 0 && acked <= before+1
}

// newTransport makes the connections to all instances.
func newTransport(connectTimeout time.Duration) *http.Transport {
	dialer := &net.Dialer{
		Timeout:         connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3},
		Control:         setUserTimeout,
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			c := &upstreamConn{Conn: conn}
			c.acked.Store(-1)
			return c, nil
		},
		DisableCompression:    true, // answers pass as they are
		IdleConnTimeout:       upstreamIdle,
		MaxIdleConns:          0,
		MaxIdleConnsPerHost:   512,
		TLSHandshakeTimeout:   2 * connectTimeout,
		ExpectContinueTimeout: time.Second,
		// A stream parks both buffers for its whole life.
		ReadBufferSize:         2 << 10,
		WriteBufferSize:        2 << 10,
		MaxResponseHeaderBytes: 256 << 10,
		// HTTP/1.1 only: gunicorn speaks nothing else, and one connection per
		// stream keeps instances' failures apart.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// counted finds the counting connection below TLS.
func counted(c net.Conn) *upstreamConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	u, _ := c.(*upstreamConn)
	return u
}
