package http1

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"fournines/internal/reactor"
)

// Body is an answer's body. Read, Each and Close must not be called at the same
// time by several goroutines; the end of the request's context interrupts them.
type Body struct {
	// What each piece needs, in one place.
	watch  reactor.Watch // of the loop that waits
	fd     int           // which it reads
	taker  Taker
	d      decoder
	reuse  bool  // the connection may serve another request
	broken bool  // the request could not be written as a whole
	over   bool  // the connection is no longer ours
	err    error // what Read goes on to return

	t      *Transport
	c      *conn
	ctx    context.Context // the request's: its end is the exchange's
	stop   func() bool     // stops watching ctx
	cancel *Cancel         // ends it, too; may be nil
	sender *sender         // nil when the request went out in one piece

	pooled  *[]byte // what pending lies in
	pending []byte  // read with the header

	aborted atomic.Bool
	park    atomic.Pointer[chan outcome] // set while a loop waits; the first one counts
}

// abort breaks off whatever is going on.
func (b *Body) abort() {
	b.aborted.Store(true)
	_ = b.c.SetDeadline(past)
	b.wake(outcome{err: os.ErrDeadlineExceeded, lost: true})
}

// cause returns why the exchange was ended from this side, or nil.
func (b *Body) cause() error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return b.cancel.Cause()
}

// release gives back the buffer that came with the header.
func (b *Body) release() {
	if b.pooled != nil {
		heads.Put(b.pooled)
		b.pooled, b.pending = nil, nil
	}
}

// finish gives the connection back after the body's end.
func (b *Body) finish() {
	if b.over {
		return
	}
	b.over = true
	b.cancel.attach(nil)
	quiet := b.stop() && !b.aborted.Load()
	extra := len(b.pending) > 0 // said more than it should
	b.release()
	sent := !b.broken && (b.sender == nil || b.sender.whole.Load())
	if quiet && b.reuse && !extra && sent && b.c.counting.join() == nil {
		b.t.idle.put(b.c)
		return
	}
	_ = b.c.Close()
}

// Close ends the exchange: what has not come yet is broken off.
func (b *Body) Close() error {
	if b.over {
		return nil
	}
	b.over = true
	b.cancel.attach(nil)
	b.stop()
	b.release()
	_ = b.c.counting.Close()
	if b.err == nil {
		b.err = errClosed
	}
	return nil
}

var errClosed = errors.New("the body is closed")

// Read implements io.Reader. A body that breaks off ends with
// io.ErrUnexpectedEOF or the connection's error, never with io.EOF.
func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if b.d.done {
			b.finish()
			b.err = io.EOF
			return 0, io.EOF
		}
		if len(b.pending) > 0 {
			payload, n, err := b.d.next(b.pending[:min(len(b.pending), len(p))])
			k := copy(p, payload)
			if b.pending = b.pending[n:]; len(b.pending) == 0 {
				b.release()
			}
			if err != nil {
				return k, b.fail(err)
			}
			if k > 0 {
				if b.d.done {
					b.finish() // the next call says io.EOF
				}
				return k, nil
			}
			continue
		}
		n, err := b.c.Read(b.d.fit(p))
		k, derr := b.inPlace(p[:n])
		switch {
		case derr != nil:
			return k, b.fail(derr)
		case b.d.done:
			b.finish()
			return k, nil
		case k > 0:
			return k, nil // an error comes again
		case err != nil:
			return 0, b.fail(err)
		}
	}
}

// inPlace takes the framing out of p and returns the payload's length. Bytes
// behind the body's end make the connection useless.
func (b *Body) inPlace(p []byte) (int, error) {
	n, rest, err := b.d.inPlace(p)
	if len(rest) > 0 {
		b.reuse = false
	}
	return n, err
}

// fail turns the error that ended reading into the body's.
func (b *Body) fail(err error) error {
	switch {
	case errors.Is(err, io.EOF) && b.d.framing == framedClose:
		b.d.done, b.reuse = true, false
		b.finish()
		b.err = io.EOF
		return b.err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		if cause := b.cause(); cause != nil {
			err = cause
		}
	}
	b.err = err
	return err
}

// pieceBytes is how much Each reads at once.
const pieceBytes = 8 << 10

var pieces = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// Taker gets a body in pieces.
type Taker interface {
	// Take gets one piece, which is valid during the call. An error ends the
	// passing of pieces.
	Take(p []byte) error
}

// Each gives t every piece of the body as it comes, until its end, and then
// returns nil; or the error of t or of the connection, as Read would give it. A
// piece is what came at once, without the framing. While nothing comes, no buffer
// is held. After an error of t, Each may be called again and goes on behind that
// piece.
func (b *Body) Each(t Taker) error {
	if over, err := b.eachPending(t); over || err != nil {
		return err
	}
	for !b.d.done {
		if err := b.each(t); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
	return b.ended()
}

// each waits for the next bytes and passes them.
func (b *Body) each(t Taker) error {
	buf, n, err := b.c.readPooled()
	if n > 0 {
		err = b.feed(buf[:n], t)
		pieces.Put(buf)
		return err
	}
	if err != nil {
		return b.fail(err)
	}
	return nil
}

// feed gives t the payload of p, which it changes.
func (b *Body) feed(p []byte, t Taker) error {
	n, malformed := b.inPlace(p)
	if malformed != nil {
		malformed = b.fail(malformed)
	}
	if n > 0 {
		if err := t.Take(p[:n]); err != nil {
			return err // the other one comes again
		}
	}
	return malformed
}

// readPooled waits until there is something to read and reads it into a buffer
// from pieces, which the caller gives back when n > 0.
func (c *conn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	if err := c.counting.join(); err != nil {
		return nil, 0, err
	}
	if c.Conn != c.counting || c.counting.raw == nil {
		buf = pieces.Get().(*[pieceBytes]byte) // TLS holds buffers of its own anyway
		n, err = c.Read(buf[:])
	} else {
		buf, n, err = c.counting.readPooled()
	}
	if n == 0 && buf != nil {
		pieces.Put(buf)
		buf = nil
	}
	return buf, n, err
}

// upgraded is the connection after a change of protocol.
type upgraded struct{ *Body }

// Read implements io.Reader.
func (u *upgraded) Read(p []byte) (int, error) {
	if len(u.pending) > 0 {
		n := copy(p, u.pending)
		if u.pending = u.pending[n:]; len(u.pending) == 0 {
			u.release()
		}
		return n, nil
	}
	return u.c.Read(p)
}

// Write implements io.Writer.
func (u *upgraded) Write(p []byte) (int, error) { return u.c.Write(p) }

// Close ends the connection; it may be called at any time and by anybody.
func (u *upgraded) Close() error {
	u.stop()
	return u.c.counting.Close()
}
