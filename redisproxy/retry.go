package redisproxy

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/route"
	"fournines/redisproxy/upstream"
)

// Errors that the proxy itself answers with. LOADING is what clients take for
// "not executed, try again": redis-py treats it as a lost connection, go-redis
// repeats the command.
const (
	errHoldExpired = "LOADING fournines: no master has served this slot within the hold time; the command was not executed"
	errLostSent    = "ERR fournines: the connection to the master was lost; the command may or may not have been executed"
	errNodeBusy    = "ERR fournines: too many requests are waiting at the node; the command was not executed"
	errReordered   = "LOADING fournines: the command was not executed, and a later one of the same pipeline was; it is not repeated out of order"
	errDropped     = "ERR fournines: the answer is larger than limits.outputBufferBytes"
)

// outcome is what became of a request.
type outcome uint8

const (
	done     outcome = iota
	moved            // not executed: another node serves the slot
	ask              // not executed: this key is at another node already
	waitNode         // not executed: nobody serves the slot now
	lost             // perhaps executed
	refused          // not executed, and not worth trying again
	tooLarge
)

var outcomeNames = [...]string{"done", "moved", "ask", "wait", "lost", "refused", "too_large"}

var waitPrefixes = [...]string{"TRYAGAIN", "CLUSTERDOWN", "LOADING ", "READONLY", "MASTERDOWN", "UNBLOCKED"}

// classify tells what became of a request, and the slot and address that a
// redirection names.
func classify(reply []byte, err error) (outcome, int, string) {
	switch {
	case err == nil:
	case errors.Is(err, upstream.ErrNotSent):
		return waitNode, 0, ""
	case errors.Is(err, upstream.ErrLost):
		return lost, 0, ""
	case errors.Is(err, resp.ErrReplyTooLarge):
		return tooLarge, 0, ""
	default:
		return refused, 0, ""
	}
	if len(reply) == 0 || reply[0] != resp.Error {
		return done, 0, ""
	}
	text := reply[1:]
	switch {
	case bytes.HasPrefix(text, []byte("MOVED ")):
		if slot, addr, ok := redirection(text); ok {
			return moved, slot, addr
		}
		return waitNode, 0, ""
	case bytes.HasPrefix(text, []byte("ASK ")):
		if slot, addr, ok := redirection(text); ok {
			return ask, slot, addr
		}
		return waitNode, 0, ""
	}
	for _, p := range waitPrefixes {
		if bytes.HasPrefix(text, []byte(p)) {
			return waitNode, 0, ""
		}
	}
	return done, 0, ""
}

// redirection reads "MOVED slot host:port".
func redirection(text []byte) (int, string, bool) {
	f := bytes.Fields(text)
	if len(f) != 3 || f[2][0] == ':' {
		return 0, "", false
	}
	slot, err := strconv.Atoi(string(f[1]))
	return slot, string(f[2]), err == nil
}

// exchange is one request and what is needed to send it again.
type exchange struct {
	req     *upstream.Request
	payload *upstream.Payload
	slot    int
	addr    string
	// repeat allows sending it again after the connection was lost.
	repeat bool
	// witness, or that of op, can tell that it was not executed then; both may be
	// nil.
	witness *witness
	op      *op
	// whole marks a transaction, which cannot follow ASK.
	whole bool
	// result extracts the reply to classify; nil takes the request's.
	result func() []byte
	// failed is set when the proxy has written an error as the reply.
	failed bool
}

func (x *exchange) outcome() (outcome, int, string) {
	if x.result != nil && x.req.Err == nil {
		return classify(x.result(), nil)
	}
	return classify(x.req.Reply, x.req.Err)
}

// settle repeats a request that was not executed until it is, within the hold
// time, and turns what remains into an error reply. It reports false when
// nothing may be answered because the result is unknown.
func (s *session) settle(x *exchange, overtaken func() bool) bool {
	what, slot, addr := x.outcome()
	if what == done {
		return true
	}
	start := time.Now()
	deadline := start.Add(s.p.cfg.Timeouts.Hold)
	held := false
	defer func() {
		if held {
			s.p.m.held.Dec()
			s.p.m.holds.Observe(time.Since(start).Seconds())
		}
	}()
	for tries := 0; ; tries++ {
		s.p.m.redirects.WithLabelValues(outcomeNames[what]).Inc()
		if what == lost && (x.repeat || s.notExecuted(x)) {
			what = waitNode
		}
		target, asking := "", false
		current, changed := s.p.cluster.next()
		switch what {
		case done:
			return true
		case moved:
			if x.slot != anySlot {
				slot = x.slot
			}
			s.p.cluster.moved(slot, addr)
			target = addr
		case ask:
			target, asking = addr, true
			if x.whole {
				target, asking = "", false
			}
		case waitNode:
		case lost:
			s.p.m.ambiguous.Inc()
			if s.p.cfg.OnLost == "close" {
				s.lost = true
				return false
			}
			return s.settled(x, errLostSent)
		case refused:
			return s.settled(x, errNodeBusy)
		case tooLarge:
			s.p.m.cut.WithLabelValues("output_buffer").Inc()
			s.closing = true
			return s.settled(x, errDropped)
		}
		if overtaken != nil && overtaken() {
			return s.settled(x, errReordered)
		}
		if target == "" || tries > 4 {
			if !held {
				held = true
				s.p.m.held.Inc()
			}
			if !s.pause(deadline, changed, min(50*time.Millisecond, 2*time.Millisecond<<min(tries, 10))) {
				s.p.m.holdExpired.Inc()
				return s.settled(x, errHoldExpired)
			}
			current = s.p.cluster.slots.Load()
		}
		if target == "" {
			target = s.target(current, x.slot, tries)
		}
		if target == "" {
			what = waitNode
			continue
		}
		x.payload.Asking = asking
		x.addr = target
		s.ask(target, x.req, x.payload)
		x.payload.Asking = false
		what, slot, addr = x.outcome()
		if what == done {
			return true
		}
	}
}

// notExecuted tells whether a request whose connection was lost surely left nothing
// behind.
func (s *session) notExecuted(x *exchange) bool {
	w := x.witness
	if w == nil && x.op != nil {
		w = witnessOf(x.op)
	}
	return w != nil && s.absent(w, x.slot)
}

// target picks the node for a slot; for commands that every node can answer
// another one with each try.
func (s *session) target(m *route.Map, slot, tries int) string {
	if slot != anySlot {
		return m.Owner(slot)
	}
	if len(m.Masters) == 0 {
		return ""
	}
	return m.Masters[(int(s.id)+tries)%len(m.Masters)]
}

// ask sends one request and waits for its end.
func (s *session) ask(addr string, r *upstream.Request, p *upstream.Payload) {
	node := s.p.pool.Node(addr)
	s.w.Begin()
	node.Send(s.version, s.pick, s.w, r, p)
	node.Kick(s.version, s.pick)
	s.w.Wait()
}

// settled makes an error the reply.
func (s *session) settled(x *exchange, msg string) bool {
	x.failed = true
	x.req.Err = nil
	x.req.Reply = resp.AppendError(x.req.Reply[:0], msg)
	return true
}

// pause waits until the slot map changes, for at most d. It reports false
// when the deadline has passed or the proxy stops.
func (s *session) pause(deadline time.Time, changed <-chan struct{}, d time.Duration) bool {
	if !time.Now().Before(deadline) || s.ctx.Err() != nil {
		return false
	}
	s.p.cluster.ask()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-s.ctx.Done():
		return false
	}
	return true
}

// complete makes sure that the operation has its answer.
func (s *session) complete(o *op, later []*op) {
	switch o.kind {
	case opLocal:
		return
	case opSplit:
		s.completeSplit(o)
		return
	case opExec:
		s.completeExec(o)
		return
	}
	if o.replica {
		s.checkReplica(o)
	}
	if o.req.Err == nil && len(o.req.Reply) > 0 && o.req.Reply[0] != resp.Error {
		if o.rewrite != nil {
			o.req.Reply = o.rewrite(o, o.req.Reply)
		}
		return
	}
	x := exchange{req: &o.req, payload: &o.payload, slot: o.slot, addr: o.addr, repeat: repeatable(o), op: o}
	if !s.settle(&x, func() bool { return overtaken(o, later) }) {
		return
	}
	if bytes.HasPrefix(o.req.Reply, []byte("-NOSCRIPT")) && s.reloadScript(o) {
		x := exchange{req: &o.req, payload: &o.payload, slot: o.slot, addr: o.addr}
		s.ask(s.target(s.p.cluster.slots.Load(), o.slot, 0), &o.req, &o.payload)
		if !s.settle(&x, nil) {
			return
		}
	}
	o.finishReply()
}

func (o *op) finishReply() {
	if len(o.req.Reply) == 0 {
		return
	}
	if o.req.Reply[0] == resp.Error {
		if len(o.db.Prefix) > 0 {
			// Some errors quote the key.
			o.req.Reply = bytes.ReplaceAll(o.req.Reply, o.db.Prefix, nil)
		}
	} else if o.rewrite != nil {
		o.req.Reply = o.rewrite(o, o.req.Reply)
	}
}

// overtaken tells whether a later command on the same slot has been executed.
// Repeating o behind it would change the order.
func overtaken(o *op, later []*op) bool {
	if o.slot == anySlot {
		return false
	}
	for _, l := range later {
		if l.slot != o.slot || l.kind == opLocal || l.kind == opSplit {
			continue
		}
		if what, _, _ := classify(l.req.Reply, l.req.Err); what == done || what == lost {
			return true
		}
	}
	return false
}

// repeatable tells whether executing the command twice gives the same data
// and the same reply as executing it once.
func repeatable(o *op) bool {
	if o.info == nil {
		return false
	}
	if o.info.Flags&route.ReadOnly != 0 {
		return true
	}
	switch o.info.Name {
	case "set":
		for _, a := range o.cmd.Args[3:] {
			if bytes.EqualFold(a, []byte("NX")) || bytes.EqualFold(a, []byte("XX")) || bytes.EqualFold(a, []byte("GET")) {
				return false
			}
		}
		return true
	case "setex", "psetex", "mset", "hmset", "lset", "pfmerge":
		return true
	case "expire", "pexpire", "expireat", "pexpireat":
		return len(o.cmd.Args) == 3
	}
	return false
}
