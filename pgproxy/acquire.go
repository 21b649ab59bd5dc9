package pgproxy

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// retryPause is how long to wait before the same primary is dialled again
// after an attempt failed.
const retryPause = 100 * time.Millisecond

// acquire lends the session a connection to the present primary. Without one
// it holds the session, within the bounds of Hold: nothing of what the client
// asked for has been sent anywhere at that point.
func (p *Proxy) acquire(s *session) (*server, error) {
	w := waiter{s: s}
	defer w.end(p)
	cfg := &p.live.Load().cfg
	for {
		if err := p.passGate(s, &w); err != nil {
			return nil, err
		}
		v := p.tracker.View()
		if v.Primary == nil {
			if err := p.hold(s, &w, v.Changed, noPrimary, holdLook); err != nil {
				return nil, err
			}
			continue
		}
		srv, dial, err := s.pool.Get(s.ctx, 0, nil)
		if err != nil {
			if srv, dial, err = p.queue(s, &w, cfg.Pool.QueueTimeout); err != nil {
				return nil, err
			}
		}
		if !dial {
			if srv.stale() || s.replaying && srv.began.Before(s.lostAt) { // it went with the other one, or is about to
				srv.close()
				s.pool.Remove(srv)
				continue
			}
			if p.gates.at(s.database) != nil { // closed since it was passed
				srv.release()
				continue
			}
			return p.check(s, &w, srv)
		}
		if v = p.tracker.View(); v.Primary == nil {
			s.pool.Cancel()
			continue
		}
		if srv, err = p.dial(s.ctx, v.Primary, s, s.pool); err == nil {
			if p.gates.at(s.database) != nil {
				srv.release()
				continue
			}
			return p.check(s, &w, srv)
		}
		s.pool.Cancel()
		if cause := context.Cause(s.ctx); cause != nil {
			return nil, cause
		}
		var pe *pgconn.PgError
		var ce *clientError
		if errors.As(err, &ce) || errors.As(err, &pe) && !transient(pe.Code) {
			return nil, err
		}
		p.log.Debug("cannot connect to the primary", "server", v.Primary.Endpoint.Name, "err", err)
		p.tracker.Kick(v.Primary.Endpoint.Address)
		if err := p.hold(s, &w, v.Changed, noPrimary, retryPause); err != nil {
			return nil, err
		}
	}
}

// transient reports SQLSTATEs of a login that may succeed a little later.
func transient(code string) bool { return serverRestarting(code) || code == codeTooMany }

// waiter is the waiting of one acquire.
type waiter struct {
	s     *session
	since time.Time // zero until it waits
	held  bool
}

func (w *waiter) start() {
	if w.since.IsZero() {
		w.since = time.Now()
		w.s.waitSince.Store(w.since.UnixNano())
	}
}

func (w *waiter) end(p *Proxy) {
	if w.held {
		p.held.Add(-1)
	}
	if !w.since.IsZero() {
		took := time.Since(w.since)
		if w.held {
			p.metrics.waitHold.Observe(took.Seconds())
		} else {
			p.metrics.waitPool.Observe(took.Seconds())
		}
		w.s.waited.Add(int64(took))
		w.s.waitSince.Store(0)
	}
}

// longWait is after what time it is worth a system call to find out whether the
// client is still there. Where all connections are busy everybody waits for a
// moment.
const longWait = 10 * time.Millisecond

// check refuses to work for a client that left during a long wait.
func (p *Proxy) check(s *session, w *waiter, srv *server) (*server, error) {
	if !w.since.IsZero() && time.Since(w.since) > longWait && hungUp(s.conn) {
		srv.release()
		return nil, errBye
	}
	return srv, nil
}

// queue waits for a connection of the pool and watches the client meanwhile.
func (p *Proxy) queue(s *session, w *waiter, limit time.Duration) (*server, bool, error) {
	w.start()
	return s.pool.Get(s.ctx, limit, s.stays)
}

// noPrimary is why most clients are held.
const noPrimary = "no writable primary"

// holdLook is how often a client that is held is looked at: it may have left.
const holdLook = time.Second

// hold waits until changed is closed, but not longer than pause, within the
// limits of the hold. why is what a client is told when they are reached. First
// come is first woken; the pool's queue keeps order from there.
func (p *Proxy) hold(s *session, w *waiter, changed <-chan struct{}, why string, pause time.Duration) error {
	cfg := p.live.Load().cfg.Hold
	w.start()
	if !w.held {
		if p.held.Add(1) > int64(cfg.Max) {
			p.held.Add(-1)
			return newError("ERROR", codeNoPrimary, "%s, and too many clients wait already; nothing was executed", why)
		}
		w.held = true
		p.metrics.holds.Add(1)
	}
	left := cfg.Timeout - time.Since(w.since)
	if left <= 0 {
		return newError("ERROR", codeNoPrimary, "%s for %v; nothing was executed", why, cfg.Timeout)
	}
	timer := time.NewTimer(min(left, pause))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
		if hungUp(s.conn) {
			return errBye
		}
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	return nil
}
