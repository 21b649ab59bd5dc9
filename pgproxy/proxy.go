// Package pgproxy is the PostgreSQL data plane: clients connect to one stable
// address, and their transactions run on whichever server is the primary at
// that moment. See DESIGN.md for the decisions and their reasons.
package pgproxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/adminhttp"
	"fournines/internal/reactor"
	"fournines/pgproxy/fence"
	"fournines/pgproxy/pool"
	"fournines/pgproxy/primary"
	"fournines/topology"
)

// Proxy serves PostgreSQL clients. Create it with New; all methods may be
// called from any goroutine.
type Proxy struct {
	log     *slog.Logger
	opts    Options
	live    atomic.Pointer[live]
	tracker *primary.Tracker
	metrics *metrics
	gates   gates
	guesses guesses
	secret  []byte // for mock verifiers
	mode    string

	mu       sync.Mutex
	pools    map[poolKey]*pool.Pool[*server]
	sessions map[uint32]*session
	greeting map[string]map[string]string // reported parameters by pool and settings
	draining bool
	// Of read/write splitting.
	standbyPools map[standbyKey]*pool.Pool[*server]
	routers      map[string]router
	newRouter    func(database, user string) router // mu is held

	standbys standbys
	fence    *fence.Asker

	lastReload atomic.Pointer[reloaded]

	loop     *reactor.Loop // watches over silent clients; nil where there is none
	parkings atomic.Int64  // how often a session was parked
	// Of parkIdle: parkings at the last call, and when memory was given back.
	seen, freed int64

	clients atomic.Int64
	held    atomic.Int64
	wg      sync.WaitGroup // sessions, servers and cancel requests
	// hard ends everything that still waits or runs.
	hard    context.Context
	cutHard context.CancelCauseFunc
}

type poolKey struct{ database, user string }

// live is the part of the configuration that a reload replaces at once.
type live struct {
	cfg       Config
	accounts  map[string]account
	console   map[string]account // of the console's users
	tls       *clientTLS
	serverTLS func(host string) *tls.Config
	files     filesSum // of tls and serverTLS
	probePW   string
	// adminToken is what callers of the admin API send; "" is nothing.
	adminToken string
}

// Options are what a proxy knows of the program that it is in.
type Options struct {
	// Version of the program.
	Version string
	// Load reads the configuration again, for RELOAD and the admin API; nil when
	// it came from nowhere.
	Load func() (Config, error)
}

// New checks cfg, reads password and certificate files, and registers metrics.
// It opens no connection.
func New(cfg Config, o Options, log *slog.Logger, reg prometheus.Registerer) (*Proxy, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l, err := load(cfg)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		log: log, opts: o, mode: l.cfg.Pool.Mode, secret: make([]byte, 32),
		pools: make(map[poolKey]*pool.Pool[*server]), sessions: make(map[uint32]*session),
		greeting:     make(map[string]map[string]string),
		standbyPools: make(map[standbyKey]*pool.Pool[*server]), routers: make(map[string]router),
	}
	p.newRouter = p.catalogRouterFor
	p.fence = fence.New(p.dialLine, l.cfg.Probe.Timeout)
	if _, err := rand.Read(p.secret); err != nil {
		return nil, err
	}
	p.live.Store(l)
	p.tracker = primary.New(primary.Options{
		Endpoints: l.cfg.Backends, Interval: l.cfg.Probe.Interval, Timeout: l.cfg.Probe.Timeout, Misses: l.cfg.Probe.Misses,
		Connect: func(ctx context.Context, e topology.Endpoint) (*pgconn.PgConn, error) {
			l := p.live.Load()
			return connect(ctx, l, e, l.cfg.Probe.User, l.probePW, l.cfg.Probe.Database)
		},
	}, log.With("part", "tracker"))
	p.metrics = newMetrics(p)
	if reg != nil {
		if err := reg.Register(p.metrics); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return p, nil
}

func load(cfg Config) (*live, error) {
	cfg.Backends = append([]topology.Endpoint(nil), cfg.Backends...)
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &live{cfg: cfg}
	var err1, err2, err error
	l.accounts, err1 = readAccounts("users", cfg.Users)
	l.console, err2 = readAccounts("console.users", cfg.Console.Users)
	errs := []error{err1, err2}
	if l.probePW, err = readPassword(cfg.Probe.PasswordFile); err != nil {
		errs = append(errs, fmt.Errorf("probe: %w", err))
	}
	if l.adminToken, err = adminhttp.ReadToken(cfg.Admin.TokenFile); err != nil {
		errs = append(errs, fmt.Errorf("admin.tokenFile: %w", err))
	}
	if err = l.loadTLS(); err != nil {
		errs = append(errs, err)
	}
	return l, errors.Join(errs...)
}

// readAccounts reads the passwords of users.
func readAccounts(field string, users []User) (map[string]account, error) {
	accounts := make(map[string]account)
	var errs []error
	for i, u := range users {
		pw, err := readPassword(u.PasswordFile)
		if err == nil {
			accounts[u.Name], err = newAccount(u.Name, pw)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s[%d]: %w", field, i, err))
		}
	}
	return accounts, errors.Join(errs...)
}

// Ready returns nil while clients should be sent here: a primary is known, or
// it was lost so recently that clients are held instead of refused.
func (p *Proxy) Ready() error {
	if p.isDraining() {
		return errStopping
	}
	v := p.tracker.View()
	if v.Primary != nil {
		return nil
	}
	hold := p.live.Load().cfg.Hold.Timeout
	if p.tracker.Failovers() > 0 || p.metrics.everReady.Load() {
		if time.Since(v.Since) < hold {
			return nil
		}
	}
	return fmt.Errorf("no writable primary: %s", v.Why)
}

var errStopping = errors.New("the proxy is stopping")

func (p *Proxy) isDraining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining
}

// Status returns the tracker's newest snapshot of the servers.
func (p *Proxy) Status() *primary.View { return p.tracker.View() }

// Run serves clients on ln, which it closes, until ctx ends; then it lets
// running transactions finish within the drain timeout. It returns nil after a
// stop in which none had to be cut.
func (p *Proxy) Run(ctx context.Context, ln net.Listener) error {
	base := context.WithoutCancel(ctx)
	p.hard, p.cutHard = context.WithCancelCause(base)
	stopping := newError("FATAL", codeShutdown, "the proxy is shutting down")
	bg, stopBG := context.WithCancel(base)
	var bgWG sync.WaitGroup
	if loop, err := reactor.New(); err == nil {
		p.loop = loop
		bgWG.Go(func() {
			if err := loop.Run(bg); err != nil {
				p.log.Error("silent clients get their goroutines back", "err", err)
				p.unparkAll()
			}
		})
	}
	bgWG.Go(func() { _ = p.tracker.Run(bg) })
	bgWG.Go(func() { p.followPrimary(bg) })
	bgWG.Go(func() { p.closeIdle(bg) })
	bgWG.Go(func() { p.watchCertificates(bg) })
	bgWG.Go(func() { _ = p.fence.Run(bg) })

	unwatch := context.AfterFunc(ctx, func() { _ = ln.Close() })
	err := p.accept(ctx, ln)
	unwatch()
	_ = ln.Close()

	p.mu.Lock()
	p.draining = true
	for _, x := range p.gates.list() {
		p.gates.open(x)
	}
	for _, s := range p.sessions {
		s.drain(stopping)
	}
	p.mu.Unlock()
	left := p.waitSessions(p.live.Load().cfg.DrainTimeout)
	p.cutHard(stopping)
	p.mu.Lock()
	for _, s := range p.sessions {
		s.cut(stopping)
	}
	for _, pl := range p.allPools() {
		for _, srv := range pl.Members() {
			srv.close()
		}
	}
	p.mu.Unlock()
	p.waitSessions(5 * time.Second)
	p.mu.Lock()
	for _, pl := range p.allPools() {
		for _, srv := range pl.Members() {
			srv.close()
		}
	}
	p.mu.Unlock()
	stopBG()
	bgWG.Wait()
	p.wg.Wait()
	if err == nil && left > 0 {
		err = fmt.Errorf("%d clients were cut off at the end of the drain timeout", left)
	}
	return err
}

// waitSessions waits until no client is connected, and returns how many are.
func (p *Proxy) waitSessions(limit time.Duration) int64 {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for p.clients.Load() > 0 {
		select {
		case <-timer.C:
			return p.clients.Load()
		case <-tick.C:
		}
	}
	return 0
}

func (p *Proxy) accept(ctx context.Context, ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, errTooManyFiles) {
				p.log.Error("cannot accept", "err", err)
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		tune(conn, 60*time.Second)
		conn = reactor.Direct(conn)
		p.clients.Add(1)
		p.wg.Go(func() { p.serve(conn) })
	}
}

// lastWords is how long the connections to a primary that was lost may stay
// open when no other server has taken its place. A server that stops in good
// order refuses newcomers first and then tells each session that it is being
// ended; who closes before hears nothing, and has to call a statement's outcome
// unknown that was never executed.
const lastWords = time.Second

// followPrimary closes every server connection of a reign that has ended.
func (p *Proxy) followPrimary(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var last *primary.Target
	for {
		v := p.tracker.View()
		if v.Primary != nil {
			p.metrics.everReady.Store(true)
			if last != nil && last != v.Primary {
				p.catalogsChanged()
			}
			last = v.Primary
		}
		p.standbys.keep(v.Standbys)
		p.closeLostStandbys()
		var grace <-chan time.Time
		for _, srv := range p.servers() {
			switch {
			case srv.target == v.Primary:
			case srv.target.Standby && v.Server(srv.target.Endpoint).Up:
				// What runs there may end; nothing new begins on a lost target.
			case v.Primary == nil && !v.Demoted(srv.target) && time.Since(v.Since) < lastWords:
				timer.Reset(lastWords - time.Since(v.Since))
				grace = timer.C
			default:
				srv.close()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-v.Changed:
		case <-grace:
		}
	}
}

// closeLostStandbys closes the idle connections to servers that are no longer
// standbys. One that was promoted needs the room for its new work.
func (p *Proxy) closeLostStandbys() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pl := range p.standbyPools {
		for srv, ok := pl.TakeIdle((*server).stale); ok; srv, ok = pl.TakeIdle((*server).stale) {
			srv.close()
		}
	}
}

// closeIdle closes server connections that nobody uses any more.
func (p *Proxy) closeIdle(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.parkIdle()
		limit := p.live.Load().cfg.Pool.IdleTimeout
		if limit == 0 {
			continue
		}
		p.mu.Lock()
		for _, pl := range p.allPools() {
			if srv, ok := pl.TakeIdle(func(s *server) bool { return time.Since(s.usedAt()) > limit }); ok {
				srv.close()
			}
		}
		p.mu.Unlock()
	}
}

// allPools lists the pools of the primary and of the standbys. mu is held.
func (p *Proxy) allPools() []*pool.Pool[*server] {
	all := make([]*pool.Pool[*server], 0, len(p.pools)+len(p.standbyPools))
	for _, pl := range p.pools {
		all = append(all, pl)
	}
	for _, pl := range p.standbyPools {
		all = append(all, pl)
	}
	return all
}

func (p *Proxy) servers() []*server {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*server
	for _, pl := range p.allPools() {
		all = append(all, pl.Members()...)
	}
	return all
}

func (p *Proxy) poolFor(database, user string) *pool.Pool[*server] {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := poolKey{database, user}
	pl := p.pools[k]
	if pl == nil {
		c := p.live.Load().cfg.Pool
		pl = pool.New[*server](c.sizeOf(k), c.Queue)
		p.pools[k] = pl
	}
	return pl
}

// register gives a session a random identity that cancel requests name.
func (p *Proxy) register(s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return false
		}
		s.pid = binary.BigEndian.Uint32(b[:]) &^ (1 << 31)
		copy(s.key[:], b[4:])
		if s.pid != 0 && p.sessions[s.pid] == nil {
			p.sessions[s.pid] = s
			return true
		}
	}
}

func (p *Proxy) unregister(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s.pid)
}
