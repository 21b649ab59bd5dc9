package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// errNotReady is wrapped by the error of a check that got an answer other than
// the wanted one: the server lives, but wants no new connections.
var errNotReady = errors.New("not ready")

// backend is the state of one server: what its checks and connections say.
type backend struct {
	Backend
	service string
	check   Check
	logger  *slog.Logger
	metrics *metrics

	up      atomic.Bool  // what the checks say
	active  atomic.Int64 // open connections, and attempts
	failed  atomic.Int64 // time of the last failed attempt, in Unix nanoseconds
	started atomic.Int64 // when the last passed check was started

	gauge    prometheus.Gauge
	accepted prometheus.Counter
	errors   prometheus.Counter
	upGauge  prometheus.Gauge

	// suspected holds while data to the backend is sent again and nothing comes
	// back: its machine is gone, or the way to it. kick asks for a check then.
	suspected atomic.Bool
	kick      chan struct{}
	running   atomic.Pointer[runningCheck] // nil between two checks

	mu     sync.Mutex
	relays map[*relay]struct{}
}

// suspectTimeout bounds a check of a backend that is suspected: both the check
// and the data have no answer then, and each alone could be chance.
const suspectTimeout = 500 * time.Millisecond

// checkPause is the least time between the begins of two checks of a backend.
const checkPause = 100 * time.Millisecond

func newBackend(service Service, b Backend, logger *slog.Logger, m *metrics) *backend {
	return &backend{
		Backend: b, service: service.Name, check: service.Check, metrics: m,
		logger:   logger.With("service", service.Name, "backend", b.Name, "zone", b.Zone),
		gauge:    m.connections.WithLabelValues(service.Name, b.Zone, b.Name),
		accepted: m.accepted.WithLabelValues(service.Name, b.Zone, b.Name),
		errors:   m.connectErrors.WithLabelValues(service.Name, b.Zone, b.Name),
		upGauge:  m.up.WithLabelValues(service.Name, b.Zone, b.Name),
		relays:   map[*relay]struct{}{},
		kick:     make(chan struct{}, 1),
	}
}

// runningCheck is a check under way.
type runningCheck struct {
	since time.Time
	end   context.CancelFunc
}

// suspect asks for a check at once, because data to the backend has no answer.
// One that is under way is not given its whole time.
func (b *backend) suspect(now time.Time) {
	b.suspected.Store(true)
	if c := b.running.Load(); c == nil {
		b.checkNow()
	} else if now.Sub(c.since) >= suspectTimeout {
		c.end()
	}
}

func (b *backend) checkNow() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// healthy tells whether the backend passes its checks and no attempt to
// connect has failed since the last one that passed.
func (b *backend) healthy() bool {
	return b.up.Load() && b.failed.Load() <= b.started.Load()
}

// connectFailed notes a failed attempt: the next check decides.
func (b *backend) connectFailed() {
	b.failed.Store(time.Now().UnixNano())
	b.errors.Inc()
	b.checkNow()
}

func (b *backend) add(r *relay) {
	b.mu.Lock()
	b.relays[r] = struct{}{}
	b.mu.Unlock()
	b.accepted.Inc()
	b.gauge.Inc()
}

func (b *backend) remove(r *relay) {
	b.mu.Lock()
	delete(b.relays, r)
	b.mu.Unlock()
	b.gauge.Dec()
}

// each calls f for every connection; f must not wait.
func (b *backend) each(f func(*relay)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.relays {
		f(r)
	}
}

// reset cuts all connections.
func (b *backend) reset(reason string) {
	b.each(func(r *relay) { b.resetOne(r, reason) })
}

func (b *backend) resetOne(r *relay, reason string) {
	if r.abort() {
		b.metrics.reset.WithLabelValues(b.service, b.Zone, b.Name, reason).Inc()
	}
}

// runChecks checks until ctx ends.
func (b *backend) runChecks(ctx context.Context) {
	transport := &http.Transport{DisableKeepAlives: true, Proxy: nil}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	passed, failed, silent := 0, 0, 0 // in a row
	first := true
	for {
		start := time.Now()
		timeout := b.check.Timeout
		if b.suspected.Load() {
			timeout = min(timeout, suspectTimeout)
		}
		checkCtx, cancel := context.WithTimeout(ctx, timeout)
		b.running.Store(&runningCheck{start, cancel})
		err := b.checkOnce(checkCtx, client)
		b.running.Store(nil)
		cancel()
		if ctx.Err() != nil {
			return
		}
		suspected := b.suspected.Load()
		if err == nil {
			passed, failed, silent = passed+1, 0, 0
			if first || passed >= b.check.Rise || b.up.Load() {
				b.started.Store(start.UnixNano())
				b.setUp(true, nil)
			}
		} else {
			passed, failed = 0, failed+1
			notReady := errors.Is(err, errNotReady)
			switch {
			case notReady:
				silent = 0
			case suspected:
				silent = max(silent+1, b.check.Fall)
			default:
				silent++
			}
			if first || notReady || failed >= b.check.Fall || silent >= b.check.Fall {
				b.setUp(false, err)
			}
			if silent >= b.check.Fall && !b.check.KeepConnections {
				b.reset(resetUnreachable)
			}
		}
		first = false
		// A little noise keeps the checks of several balancers apart.
		wait := b.check.Interval - time.Since(start) + rand.N(b.check.Interval/10+1)
		next := time.NewTimer(max(wait, b.check.Interval/10))
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		case <-b.kick:
			next.Stop()
			// Many failures must not become a storm of checks.
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(b.check.Interval, checkPause) - min(time.Since(start), b.check.Interval, checkPause)):
			}
		}
	}
}

func (b *backend) setUp(up bool, cause error) {
	value := 0.0
	if up {
		value = 1
	}
	b.upGauge.Set(value)
	if b.up.Swap(up) == up {
		return
	}
	if up {
		b.logger.Info("backend is up")
	} else {
		b.logger.Warn("backend is down", "err", cause)
	}
}

func (b *backend) checkOnce(ctx context.Context, client *http.Client) error {
	if b.check.Kind == CheckTCP {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.CheckAddress)
		if err != nil {
			return fmt.Errorf("check: %w", err)
		}
		_ = c.Close()
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.CheckAddress+b.check.Path, nil)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4096)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("check: status %d: %w", resp.StatusCode, errNotReady)
	}
	return nil
}
