package gateway

import (
	"errors"
	"io"
	"sync"
	"time"

	"fournines/internal/http1"
	"fournines/internal/reactor"
	"fournines/internal/sse"
)

const (
	// maxEvent is how long an event may be to be held until its end; a longer
	// one passes in parts.
	maxEvent = 64 << 10
	// partBytes is what the beginning of an event is held in at first.
	partBytes = 4 << 10
	// refusalBytes is how much of a refusal's body is looked at.
	refusalBytes = 4 << 10
)

// parts are for beginnings of events.
var parts = sync.Pool{New: func() any { b := make([]byte, 0, partBytes); return &b }}

// intake is what one attempt's stream is read with. Between events it holds
// nothing.
type intake struct {
	p    *pump
	scan sse.Scanner
	held *[]byte // from parts: the beginning of an event; nil when there is none
}

var (
	// errClientGone ends the reading of a stream whose client takes nothing more.
	errClientGone = errors.New("the client is gone")
	// errClientSlow interrupts it until the client has taken what is here.
	errClientSlow = errors.New("the client is behind")
)

// run passes one attempt's stream until it ends.
func (p *pump) run(up *upstream) streamEnd {
	in := intake{p: p}
	defer in.drop()
	err := up.each(p.x.loop, in.take)
	for errors.Is(err, errClientSlow) {
		if p.drain() != nil {
			return streamGone
		}
		err = up.each(p.x.loop, in.take)
	}
	if errors.Is(err, errClientGone) {
		return streamGone
	}
	if err == nil {
		err = io.EOF
	}
	end := p.ended(up, err)
	if end == streamDone && in.held != nil {
		// A last event without its empty line, passed as it came.
		_ = p.write(*in.held, in.scan.AtBoundary())
	}
	return end
}

// drain waits for a client that is behind.
func (p *pump) drain() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = p.x.direct.Drain()
	}
	return p.err
}

// each passes the answer's body in pieces; nil is its orderly end. On a loop it
// may be called again after an error of f.
func (u *upstream) each(loop *reactor.Loop, f func([]byte) error) error {
	if u.held != nil {
		held := *u.held
		*u.held = nil
		if len(held) == 0 {
			return nil
		}
		return f(held)
	}
	if b, ok := u.resp.Body.(*http1.Body); ok {
		return b.EachOn(loop, f)
	}
	buf := copyBuffers.Get().(*[copyBytes]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := u.resp.Body.Read(buf[:])
		if n > 0 {
			if ferr := f(buf[:n]); ferr != nil {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take passes on the events that piece completes, and keeps the rest.
func (in *intake) take(piece []byte) error {
	p := in.p
	p.lastRead.Store(max(1, int64(time.Since(p.x.start))))
	pos := 0 // what of all has been looked at
	all := piece
	if in.held != nil {
		pos = len(*in.held)
		*in.held = append(*in.held, piece...)
		all = *in.held
	}
	begin := 0 // of the event that is being read
	for pos < len(all) {
		k, ev, ok := in.scan.Next(all[pos:])
		pos += k
		if ok {
			p.event(ev, all[begin:pos])
			begin = pos
		}
	}
	boundary := true
	if begin == 0 && len(all) >= maxEvent {
		begin, boundary = len(all), false // too long to wait for its end
		p.content.Store(true)
	}
	if begin > 0 && p.write(all[:begin], boundary) != nil {
		return errClientGone
	}
	in.keep(all[begin:])
	if p.x.direct != nil && begin > 0 && p.behind() {
		return errClientSlow
	}
	return nil
}

// behind tells whether the client has to be waited for.
func (p *pump) behind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.x.direct.Behind()
}

// keep holds rest, which is a part of the last piece or of what is held.
func (in *intake) keep(rest []byte) {
	switch {
	case len(rest) == 0:
		in.drop()
	case in.held == nil:
		in.held = parts.Get().(*[]byte)
		*in.held = append((*in.held)[:0], rest...)
	default:
		*in.held = (*in.held)[:copy(*in.held, rest)]
	}
}

// drop gives back what held the beginning of an event.
func (in *intake) drop() {
	if in.held == nil {
		return
	}
	if cap(*in.held) <= maxEvent {
		parts.Put(in.held)
	}
	in.held = nil
}
