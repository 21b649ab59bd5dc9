package pgproxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"strings"
	"sync"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// unit is one simple query, or one extended batch up to its Sync, that lies in
// the client's read buffer as a whole. Units are what is placed: nothing of one
// is sent before it is known where all of it goes.
type unit struct {
	bytes []byte // valid until the next read
	query bool   // a simple query

	target  route.Target // the strictest of its statements
	reason  route.Reason
	hint    route.Hint // HintStandby when all statements have it
	facts   route.Facts
	sql     []byte // of the last statement
	texts   int    // statements that it prepares, binds or executes
	runs    int    // statements that it executes
	reads   bool   // takes a snapshot, after which a transaction's isolation level is fixed
	queries bool   // its first statement certainly does
	control bool   // nothing but one BEGIN, COMMIT or ROLLBACK
	foreign bool   // has messages that only the primary can answer

	own []parsed // what it prepares
}

// place is where a unit is run.
type place uint8

const (
	onPrimary place = iota
	onStandby
	// here: the proxy answers by itself.
	here
)

// why says what decided about a place, beside the reasons of package route.
type why uint8

const (
	whyTransaction why = iota // the transaction is on the primary
	whyPinned                 // the session is tied to its connection
	whySetting                // the session asked for the primary
	whyNotWhole               // too long, or with a Flush: sent on as it comes
	whyPortal                 // named portals and row limits
	whyIsolation              // the session's default needs one snapshot
	whyNoStandby              // no standby can be used
	whyFar                    // all that can be used are too far away
	whyBehind                 // all standbys were too old a moment ago
	whyNoPosition             // the primary did not say how far it is
	whyStale                  // the standby was too old: answer thrown away
	whyRefused                // the standby refused it: run again
	whyLost                   // the standby was lost before it answered
	whys                      // their number
)

var whyLabels = [whys]string{
	"transaction", "pinned", "setting", "not_whole", "portal", "session_isolation", "no_standby", "standbys_far", "standbys_behind", "no_position", "stale", "standby_error", "standby_lost",
}

// peekUnit looks at what the client has sent, without consuming it, when it
// may be run elsewhere than on the server that the session holds. It waits for
// the rest of a batch, which does nothing before its Sync anyway. It returns
// nil for whatever goes to the primary as it comes.
func (s *session) peekUnit(typ byte, size int) (*unit, error) {
	if s.router == nil || s.p.live.Load().cfg.Splitting.Mode == SplittingOff {
		return nil, nil
	}
	switch typ {
	case 'Q', 'P', 'B', 'D', 'C', 'E':
	case 'F':
		s.mu.Lock()
		if s.placeable() {
			s.leaveStandby(&unit{})
		}
		s.mu.Unlock()
		return nil, nil
	default:
		return nil, nil
	}
	s.mu.Lock()
	free := s.placeable()
	s.mu.Unlock()
	if !free {
		return nil, nil
	}
	n, whole, err := s.peekWhole(typ, size)
	if err != nil {
		return nil, err
	}
	if !whole {
		s.p.metrics.route(onPrimary, routed(whyNotWhole))
		s.mu.Lock()
		s.leaveStandby(&unit{})
		s.mu.Unlock()
		return nil, nil
	}
	b, err := s.br.Peek(n)
	if err != nil {
		return nil, err
	}
	u := &s.unit
	*u = unit{bytes: b, query: typ == 'Q', own: u.own[:0]}
	if !s.inspect(u) {
		s.mu.Lock()
		s.leaveStandby(u)
		s.mu.Unlock()
		return nil, nil
	}
	return u, nil
}

// placeable reports that nothing ties the next message to a server: no state,
// no transaction on the primary, nothing under way. mu is held.
func (s *session) placeable() bool {
	switch {
	case s.lost != nil, s.skip, s.open, s.copyIn, s.head < len(s.q):
		return false
	case s.pinned != route.NoPin:
		s.p.metrics.route(onPrimary, routed(whyPinned))
		return false
	case s.srv != nil && !s.srv.target.Standby && s.status != 'I':
		s.p.metrics.route(onPrimary, routed(whyTransaction))
		return false
	case s.status == 'E':
		return false // the server that it failed on answers
	}
	return true
}

// peekWhole waits until a query, or a batch with its Sync, is in the read
// buffer, and returns its size. whole is false when it does not fit, or needs
// answers before its end.
func (s *session) peekWhole(typ byte, size int) (n int, whole bool, err error) {
	for {
		if n+size > s.br.Size() {
			return 0, false, nil
		}
		if _, err := s.br.Peek(n + size); err != nil {
			return 0, false, err
		}
		n += size
		if typ == 'Q' || typ == 'S' {
			return n, true, nil
		}
		if n+pgwire.HeaderLen > s.br.Size() {
			return 0, false, nil
		}
		b, err := s.br.Peek(n + pgwire.HeaderLen)
		if err != nil {
			return 0, false, err
		}
		typ = b[n]
		length := binary.BigEndian.Uint32(b[n+1:])
		switch typ {
		case 'P', 'B', 'D', 'C', 'E', 'S':
		default:
			return 0, false, nil
		}
		if length < 4 || length > uint32(s.br.Size()) {
			return 0, false, nil
		}
		size = int(length) + 1
	}
}

// parsed is a statement that a batch prepares.
type parsed struct{ name, sql []byte }

// inspect finds out what a unit is about; false means that it is malformed, or
// that the server should say what is wrong with it.
func (s *session) inspect(u *unit) bool {
	if u.query {
		sql, rest, ok := pgwire.CString(u.bytes[pgwire.HeaderLen:])
		if !ok || len(rest) != 0 {
			return false
		}
		u.add(s.router.Route(sql), sql)
		u.runs = 1
		u.control = isControl(u.facts.Kind)
		return true
	}
	named := func(name []byte) []byte {
		for i := len(u.own) - 1; i >= 0; i-- {
			if bytes.Equal(u.own[i].name, name) {
				return u.own[i].sql
			}
		}
		if st := s.lookup(name); st != nil {
			sql, _, _ := pgwire.CString(st.rest)
			return sql
		}
		return nil
	}
	bound := false
	u.control = true
	for b := u.bytes; len(b) > 0; {
		size := int(binary.BigEndian.Uint32(b[1:])) + 1
		typ, body := b[0], b[pgwire.HeaderLen:size]
		b = b[size:]
		var sql []byte
		switch typ {
		case 'P':
			name, rest, ok := pgwire.CString(body)
			text, _, ok2 := pgwire.CString(rest)
			if !ok || !ok2 {
				return false
			}
			u.own = append(u.own, parsed{name, text})
			u.control = u.control && len(name) == 0
			sql = text
		case 'B':
			portal, rest, ok := pgwire.CString(body)
			name, _, ok2 := pgwire.CString(rest)
			if !ok || !ok2 {
				return false
			}
			u.foreign = u.foreign || len(portal) > 0
			bound = true
			sql = named(name)
		case 'D':
			if len(body) < 2 {
				return false
			}
			name, _, ok := pgwire.CString(body[1:])
			if !ok {
				return false
			}
			if body[0] != 'S' {
				u.foreign = u.foreign || len(name) > 0 || !bound
				continue
			}
			sql = named(name)
		case 'E':
			portal, rest, ok := pgwire.CString(body)
			if !ok || len(rest) != 4 {
				return false
			}
			u.foreign = u.foreign || len(portal) > 0 || !bound || binary.BigEndian.Uint32(rest) != 0
			u.runs++
			continue
		case 'C':
			u.control = false
			continue
		default: // Sync
			continue
		}
		if sql == nil {
			u.foreign = true
			continue
		}
		before := u.facts.Kind
		d := s.router.Route(sql)
		u.control = u.control && isControl(d.Facts.Kind) && (u.texts == 0 || d.Facts.Kind == before)
		u.add(d, sql)
	}
	if u.texts == 0 {
		u.target, u.reason = route.Any, route.ReasonControl
	}
	u.control = u.control && u.runs == 1 && u.texts > 0
	if !u.control && isControl(u.facts.Kind) {
		u.target = route.Primary // as a part of a longer batch
	}
	return true
}

func isControl(k route.Kind) bool {
	return k == route.Begin || k == route.Commit || k == route.Rollback
}

// add takes a statement into account.
func (u *unit) add(d route.Decision, sql []byte) {
	if !stateless(d.Facts) {
		d.Target = route.Primary
	}
	first := u.texts == 0
	u.texts++
	if !first && isControl(d.Facts.Kind) != isControl(u.facts.Kind) {
		d.Target = route.Primary
	}
	u.facts, u.sql = d.Facts, sql
	if first {
		u.queries = route.Queries(sql)
	}
	u.reads = u.reads || d.Target != route.Any || route.TakesSnapshot(sql)
	switch {
	case first:
		u.target, u.reason, u.hint = d.Target, d.Reason, d.Hint
		return
	case d.Target == route.Primary && u.target != route.Primary, d.Target == route.Standby && u.target == route.Any:
		u.target, u.reason = d.Target, d.Reason
	}
	if d.Hint != u.hint {
		u.hint = route.NoHint
	}
}

// placement is where a unit goes, and why.
type placement struct {
	place  place
	reason int // index of a metric
	// fresh: the standby must be fresh enough.
	fresh bool
	// first: the unit begins a transaction, whose isolation level is not known yet.
	first bool
	// reads: the unit takes a snapshot.
	reads bool
}

// routed is the metric's index of a reason of the session.
func routed(w why) int { return len(route.Reasons()) + int(w) }

// decide places a unit. mu is held, and the session is placeable.
func (s *session) decide(u *unit) placement {
	primary := func(reason int) placement { return placement{place: onPrimary, reason: reason} }
	reason := int(u.reason)
	if u.control {
		switch {
		case u.facts.Kind != route.Begin && s.status == 'T' && plainEnd(u.sql):
			if s.srv == nil {
				return placement{place: here, reason: reason}
			}
			return placement{place: onStandby, reason: reason}
		case u.facts.Kind == route.Begin && s.status == 'I' && u.target == route.Any && beginTag(u.sql) != "" && s.mayDefer(u.facts):
			return placement{place: here, reason: reason}
		}
		return primary(int(route.ReasonControl))
	}
	switch {
	case u.foreign:
		return primary(routed(whyPortal))
	case u.target == route.Primary:
		return primary(reason)
	case s.foreign || s.hint == route.HintPrimary:
		return primary(routed(whySetting))
	case s.oneSnapshot:
		return primary(routed(whyIsolation))
	}
	p := placement{place: onStandby, reason: reason, reads: u.reads}
	p.fresh = u.target == route.Standby && u.hint != route.HintStandby && (s.hint != route.HintStandby || u.hint == route.HintAuto)
	p.first = s.status == 'T' && s.srv == nil
	return p
}

// mayDefer reports that a BEGIN may wait until it is known where the
// transaction's statements can run.
func (s *session) mayDefer(f route.Facts) bool {
	return !f.Isolation.Snapshot() && !f.Deferrable && f.Access != route.ReadWrite &&
		!s.foreign && !s.oneSnapshot && s.hint != route.HintPrimary
}

// beginTag is what the server would answer to the text of a BEGIN; "" when that
// is not seen at its first letter.
func beginTag(sql []byte) string {
	text := bytes.TrimLeft(sql, " \n\t\r")
	switch {
	case len(text) >= 5 && bytes.EqualFold(text[:5], []byte("begin")):
		return "BEGIN"
	case len(text) >= 5 && bytes.EqualFold(text[:5], []byte("start")):
		return "START TRANSACTION"
	}
	return ""
}

// plainEnd reports a COMMIT or ROLLBACK without a second meaning, such as AND
// CHAIN.
func plainEnd(sql []byte) bool {
	var words [3]string
	n := 0
	for w := range bytes.FieldsFuncSeq(sql, func(r rune) bool { return r == ' ' || r == '\n' || r == '\t' || r == '\r' || r == ';' }) {
		if n == 2 || len(w) > 11 {
			return false
		}
		words[n] = strings.ToLower(string(w))
		n++
	}
	switch words[0] {
	case "commit", "end", "rollback", "abort":
	default:
		return false
	}
	return n == 1 || words[1] == "work" || words[1] == "transaction"
}

// runUnit runs one unit from its placement to the end, or until it has been
// sent to the primary. upMu is held.
func (s *session) runUnit(u *unit) error {
	s.mu.Lock()
	if !s.placeable() { // the server was lost meanwhile
		s.mu.Unlock()
		return s.runMessages(s.br, len(u.bytes))
	}
	p := s.decide(u)
	if p.place == onPrimary {
		s.leaveStandby(u)
		s.mu.Unlock()
		s.p.metrics.route(onPrimary, p.reason)
		return s.runMessages(s.br, len(u.bytes))
	}
	if srv := s.srv; srv != nil && !srv.target.Standby {
		// The connection of the last transaction, kept until its answer was read.
		s.detach()
		srv.release()
	}
	s.mu.Unlock()
	if p.place == here {
		s.p.metrics.route(here, p.reason)
		out := s.answer(u)
		if err := pgwire.Skip(s.br, len(u.bytes)); err != nil {
			return err
		}
		return s.send(out)
	}
	saved := unitBuffers.Get().(*[]byte)
	*saved = append((*saved)[:0], u.bytes...)
	defer unitBuffers.Put(saved)
	control := u.control
	instead, err := s.readOnStandby(p, len(u.bytes))
	if err != nil || !instead.needed {
		return err
	}
	// The client has seen nothing of it: the primary answers instead.
	r := clientReaders.Get().(*bufio.Reader)
	s.again.Reset(*saved)
	r.Reset(&s.again)
	defer func() {
		r.Reset(nil)
		clientReaders.Put(r)
		s.again.Reset(nil)
	}()
	if !instead.sent {
		if err := pgwire.Skip(s.br, len(*saved)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	if control && s.status == 'T' && s.srv == nil && s.lost == nil {
		// The end of a transaction that was lost with its standby, where it had
		// only read: it has succeeded.
		again := &unit{bytes: *saved, query: (*saved)[0] == 'Q'}
		s.mu.Unlock()
		if s.inspect(again) {
			s.p.metrics.route(here, routed(instead.why))
			return s.send(s.answer(again))
		}
		return s.runMessages(r, len(*saved))
	}
	s.mu.Unlock()
	s.p.metrics.route(onPrimary, routed(instead.why))
	return s.runMessages(r, len(*saved))
}

var unitBuffers = sync.Pool{New: func() any { b := make([]byte, 0, clientBuffer); return &b }}

// runMessages handles the messages in the next n bytes of r. upMu is held.
func (s *session) runMessages(r *bufio.Reader, n int) error {
	s.src = r
	for n > 0 {
		typ, size, err := pgwire.PeekHeader(r)
		if err != nil {
			return err
		}
		if err := pgwire.CheckClientSize(typ, size); err != nil {
			return err
		}
		if err := s.message(typ, size); err != nil {
			return err
		}
		n -= size
	}
	return nil
}

// answer answers a BEGIN that is deferred, or the end of a transaction that is
// on no server, and returns the messages.
func (s *session) answer(u *unit) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var tag string
	switch u.facts.Kind {
	case route.Begin:
		tag = beginTag(u.sql)
		s.begin = string(u.sql)
		s.deferred, s.status, s.hasRead = s.begin, 'T', false
	case route.Commit:
		tag = "COMMIT"
	case route.Rollback:
		tag = "ROLLBACK"
	}
	if u.facts.Kind != route.Begin {
		s.begin, s.deferred, s.status = "", "", 'I'
		s.txChanges, s.rolledBack, s.savepoint = s.txChanges[:0], false, false
		if s.draining != nil {
			s.wake()
		}
	}
	var out []byte
	if u.query {
		s.unnamed = nil
		return pgwire.AppendReady(pgwire.AppendComplete(out, tag), s.status)
	}
	for b := u.bytes; len(b) > 0; {
		size := int(binary.BigEndian.Uint32(b[1:])) + 1
		switch b[0] {
		case 'P':
			_, rest, _ := pgwire.CString(b[pgwire.HeaderLen:size])
			s.unnamed = &statement{rest: bytes.Clone(rest), facts: u.facts}
			out = pgwire.Append(out, '1')
		case 'B':
			out = pgwire.Append(out, '2')
		case 'D':
			if b[pgwire.HeaderLen] == 'S' {
				out = pgwire.Append(out, 't', 0, 0)
			}
			out = pgwire.Append(out, 'n')
		case 'E':
			out = pgwire.AppendComplete(out, tag)
		case 'S':
			out = pgwire.AppendReady(out, s.status)
		}
		b = b[size:]
	}
	return out
}

// leaveStandby ends the part of a transaction that ran on a standby, before it
// goes on to the primary. Under READ COMMITTED nothing of it is missed there.
// mu is held.
func (s *session) leaveStandby(u *unit) {
	srv := s.srv
	if srv == nil || !srv.target.Standby || s.head < len(s.q) {
		if srv == nil {
			s.markRead(u)
		}
		return
	}
	srv.rollingBack.Store(true)
	s.detach()
	s.deferred = s.begin
	s.markRead(u)
	srv.rollback()
}

// markRead makes the primary refuse what PostgreSQL refuses after a
// transaction's first query, when u is no query itself.
func (s *session) markRead(u *unit) {
	if s.hasRead && s.deferred != "" && !u.queries {
		s.deferred += "\n;SELECT 1"
	}
	if s.deferred != "" {
		s.hasRead = false
	}
}

// errElsewhere is an error code of a standby that says nothing about the
// statement, so that the primary may be asked: it is a standby, it has conflicts
// with its replay, it goes away, it has no room.
func errElsewhere(code string) bool {
	switch {
	case len(code) != 5:
		return false
	case code == "57014": // somebody cancelled it, or its time is over
		return false
	}
	switch code[:2] {
	case "40", "53", "55", "57", "58", "72", "0A", "25", "F0", "XX":
		return true
	}
	return false
}
