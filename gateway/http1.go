package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"

	"fournines/internal/http1"
	"fournines/internal/reactor"
)

// servers are what clients are served by: HTTP/1.1 in clear text has a server of
// its own, because net/http's costs a third of a short request; the rest is
// net/http's.
type servers struct {
	rest  *http.Server
	clear *http1.Server // nil where there are no loops, or no listeners in clear text
}

// open returns the connections of clients, idle ones too, without upgraded ones.
func (s *servers) open(g *Gateway) int64 {
	n := g.conns.Load()
	if s.clear != nil {
		n += s.clear.Open()
	}
	return n
}

// shutdown closes what is idle and waits for the rest until ctx ends.
func (s *servers) shutdown(ctx context.Context) error {
	var wg sync.WaitGroup
	var err error
	if s.clear != nil {
		wg.Go(func() { err = s.clear.Shutdown(ctx) })
	}
	rest := s.rest.Shutdown(ctx)
	wg.Wait()
	return errors.Join(err, rest)
}

// close breaks off what there is.
func (s *servers) close() {
	_ = s.rest.Close()
	if s.clear != nil {
		s.clear.Close()
	}
}

// newClear makes the server of connections in clear text; those over HTTP/2 go to
// other.
func (g *Gateway) newClear(base context.Context, set *settings, other *passed) *http1.Server {
	loops := g.loops.Load()
	if loops == nil {
		return nil
	}
	return http1.NewServer(http1.ServerConfig{
		Handler:        g,
		Base:           base,
		Loop:           loops.pick,
		HeaderTimeout:  set.Limits.HeaderTimeout,
		IdleTimeout:    set.Limits.IdleTimeout,
		WriteTimeout:   set.Limits.WriteTimeout,
		MaxHeaderBytes: set.Limits.MaxHeaderBytes,
		HTTP2:          other.give,
		Log:            g.log,
	})
}

// passed is a listener for connections that turn out to be net/http's.
type passed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPassed(addr net.Addr) *passed {
	return &passed{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// give passes conn on, or closes it when nobody takes it any more.
func (p *passed) give(conn net.Conn) {
	select {
	case p.conns <- conn:
	case <-p.done:
		_ = conn.Close()
	}
}

// Accept implements net.Listener.
func (p *passed) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *passed) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements net.Listener.
func (p *passed) Addr() net.Addr { return p.addr }

// loops are where silent streams and the leaving of clients are waited for: one
// for each processor, each with the connections that it was given.
type loops struct {
	all  []*reactor.Loop
	next atomic.Uint32
}

// pick returns the loop for another connection.
func (l *loops) pick() *reactor.Loop {
	return l.all[int(l.next.Add(1))%len(l.all)]
}

// runLoops runs them until ctx ends.
func (g *Gateway) runLoops(ctx context.Context, wg *sync.WaitGroup) {
	l := &loops{}
	for range runtime.GOMAXPROCS(0) {
		loop, err := reactor.New()
		if err != nil {
			g.log.Info("clients are served by net/http alone, and streams wait on goroutines", "err", err)
			break
		}
		l.all = append(l.all, loop)
		wg.Go(func() {
			if err := loop.Run(ctx); err != nil {
				g.log.Error("a loop of connections has failed", "err", err)
			}
		})
	}
	if len(l.all) > 0 {
		g.loops.Store(l)
	}
}

// streams makes x's answer one whose writes do not wait, so that a loop can make
// them; where it is net/http's nothing changes.
func (x *exchange) streams() {
	if x.direct != nil {
		x.direct.Stream()
		x.loop = x.g.loops.Load().pick()
	}
}
