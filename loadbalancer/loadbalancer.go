// Package loadbalancer gives each service of a stack one stable address: a
// thin forwarder of TCP connections that plays the part of a cloud load
// balancer or a virtual IP. It knows the proxies of all zones, checks them,
// prefers those in the caller's zone, and copies bytes.
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
)

// Listeners are the open listeners by the name of their service.
type Listeners map[string][]net.Listener

// Listen opens every listener of a configuration, or none.
func Listen(ctx context.Context, cfg Config) (Listeners, error) {
	out := Listeners{}
	for _, s := range cfg.Services {
		for _, a := range s.Listen {
			ln, err := (&net.ListenConfig{KeepAliveConfig: keepAlive()}).Listen(ctx, "tcp", a)
			if err != nil {
				out.Close()
				return nil, fmt.Errorf("service %s: listen on %s: %w", s.Name, a, err)
			}
			out[s.Name] = append(out[s.Name], ln)
		}
	}
	return out, nil
}

// Close closes all listeners.
func (l Listeners) Close() {
	for _, list := range l {
		for _, ln := range list {
			_ = ln.Close()
		}
	}
}

// Balancer forwards the connections of all services of a configuration.
type Balancer struct {
	logger   *slog.Logger
	metrics  *metrics
	services []*service
	drain    atomic.Int64 // time.Duration
	dead     atomic.Int64 // time.Duration

	mu     sync.Mutex // guards cfg and the start and end of checks
	cfg    Config
	launch func(*backend) (stop context.CancelFunc) // starts checks; nil before and after Run
}

type service struct {
	name      string
	listeners []net.Listener
	logger    *slog.Logger
	metrics   *metrics
	current   atomic.Pointer[snapshot]

	mu  sync.Mutex
	all map[*backend]context.CancelFunc // with connections or checks; nil: no checks
}

// snapshot is what a new connection needs to know; it never changes.
type snapshot struct {
	backends       []*backend
	zones          zoneTable
	connectTimeout time.Duration
	proxyProtocol  bool
}

// New prepares a balancer for listeners that the caller has opened; Run closes
// them. It starts nothing.
func New(cfg Config, listeners Listeners, logger *slog.Logger, reg prometheus.Registerer) (*Balancer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("load balancer: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("load balancer: %w", err)
	}
	b := &Balancer{logger: logger, metrics: m}
	for _, s := range cfg.Services {
		if len(listeners[s.Name]) == 0 {
			return nil, fmt.Errorf("load balancer: service %s has no listener", s.Name)
		}
		b.services = append(b.services, &service{
			name: s.Name, listeners: listeners[s.Name], logger: logger.With("service", s.Name),
			metrics: m, all: map[*backend]context.CancelFunc{},
		})
		m.refused.WithLabelValues(s.Name) // a rate does not see the step from no series to 1
	}
	b.apply(cfg.withDefaults())
	return b, nil
}

// Reload replaces backends, checks, zones and timeouts, or nothing when the
// configuration is wrong. Open connections go on, also those to backends that
// are no longer there. Services, their addresses and the admin address cannot
// change without a restart.
func (b *Balancer) Reload(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("load balancer: %w", err)
	}
	cfg = cfg.withDefaults()
	b.mu.Lock()
	defer b.mu.Unlock()
	same := func(x, y Service) bool { return x.Name == y.Name && slices.Equal(x.Listen, y.Listen) }
	if !slices.EqualFunc(cfg.Services, b.cfg.Services, same) || cfg.Admin != b.cfg.Admin {
		return errors.New("load balancer: names, order and addresses of services and the admin address cannot change at run time: restart it")
	}
	b.apply(cfg)
	return nil
}

// apply needs b.mu, or that nobody else knows b yet.
func (b *Balancer) apply(cfg Config) {
	b.cfg = cfg
	b.drain.Store(int64(*cfg.Drain))
	b.dead.Store(int64(cfg.DeadAfter))
	zones := newZoneTable(cfg.ZoneOf)
	for i, s := range b.services {
		want := cfg.Services[i]
		next := &snapshot{zones: zones, connectTimeout: want.ConnectTimeout, proxyProtocol: want.ProxyProtocol}
		var old []*backend
		if c := s.current.Load(); c != nil {
			old = c.backends
		}
		for _, wb := range want.Backends {
			k := slices.IndexFunc(old, func(o *backend) bool { return o.Backend == wb && o.check == want.Check })
			if k >= 0 {
				next.backends = append(next.backends, old[k])
				continue
			}
			nb := newBackend(want, wb, b.logger, b.metrics)
			// The same server with other checks keeps its standing until the
			// first of them.
			if k := slices.IndexFunc(old, func(o *backend) bool { return o.Address == wb.Address }); k >= 0 && old[k].healthy() {
				nb.up.Store(true)
			}
			next.backends = append(next.backends, nb)
		}
		s.current.Store(next)
		s.mu.Lock()
		for _, nb := range next.backends {
			if _, known := s.all[nb]; !known {
				s.all[nb] = nil
				if b.launch != nil {
					s.all[nb] = b.launch(nb)
				}
			}
		}
		for o, stop := range s.all {
			if slices.Contains(next.backends, o) {
				continue
			}
			if stop != nil {
				stop()
			}
			s.all[o] = nil
			if !slices.ContainsFunc(next.backends, func(nb *backend) bool { return nb.Name == o.Name && nb.Zone == o.Zone }) {
				b.metrics.forget(s.name, o.Backend)
			}
			if o.active.Load() == 0 {
				delete(s.all, o)
			}
		}
		s.mu.Unlock()
	}
}

// Ready is nil: a balancer that runs accepts connections. Whether there is a
// backend for them is told by the metrics.
func (b *Balancer) Ready() error { return nil }

// Run accepts and forwards until ctx ends. Then it accepts nothing more, gives
// the open connections the drain time, and cuts the rest.
func (b *Balancer) Run(ctx context.Context) error {
	// Checks and the watch go on while connections drain.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var checks sync.WaitGroup
	b.mu.Lock()
	b.launch = func(nb *backend) context.CancelFunc {
		ctx, cancel := context.WithCancel(work)
		checks.Go(func() {
			defer cancel()
			nb.runChecks(ctx)
		})
		return cancel
	}
	for _, s := range b.services {
		s.mu.Lock()
		for nb := range s.all {
			s.all[nb] = b.launch(nb)
		}
		s.mu.Unlock()
	}
	b.mu.Unlock()

	// dialing ends attempts to connect when the drain time is over.
	dialing, stopDialing := context.WithCancel(work)
	defer stopDialing()
	var accepting, conns, watch sync.WaitGroup
	for _, s := range b.services {
		for _, ln := range s.listeners {
			accepting.Go(func() { s.accept(ctx, dialing, ln, &conns) })
		}
		watch.Go(func() { s.watch(work, &b.dead) })
	}
	<-ctx.Done()
	for _, s := range b.services {
		for _, ln := range s.listeners {
			_ = ln.Close()
		}
	}
	accepting.Wait()
	drained := make(chan struct{})
	go func() { conns.Wait(); close(drained) }()
	limit := time.NewTimer(time.Duration(b.drain.Load()))
	defer limit.Stop()
	select {
	case <-drained:
	case <-limit.C:
	}
	stopDialing()
	// A connection may just have reached its backend, so cutting is repeated
	// until all are gone.
	for done := false; !done; {
		for _, s := range b.services {
			s.stopping()
		}
		select {
		case <-drained:
			done = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	b.mu.Lock()
	b.launch = nil
	b.mu.Unlock()
	stopWork()
	watch.Wait()
	checks.Wait()
	return nil
}

// stopping cuts every connection.
func (s *service) stopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for nb := range s.all {
		nb.reset(resetDrain)
	}
}

func (s *service) accept(ctx, dialing context.Context, ln net.Listener, conns *sync.WaitGroup) {
	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// Out of descriptors, or a client that is gone already.
			s.logger.Warn("accept", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
			continue
		}
		pause = minPause
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			_ = c.Close()
			continue
		}
		conns.Go(func() { s.serve(dialing, tcp) })
	}
}

// serve forwards one connection. Nothing is read from the client before a
// backend is there, so trying the next one is always safe.
func (s *service) serve(ctx context.Context, client *net.TCPConn) {
	now := s.current.Load()
	order := now.order(now.zones.zoneOf(client.RemoteAddr()))
	dialer := net.Dialer{Timeout: now.connectTimeout, KeepAliveConfig: keepAlive()}
	for i, nb := range order {
		if i == len(order)-1 {
			dialer.Timeout = max(dialer.Timeout, lastConnectTimeout)
		}
		nb.active.Add(1)
		c, err := dialer.DialContext(ctx, "tcp", nb.Address)
		if err != nil {
			nb.active.Add(-1)
			if ctx.Err() != nil {
				break
			}
			nb.connectFailed()
			continue
		}
		if now.proxyProtocol {
			h := proxyproto.HeaderProxyFromAddrs(2, client.RemoteAddr(), client.LocalAddr())
			if _, err := h.WriteTo(c); err != nil { // as good as no connection
				_ = c.Close()
				nb.active.Add(-1)
				nb.connectFailed()
				continue
			}
		}
		s.track(nb)
		r := &relay{client: client, upstream: c.(*net.TCPConn)}
		nb.add(r)
		in, out := r.run()
		// First the bytes: whoever sees that the connection has ended sees all
		// that went through it.
		s.metrics.bytes.WithLabelValues(s.name, "in").Add(float64(in))
		s.metrics.bytes.WithLabelValues(s.name, "out").Add(float64(out))
		nb.remove(r)
		nb.active.Add(-1)
		return
	}
	s.metrics.refused.WithLabelValues(s.name).Inc()
	reset(client)
}

// track makes sure that a backend with a connection is known to the watch, even
// if a reload took it away while the connection was made.
func (s *service) track(nb *backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.all[nb]; !known {
		s.all[nb] = nil
	}
}

const (
	// lastConnectTimeout is the least time for the backend after which there is
	// no other.
	lastConnectTimeout = time.Second
	// suspectAfter is for how long nothing may have come from a backend on any
	// connection, when one of them waits for an answer of its kernel. The kernel
	// sends again after 200 ms and more.
	suspectAfter = 300 * time.Millisecond
	// watchEvery is how often the kernel is asked about every connection.
	watchEvery = 250 * time.Millisecond
)

// watch cuts connections with a peer that is gone, and forgets backends that a
// reload took away when their last connection has ended.
func (s *service) watch(ctx context.Context, dead *atomic.Int64) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			limit := time.Duration(dead.Load())
			s.mu.Lock()
			for nb, checks := range s.all {
				suspected, silence := false, time.Hour
				nb.each(func(r *relay) {
					stalled, again, quiet := r.stalled(now, limit)
					if stalled {
						nb.resetOne(r, resetStalled)
					}
					suspected, silence = suspected || again, min(silence, quiet)
				})
				// A lossy network makes one connection wait, a dead one all.
				if suspected && silence >= suspectAfter {
					nb.suspect(now)
				} else {
					nb.suspected.Store(false)
				}
				if checks == nil && nb.active.Load() == 0 {
					delete(s.all, nb)
				}
			}
			s.mu.Unlock()
		}
	}
}
