package http1

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/reactor"
)

// ServerConfig sets what a Server does with its clients.
type ServerConfig struct {
	// Handler serves the requests. Its ResponseWriter is a *Reply, which must not
	// be used after it has returned. A request's context ends with its connection
	// and with Base, not with the handler: whoever starts something with it ends
	// it himself.
	Handler http.Handler
	// Base is what the contexts of requests come from.
	Base context.Context
	// Loop returns the loop on which a connection's end is noticed.
	Loop func() *reactor.Loop
	// HeaderTimeout bounds the reading of a request's head, and the time to a new
	// connection's first byte. Must be positive.
	HeaderTimeout time.Duration
	// IdleTimeout is how long a connection is kept between requests. Must be
	// positive.
	IdleTimeout time.Duration
	// WriteTimeout is how long a client may take nothing, where the handler has
	// set no deadline. Must be positive.
	WriteTimeout time.Duration
	// MaxHeaderBytes bounds the head of a request. Must be positive.
	MaxHeaderBytes int
	// HTTP2 takes over a connection that begins with HTTP/2's preface, which it
	// can read again. nil refuses those.
	HTTP2 func(net.Conn)
	// Log gets panics of the handler.
	Log *slog.Logger
}

// Server is the server side of HTTP/1.1 in clear text. Each connection has one
// goroutine, which runs the handler, too; between requests it sleeps without a
// buffer. Its methods are safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	tick    atomic.Int64 // counts turns of the sweep
	every   time.Duration
	header  int64 // the timeouts in turns
	idle    int64
	date    atomic.Pointer[[]byte]
	closing atomic.Bool
	open    atomic.Int64
	shards  [shardCount]shard
	next    atomic.Uint32
	running atomic.Int64 // goroutines of connections

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
}

// shardCount is over how many tables connections are spread: a sweep holds up
// few of those that come and go meanwhile.
const shardCount = 16

type shard struct {
	mu    sync.Mutex
	conns map[*served]struct{}
}

const (
	// sweepTurns is how many turns of the sweep a timeout has; it is exact to one.
	sweepTurns = 8
	minTurn    = 5 * time.Millisecond
	maxTurn    = 500 * time.Millisecond
	// acceptPause is for an Accept that fails for now, most often for want of
	// file descriptors.
	acceptPause = 10 * time.Millisecond
	// shutdownPoll is how often Shutdown looks whether all have ended.
	shutdownPoll = 5 * time.Millisecond
)

// NewServer returns a server; it starts nothing.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, listeners: map[net.Listener]struct{}{}}
	s.every = min(maxTurn, max(minTurn, min(cfg.HeaderTimeout, cfg.IdleTimeout)/sweepTurns))
	s.header = int64(cfg.HeaderTimeout/s.every) + 1
	s.idle = int64(cfg.IdleTimeout/s.every) + 1
	for i := range s.shards {
		s.shards[i].conns = map[*served]struct{}{}
	}
	s.tellTime(time.Now())
	return s
}

// Open returns how many connections there are, idle ones too, without those that
// have been taken over.
func (s *Server) Open() int64 { return s.open.Load() }

// Run ends connections whose time is over, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ticker := time.NewTicker(s.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			s.tellTime(now)
			turn := s.tick.Add(1)
			s.each(func(c *served) {
				if c.due.Load() <= turn {
					c.wake()
				}
			})
		}
	}
}

// tellTime makes the Date header of the next answers.
func (s *Server) tellTime(now time.Time) {
	b := now.UTC().AppendFormat([]byte("Date: "), http.TimeFormat)
	b = append(b, "\r\n"...)
	s.date.Store(&b)
}

// each calls f with every connection. f must not block.
func (s *Server) each(f func(c *served)) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for c := range sh.conns {
			f(c)
		}
		sh.mu.Unlock()
	}
}

// Serve accepts on ln until it is closed, and then returns the error of Accept, or
// http.ErrServerClosed after Shutdown or Close. Connections go on.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		_ = ln.Close()
		return http.ErrServerClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
	}()
	for {
		nc, err := ln.Accept()
		if err != nil {
			switch {
			case s.closing.Load():
				return http.ErrServerClosed
			case errors.Is(err, net.ErrClosed):
				return err
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Temporary() { //nolint:staticcheck // as net/http does: only Accept's errors know it
				time.Sleep(acceptPause)
				continue
			}
			return err
		}
		s.take(nc)
	}
}

// take begins to serve a connection.
func (s *Server) take(nc net.Conn) {
	c, err := newServed(s, nc)
	if err != nil {
		_ = nc.Close()
		return
	}
	s.open.Add(1)
	c.shard = &s.shards[s.next.Add(1)%shardCount]
	c.shard.mu.Lock()
	c.shard.conns[c] = struct{}{}
	c.shard.mu.Unlock()
	s.running.Add(1)
	go c.serve()
}

// forget is called when a connection has ended or has been taken over.
func (s *Server) forget(c *served) {
	c.shard.mu.Lock()
	delete(c.shard.conns, c)
	c.shard.mu.Unlock()
	s.open.Add(-1)
}

// stop accepts nothing more, and makes every idle connection go.
func (s *Server) stop() {
	s.mu.Lock()
	s.closing.Store(true)
	for ln := range s.listeners {
		_ = ln.Close()
	}
	s.mu.Unlock()
	s.each((*served).wake)
}

// Shutdown accepts nothing more, closes idle connections at once and others after
// the answer they are at, and waits for them until ctx ends. A request that is
// already here is answered.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	ticker := time.NewTicker(shutdownPoll)
	defer ticker.Stop()
	for s.running.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// Close breaks off what there is, but for what has been taken over.
func (s *Server) Close() {
	s.stop()
	s.each((*served).kill)
}
