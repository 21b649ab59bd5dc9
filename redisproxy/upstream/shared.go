package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/resp"
)

// shared is one connection over which the requests of many clients are
// pipelined. Requests may be queued while it connects.
type shared struct {
	node    *Node
	version int

	kick chan struct{} // capacity 1
	stop chan struct{}

	// progress is when bytes last arrived or the first outstanding request was
	// queued, in nanoseconds since start.
	progress    atomic.Int64
	start       time.Time
	established bool // read by the owner of run only

	mu     sync.Mutex
	out    []byte
	queue  []*Request // in the order of their replies; the reader takes it whole
	seq    uint64     // number of the newest request queued
	sent   uint64     // number of the newest request handed to the socket
	open   int        // requests queued but not answered
	dirty  bool       // out has writes that replicas must confirm
	alone  bool       // the master had no replica when it was asked last
	ended  bool
	reason error

	// held are writes that are answered but not confirmed; the reader's alone
	// until it has ended.
	held []*Request
}

func newShared(n *Node, version int) *shared {
	return &shared{node: n, version: version, kick: make(chan struct{}, 1), stop: make(chan struct{}), start: time.Now()}
}

func (c *shared) now() int64 { return int64(time.Since(c.start)) }

func (c *shared) enqueue(r *Request, p *Payload) bool {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return false
	}
	if len(c.out) > c.node.pool.cfg.MaxQueued {
		c.mu.Unlock()
		r.finish(ErrBusy)
		return true
	}
	c.out = p.Append(c.out)
	r.write, r.barrier = p.Write && c.node.pool.cfg.Confirm > 0, noBarrier
	c.dirty = c.dirty || r.write
	r.left = max(1, r.Replies)
	if p.Asking {
		r.left++
	}
	c.seq++
	r.seq = c.seq
	c.queue = append(c.queue, r)
	if c.open == 0 {
		c.progress.Store(c.now())
	}
	c.open++
	c.mu.Unlock()
	return true
}

func (c *shared) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// close ends the connection; run returns soon after.
func (c *shared) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason == nil {
		c.reason = err
		close(c.stop)
	}
}

// fail ends every request that has no reply yet.
func (c *shared) fail(err error) {
	c.mu.Lock()
	c.ended = true
	rest := c.queue
	c.queue, c.out = nil, nil
	sent := c.sent
	c.mu.Unlock()
	for _, r := range rest {
		if r.barrier != noBarrier {
			release(r.held, false)
			continue
		}
		if r.seq > sent {
			r.finish(fmt.Errorf("%w: %w", ErrNotSent, err))
		} else {
			r.finish(fmt.Errorf("%w: %w", ErrLost, err))
		}
	}
}

// run connects and serves until the connection or ctx ends. The requests that
// are left then wait for fail.
func (c *shared) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { c.close(errClosed) })
	dctx, dcancel := context.WithCancel(ctx)
	go func() { // ends with dctx
		select {
		case <-c.stop:
			dcancel()
		case <-dctx.Done():
		}
	}()
	conn, rd, err := c.node.dial(dctx, c.version)
	if err == nil {
		err = c.identify(conn, rd)
	}
	dcancel()
	if err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return err
	}
	c.established = true
	c.node.pool.cfg.Opened("shared")
	defer c.node.pool.cfg.Closed("shared")
	c.progress.Store(c.now())

	var wg sync.WaitGroup
	wg.Go(func() { c.close(c.write(conn)) })
	wg.Go(func() { c.close(c.read(rd)) })
	wg.Go(func() { c.watch() })
	c.wake()
	<-c.stop
	_ = conn.Close()
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// identify learns which process answers.
func (c *shared) identify(conn net.Conn, rd *resp.ReplyReader) error {
	_ = conn.SetDeadline(time.Now().Add(c.node.pool.cfg.DialTimeout))
	if _, err := conn.Write(resp.AppendCommandStrings(nil, "INFO", "server")); err != nil {
		return err
	}
	raw, err := rd.Append(nil)
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(string(raw), "\r\n") {
		if id, ok := strings.CutPrefix(line, "run_id:"); ok {
			c.node.runID.Store(&id)
		}
		if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
			c.node.version.Store(&v)
		}
	}
	return conn.SetDeadline(time.Time{})
}

func (c *shared) write(conn net.Conn) error {
	var buf []byte
	for {
		select {
		case <-c.kick:
		case <-c.stop:
			return nil
		}
		// Let the clients that are ready to run queue their requests too: one
		// write then carries them all. Alone, this returns at once.
		runtime.Gosched()
		c.mu.Lock()
		if c.dirty {
			// One WAIT confirms all writes that leave together.
			c.dirty = false
			kind := askWait
			if c.alone {
				kind = askAlone
			}
			c.question(kind, nil)
		}
		buf, c.out = c.out, buf[:0]
		c.sent = c.seq
		c.mu.Unlock()
		if len(buf) == 0 {
			continue
		}
		_ = conn.SetWriteDeadline(time.Now().Add(c.node.pool.cfg.Silence))
		if _, err := conn.Write(buf); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

func (c *shared) read(rd *resp.ReplyReader) error {
	var batch []*Request
	for {
		c.progress.Store(c.now())
		if err := rd.Wait(); err != nil {
			c.giveBack(batch)
			return fmt.Errorf("read: %w", err)
		}
		c.progress.Store(c.now())
		if len(batch) == 0 {
			c.mu.Lock()
			batch, c.queue = c.queue, nil
			c.mu.Unlock()
			if len(batch) == 0 {
				c.giveBack(nil)
				return resp.ProtocolError("reply without a request")
			}
		}
		answered := 0
		for len(batch) > 0 {
			r := batch[0]
			var err error
			if !r.All {
				r.Reply = r.Reply[:0]
			}
			r.Reply, err = rd.Append(r.Reply)
			if err != nil && !errors.Is(err, resp.ErrReplyTooLarge) {
				c.count(answered)
				c.giveBack(batch)
				return fmt.Errorf("read: %w", err)
			}
			if r.left--; r.left == 0 && r.barrier != noBarrier {
				batch = batch[1:]
				answered++
				c.decide(r, err)
			} else if r.left == 0 {
				if r.waiter.Budget.Add(-int64(len(r.Reply))) < 0 {
					r.Reply, err = nil, resp.ErrReplyTooLarge
				}
				batch = batch[1:]
				answered++
				if r.write && err == nil && r.Reply[0] != resp.Error {
					c.held = append(c.held, r)
				} else {
					r.finish(err)
				}
			}
			if rd.Buffered() == 0 {
				break
			}
		}
		c.count(answered)
	}
}

func (c *shared) count(answered int) {
	c.mu.Lock()
	c.open -= answered
	c.mu.Unlock()
}

// giveBack puts requests that have not ended before those queued later, for
// fail.
func (c *shared) giveBack(batch []*Request) {
	c.mu.Lock()
	c.queue = slices.Concat(c.held, batch, c.queue)
	c.mu.Unlock()
	c.held = nil
}

// question queues a request of the connection's own. The caller holds c.mu.
func (c *shared) question(kind barrier, held []*Request) {
	c.seq++
	if kind == askWait {
		cfg := &c.node.pool.cfg
		c.out = resp.AppendCommandStrings(c.out, "WAIT", strconv.Itoa(cfg.Confirm), strconv.FormatInt(cfg.ConfirmWait.Milliseconds(), 10))
	} else {
		c.out = resp.AppendCommandStrings(c.out, "INFO", "replication")
	}
	c.queue = append(c.queue, &Request{seq: c.seq, left: 1, barrier: kind, held: held})
	if c.open == 0 {
		c.progress.Store(c.now())
	}
	c.open++
}

// decide ends the writes that a question was about: those it holds, else all
// that have been answered and not decided.
func (c *shared) decide(r *Request, err error) {
	cfg := &c.node.pool.cfg
	v, _, perr := resp.Parse(r.Reply)
	ok := err == nil && perr == nil && v.Kind != resp.Error
	held := r.held
	if held == nil {
		held, c.held = c.held, nil
	}
	if len(held) == 0 {
		return
	}
	n, isInt := v.Int()
	switch {
	case !ok:
		release(held, false)
	case r.barrier == askWait && isInt && n >= int64(cfg.Confirm):
		release(held, true)
	case r.barrier == askWait:
		// Too few. A master that has no replica at all goes on alone: refusing all
		// writes because a replica died would turn one fault into an outage.
		c.ask(askReplica, held)
	case isAlone(r.Reply):
		c.setAlone(true)
		cfg.Unconfirmed(len(held), true)
		release(held, true)
	case r.barrier == askAlone:
		c.setAlone(false)
		c.ask(askWait, held)
	default:
		cfg.Unconfirmed(len(held), false)
		release(held, false)
	}
}

func (c *shared) ask(kind barrier, held []*Request) {
	c.mu.Lock()
	c.question(kind, held)
	c.mu.Unlock()
	c.wake()
}

func (c *shared) setAlone(alone bool) {
	c.mu.Lock()
	c.alone = alone
	c.mu.Unlock()
}

// isAlone reads INFO replication: a master without a replica that follows it.
func isAlone(info []byte) bool {
	return bytes.Contains(info, []byte("role:master")) && !bytes.Contains(info, []byte("state=online"))
}

// release ends answered writes: as they were answered, or as lost, because a
// failover now would lose them.
func release(held []*Request, ok bool) {
	for _, r := range held {
		if ok {
			r.finish(nil)
		} else {
			r.finish(fmt.Errorf("%w: %w", ErrLost, errUnconfirmed))
		}
	}
}

// watch gives a silent node up, and asks an idle one for a sign of life.
func (c *shared) watch() {
	silence := c.node.pool.cfg.Silence
	tick := time.NewTicker(silence / 4)
	defer tick.Stop()
	ping := &Payload{Args: [][]byte{[]byte("PING")}}
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		open := c.open
		c.mu.Unlock()
		quiet := time.Duration(c.now() - c.progress.Load())
		switch {
		case open > 0 && quiet > silence:
			c.close(fmt.Errorf("%w for %v", errSilence, silence))
			return
		case open == 0 && quiet > silence/2:
			w := NewWaiter()
			w.Begin()
			w.pending.Add(1)
			c.enqueue(&Request{waiter: w}, ping)
			c.wake()
		}
	}
}
