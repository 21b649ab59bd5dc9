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

var (
	// errClientGone ends the reading of a stream whose client takes nothing more.
	errClientGone = errors.New("the client is gone")
	// errClientSlow interrupts it until the client has taken what is here.
	errClientSlow = errors.New("the client is behind")
)

// run passes one attempt's stream until it ends.
func (p *pump) run(up *upstream) streamEnd {
	p.scan = sse.Scanner{}
	defer p.forget()
	err := up.each(p.x.loop, p)
	for errors.Is(err, errClientSlow) {
		if p.drain() != nil {
			return streamGone
		}
		err = up.each(p.x.loop, p)
	}
	if errors.Is(err, errClientGone) {
		return streamGone
	}
	if err == nil {
		err = io.EOF
	}
	end := p.ended(up, err)
	if end == streamDone && p.part != nil {
		// A last event without its empty line, passed as it came.
		_, _ = p.pass(*p.part, p.scan.AtBoundary(), time.Now())
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
// may be called again after an error of t.
func (u *upstream) each(loop *reactor.Loop, t http1.Taker) error {
	if u.held != nil {
		held := *u.held
		*u.held = nil
		if len(held) == 0 {
			return nil
		}
		return t.Take(held)
	}
	if b, ok := u.resp.Body.(*http1.Body); ok {
		return b.EachOn(loop, t)
	}
	buf := copyBuffers.Get().(*[copyBytes]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := u.resp.Body.Read(buf[:])
		if n > 0 {
			if terr := t.Take(buf[:n]); terr != nil {
				return terr
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

// Take implements http1.Taker: it passes on the events that piece completes, and
// keeps the rest.
func (p *pump) Take(piece []byte) error {
	now := time.Now()
	p.lastRead.Store(max(1, int64(now.Sub(p.start))))
	pos := 0 // what of all has been looked at
	all := piece
	if p.part != nil {
		pos = len(*p.part)
		*p.part = append(*p.part, piece...)
		all = *p.part
	}
	begin := 0 // of the event that is being read
	for pos < len(all) {
		k, ev, ok := p.scan.Next(all[pos:])
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
	behind := false
	if begin > 0 {
		var err error
		if behind, err = p.pass(all[:begin], boundary, now); err != nil {
			return errClientGone
		}
	}
	p.keep(all[begin:])
	if behind {
		return errClientSlow
	}
	return nil
}

// keep holds rest, which is a part of the last piece or of what is held.
func (p *pump) keep(rest []byte) {
	switch {
	case len(rest) == 0:
		p.forget()
	case p.part == nil:
		p.part = parts.Get().(*[]byte)
		*p.part = append((*p.part)[:0], rest...)
	default:
		*p.part = (*p.part)[:copy(*p.part, rest)]
	}
}

// forget gives back what held the beginning of an event.
func (p *pump) forget() {
	if p.part == nil {
		return
	}
	if cap(*p.part) <= maxEvent {
		parts.Put(p.part)
	}
	p.part = nil
}
