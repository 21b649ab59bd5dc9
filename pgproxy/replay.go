package pgproxy

import (
	"bytes"
	"encoding/binary"
	"sync"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// maxReplays is how often a read is sent again. A primary that is seen, lost
// and seen again within one failover takes several.
const maxReplays = 5

// maxKept bounds what is kept of the requests that a client has under way.
const maxKept = 64 << 10

// kept is what a client has sent to the primary and was not answered, message
// by message as it came, so that it can be sent to the next primary when it is
// proved then that this does nothing twice. Its fields are under the session's
// mu.
type kept struct {
	buf  *[]byte // of keptBuffers; nil when there is nothing
	head int     // where the oldest request without an answer begins
	mark int     // where the newest one begins
	// incomplete: something is under way that is not in buf. It lasts until
	// nothing is under way.
	incomplete bool
}

var keptBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}

// reset forgets everything, since nothing is under way.
func (k *kept) reset() {
	if k.buf != nil {
		keptBuffers.Put(k.buf)
	}
	*k = kept{}
}

// giveUp notes that something under way cannot be sent again.
func (k *kept) giveUp() {
	k.reset()
	k.incomplete = true
}

// ended notes the end of a request, and returns its size.
func (k *kept) ended() int {
	if k.buf == nil {
		return 0
	}
	n := len(*k.buf) - k.mark
	k.mark += n
	return n
}

// answered drops the oldest request, which has a size.
func (k *kept) answered(size int) {
	if k.buf != nil {
		k.head += size
	}
}

// add appends a message, unless that takes too much room.
func (k *kept) add(typ byte, body []byte) {
	size := pgwire.HeaderLen + len(body)
	if k.buf == nil {
		k.buf = keptBuffers.Get().(*[]byte)
		*k.buf, k.head, k.mark = (*k.buf)[:0], 0, 0
	}
	b := *k.buf
	if len(b)+size > maxKept && k.head > 0 { // a pipeline that never ends
		b = b[:copy(b, b[k.head:])]
		k.mark -= k.head
		k.head = 0
	}
	if len(b)+size > maxKept {
		k.giveUp()
		return
	}
	*k.buf = append(pgwire.AppendHeader(b, typ, len(body)), body...)
}

// keep notes a message that is about to be sent to srv. Without a body it is
// one that cannot be kept. mu is held.
func (s *session) keep(srv *server, typ byte, body []byte) {
	k := &s.kept
	switch {
	case srv.target.Standby: // the unit as a whole may run again; see runUnit
		k.incomplete = true
		return
	case k.incomplete:
	case body == nil, s.pinned != route.NoPin, s.status != 'I' && s.begin == "":
		k.giveUp()
	default:
		k.add(typ, body)
	}
	if k.incomplete {
		s.begin = "" // what it does on this server is not known any more
	}
}

// noBody is the body of a message without one.
var noBody = []byte{}

// replayable returns the client's messages without an answer when sending them
// a second time cannot do anything twice: they are reads, or a statement that
// was certainly rolled back. It takes back what they had done to the session.
// died tells that the server went by itself and without a word. mu is held.
func (s *session) replayable(exclusive, rolledBack, died bool) []byte {
	k := &s.kept
	if !exclusive || k.incomplete || k.buf == nil || s.output.Load() || s.skip {
		return nil
	}
	if s.status != 'I' && (s.status != 'T' || s.begin == "") {
		return nil
	}
	messages := (*k.buf)[k.head:]
	if len(messages) == 0 {
		return nil
	}
	before := s.namesBefore()
	if !rolledBack || !s.oneQuery() {
		// A read may be what the server died of, once more is enough then; or what
		// servers hang with, until nobody takes them for the primary any more.
		if died && s.outlived || s.replays == maxReplays || !s.onlyReads(messages, before) {
			return nil
		}
	}
	for name, st := range before {
		switch {
		case name == "":
			s.unnamed = st
		case st == nil:
			delete(s.stmts, name)
		default:
			s.stmts[name] = st
		}
	}
	if s.status == 'T' {
		s.deferred = s.begin
	} else {
		s.begin = ""
	}
	s.open, s.batch = false, batch{}
	s.outlived = s.outlived || died
	s.replays++
	return bytes.Clone(messages)
}

// oneQuery reports that nothing but one simple query of the client is under
// way, and that a transaction which is rolled back takes all of it along.
// mu is held.
func (s *session) oneQuery() bool {
	var last op
	n := 0
	for _, o := range s.q[s.head:] {
		if o.kind != opInternal {
			last, n = o, n+1
		}
	}
	return n == 1 && !s.open && last.kind == opQuery && !last.mayLast()
}

// mayLast reports that the request may have committed something although its
// last statement was rolled back.
func (o *op) mayLast() bool {
	return o.facts.OwnCommits || o.ends && (o.kind != opQuery || o.facts.Kind == route.Many)
}

// namesBefore returns what those names stood for that the requests without an
// answer have changed. mu is held.
func (s *session) namesBefore() map[string]*statement {
	before := make(map[string]*statement)
	for i := len(s.q) - 1; i >= s.head; i-- {
		if o := &s.q[i]; o.renames {
			before[o.name] = o.old
		}
	}
	return before
}

// onlyReads reports that messages prepare and run nothing but what is proved to
// be a read, and transaction control. mu is held.
func (s *session) onlyReads(messages []byte, before map[string]*statement) bool {
	if s.router == nil || s.foreign {
		return false
	}
	named := func(name []byte) []byte {
		st, changed := before[string(name)]
		if !changed {
			st = s.lookupLocked(string(name))
		}
		if st == nil {
			return nil
		}
		sql, _, _ := pgwire.CString(st.rest)
		return sql
	}
	var own []parsed
	for b := messages; len(b) > 0; {
		size := int(binary.BigEndian.Uint32(b[1:])) + 1
		typ, body := b[0], b[pgwire.HeaderLen:size]
		b = b[size:]
		var sql []byte
		switch typ {
		case 'Q':
			sql, _, _ = pgwire.CString(body)
			own = append(own, parsed{}) // it ends the unnamed statement
		case 'P':
			name, rest, _ := pgwire.CString(body)
			sql, _, _ = pgwire.CString(rest)
			own = append(own, parsed{name, sql})
		case 'C':
			if name, _, _ := pgwire.CString(body[1:]); body[0] == 'S' {
				own = append(own, parsed{name: name})
			}
			continue
		case 'B':
			_, rest, _ := pgwire.CString(body)
			name, _, _ := pgwire.CString(rest)
			mine := false
			for i := len(own) - 1; i >= 0 && !mine; i-- {
				if mine = bytes.Equal(own[i].name, name); mine {
					sql = own[i].sql
				}
			}
			if !mine {
				sql = named(name)
			}
		default: // the statements of Describe and Execute are those of Parse and Bind
			continue
		}
		if sql == nil || !isRead(s.router.Route(sql)) {
			return false
		}
	}
	return true
}

// isRead reports that running a text twice is the same as running it once.
func isRead(d route.Decision) bool {
	if d.Facts.Kind == route.Begin {
		return true // wherever its transaction may run
	}
	return d.Target != route.Primary && stateless(d.Facts)
}

// stateless reports that a text leaves nothing behind in the session or the
// transaction.
func stateless(f route.Facts) bool {
	switch f.Kind {
	case route.Other, route.Empty, route.Begin, route.Commit, route.Rollback, route.Many:
	default:
		return false
	}
	return f.Pin == route.NoPin && !f.Foreign && (f.Kind != route.Many || !f.EndsTransaction)
}
