package http1

import (
	"errors"
	"io"
	"os"

	"fournines/internal/reactor"
)

// errAborted wakes who waits for a loop; the context says why.
var errAborted = errors.New("aborted")

// parked is a body that waits on a loop.
type parked struct {
	b    *Body
	fd   int
	f    func(p []byte) error
	done chan error // the first result counts
}

// EachOn is Each with the waiting done by loop, and f called on the loop's
// goroutine: f must not block. After an error of f that does not end the
// exchange, EachOn may be called again and goes on behind the piece that f got.
// What loop cannot watch (TLS) waits here as in Each.
func (b *Body) EachOn(loop *reactor.Loop, f func(p []byte) error) error {
	fd := b.c.counting.fd
	if loop == nil || fd < 0 || b.c.Conn != b.c.counting {
		return b.Each(f)
	}
	if over, err := b.eachPending(f); over || err != nil {
		return err
	}
	if b.d.done {
		return b.ended()
	}
	p := &parked{b: b, fd: fd, f: f, done: make(chan error, 1)}
	b.park.Store(p)
	defer b.park.Store(nil)
	if b.aborted.Load() {
		p.end(errAborted)
	}
	w, err := loop.Add(fd, reactor.Readable, p.ready)
	if err != nil {
		return b.Each(f)
	}
	select {
	case err = <-p.done:
	case <-loop.Done():
		err = reactor.ErrStopped
	}
	w.Stop()
	switch {
	case err == nil:
		return b.ended()
	case errors.Is(err, errAborted):
		return b.fail(os.ErrDeadlineExceeded)
	}
	return err
}

// end wakes who waits.
func (p *parked) end(err error) {
	select {
	case p.done <- err:
	default:
	}
}

// ready runs on the loop when there is something to read.
func (p *parked) ready(e reactor.Events) reactor.Next {
	b := p.b
	buf := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(buf)
	n, err := reactor.ReadNow(p.fd, buf[:])
	if n > 0 {
		taken, err := b.feed(buf[:n], p.f)
		if err == nil && b.d.done {
			if taken < n {
				b.reuse = false // said more than it should
			}
			p.end(nil)
			return reactor.Stop
		}
		if err != nil {
			b.keep(buf[taken:n])
			p.end(err)
			return reactor.Stop
		}
		if n == len(buf) || e&reactor.Hangup != 0 {
			return reactor.Again
		}
		return reactor.Wait
	}
	if err == reactor.ErrAgain { //nolint:errorlint // never wrapped
		return reactor.Wait
	}
	b.c.counting.met(err)
	if err = b.fail(err); errors.Is(err, io.EOF) {
		err = nil
	}
	p.end(err)
	return reactor.Stop
}

// keep makes rest what is read next.
func (b *Body) keep(rest []byte) {
	if len(rest) == 0 {
		return
	}
	b.pooled = heads.Get().(*[]byte)
	*b.pooled = append((*b.pooled)[:0], rest...)
	b.pending = *b.pooled
}

// eachPending passes what is here already. over says that the body has ended
// before, with that error or, when it is nil, in good order.
func (b *Body) eachPending(f func(p []byte) error) (over bool, err error) {
	if b.err != nil {
		if errors.Is(b.err, io.EOF) {
			return true, nil
		}
		return true, b.err
	}
	if len(b.pending) == 0 {
		return false, nil
	}
	n, err := b.feed(b.pending, f)
	if b.pending = b.pending[n:]; len(b.pending) == 0 {
		b.release()
	}
	return false, err
}

// ended notes the body's orderly end.
func (b *Body) ended() error {
	b.finish()
	b.err = io.EOF
	return nil
}
