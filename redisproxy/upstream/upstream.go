// Package upstream holds the connections to the nodes of a Redis Cluster: few
// multiplexed ones that carry the plain commands of all clients, and dedicated
// ones for commands that block or keep state. It knows nothing of slots.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/resp"
)

// Config is what every connection needs.
type Config struct {
	// User and Password authenticate; no authentication when Password is empty,
	// the default user when only User is.
	User, Password string
	// TLS encrypts when not nil; ServerName is set per node when it is empty.
	TLS *tls.Config
	// DialTimeout bounds connecting and the handshake.
	DialTimeout time.Duration
	// Silence is how long a node may leave requests without sending a byte
	// before its connections are given up.
	Silence time.Duration
	// Multiplexed is the number of shared connections per node and protocol version.
	Multiplexed int
	// MaxDedicated bounds the dedicated connections per node.
	MaxDedicated int
	// MaxReply is the largest reply in bytes; larger ones become an error.
	MaxReply int
	// MaxQueued bounds the bytes that wait to be written to one connection.
	MaxQueued int
	// Confirm is how many replicas must have a write before it is answered, 0
	// for none, and ConfirmWait how long they may take. A write that they have
	// not confirmed ends with ErrLost, except while the master has no replica.
	Confirm     int
	ConfirmWait time.Duration

	// Opened and Closed, when set, are told of each connection ("shared" or "dedicated").
	Opened, Closed func(kind string)
	// Lost, when set, is told when an established connection broke.
	Lost func(addr string, err error)
	// Unconfirmed, when set, is told of writes that no replica confirmed: alone
	// when there was none, so that they were answered nevertheless.
	Unconfirmed func(writes int, alone bool)
}

// Replica is added to a protocol version to ask for connections on which a
// replica answers reads itself instead of naming its master.
const Replica = 4

// Errors of requests. Only this package knows whether bytes have left.
var (
	// ErrNotSent means that the node has not received the request.
	ErrNotSent = errors.New("not sent")
	// ErrLost means that the connection broke after the request had, at least
	// in part, been written: the node may have executed it.
	ErrLost = errors.New("connection lost after sending")
	// ErrBusy means that too many bytes or connections are waiting at the node.
	ErrBusy = errors.New("node is too busy")

	errClosed  = errors.New("closed")
	errSilence = errors.New("no sign of life")

	errUnconfirmed = errors.New("no replica has confirmed the write")
)

// Payload is what to send: either Raw as it is, or Args with Prefix put before
// those whose index is in Keys.
type Payload struct {
	Raw    []byte
	Args   [][]byte
	Keys   []int
	Prefix []byte
	// Asking sends ASKING first; its reply is dropped.
	Asking bool
	// Write says that replicas must confirm it, where that is configured.
	Write bool
}

// Append appends the bytes to send.
func (p *Payload) Append(dst []byte) []byte {
	if p.Asking {
		dst = append(dst, "*1\r\n$6\r\nASKING\r\n"...)
	}
	if p.Raw != nil {
		return append(dst, p.Raw...)
	}
	dst = resp.AppendArray(dst, len(p.Args))
	k := 0
	for i, a := range p.Args {
		if len(p.Prefix) > 0 && p.isKey(i, &k) {
			dst = append(dst, '$')
			dst = appendInt(dst, len(p.Prefix)+len(a))
			dst = append(dst, '\r', '\n')
			dst = append(dst, p.Prefix...)
			dst = append(dst, a...)
			dst = append(dst, '\r', '\n')
			continue
		}
		dst = resp.AppendBulk(dst, a)
	}
	return dst
}

// isKey looks i up in Keys, which nearly always rise: next is where to look.
func (p *Payload) isKey(i int, next *int) bool {
	if *next < len(p.Keys) && p.Keys[*next] == i {
		*next++
		return true
	}
	if *next < len(p.Keys) && p.Keys[*next] > i {
		return false
	}
	for _, k := range p.Keys {
		if k == i {
			return true
		}
	}
	return false
}

func appendInt(dst []byte, n int) []byte {
	if n >= 10 {
		dst = appendInt(dst, n/10)
	}
	return append(dst, byte('0'+n%10))
}

// Request is one exchange with a node. It is owned by the caller before Send
// and after its Waiter has been released, and by the connection in between.
type Request struct {
	// Replies is how many replies the payload has; 0 counts as 1. Only the last
	// one is kept unless All is set.
	Replies int
	All     bool
	// Reply holds the raw reply, in memory that is reused.
	Reply []byte
	// Err is nil, or wraps ErrNotSent, ErrLost, ErrBusy or resp.ErrReplyTooLarge.
	Err error

	waiter *Waiter
	seq    uint64
	left   int
	write  bool
	// barrier marks requests of the connection's own, about writes before them.
	barrier barrier
	// held are the answered writes that the barrier decides about.
	held []*Request
}

// barrier is what a request of the connection's own asks.
type barrier uint8

const (
	noBarrier  barrier = iota
	askWait            // WAIT: how many replicas have everything before
	askReplica         // INFO replication, after too few: is there a replica at all
	askAlone           // the same before WAIT: is there still none
)

func (r *Request) finish(err error) {
	r.Err = err
	r.waiter.done()
}

// Waiter is released when every request it was given has ended. It is reused
// by one goroutine: Begin, any number of Sends, Wait.
type Waiter struct {
	// Budget is how many bytes of replies the round may still hold; a reply
	// that exceeds it ends with resp.ErrReplyTooLarge.
	Budget atomic.Int64

	pending atomic.Int64
	ch      chan struct{}
}

// NewWaiter returns a waiter.
func NewWaiter() *Waiter { return &Waiter{ch: make(chan struct{}, 1)} }

// Begin starts a round.
func (w *Waiter) Begin() { w.pending.Store(1) }

func (w *Waiter) done() {
	if w.pending.Add(-1) == 0 {
		w.ch <- struct{}{}
	}
}

// Wait ends the round: it returns when every request has.
func (w *Waiter) Wait() {
	w.done()
	<-w.ch
}

// Pool holds the nodes by address.
type Pool struct {
	cfg Config
	ctx context.Context //nolint:containedctx // bounds the connections' goroutines, which outlive single calls

	wg    sync.WaitGroup
	mu    sync.Mutex
	nodes map[string]*Node
}

// NewPool returns a pool whose connections live until ctx ends; Wait joins
// their goroutines.
func NewPool(ctx context.Context, cfg Config) *Pool {
	if cfg.Opened == nil {
		cfg.Opened = func(string) {}
	}
	if cfg.Closed == nil {
		cfg.Closed = func(string) {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(string, error) {}
	}
	if cfg.Unconfirmed == nil {
		cfg.Unconfirmed = func(int, bool) {}
	}
	return &Pool{cfg: cfg, ctx: ctx, nodes: make(map[string]*Node)}
}

// Wait returns when every goroutine of the pool has ended, after its context.
func (p *Pool) Wait() { p.wg.Wait() }

// Node returns the node at addr.
func (p *Pool) Node(addr string) *Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[addr]
	if n == nil {
		n = &Node{Addr: addr, pool: p, dedicated: make(map[*Dedicated]struct{})}
		for i := range n.shared {
			n.shared[i] = make([]*shared, p.cfg.Multiplexed)
		}
		p.nodes[addr] = n
	}
	return n
}

// Retain closes the connections to every node that keep does not want.
func (p *Pool) Retain(keep func(addr string) bool) {
	p.mu.Lock()
	var gone []*Node
	for addr, n := range p.nodes {
		if !keep(addr) {
			gone = append(gone, n)
			delete(p.nodes, addr)
		}
	}
	p.mu.Unlock()
	for _, n := range gone {
		n.CloseAll()
	}
}

// Node is one server.
type Node struct {
	// Addr is host:port.
	Addr string

	pool *Pool

	mu        sync.Mutex
	shared    [4][]*shared // by protocol version 2, 3, then the same with Replica
	failed    time.Time    // last failed dial
	failure   error
	idle      []*Dedicated
	dedicated map[*Dedicated]struct{}
	opening   int

	runID   atomic.Pointer[string]
	version atomic.Pointer[string]
}

// RunID identifies the server process behind the newest shared connection;
// empty before there was one.
func (n *Node) RunID() string {
	if s := n.runID.Load(); s != nil {
		return *s
	}
	return ""
}

// ServerVersion is the node's redis_version; empty before it was connected.
func (n *Node) ServerVersion() string {
	if s := n.version.Load(); s != nil {
		return *s
	}
	return ""
}

// redialPause is how long a node is not dialled again after a refused connection.
const redialPause = 50 * time.Millisecond

// list holds the shared connections of a protocol version.
func (n *Node) list(version int) []*shared {
	i := 0
	if protocol(version) >= 3 {
		i = 1
	}
	if version&Replica != 0 {
		i += 2
	}
	return n.shared[i]
}

// protocol is the version without Replica.
func protocol(version int) int { return version &^ Replica }

// connection returns the shared connection number pick of a protocol version,
// opening it when needed.
func (n *Node) connection(version int, pick uint64) (*shared, error) {
	list := n.list(version)
	i := pick % uint64(len(list))
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := list[i]; c != nil {
		return c, nil
	}
	if err := n.pool.ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, errClosed)
	}
	if time.Since(n.failed) < redialPause {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, n.failure)
	}
	c := newShared(n, version)
	list[i] = c
	n.pool.wg.Go(func() {
		err := c.run(n.pool.ctx)
		n.mu.Lock()
		list[i] = nil
		if !c.established {
			n.failed, n.failure = time.Now(), err
		}
		n.mu.Unlock()
		if c.established && n.pool.ctx.Err() == nil && !errors.Is(err, errClosed) {
			n.pool.cfg.Lost(n.Addr, err)
		}
		c.fail(err)
		n.closeIdle()
		if errors.Is(err, errSilence) {
			// What hangs on one connection hangs on all, blocked ones included.
			n.CloseAll()
		}
	})
	return c, nil
}

// Send queues a request; its waiter is released when it has ended. Requests
// with the same version and pick reach the node in order. Nothing is written
// before Kick.
func (n *Node) Send(version int, pick uint64, w *Waiter, r *Request, p *Payload) {
	w.pending.Add(1)
	r.waiter, r.Reply, r.Err = w, r.Reply[:0], nil
	for range 2 {
		c, err := n.connection(version, pick)
		if err != nil {
			r.finish(err)
			return
		}
		if c.enqueue(r, p) {
			return
		}
		// The connection ended in this moment; the next one is new.
		n.forget(c)
	}
	r.finish(fmt.Errorf("%w: %w", ErrNotSent, errClosed))
}

func (n *Node) forget(c *shared) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, list := range n.shared {
		for i := range list {
			if list[i] == c {
				list[i] = nil
			}
		}
	}
}

// Kick writes what was queued by Send with the same version and pick.
func (n *Node) Kick(version int, pick uint64) {
	list := n.list(version)
	n.mu.Lock()
	c := list[pick%uint64(len(list))]
	n.mu.Unlock()
	if c != nil {
		c.wake()
	}
}

// closeIdle closes the dedicated connections that nobody uses.
func (n *Node) closeIdle() {
	n.mu.Lock()
	idle := n.idle
	n.idle = nil
	n.mu.Unlock()
	for _, d := range idle {
		d.Close()
	}
}

// CloseAll closes every connection to the node. Requests under way end with
// ErrLost or ErrNotSent.
func (n *Node) CloseAll() {
	n.mu.Lock()
	var all []*shared
	for _, list := range n.shared {
		for _, c := range list {
			if c != nil {
				all = append(all, c)
			}
		}
	}
	var ded []*Dedicated
	for d := range n.dedicated {
		ded = append(ded, d)
	}
	n.idle = nil
	n.mu.Unlock()
	for _, c := range all {
		c.close(errClosed)
	}
	for _, d := range ded {
		d.Close()
	}
}

// dial connects and authenticates.
func (n *Node) dial(ctx context.Context, version int) (net.Conn, *resp.ReplyReader, error) {
	cfg := &n.pool.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", n.Addr)
	if err != nil {
		return nil, nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if cfg.TLS != nil {
		tc := cfg.TLS
		if tc.ServerName == "" {
			tc = tc.Clone()
			tc.ServerName, _, _ = net.SplitHostPort(n.Addr)
		}
		secure := tls.Client(conn, tc)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, nil, fmt.Errorf("TLS with %s: %w", n.Addr, err)
		}
		conn = secure
	}
	rd := resp.NewReplyReader(conn, cfg.MaxReply)
	fail := func(err error) (net.Conn, *resp.ReplyReader, error) {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("handshake with %s: %w", n.Addr, err)
	}
	var hello [][]string
	if cfg.Password != "" {
		if cfg.User != "" {
			hello = append(hello, []string{"AUTH", cfg.User, cfg.Password})
		} else {
			hello = append(hello, []string{"AUTH", cfg.Password})
		}
	}
	if protocol(version) >= 3 {
		hello = append(hello, []string{"HELLO", "3"})
	}
	if version&Replica != 0 {
		hello = append(hello, []string{"READONLY"})
	}
	hello = append(hello, []string{"CLIENT", "SETNAME", "fournines-redisproxy"})
	var out []byte
	for _, h := range hello {
		out = resp.AppendCommandStrings(out, h...)
	}
	if _, err := conn.Write(out); err != nil {
		return fail(err)
	}
	for range hello {
		raw, err := rd.Append(nil)
		if err != nil {
			return fail(err)
		}
		if raw[0] == resp.Error {
			return fail(errors.New(string(raw[1 : len(raw)-2])))
		}
	}
	if !stop() {
		return fail(context.Cause(ctx))
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, rd, nil
}

// Warm opens the first shared connection of a protocol version if it is not.
func (n *Node) Warm(version int) { _, _ = n.connection(version, 0) }
