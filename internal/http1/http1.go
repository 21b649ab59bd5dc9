// Package http1 is HTTP/1.1 for a proxy that holds many silent streams: a client
// (Transport) and a server in clear text (Server). A request to a server runs on
// its caller's goroutine, one from a client on its connection's; nothing is parked
// while a body is silent, or a connection idle, but the connection itself. Bodies
// and headers pass as they are: no redirects, no cookies, no decompression, no
// requests sent twice but for one case (see Transport.Do).
//
// What it accepts is a part of what RFC 9112 allows: an answer that two readers
// could understand differently is refused, and so is a request, or its connection
// ends with it.
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config sets how connections are made and kept.
type Config struct {
	// ConnectTimeout bounds making a connection, and again as long twice for
	// the TLS handshake on it. Must be positive.
	ConnectTimeout time.Duration
	// UserTimeout is how long sent bytes may stay unacknowledged
	// (TCP_USER_TIMEOUT), where the kernel has it; 0 leaves it to the kernel.
	UserTimeout time.Duration
	// IdleTimeout is how long an unused connection is kept; 0 keeps none.
	IdleTimeout time.Duration
	// MaxIdle bounds the unused connections to one address.
	MaxIdle int
	// MaxHeaderBytes bounds status line and header of an answer. Must be
	// positive.
	MaxHeaderBytes int
	// TLS is for https; nil is the system's certificates.
	TLS *tls.Config
}

// Transport makes requests. Its methods are safe for concurrent use.
type Transport struct {
	cfg    Config
	dialer net.Dialer
	idle   idlePool
}

// New returns a transport; it starts nothing.
func New(cfg Config) *Transport {
	t := &Transport{cfg: cfg, dialer: net.Dialer{
		Timeout:         cfg.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3},
		Control:         userTimeout(cfg.UserTimeout),
	}}
	t.idle.limit, t.idle.max = cfg.IdleTimeout, cfg.MaxIdle
	return t
}

// CloseIdle closes the connections that nobody uses.
func (t *Transport) CloseIdle() { t.idle.closeAll() }

// Request is what is sent. It must not change until the answer's body has been
// closed.
type Request struct {
	// Scheme is "http" or "https".
	Scheme string
	// Address is host:port of the server.
	Address string
	Method  string
	// Target is the request target as it stands in the request line.
	Target string
	// Host is the Host header.
	Host string
	// Header is sent but for Host, Content-Length, Transfer-Encoding and
	// Trailer. Its names must be in canonical form.
	Header http.Header
	// Body is what is sent first; it is kept by the caller and may be sent twice.
	Body []byte
	// Rest follows Body when it is not nil. It is read by another goroutine,
	// which may go on until the answer's body is closed and its Read returns.
	Rest io.Reader
	// Length is that of the whole body; -1 means unknown and chunked.
	Length int64
	// Cancel, when it is not nil, ends the exchange as the context does, but
	// for the making of a connection.
	Cancel *Cancel
}

// Cancel ends one exchange. It is what a context would be, for a tenth of the
// price. The zero Cancel is ready; its methods are safe for concurrent use.
type Cancel struct {
	mu    sync.Mutex
	cause error
	body  *Body
}

// Cancel ends the exchange; only the first cause counts.
func (c *Cancel) Cancel(cause error) {
	if cause == nil {
		cause = context.Canceled
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return
	}
	c.cause = cause
	if c.body != nil {
		c.body.abort()
	}
}

// Cause returns why the exchange was ended, or nil.
func (c *Cancel) Cause() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// attach makes b what is ended; nil lets it go.
func (c *Cancel) attach(b *Body) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.body = b
	if b != nil && c.cause != nil {
		b.abort()
	}
}

// Failed says how far a request went without an answer.
type Failed uint8

const (
	// NotConnected means that there was no connection.
	NotConnected Failed = iota
	// Unsent means that the server provably got nothing of the request.
	Unsent
	// Lost means that the server may have got it.
	Lost
)

// Error is the error of Transport.Do.
type Error struct {
	Failed Failed
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	switch e.Failed {
	case NotConnected:
		return "connect: " + e.Err.Error()
	case Unsent:
		return "not sent: " + e.Err.Error()
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// errStale is the end of a kept connection of which a request found out too late.
var errStale = errors.New("the kept connection was closed")

// Do sends r and returns as soon as the answer's header is here; the caller
// closes the answer's Body, which is a *Body. The end of ctx ends the request
// in whatever it does, the reading of the body too. Errors are *Error.
//
// A request that finds its kept connection closed is sent again on a new one
// when the server provably got nothing of it.
func (t *Transport) Do(ctx context.Context, r *Request) (*http.Response, error) {
	if c := t.idle.take(r.key()); c != nil {
		resp, err := t.exchange(ctx, c, r)
		var e *Error
		if err == nil || !errors.As(err, &e) || e.Failed != Unsent || r.Rest != nil || ctx.Err() != nil || r.Cancel.Cause() != nil {
			return resp, err
		}
	}
	c, err := t.dial(ctx, r)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, &Error{NotConnected, err}
	}
	return t.exchange(ctx, c, r)
}

func (r *Request) key() string {
	if r.Scheme == "https" {
		return "https " + r.Address
	}
	return r.Address
}

// conn is one connection to a server.
type conn struct {
	net.Conn // counting; above it TLS where there is some
	counting *countingConn
	key      string
	since    time.Time // unused from then on
	reused   bool
}

func (t *Transport) dial(ctx context.Context, r *Request) (*conn, error) {
	nc, err := t.dialer.DialContext(ctx, "tcp", r.Address)
	if err != nil {
		return nil, err
	}
	cc := newCountingConn(nc)
	c := &conn{Conn: cc, counting: cc, key: r.key()}
	if r.Scheme != "https" {
		return c, nil
	}
	cfg := t.cfg.TLS.Clone()
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(r.Address)
		if err != nil {
			host = r.Address
		}
		cfg.ServerName = host
	}
	cfg.NextProtos = []string{"http/1.1"}
	tc := tls.Client(cc, cfg)
	ctx, cancel := context.WithTimeout(ctx, 2*t.cfg.ConnectTimeout)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	c.Conn = tc
	return c, nil
}

// long ago: a deadline that ends what blocks now.
var past = time.Unix(1, 0)

// exchange sends r on c and reads the answer's header. It owns c.
func (t *Transport) exchange(ctx context.Context, c *conn, r *Request) (*http.Response, error) {
	before := c.counting.written.Load()
	b := &Body{t: t, c: c, ctx: ctx, cancel: r.Cancel}
	b.stop = context.AfterFunc(ctx, b.abort)
	r.Cancel.attach(b)
	resp, err := b.roundTrip(r)
	if err == nil {
		return resp, nil
	}
	_ = b.Close()
	failed := Lost
	if c.counting.untouched(before) {
		failed = Unsent
	}
	if cause := b.cause(); cause != nil {
		err = cause
	} else if b.sender != nil {
		if berr := b.sender.bodyErr.Load(); berr != nil {
			err = *berr
		}
	}
	if failed == Unsent && errors.Is(err, io.EOF) && c.reused {
		err = errStale
	}
	return nil, &Error{failed, err}
}

func (b *Body) roundTrip(r *Request) (*http.Response, error) {
	if err := b.cause(); err != nil {
		return nil, err
	}
	head := heads.Get().(*[]byte)
	buf, err := appendHead((*head)[:0], r)
	if err != nil {
		putHead(head, buf)
		return nil, err
	}
	small := r.Rest == nil && len(r.Body) <= inlineBody
	if small {
		buf = append(buf, r.Body...)
		if b.c.Conn == net.Conn(b.c.counting) {
			err = b.c.counting.writeNow(buf)
		} else {
			_, err = b.c.Write(buf)
		}
		putHead(head, buf)
	} else {
		b.sender = &sender{b: b, done: make(chan struct{})}
		go b.sender.run(r, head, buf)
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, err
	}
	// A server may refuse a request before it has read it: what cannot be
	// written any more may have been answered.
	b.broken = err != nil
	resp, rerr := b.readHead(r)
	if rerr != nil {
		if err != nil {
			return nil, err
		}
		return nil, rerr
	}
	return resp, nil
}

// inlineBody is how large a body may be to be written before the answer is
// read: what the socket's buffers hold when the server does not read.
const inlineBody = 32 << 10

// sender writes a large or streaming body while the answer is read, because a
// server may answer before it has read everything.
type sender struct {
	b       *Body
	done    chan struct{}
	whole   atomic.Bool
	bodyErr atomic.Pointer[error] // of reading Rest
}

func (s *sender) run(r *Request, head *[]byte, buf []byte) {
	defer close(s.done)
	c := s.b.c
	chunked := r.Length < 0
	var err error
	if chunked {
		err = writeChunk(c, buf, r.Body)
	} else {
		err = c.counting.writeTwo(c.Conn, buf, r.Body)
	}
	putHead(head, buf)
	if err == nil && r.Rest != nil {
		err = s.rest(r, chunked)
	}
	if err == nil && chunked {
		_, err = io.WriteString(c, "0\r\n\r\n")
	}
	s.whole.Store(err == nil)
}

// rest passes r.Rest. An error of the reader ends the exchange, one of the
// connection does not: the answer may be here already.
func (s *sender) rest(r *Request, chunked bool) error {
	buf := bodies.Get().(*[bodyBytes]byte)
	defer bodies.Put(buf)
	left := r.Length - int64(len(r.Body))
	fail := func(err error) error {
		s.bodyErr.Store(&err)
		s.b.abort()
		return err
	}
	for {
		n, rerr := r.Rest.Read(buf[:])
		if !chunked {
			if left -= int64(n); left < 0 {
				return fail(errors.New("the request's body is longer than its length"))
			}
		}
		if n > 0 {
			var werr error
			if chunked {
				werr = writeChunk(s.b.c, nil, buf[:n])
			} else {
				_, werr = s.b.c.Write(buf[:n])
			}
			if werr != nil {
				return werr
			}
		}
		if errors.Is(rerr, io.EOF) {
			if !chunked && left > 0 {
				return fail(io.ErrUnexpectedEOF)
			}
			return nil
		}
		if rerr != nil {
			return fail(rerr)
		}
	}
}

const (
	headBytes = 4 << 10
	bodyBytes = 32 << 10
	// keptHead is how large a head's buffer may have grown to be kept.
	keptHead = 64 << 10
)

var (
	heads  = sync.Pool{New: func() any { b := make([]byte, 0, headBytes); return &b }}
	bodies = sync.Pool{New: func() any { return new([bodyBytes]byte) }}
)

// putHead gives back a buffer from heads, which may have grown to buf.
func putHead(p *[]byte, buf []byte) {
	if cap(buf) > keptHead {
		return
	}
	*p = buf[:0]
	heads.Put(p)
}
