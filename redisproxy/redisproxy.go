// Package redisproxy makes a Redis Cluster look like one Redis with 16
// databases, so that clients that know neither clusters nor failovers can use
// one. DESIGN.md has the decisions and their reasons.
package redisproxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/upstream"
)

// Proxy serves clients. New makes one, Run runs it once.
type Proxy struct {
	cfg   Config
	log   *slog.Logger
	m     *metrics
	users map[string][sha256.Size]byte
	up    upstream.Config

	dbs     [keyspace.Databases]keyspace.DB
	scripts *scripts
	started time.Time

	// Set by Run before the first client.
	cluster *cluster
	pool    *upstream.Pool
	hub     *hub

	running  atomic.Bool
	draining atomic.Bool
	nextID   atomic.Uint64
	mu       sync.Mutex
	sessions map[uint64]*session
}

// New checks the configuration, reads the password files and returns a proxy
// that has started nothing.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Proxy, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.DefaultUser == "" {
		cfg.DefaultUser = cfg.Users[0].Name
	}
	p := &Proxy{
		cfg: cfg, log: log, users: make(map[string][sha256.Size]byte), started: time.Now(),
		scripts: newScripts(), sessions: make(map[uint64]*session),
	}
	for i, u := range cfg.Users {
		secret, err := readSecret(u.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("users[%d]: %w", i, err)
		}
		p.users[u.Name] = sha256.Sum256([]byte(secret))
	}
	password := ""
	if cfg.Upstream.PasswordFile != "" {
		var err error
		if password, err = readSecret(cfg.Upstream.PasswordFile); err != nil {
			return nil, fmt.Errorf("upstream: %w", err)
		}
	}
	upTLS, err := cfg.Upstream.clientTLS()
	if err != nil {
		return nil, err
	}
	for i := range p.dbs {
		p.dbs[i] = keyspace.New(i)
	}
	p.m = newMetrics(reg)
	p.up = upstream.Config{
		User: cfg.Upstream.User, Password: password, TLS: upTLS,
		DialTimeout: cfg.Timeouts.Dial, Silence: cfg.Timeouts.Silence,
		Multiplexed: cfg.ConnectionsPerNode, MaxDedicated: cfg.Limits.MaxBlocked,
		MaxReply: cfg.Limits.OutputBufferBytes, MaxQueued: cfg.Limits.OutputBufferBytes + cfg.maxRequest(),
		Confirm: cfg.Writes.Replicas, ConfirmWait: cfg.Writes.Wait,
		Unconfirmed: func(writes int, alone bool) {
			if alone {
				p.m.unconfirmed.WithLabelValues("answered").Add(float64(writes))
			} else {
				p.m.unconfirmed.WithLabelValues("lost").Add(float64(writes))
			}
		},
		Opened: func(kind string) { p.m.connections.WithLabelValues(kind).Inc() },
		Closed: func(kind string) { p.m.connections.WithLabelValues(kind).Dec() },
	}
	return p, nil
}

// Ready returns nil when every slot has a master in the proxy's view. While
// one is missing, commands for it are held or refused; the error says so.
func (p *Proxy) Ready() error {
	if !p.running.Load() {
		return errors.New("not started")
	}
	if p.draining.Load() {
		return errors.New("draining")
	}
	m := p.cluster.slots.Load()
	if len(m.Masters) == 0 {
		return errors.New("no node of the cluster has answered yet")
	}
	if m.Missing > 0 {
		return fmt.Errorf("%d of %d slots have no master", m.Missing, keyspace.Slots)
	}
	return nil
}

// Run serves the clients of ln until ctx ends, closes ln, lets commands under
// way finish within the drain time and returns when everything has stopped.
func (p *Proxy) Run(ctx context.Context, ln net.Listener) error {
	serverTLS, err := p.cfg.ServerTLS()
	if err != nil {
		return err
	}
	if serverTLS != nil {
		ln = tls.NewListener(ln, serverTLS)
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	seeds := make([]string, len(p.cfg.Nodes))
	for i, n := range p.cfg.Nodes {
		seeds[i] = n.Address
	}
	up := p.up
	up.Lost = func(addr string, err error) {
		p.m.lost.Inc()
		p.log.Warn("node connection lost", "upstream", addr, "err", err)
		p.cluster.ask()
	}
	p.pool = upstream.NewPool(base, up)
	p.cluster = newCluster(seeds, p.pool, p.cfg.Timeouts.Refresh, p.log, p.m)
	if p.cfg.Reads.From == "replica" {
		p.cluster.replicas = newReplicas(p.cluster, &p.cfg)
	}
	p.hub = newHub(p)
	var own sync.WaitGroup
	own.Go(func() { p.cluster.run(base) })
	own.Go(func() { p.hub.run(base) })
	p.running.Store(true)

	stopAccept := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stopAccept()
	var clients sync.WaitGroup
	var failure error
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() == nil {
				var ne net.Error
				if errors.As(err, &ne) && ne.Timeout() || isTooManyFiles(err) {
					p.m.rejected.WithLabelValues("accept").Inc()
					time.Sleep(20 * time.Millisecond)
					continue
				}
				failure = fmt.Errorf("accept: %w", err)
			}
			break
		}
		p.accept(base, &clients, conn)
	}
	_ = ln.Close()
	p.drain(&clients)
	cancel()
	p.pool.Retain(func(string) bool { return false })
	clients.Wait()
	own.Wait()
	p.pool.Retain(func(string) bool { return false })
	p.pool.Wait()
	return failure
}

func (p *Proxy) accept(ctx context.Context, wg *sync.WaitGroup, conn net.Conn) {
	p.mu.Lock()
	full := len(p.sessions) >= p.cfg.Limits.MaxClients
	p.mu.Unlock()
	if full {
		p.m.rejected.WithLabelValues("max_clients").Inc()
		_ = conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = conn.Write([]byte("-ERR max number of clients reached\r\n"))
		_ = conn.Close()
		return
	}
	p.m.accepted.Inc()
	p.m.clients.Inc()
	s := newSession(p, conn, p.nextID.Add(1))
	p.mu.Lock()
	p.sessions[s.id] = s
	p.mu.Unlock()
	wg.Go(func() {
		defer func() {
			if r := recover(); r != nil {
				p.m.panics.Inc()
				p.log.Error("client connection failed", "conn", s.id, "err", r, "stack", string(debug.Stack()))
			}
			s.cleanUp()
			_ = conn.Close()
			p.mu.Lock()
			delete(p.sessions, s.id)
			p.mu.Unlock()
			p.m.clients.Dec()
		}()
		s.serve(ctx)
	})
}

// drain lets clients finish what they are doing. Those that wait for nothing
// are let go at once.
func (p *Proxy) drain(clients *sync.WaitGroup) {
	p.draining.Store(true)
	p.mu.Lock()
	for _, s := range p.sessions {
		s.wakeForDrain()
	}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the sessions, which Run waits for
		clients.Wait()
		close(done)
	}()
	timer := time.NewTimer(p.cfg.Timeouts.Drain)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sessions {
		p.m.cut.WithLabelValues("drain").Inc()
		_ = s.conn.Close()
	}
}
