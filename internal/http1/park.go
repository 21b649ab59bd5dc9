package http1

import (
	"errors"
	"io"

	"fournines/internal/reactor"
)

// outcome is why a loop waits no more.
type outcome struct {
	err  error
	lost bool // err is that of the connection, and not the taker's
}

// EachOn is Each with the waiting done by loop, and t called on the loop's
// goroutine: it must not block. After an error of t that does not end the
// exchange, EachOn may be called again and goes on behind the piece that t got.
// What loop cannot watch (TLS) waits here as in Each.
func (b *Body) EachOn(loop *reactor.Loop, t Taker) error {
	cc := b.c.counting
	if loop == nil || cc.fd < 0 || b.c.Conn != cc {
		return b.Each(t)
	}
	if over, err := b.eachPending(t); over || err != nil {
		return err
	}
	if b.d.done {
		return b.ended()
	}
	if b.sent() {
		// Where that fails, the connection is watched twice.
		_ = cc.leave()
	}
	b.fd, b.taker = cc.fd, t
	done := make(chan outcome, 1)
	b.park.Store(&done)
	defer b.park.Store(nil)
	if b.aborted.Load() {
		b.abort() // again, for who waits below
	}
	if err := loop.Add(&b.watch, b.fd, reactor.Readable, (*parked)(b)); err != nil {
		return b.Each(t)
	}
	var o outcome
	select {
	case o = <-done:
	case <-loop.Done():
		o.err = reactor.ErrStopped
	}
	// Only now may the descriptor be closed: it may be another's the moment after.
	b.watch.Stop()
	b.taker = nil
	if o.lost {
		cc.met(o.err)
		if o.err = b.fail(o.err); errors.Is(o.err, io.EOF) {
			o.err = nil
		}
	}
	if o.err == nil {
		return b.ended()
	}
	return o.err
}

// sent tells whether nobody writes the request any more.
func (b *Body) sent() bool {
	if b.sender == nil {
		return true
	}
	select {
	case <-b.sender.done:
		return true
	default:
		return false
	}
}

// wake ends the waiting for a loop.
func (b *Body) wake(o outcome) {
	done := b.park.Load()
	if done == nil {
		return
	}
	select {
	case *done <- o:
	default:
	}
}

// parked is a body that waits on a loop.
type parked Body

// Ready implements reactor.Handler.
func (p *parked) Ready(e reactor.Events) reactor.Next {
	b := (*Body)(p)
	buf := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(buf)
	n, err := reactor.ReadNow(b.fd, buf[:])
	if n > 0 {
		err := b.feed(buf[:n], b.taker)
		if err != nil || b.d.done {
			b.wake(outcome{err: err})
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
	b.wake(outcome{err: err, lost: true})
	return reactor.Stop
}

// eachPending passes what is here already. over says that the body has ended
// before, with that error or, when it is nil, in good order.
func (b *Body) eachPending(t Taker) (over bool, err error) {
	if b.err != nil {
		if errors.Is(b.err, io.EOF) {
			return true, nil
		}
		return true, b.err
	}
	if len(b.pending) == 0 {
		return false, nil
	}
	err = b.feed(b.pending, t)
	b.release()
	return false, err
}

// ended notes the body's orderly end.
func (b *Body) ended() error {
	b.finish()
	b.err = io.EOF
	return nil
}
