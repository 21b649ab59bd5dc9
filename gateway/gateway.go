// Package gateway is the HTTP front door of a Dify with several instances: it
// chooses an instance of its own zone first, sends requests again only where
// that cannot hurt, passes event streams as they come, and ends a broken stream
// in Dify's own protocol. DESIGN.md in this folder has the reasons.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"fournines/gateway/admit"
	"fournines/gateway/balance"
	"fournines/gateway/cache"
	"fournines/gateway/conversation"
	"fournines/gateway/jobs"
	"fournines/gateway/limit"
	"fournines/internal/adminhttp"
	"fournines/internal/http1"
)

// Causes of the end of a request that neither side wanted.
var (
	errDraining       = errors.New("the gateway is stopping")
	errRequestTimeout = errors.New("the request took too long")
	errTryTimeout     = errors.New("the answer did not begin in time")
	errSilent         = errors.New("the stream fell silent")
	errNoContent      = errors.New("no content came in time")
)

// settings are what one request works with from begin to end; a reload
// replaces them as a whole.
type settings struct {
	Config
	zoneHeader []string
	apps       appTable
	keyPair    keyPair // zero without TLS
	proxies    limit.Proxies
	proxyFrom  []netip.Prefix // may say who the client is, see ProxyProtocol
	adminToken string
	hash       string // of the configuration
}

// Gateway proxies to Dify instances.
type Gateway struct {
	log       *slog.Logger
	m         *metrics
	pool      *balance.Pool
	admit     *admit.Controller
	budget    balance.Budget
	transport *http1.Transport
	redis     *redis.ClusterClient // nil without one; Run closes it
	jobs      *jobs.Lane           // nil without one
	limits    *limit.Limiter
	cache     *cache.Cache
	watches   *watchers
	settings  atomic.Pointer[settings]

	admin        admin
	tracing      atomic.Pointer[tracing] // nil while it is off
	traceSpans   *prometheus.CounterVec
	usage        *usage
	certificates *certificates
	stops        stops
	turns        *conversation.Turns

	turnMetrics *turnMetrics

	reload   sync.Mutex
	serving  atomic.Bool
	draining atomic.Bool
	ready    atomic.Bool           // an instance has been healthy once
	loops    atomic.Pointer[loops] // nil where there are none
	inFlight atomic.Int64
	conns    atomic.Int64  // clients' connections at net/http, idle ones too, without upgraded ones
	handed   chan struct{} // closed by HandOver
	handOnce sync.Once
}

// New checks cfg and makes a gateway; it starts nothing.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Gateway, error) {
	set, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	g := &Gateway{log: log, transport: newTransport(cfg.Retry.ConnectTimeout), handed: make(chan struct{})}
	g.m, err = newMetrics(reg, func() float64 { return float64(g.admit.Waiting()) })
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if g.redis, err = newRedis(cfg.Redis); err != nil {
		return nil, err
	}
	if g.limits, err = limit.New(g.redis, cfg.RateLimitSharing, log, reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	g.limits.Update(cfg.RateLimits, cfg.RateLimitSharing)
	if err := g.newCache(cfg.Cache, reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if err := g.newTurns(reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	g.admin.started = time.Now()
	if g.traceSpans, err = newTraceCounter(reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if g.usage, err = newUsage(reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	g.m.endpointGone = g.usage.removed
	if g.certificates, err = newCertificates(reg); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if set.keyPair.cert != nil {
		g.certificates.set(set.keyPair)
	}
	if err := g.newLane(&cfg, reg); err != nil {
		return nil, err
	}
	poolCfg, targets := cfg.pool()
	g.pool = balance.New(poolCfg, targets, log, g.m, func() { g.admit.Freed() })
	admission, apps := cfg.admission()
	g.admit = admit.New(admission, g.pool)
	g.admit.Update(admission, apps)
	if err := reg.Register(g.admit); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	g.settings.Store(set)
	return g, nil
}

func newSettings(cfg Config) (*settings, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	set := &settings{Config: cfg, zoneHeader: []string{cfg.Zone}, apps: newAppTable(cfg.Apps)}
	set.proxies = limit.ParseProxies(cfg.TrustedProxies, func(string, string, ...any) {}) // Validate has seen them
	if cfg.TLS.CertFile != "" {
		pair, err := loadKeyPair(cfg.TLS)
		if err != nil {
			return nil, err
		}
		set.keyPair = pair
	}
	var err error
	if set.adminToken, err = adminhttp.ReadToken(cfg.Admin.TokenFile); err != nil {
		return nil, fmt.Errorf("admin.tokenFile: %w", err)
	}
	if _, err := cfg.Tracing.readHeaders(); err != nil {
		return nil, err
	}
	for _, s := range cfg.ProxyProtocol.From {
		if n, err := parseNetwork(s); err == nil { // Validate has seen them
			set.proxyFrom = append(set.proxyFrom, n)
		}
	}
	set.hash = cfg.hash()
	return set, nil
}

// Reload replaces the upstreams and all settings but the addresses, the header
// limits and the connect timeout, which need a restart. It applies all or
// nothing. Requests and streams in work go on as they began.
func (g *Gateway) Reload(cfg Config) error {
	return g.ReloadFrom(func() (Config, error) { return cfg, nil })
}

// ReloadFrom is Reload with what load returns. A reload whose load fails counts
// as refused.
func (g *Gateway) ReloadFrom(load func() (Config, error)) error {
	g.reload.Lock()
	defer g.reload.Unlock()
	cfg, err := load()
	if err == nil {
		err = g.applyReload(cfg)
	}
	g.admin.lastReload.Store(&reloadResult{at: time.Now(), err: err})
	if err != nil {
		g.m.reloads.WithLabelValues("refused").Inc()
		return err
	}
	g.m.reloads.WithLabelValues("applied").Inc()
	return nil
}

func (g *Gateway) applyReload(cfg Config) error {
	set, err := newSettings(cfg)
	if err != nil {
		return err
	}
	old := g.settings.Load()
	var fixed []error
	keep := func(field string, same bool) {
		if !same {
			fixed = append(fixed, fmt.Errorf("%s: cannot change while the gateway runs; restart it", field))
		}
	}
	keep("listen", cfg.Listen == old.Listen)
	keep("adminListen", cfg.AdminListen == old.AdminListen)
	keep("proxyProtocol.mode", cfg.ProxyProtocol.Mode == old.ProxyProtocol.Mode)
	keep("tracing", cfg.Tracing == old.Tracing)
	keep("admin.api", cfg.Admin.API == old.Admin.API)
	keep("handover", cfg.Handover == old.Handover)
	keep("tls", (cfg.TLS.CertFile == "") == (old.TLS.CertFile == ""))
	keep("limits.maxHeaderBytes", cfg.Limits.MaxHeaderBytes == old.Limits.MaxHeaderBytes)
	keep("limits.headerTimeout", cfg.Limits.HeaderTimeout == old.Limits.HeaderTimeout)
	keep("limits.idleTimeout", cfg.Limits.IdleTimeout == old.Limits.IdleTimeout)
	keep("redis", cfg.Redis.equal(&old.Redis))
	keep("retry.connectTimeout", cfg.Retry.ConnectTimeout == old.Retry.ConnectTimeout)
	keep("jobs.keyFile", cfg.Jobs.On() == old.Jobs.On())
	if err := errors.Join(fixed...); err != nil {
		return err
	}
	if g.jobs != nil {
		apply, err := g.jobs.Reload(cfg.Jobs)
		if err != nil {
			return err
		}
		apply()
	}
	if set.keyPair.cert != nil && g.certificates.set(set.keyPair) {
		g.certificates.reloads.WithLabelValues("applied").Inc()
	}
	g.settings.Store(set)
	g.usage.keep(set.apps)
	g.limits.Update(cfg.RateLimits, cfg.RateLimitSharing)
	g.cache.Update(cfg.Cache)
	poolCfg, targets := cfg.pool()
	g.pool.Update(poolCfg, targets)
	g.admit.Update(cfg.admission())
	return nil
}

// Ready returns nil while the gateway should get requests: it serves, is not
// stopping, and has seen a healthy instance once. It stays ready when all
// instances fall ill later, because a refusal in Dify's form is a better
// answer than none.
func (g *Gateway) Ready() error {
	switch {
	case g.draining.Load():
		return errDraining
	case !g.serving.Load():
		return errors.New("the gateway is not serving yet")
	case !g.ready.Load():
		if usable, all := g.pool.Healthy(); usable == 0 {
			return fmt.Errorf("none of %d Dify instances has been healthy yet", all)
		}
		g.ready.Store(true)
	}
	return nil
}

// Run serves on the listeners until ctx ends, then drains: not ready at once,
// still serving for drain.announce, then nothing new; streams end by
// themselves within drain.timeout and get an error event after it. It returns
// nil after that, and owns and closes the listeners. After HandOver it ends in
// another way, see there.
func (g *Gateway) Run(ctx context.Context, listeners ...net.Listener) error {
	set := g.settings.Load()
	base, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	spans, err := g.startTracing(base)
	if err != nil {
		return err
	}
	defer spans.stop(base)
	g.tracing.Store(spans)
	srv := &http.Server{
		Handler:           g,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: set.Limits.HeaderTimeout,
		IdleTimeout:       set.Limits.IdleTimeout,
		MaxHeaderBytes:    set.Limits.MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		// Without it a client that sends frames to be acknowledged and reads
		// nothing keeps its connection for ever.
		HTTP2:     &http.HTTP2Config{WriteByteTimeout: set.Limits.WriteTimeout},
		ConnState: g.connState,
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	if set.keyPair.cert != nil {
		srv.Protocols.SetHTTP2(true)
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: g.certificates.get}
	}

	// Not a child of base: when what is left after the drain is ended, streams must
	// learn of that, not of the end of the loop that they wait on.
	poolCtx, stopPool := context.WithCancel(context.WithoutCancel(base))
	var wg sync.WaitGroup
	g.runLoops(poolCtx, &wg)
	both := &servers{rest: srv}
	if set.keyPair.cert == nil && len(listeners) > 0 {
		other := newPassed(listeners[0].Addr())
		if both.clear = g.newClear(base, set, other); both.clear != nil {
			wg.Go(func() { _ = both.clear.Run(poolCtx) })
			wg.Go(func() { _ = srv.Serve(other) })
		}
	}
	wg.Go(func() { _ = g.pool.Run(poolCtx) })
	if set.keyPair.cert != nil {
		wg.Go(func() { g.watchCertificate(poolCtx) })
	}
	wg.Go(func() { _ = g.limits.Run(poolCtx) })
	wg.Go(func() { _ = g.cache.Run(poolCtx) })
	failed := make(chan error, len(listeners))
	for _, ln := range listeners {
		ln = g.proxyListener(ln)
		wg.Go(func() {
			var err error
			switch {
			case set.keyPair.cert != nil:
				err = srv.ServeTLS(ln, "", "")
			case both.clear != nil:
				err = both.clear.Serve(ln)
			default:
				err = srv.Serve(ln)
			}
			if !errors.Is(err, http.ErrServerClosed) && !g.draining.Load() {
				failed <- err
			}
		})
	}
	stopLane := g.runLane(base, &wg)
	g.serving.Store(true)
	handed := false
	select {
	case <-ctx.Done():
	case <-g.handed:
		handed = true
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	}
	g.draining.Store(true)
	g.m.draining.Set(1)
	stopLane()
	if handed {
		g.leave(ctx, base, both, end, listeners)
	} else {
		g.drain(base, both, end, err == nil)
	}
	g.stops.end()
	g.turns.Close()
	g.closeCache()
	stopPool()
	wg.Wait()
	g.transport.CloseIdle()
	if g.redis != nil {
		_ = g.redis.Close()
	}
	g.serving.Store(false)
	return err
}
