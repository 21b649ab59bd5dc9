package pgproxy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// noStatement is a name that no server connection has a statement for.
const noStatement = "fournines_none"

// statement is a prepared statement as a client defined it.
type statement struct {
	// name is what every server knows it as: a hash of its text and parameter
	// types, so that clients with the same statement share it. Empty for the
	// unnamed statement.
	name string
	// rest is the Parse message behind the statement's name.
	rest  []byte
	facts route.Facts
}

func newStatement(rest []byte, facts route.Facts) *statement {
	sum := sha256.Sum256(rest)
	return &statement{name: "fournines_" + hex.EncodeToString(sum[:16]), rest: bytes.Clone(rest), facts: facts}
}

// parseNamed handles a Parse with a name; messages go to s.out. mu is held.
func (s *session) parseNamed(srv *server, name string, rest []byte, facts route.Facts, limit int) {
	if old := s.stmts[name]; old != nil {
		// Let the server refuse it, as it would without the proxy (42P05).
		s.ensure(srv, old)
		s.push(op{kind: opParse})
		s.out = pgwire.AppendParse(s.out, old.name, old.rest)
		return
	}
	if len(s.stmts) >= limit {
		// An invalid statement makes the server answer with an error in order.
		s.push(op{kind: opParse})
		s.out = pgwire.AppendParse(s.out, noStatement, []byte("too many prepared statements\x00\x00\x00"))
		return
	}
	st := newStatement(rest, facts)
	s.remember(name)
	s.stmts[name] = st
	if p := srv.prepared[st.name]; p != nil {
		srv.uses++
		p.used = srv.uses
		// The answer to a Close of nothing stands in for a ParseComplete, so that
		// answers keep their order and the server plans nothing twice.
		s.push(op{kind: opCloseAsParse, st: st, name: name, renames: true})
		s.out = pgwire.AppendNamed(s.out, 'C', 'S', noStatement)
		return
	}
	s.makeRoom(srv)
	srv.uses++
	srv.prepared[st.name] = &prepared{st: st, used: srv.uses}
	s.push(op{kind: opParse, st: st, name: name, renames: true})
	s.out = pgwire.AppendParse(s.out, st.name, st.rest)
}

// ensure makes the server know a statement and returns its name there. mu is held.
func (s *session) ensure(srv *server, st *statement) string {
	if st.name == "" {
		if srv.unnamed != st {
			srv.unnamed = st
			s.push(op{kind: opParseHidden, st: st})
			s.out = pgwire.AppendParse(s.out, "", st.rest)
		}
		return ""
	}
	srv.uses++
	if p := srv.prepared[st.name]; p != nil {
		p.used = srv.uses
		return st.name
	}
	s.makeRoom(srv)
	srv.prepared[st.name] = &prepared{st: st, used: srv.uses}
	s.push(op{kind: opParseHidden, st: st})
	s.out = pgwire.AppendParse(s.out, st.name, st.rest)
	return st.name
}

// makeRoom closes the least recently used statement of a full server connection.
func (s *session) makeRoom(srv *server) {
	if len(srv.prepared) < s.p.live.Load().cfg.Pool.MaxPrepared {
		return
	}
	var oldest *prepared
	for _, p := range srv.prepared {
		if oldest == nil || p.used < oldest.used {
			oldest = p
		}
	}
	delete(srv.prepared, oldest.st.name)
	s.push(op{kind: opCloseHidden, st: oldest.st})
	s.out = pgwire.AppendNamed(s.out, 'C', 'S', oldest.st.name)
}

func (s *session) lookup(name []byte) *statement {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(name) == 0 {
		return s.unnamed
	}
	return s.stmts[string(name)]
}

func (s *session) lookupLocked(name string) *statement {
	if name == "" {
		return s.unnamed
	}
	return s.stmts[name]
}

// forget drops the client's name for a statement. mu is held.
func (s *session) forget(name string) {
	s.remember(name)
	delete(s.stmts, name)
}

// remember notes what a name stands for before that changes, for a unit that
// may have to run again. mu is held.
func (s *session) remember(name string) {
	if s.reading.logging {
		s.reading.undo = append(s.reading.undo, named{name, s.stmts[name]})
	}
}

// deallocate answers DEALLOCATE of a statement that was prepared by protocol
// message; the server knows it under another name.
func (s *session) deallocate(name string) (handled bool, err error) {
	s.mu.Lock()
	if s.stmts[name] == nil || s.skip {
		s.mu.Unlock()
		return false, nil
	}
	s.waitQuiet()
	if s.status == 'E' || s.lost != nil || s.open {
		s.mu.Unlock()
		return false, nil
	}
	s.forget(name)
	b := pgwire.AppendReady(pgwire.AppendComplete(nil, "DEALLOCATE"), s.status)
	s.mu.Unlock()
	return true, s.send(b)
}
