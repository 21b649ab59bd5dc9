package redisproxy

import (
	"bytes"
	"errors"
	"fmt"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
	"fournines/redisproxy/upstream"
)

// transaction is an open MULTI. Commands are kept here and go to the node in
// one piece at EXEC, over a shared connection: MULTI … EXEC written together
// is as atomic there as on a connection of its own.
type transaction struct {
	db      *keyspace.DB
	slot    int
	bytes   int
	aborted bool
	queued  []queued
	payload []byte
	// testimony tells after a failure whether it was executed.
	testimony testimony
}

// queued is one command of a transaction.
type queued struct {
	rewrite rewriter
	op      *op // for the rewriter: the arguments' names
	body    []byte
}

// watch is a connection with WATCH on it.
type watch struct {
	conn *upstream.Dedicated
	slot int
	// broken is set when the connection was lost: whether a key has changed is
	// unknown, so EXEC must not run.
	broken bool
}

const (
	errTxSlots = "CROSSSLOT fournines: the keys of one transaction must be in one slot; database 0 is spread over the cluster, so give the keys a common {hash tag} or use a database from 1 to 15"
)

func (s *session) multi(o *op) {
	s.tx = &transaction{db: s.db, slot: anySlot}
	if s.watch != nil {
		s.tx.slot = s.watch.slot
	}
	o.local = append(o.local, "+OK\r\n"...)
}

// queue takes a command into the open transaction.
func (s *session) queue(o *op) {
	tx := s.tx
	name := string(bytes.ToLower(o.cmd.Args[0]))
	abort := func(msg string) {
		tx.aborted = true
		o.local = resp.AppendError(o.local, msg)
	}
	switch {
	case o.info == nil:
		abort(unknownCommand(o.cmd.Args))
		return
	case !o.info.ArityOK(len(o.cmd.Args)):
		abort(wrongArity(o.info.Name))
		return
	}
	if o.info.Refusal != "" {
		abort(refusal(o.info.Name, o.info.Refusal))
		return
	}
	if o.info.Sub != nil {
		abort(unknownSubcommand(o.cmd.Args))
		return
	}
	if h, ok := handlers[name]; ok && !h.inMulti {
		abort("ERR fournines: " + name + " inside MULTI is not supported on a cluster")
		return
	}
	if err := s.locate(o); err != nil {
		abort(err.Error())
		return
	}
	if o.slot != anySlot {
		if tx.slot != anySlot && tx.slot != o.slot {
			abort(errTxSlots)
			return
		}
		tx.slot = o.slot
	}
	limits := &s.p.cfg.Limits
	if len(tx.queued) >= 100*limits.MaxPipelined || tx.bytes > s.p.cfg.maxRequest() {
		abort("ERR fournines: the transaction is too large")
		return
	}
	q := queued{rewrite: rewriterFor(o)}
	if q.rewrite != nil {
		q.op = &op{info: o.info, db: o.db}
	}
	if body, ok := s.p.scripts.forCall(o); ok {
		q.body = body
	}
	s.p.scripts.note(o)
	tx.testimony.add(o)
	tx.queued = append(tx.queued, q)
	before := len(tx.payload)
	tx.payload = (&upstream.Payload{Args: o.cmd.Args, Keys: o.keys, Prefix: o.db.Prefix}).Append(tx.payload)
	tx.bytes += len(tx.payload) - before
	o.local = append(o.local, "+QUEUED\r\n"...)
}

// exec ends the transaction; the returned function, when not nil, must run
// with the session to itself.
func (s *session) exec(o *op) func(*session, *op) {
	tx := s.tx
	s.tx = nil
	switch {
	case tx == nil:
		o.local = resp.AppendError(o.local, "ERR EXEC without MULTI")
		return nil
	case tx.aborted:
		o.local = resp.AppendError(o.local, "EXECABORT Transaction discarded because of previous errors.")
		if s.watch != nil {
			return func(s *session, _ *op) { s.dropWatch(true) }
		}
		return nil
	}
	o.tx, o.slot, o.db = tx, tx.slot, tx.db
	o.payload.Raw = tx.wire()
	s.writes(&o.payload)
	o.req.Replies, o.req.All = tx.replies(), true
	if s.watch != nil {
		return (*session).execWatched
	}
	s.sendRequest(&o.req, &o.payload, o.slot, &o.addr)
	o.kind = opExec
	return nil
}

// wire is the transaction as it is sent: scripts that it calls are loaded
// first, because NOSCRIPT inside EXEC could not be repaired.
func (tx *transaction) wire() []byte {
	var out []byte
	for _, q := range tx.queued {
		if q.body != nil {
			out = resp.AppendCommand(out, []byte("SCRIPT"), []byte("LOAD"), q.body)
		}
	}
	out = resp.AppendCommandStrings(out, "MULTI")
	out = append(out, tx.payload...)
	return resp.AppendCommandStrings(out, "EXEC")
}

func (tx *transaction) replies() int {
	n := len(tx.queued) + 2
	for _, q := range tx.queued {
		if q.body != nil {
			n++
		}
	}
	return n
}

// result finds, among the raw replies of a transaction, the one that decides:
// the first error before EXEC's answer when EXEC was refused, else that answer.
func (tx *transaction) result(raw []byte) []byte {
	var first []byte
	for range tx.replies() - 1 {
		_, rest, err := resp.Parse(raw)
		if err != nil {
			return resp.AppendError(nil, "ERR fournines: unreadable answer to the transaction")
		}
		if raw[0] == resp.Error && first == nil {
			first = raw[:len(raw)-len(rest)]
		}
		raw = rest
	}
	if first != nil && bytes.HasPrefix(raw, []byte("-EXECABORT")) {
		return first
	}
	return raw
}

func (s *session) completeExec(o *op) {
	tx := o.tx
	x := exchange{
		req: &o.req, payload: &o.payload, slot: o.slot, addr: o.addr, whole: true,
		result: func() []byte { return tx.result(o.req.Reply) }, witness: tx.testimony.witness,
	}
	if !s.settle(&x, nil) {
		return
	}
	raw := o.req.Reply
	if !x.failed {
		raw = tx.result(raw)
	}
	o.local = append(o.local[:0], tx.rewrite(raw, s.version)...)
	o.kind = opLocal
}

// rewrite strips the database's prefix where replies name keys.
func (tx *transaction) rewrite(raw []byte, version int) []byte {
	if len(raw) > 0 && raw[0] == resp.Error {
		if bytes.HasPrefix(raw, []byte("-EXECABORT")) {
			return raw
		}
		text := bytes.TrimRight(raw[1:], "\r\n")
		if len(tx.db.Prefix) > 0 {
			text = bytes.ReplaceAll(text, tx.db.Prefix, nil)
		}
		if bytes.HasPrefix(text, []byte("LOADING fournines")) || bytes.HasPrefix(text, []byte("ERR fournines")) {
			return resp.AppendError(nil, string(text))
		}
		return resp.AppendError(nil, "EXECABORT Transaction discarded because of: "+string(text))
	}
	needed := false
	for _, q := range tx.queued {
		needed = needed || q.rewrite != nil
	}
	if !needed {
		return raw
	}
	v, _, err := resp.Parse(raw)
	if err != nil || v.IsNull || len(v.Elems) != len(tx.queued) {
		return raw
	}
	out := resp.AppendArray(nil, len(v.Elems))
	for i, e := range v.Elems {
		one := resp.AppendValue(nil, e)
		if q := tx.queued[i]; q.rewrite != nil && one[0] != resp.Error {
			one = q.rewrite(q.op, one)
		}
		out = append(out, one...)
	}
	return out
}

// execWatched runs the transaction on the connection that watches. When that
// connection or its slot has gone, the answer is what a changed key gives: a
// null, after which clients start over.
func (s *session) execWatched(o *op) {
	w := s.watch
	s.watch = nil
	o.kind = opLocal
	if w.broken {
		o.local = resp.AppendNullArray(o.local, s.version)
		return
	}
	raw, err := w.conn.Do(o.payload.Raw, nil, o.req.Replies, 0)
	if err == nil && !isNone(raw) && raw[0] != resp.Error {
		err = w.conn.Confirm()
	}
	if err != nil {
		w.conn.Close()
		if w := o.tx.testimony.witness; errors.Is(err, upstream.ErrNotSent) || w != nil && s.absent(w, o.slot) {
			o.local = resp.AppendNullArray(o.local, s.version)
			return
		}
		s.p.m.ambiguous.Inc()
		if s.p.cfg.OnLost == "close" {
			s.lost = true
			return
		}
		o.local = resp.AppendError(o.local, errLostSent)
		return
	}
	w.conn.Release()
	if what, _, _ := classify(raw, nil); what != done || bytes.HasPrefix(raw, []byte("-EXECABORT")) {
		s.p.cluster.ask()
		o.local = resp.AppendNullArray(o.local, s.version)
		return
	}
	o.local = append(o.local, o.tx.rewrite(raw, s.version)...)
}

func (s *session) discard(o *op) func(*session, *op) {
	if s.tx == nil {
		o.local = resp.AppendError(o.local, "ERR DISCARD without MULTI")
		return nil
	}
	s.tx = nil
	o.local = append(o.local, "+OK\r\n"...)
	if s.watch != nil {
		return func(s *session, _ *op) { s.dropWatch(true) }
	}
	return nil
}

// watchKeys is WATCH. All watched keys must be in one slot.
func (s *session) watchKeys(o *op) {
	if err := s.locate(o); err != nil {
		o.local = resp.AppendError(o.local, err.Error())
		return
	}
	if s.watch != nil && s.watch.slot != o.slot {
		o.local = resp.AppendError(o.local, errTxSlots)
		return
	}
	if s.watch != nil && s.watch.broken {
		o.local = append(o.local, "+OK\r\n"...)
		return
	}
	payload := upstream.Payload{Args: o.cmd.Args, Keys: o.keys, Prefix: o.db.Prefix}
	if s.watch != nil {
		reply, err := s.watch.conn.Do(payload.Append(nil), nil, 1, 0)
		if what, _, _ := classify(reply, err); what != done {
			s.watch.conn.Close()
			s.watch.broken = true
			reply = []byte("+OK\r\n")
		}
		o.local = append(o.local, reply...)
		return
	}
	conn, reply, err := s.onDedicated(o.slot, &payload, nil)
	if err != nil {
		o.local = resp.AppendError(o.local, err.Error())
		return
	}
	if reply[0] == resp.Error {
		conn.Release()
	} else {
		s.watch = &watch{conn: conn, slot: o.slot}
	}
	o.local = append(o.local, reply...)
}

// dropWatch forgets the watched keys. The connection is kept for others only
// when clean says that there is time to tell the node.
func (s *session) dropWatch(clean bool) {
	w := s.watch
	s.watch = nil
	if w == nil || w.broken {
		return
	}
	if clean {
		if _, err := w.conn.Do(resp.AppendCommandStrings(nil, "UNWATCH"), nil, 1, s.p.cfg.Timeouts.Silence); err == nil {
			w.conn.Release()
			return
		}
	}
	w.conn.Close()
}

func unknownCommand(args [][]byte) string {
	name := args[0]
	msg := fmt.Sprintf("ERR unknown command '%s', with args beginning with: ", name[:min(len(name), 128)])
	for _, a := range args[1:] {
		if len(msg) > 200 {
			break
		}
		msg += fmt.Sprintf("'%s' ", a[:min(len(a), 128)])
	}
	return msg
}

func unknownSubcommand(args [][]byte) string {
	return "ERR unknown subcommand '" + string(args[1][:min(len(args[1]), 128)]) + "'. Try " + string(bytes.ToUpper(args[0])) + " HELP."
}

func wrongArity(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}
