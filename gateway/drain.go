package gateway

import (
	"context"
	"net"
	"net/http"
	"time"
)

const (
	// endGrace is how long streams may take to write their last event after
	// the drain timeout.
	endGrace = 3 * time.Second
	// pollEvery is how often a drain looks whether everything has ended.
	pollEvery = 10 * time.Millisecond
)

// HandOver tells Run that another process accepts on the same listening
// sockets now. The gateway stops accepting at once and announces nothing,
// because the port stays open: readiness is its successor's matter. Requests
// and streams end by themselves within drain.timeout. Idle connections stay
// open for that time and are closed after their next answer, which says
// "Connection: close" (HTTP/2: GOAWAY): to close one while its client sends a
// request would lose the request. When Run's context ends meanwhile, the rest
// is a plain drain.
func (g *Gateway) HandOver() { g.handOnce.Do(func() { close(g.handed) }) }

// connState counts the connections of net/http.
func (g *Gateway) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		g.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		g.conns.Add(-1)
	case http.StateActive, http.StateIdle:
	}
}

// leave ends a gateway that has handed its listeners over.
func (g *Gateway) leave(ctx, base context.Context, srv *servers, end context.CancelCauseFunc, listeners []net.Listener) {
	cfg := g.settings.Load().Drain
	g.log.Info("handed over", "requests", g.inFlight.Load(), "connections", srv.open(g), "timeout", cfg.Timeout)
	for _, ln := range listeners {
		_ = ln.Close() // this process's descriptor alone
	}
	limit, cancel := context.WithTimeout(base, cfg.Timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	_ = g.waitUntil(limit, func() bool { return g.inFlight.Load() == 0 && srv.open(g) == 0 })
	if stop() || ctx.Err() == nil {
		g.finish(limit, base, srv, end)
		return
	}
	g.drain(base, srv, end, false)
}

// drain brings the server to its end. base lives on after the caller's context.
func (g *Gateway) drain(base context.Context, srv *servers, end context.CancelCauseFunc, announce bool) {
	cfg := g.settings.Load().Drain
	g.log.Info("draining", "requests", g.inFlight.Load(), "announce", cfg.Announce, "timeout", cfg.Timeout)
	if announce && cfg.Announce > 0 {
		timer := time.NewTimer(cfg.Announce)
		<-timer.C
	}
	limit, cancel := context.WithTimeout(base, cfg.Timeout)
	defer cancel()
	g.finish(limit, base, srv, end)
}

// finish closes what is idle, waits for the rest until limit ends, and then
// ends it.
func (g *Gateway) finish(limit, base context.Context, srv *servers, end context.CancelCauseFunc) {
	err := srv.shutdown(limit)
	if err == nil {
		err = g.waitIdle(limit) // upgraded connections are not the servers' any more
	}
	if err != nil {
		left := g.inFlight.Load()
		end(errDraining)
		grace, cancel := context.WithTimeout(context.WithoutCancel(base), endGrace)
		defer cancel()
		_ = g.waitIdle(grace)
		g.log.Warn("ended what was left after the drain timeout", "requests", left, "cut", g.inFlight.Load())
	}
	srv.close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(base), endGrace)
	defer cancel()
	_ = g.waitIdle(grace)
	_ = srv.shutdown(grace) // their goroutines have ended then, too
}

// waitIdle waits until no request is in work.
func (g *Gateway) waitIdle(ctx context.Context) error {
	return g.waitUntil(ctx, func() bool { return g.inFlight.Load() <= 0 })
}

func (g *Gateway) waitUntil(ctx context.Context, done func() bool) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}
