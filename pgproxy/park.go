package pgproxy

import (
	"errors"
	"os"
	"runtime/debug"
	"time"

	"fournines/internal/reactor"
)

// errParked ends the goroutine of a session whose client is silent. The
// session goes on with another one.
var errParked = errors.New("parked")

// Where a session's goroutine is, for whoever wants to end it.
const (
	handling uint32 = iota
	awaiting        // in awaitInput
	asked           // in awaitInput, and woken to be parked
)

// freeAfter is how many sessions have to be parked until it is worth a
// collection: the stacks of goroutines that have ended, and what the logins have
// used, go back to the system by and by only.
const freeAfter = 500

// parkIdle parks the sessions that have sent nothing since the last call and
// hold no server. A loop watches over their connections, so that they need no
// goroutine: its stack is most of what a silent client costs.
func (p *Proxy) parkIdle() {
	if p.loop == nil {
		return
	}
	n := p.parkings.Load()
	if n-p.freed >= freeAfter && n == p.seen { // and no more since the last call
		debug.FreeOSMemory()
		p.freed = n
	}
	p.seen = n
	for _, s := range p.clientSessions() {
		if n := s.turns.Load(); n != s.parkTurns {
			s.parkTurns = n
			continue
		}
		s.mu.Lock()
		if s.parkable() && s.where.CompareAndSwap(awaiting, asked) {
			s.wakeReader()
		}
		s.mu.Unlock()
	}
}

// parkable reports that the session needs nothing but its client's next
// message. mu is held.
func (s *session) parkable() bool {
	return s.srv == nil && s.idle() && s.draining == nil && !s.reading.active.Load()
}

// awaitMessage is awaitInput, from which parkIdle may wake it. park reports that it
// did; the error is then that of a deadline, unless a message came as well.
func (s *session) awaitMessage() (park bool, err error) {
	s.turns.Add(1)
	s.where.Store(awaiting)
	err = s.awaitInput()
	if s.where.Swap(handling) != asked {
		return false, err
	}
	s.mu.Lock()
	if s.draining == nil {
		_ = s.conn.SetReadDeadline(time.Time{})
	}
	s.mu.Unlock()
	return errors.Is(err, os.ErrDeadlineExceeded), err
}

// park hands the connection to the loop. It returns false when it cannot, and
// then the caller goes on.
func (s *session) park() bool {
	// Nobody runs a statement of the client again at the moment.
	if !s.upMu.TryLock() {
		return false
	}
	defer s.upMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parkMu.Lock()
	defer s.parkMu.Unlock()
	if !s.parkable() || s.ctx.Err() != nil || s.br.Buffered() > 0 {
		return false
	}
	fd, ok := reactor.Descriptor(s.conn)
	if !ok {
		return false
	}
	if s.p.loop.Add(&s.watch, fd, reactor.Readable, s) != nil {
		return false
	}
	s.parked = true
	s.p.parkings.Add(1)
	if s.br != noBuffer {
		s.dropBuffer(s.br)
	}
	s.kept.reset()
	s.q, s.out, s.scratch = nil, nil, nil
	return true
}

// unwatch takes the connection back from the loop, and reports whether it was
// there: then the caller lets the session go on. The connection may be closed
// only after it has returned.
func (s *session) unwatch() bool {
	s.parkMu.Lock()
	defer s.parkMu.Unlock()
	if !s.parked {
		return false
	}
	s.watch.Stop()
	s.parked = false
	return true
}

// Ready implements reactor.Handler: the client of a parked session has sent
// something, or has left.
func (s *session) Ready(reactor.Events) reactor.Next {
	s.p.wg.Go(func() {
		if s.unwatch() {
			s.run(s.relay)
		}
	})
	return reactor.Stop
}

// unpark gives a parked session a goroutine.
func (s *session) unpark() {
	if s.unwatch() {
		s.p.wg.Go(func() { s.run(s.relay) })
	}
}

// unparkAll is for the case that the loop watches no more.
func (p *Proxy) unparkAll() {
	for _, s := range p.clientSessions() {
		s.unpark()
	}
}

func (p *Proxy) clientSessions() []*session {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*session, 0, len(p.sessions))
	for _, s := range p.sessions {
		all = append(all, s)
	}
	return all
}
