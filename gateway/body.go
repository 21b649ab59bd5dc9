package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"fournines/gateway/dify"
	"fournines/internal/http1"
)

// body is a request's body. Up to the replay limit it is held and can be sent
// any number of times; a larger one passes through once, and can be sent again
// only as long as nobody has begun to read it.
type body struct {
	held   []byte // all of it, or the part already read when rest is set
	rest   *clientBody
	length int64 // -1 when unknown
}

// exactBytes is how much memory a body gets at once, on its length's word.
const exactBytes = 64 << 10

// clientBody reads from the client with a limit and a deadline.
type clientBody struct {
	rc      *http.ResponseController
	r       io.Reader
	left    int64 // may still come
	timeout time.Duration
	touched atomic.Bool
	ended   bool // it has come as a whole

	mu  sync.Mutex
	err error
}

// problem is what went wrong on the client's side of the body, or nil.
func (c *clientBody) problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Read implements io.Reader. The deadline begins anew with every call: slow is
// fine, silent is not.
func (c *clientBody) Read(p []byte) (int, error) {
	c.touched.Store(true)
	_ = c.rc.SetReadDeadline(time.Now().Add(c.timeout))
	return c.read(p)
}

func (c *clientBody) read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		err = dify.ErrTooLarge
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			c.ended = true
			_ = c.rc.SetReadDeadline(time.Time{})
			return n, err
		}
		err = bodyError(err)
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
	}
	return n, err
}

// bodyError says what the client is told about a body that could not be read.
func bodyError(err error) error {
	var answer dify.Error
	if errors.As(err, &answer) {
		return answer
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return dify.ErrBodyTimeout
	}
	return dify.ErrBadBody
}

// readBody takes the body in: all of it when it fits the replay limit. An
// error is a dify.Error.
func readBody(w http.ResponseWriter, r *http.Request, limits *Limits) (body, error) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return body{}, nil
	}
	if r.ContentLength > limits.MaxBodyBytes {
		return body{}, dify.ErrTooLarge
	}
	c := &clientBody{rc: http.NewResponseController(w), r: r.Body, left: limits.MaxBodyBytes, timeout: limits.BodyTimeout}
	if r.ContentLength > limits.ReplayBytes {
		return body{rest: c, length: r.ContentLength}, nil
	}
	// What is held must arrive as a whole within the timeout.
	_ = c.rc.SetReadDeadline(time.Now().Add(limits.BodyTimeout))
	if r.ContentLength > 0 && r.ContentLength <= exactBytes {
		// Exactly as much as comes: it is kept as long as the request.
		held := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(readerFunc(c.read), held); err != nil {
			return body{}, err
		}
		if !c.ended {
			_ = c.rc.SetReadDeadline(time.Time{})
		}
		return body{held: held, length: r.ContentLength}, nil
	}
	var buf bytes.Buffer
	buf.Grow(int(min(max(r.ContentLength+bytes.MinRead, 4<<10), exactBytes)))
	n, err := buf.ReadFrom(io.LimitReader(readerFunc(c.read), limits.ReplayBytes+1))
	if err != nil {
		return body{}, err
	}
	if n <= limits.ReplayBytes {
		return body{held: buf.Bytes(), length: n}, nil
	}
	return body{held: buf.Bytes(), rest: c, length: r.ContentLength}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// complete tells whether held is the whole body.
func (b *body) complete() bool { return b.rest == nil }

// resendable tells whether open may be called again.
func (b *body) resendable() bool { return b.rest == nil || !b.rest.touched.Load() }

// open puts the body of one attempt into r.
func (b *body) open(r *http1.Request) {
	r.Body, r.Length = b.held, b.length
	if b.rest != nil {
		r.Rest = b.rest
	}
}

// problem is what went wrong on the client's side while the body was sent on.
func (b *body) problem() error {
	if b.rest == nil {
		return nil
	}
	return b.rest.problem()
}
