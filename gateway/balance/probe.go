package balance

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// tick is how often the pool looks for ejections that are over.
const tick = 100 * time.Millisecond

// Run probes every endpoint and ends ejections until ctx ends. Probes use a
// connection of their own each time, because what they ask is also whether the
// instance still accepts. Dify's /health touches neither database nor Redis:
// it says that the process answers, no more.
func (p *Pool) Run(ctx context.Context) error {
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer transport.CloseIdleConnections()

	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[*Endpoint]context.CancelFunc{}
	defer func() {
		for _, cancel := range running {
			cancel()
		}
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			p.readmit(now)
			p.Relieve(now)
		case <-p.changed:
			now := map[*Endpoint]bool{}
			for _, e := range p.Endpoints() {
				now[e] = true
				if _, ok := running[e]; ok {
					continue
				}
				probeCtx, cancel := context.WithCancel(ctx)
				running[e] = cancel
				wg.Go(func() { p.probeLoop(probeCtx, client, e) })
			}
			for e, cancel := range running {
				if !now[e] {
					cancel()
					delete(running, e)
				}
			}
		}
	}
}

// Relieve raises the limits of endpoints that stand still. Run calls it.
func (p *Pool) Relieve(now time.Time) {
	raised := false
	for _, e := range p.Endpoints() {
		if took := e.probeTook.Load(); took == 0 || took > int64(stallProbe) {
			continue // what answers probes late is busy
		}
		if e.adaptive.stalled(e.working.Load(), now) {
			raised = true
		}
	}
	if raised {
		p.freed()
	}
}

func (p *Pool) probeLoop(ctx context.Context, client *http.Client, e *Endpoint) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		cfg := p.snap.Load().cfg
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.kick:
			// Failing requests ask for probes; many of them must not become a storm.
			if wait := cfg.HealthInterval/5 - time.Since(last); wait > 0 {
				timer.Reset(wait)
				continue
			}
		}
		last = time.Now()
		err := probe(ctx, client, e, cfg)
		e.ObserveProbe(time.Since(last))
		if ctx.Err() != nil {
			return
		}
		p.probed(e, err)
		// A tenth of jitter keeps many gateways from asking in step.
		timer.Reset(cfg.HealthInterval - time.Duration(rand.Int64N(int64(cfg.HealthInterval)/10+1)))
	}
}

func probe(ctx context.Context, client *http.Client, e *Endpoint, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.HealthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Scheme+"://"+e.Address+cfg.HealthPath, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "fournines-gateway-health")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// probed records a probe's result.
func (p *Pool) probed(e *Endpoint, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !e.probed
	e.probed = true
	if err == nil {
		e.good, e.bad = e.good+1, 0
	} else {
		e.good, e.bad = 0, e.bad+1
	}
	was := e.healthy.Load()
	switch {
	case !was && err == nil && (first || e.good >= p.cfg.Rise):
		e.healthy.Store(true)
		e.forget()
		if !first {
			e.recovered.Store(e.age(time.Now()))
		}
	case was && err != nil && e.bad >= p.cfg.Fall:
		e.healthy.Store(false)
		defer e.down.Swap(newDownSignal()).cancel() // after the new snapshot is out
	case first && err != nil:
		p.log.Warn("endpoint unhealthy", "endpoint", e.Name, "zone", e.Zone, "err", err)
		return
	default:
		return
	}
	now := time.Now()
	p.rebuild(now)
	p.obs.Health(e, e.usable(now))
	if was {
		p.log.Warn("endpoint unhealthy", "endpoint", e.Name, "zone", e.Zone, "err", err)
	} else {
		p.log.Info("endpoint healthy", "endpoint", e.Name, "zone", e.Zone)
	}
}
