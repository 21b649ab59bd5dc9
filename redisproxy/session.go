package redisproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// session is one client. Its goroutine reads what the client has pipelined,
// sends all of it to the nodes, waits for all answers and writes them in
// order: order is kept without a queue between goroutines, and a round costs
// one wake-up and one write however many commands it has.
type session struct {
	p       *Proxy
	id      uint64
	conn    net.Conn
	rd      *resp.RequestReader
	ctx     context.Context //nolint:containedctx // the session's own life, ends the waits of its goroutine
	w       *upstream.Waiter
	since   time.Time
	pick    uint64
	counts  [families]int
	ops     []*op // stable addresses: nodes write into them
	kicks   []kick
	wrote   time.Time // last write, where reads may go to replicas
	out     []byte
	closing bool // after the current round
	lost    bool // an answer is unknown: nothing more may be written

	authed  bool
	user    string
	version int
	db      *keyspace.DB
	name    atomic.Pointer[string]
	last    atomic.Int64 // time of the last command, seconds

	tx    *transaction
	watch *watch
	subs  subscriptions
	// hubVersion is the protocol version for messages, guarded by the hub.
	hubVersion int

	// box, once set, carries all output: messages come from another goroutine.
	box *outbox
	mu  sync.Mutex // guards the swap of box
}

// op is one command of a round.
type op struct {
	cmd     resp.Command
	info    *route.Command
	keys    []int
	slot    int
	db      *keyspace.DB
	kind    opKind
	req     upstream.Request
	payload upstream.Payload
	local   []byte // the answer when no node is asked
	addr    string // the node that was asked
	rewrite rewriter
	split   *split
	tx      *transaction
	replica bool // addr is a replica
}

// kick is a node with requests that have been queued but not written.
type kick struct {
	node    *upstream.Node
	version int
}

type opKind uint8

const (
	opLocal opKind = iota
	opRemote
	opSplit
	opExec
)

// anySlot marks commands that every master can answer.
const anySlot = -1

// maxArgs is the number of arguments that Redis accepts too; how much memory
// they take, MaxRequest bounds.
const maxArgs = 1 << 20

// strangerLimits hold until a client has authenticated, as in Redis.
var strangerLimits = resp.Limits{MaxBulk: 16 << 10, MaxArgs: 10, MaxRequest: 64 << 10}

func newSession(p *Proxy, conn net.Conn, id uint64) *session {
	s := &session{p: p, id: id, conn: conn, w: upstream.NewWaiter(), since: time.Now(), pick: id, version: 2, db: &p.dbs[0]}
	s.rd = resp.NewRequestReader(conn, strangerLimits)
	s.last.Store(time.Now().Unix())
	return s
}

// authenticated lifts the tight limits of strangers.
func (s *session) authenticated(user string) {
	s.authed, s.user = true, user
	l := &s.p.cfg.Limits
	s.rd.SetLimits(resp.Limits{MaxBulk: l.MaxBulkBytes, MaxArgs: maxArgs, MaxRequest: s.p.cfg.maxRequest()})
}

func (s *session) cleanUp() {
	s.dropWatch(false)
	s.p.hub.leave(s)
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	if box != nil {
		box.close()
	}
}

// wakeForDrain ends the session if it waits for its client.
func (s *session) wakeForDrain() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

func (s *session) serve(ctx context.Context) {
	s.ctx = ctx
	for !s.closing {
		if !s.round() {
			return
		}
		if s.p.draining.Load() && s.tx == nil && s.rd.Buffered() == 0 {
			return
		}
	}
}

// round handles what the client has sent; false ends the session.
func (s *session) round() bool {
	n := 0
	if len(s.ops) > keepOps {
		clear(s.ops[keepOps:])
		s.ops = s.ops[:keepOps]
	}
	s.w.Begin()
	s.w.Budget.Store(int64(s.p.cfg.Limits.OutputBufferBytes))
	var failure error
	for n < s.p.cfg.Limits.MaxPipelined && !s.closing {
		if n == len(s.ops) {
			s.ops = append(s.ops, new(op))
		}
		o := s.ops[n]
		ok, err := s.rd.Next(&o.cmd)
		if err != nil {
			failure = err
			break
		}
		if !ok {
			if n > 0 {
				break
			}
			if err := s.rd.Fill(); err != nil {
				failure = err
				break
			}
			continue
		}
		o.reset(s.db)
		n++
		if run := s.dispatch(o); run != nil {
			// What needs the session for itself comes after everything before it.
			if !s.finish(n - 1) {
				return false
			}
			s.ops[0], s.ops[n-1] = s.ops[n-1], s.ops[0]
			o = s.ops[0]
			run(s, o)
			s.w.Begin()
			if !s.finish(1) {
				return false
			}
			s.w.Begin()
			n = 0
			break
		}
	}
	if !s.finish(n) {
		return false
	}
	if failure == nil {
		return true
	}
	var perr resp.ProtocolError
	if errors.As(failure, &perr) {
		s.p.m.cut.WithLabelValues("protocol").Inc()
		s.out = resp.AppendError(s.out[:0], "ERR "+perr.Error())
		s.flush()
		s.linger()
	}
	return false
}

// linger reads a little more before the connection is closed, so that the
// client sees the error instead of a reset.
func (s *session) linger() {
	if c, ok := s.conn.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = io.CopyN(io.Discard, s.conn, 1<<20)
}

func (o *op) reset(db *keyspace.DB) {
	o.info, o.keys, o.slot, o.db, o.kind = nil, o.keys[:0], anySlot, db, opLocal
	o.payload = upstream.Payload{}
	o.local = o.local[:0]
	o.addr, o.rewrite, o.split, o.tx, o.replica = "", nil, nil, nil, false
	o.req.Replies, o.req.All, o.req.Err = 0, false, nil
}

// What a session keeps allocated between rounds.
const (
	keepReply = 16 << 10
	keepArgs  = 1 << 10
	keepOps   = 64
)

// finish waits for the first n operations and writes their answers.
func (s *session) finish(n int) bool {
	s.kick()
	s.w.Wait()
	s.out = s.out[:0]
	for i := range n {
		o := s.ops[i]
		if !s.lost {
			s.complete(o, s.ops[i+1:n])
			s.out = append(s.out, o.answer()...)
		}
		if cap(o.req.Reply) > keepReply {
			o.req.Reply = nil
		}
		if cap(o.local) > keepReply {
			o.local = nil
		}
		if cap(o.cmd.Args) > keepArgs {
			o.cmd.Args, o.keys = nil, nil
		}
	}
	for f, c := range s.counts {
		if c > 0 {
			s.p.m.commands[f].Add(float64(c))
			s.counts[f] = 0
		}
	}
	if n > 0 {
		s.last.Store(time.Now().Unix())
	}
	ok := s.flush()
	if cap(s.out) > 4*keepReply {
		s.out = nil
	}
	return ok && !s.lost
}

func (o *op) answer() []byte {
	if o.kind == opRemote {
		return o.req.Reply
	}
	return o.local
}

func (s *session) flush() bool {
	if len(s.out) == 0 {
		return true
	}
	if s.box != nil {
		return s.box.append(s.out)
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.p.cfg.Timeouts.ClientWrite))
	if _, err := s.conn.Write(s.out); err != nil {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			s.p.m.cut.WithLabelValues("slow_reader").Inc()
		}
		return false
	}
	return true
}

// send queues the operation at the node that serves its slot.
func (s *session) send(o *op) {
	o.kind = opRemote
	s.sendRequest(&o.req, &o.payload, o.slot, &o.addr)
}

func (s *session) sendRequest(r *upstream.Request, p *upstream.Payload, slot int, addr *string) {
	m := s.p.cluster.slots.Load()
	*addr = m.Owner(slot)
	if slot == anySlot && len(m.Masters) > 0 {
		*addr = m.Masters[int(s.id)%len(m.Masters)]
	}
	if *addr == "" {
		r.Err = upstream.ErrNotSent
		r.Reply = r.Reply[:0]
		return
	}
	s.queueAt(*addr, s.version, r, p)
}

// queueAt queues a request at a node; kick has it written.
func (s *session) queueAt(addr string, version int, r *upstream.Request, p *upstream.Payload) {
	k := kick{s.p.pool.Node(addr), version}
	k.node.Send(version, s.pick, s.w, r, p)
	for _, other := range s.kicks {
		if other == k {
			return
		}
	}
	s.kicks = append(s.kicks, k)
}

func (s *session) kick() {
	for _, k := range s.kicks {
		k.node.Kick(k.version, s.pick)
	}
	s.kicks = s.kicks[:0]
}

func isTooManyFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
