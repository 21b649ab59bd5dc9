package pgproxy

import (
	"bytes"
	"errors"
	"fmt"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// maxInspected is the longest simple query whose text is read as a whole.
// Longer ones are streamed and tie the session to its server, because what
// they contain is not known.
const maxInspected = 4 << 20

// refuseRoute is run in the place of a SET fournines.route with a value that
// there is not, which PostgreSQL itself would take. So the error comes in its
// order, and does to an open transaction what an error does.
const refuseRoute = `DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '` + codeInvalidValue + `', ` +
	`MESSAGE = 'invalid value for parameter "` + route.RouteSetting + `"', HINT = 'Available values: auto, primary, standby.'; END$$`

// message handles one message whose header was peeked. upMu is held.
func (s *session) message(typ byte, size int) error {
	switch typ {
	case 'Q':
		return s.simpleQuery(size)
	case 'P':
		return s.parse(size)
	case 'B':
		return s.bind(size)
	case 'D', 'C':
		return s.describeOrClose(typ, size)
	case 'E':
		return s.execute(size)
	case 'H':
		return s.flushMessage(size)
	case 'S':
		return s.sync(size)
	case 'd', 'c', 'f':
		return s.copyMessage(typ, size)
	case 'X':
		return errBye
	case 'F':
		return s.unread(size, route.NoPin) // libpq's large objects; they end with the transaction
	}
	return fmt.Errorf("%w: message %q", pgwire.ErrProtocol, typ)
}

// body returns the body of a message, from the read buffer when it fits there.
// It is valid until the next read; bodyDone consumes it.
func (s *session) body(size int) (body []byte, err error) {
	if size <= s.src.Size() {
		b, err := s.src.Peek(size)
		if err != nil {
			return nil, err
		}
		return b[pgwire.HeaderLen:], nil
	}
	s.scratch, err = pgwire.ReadBody(s.scratch[:0], s.src, size)
	return s.scratch, err
}

// bodyDone consumes the body of a message of the given size.
func (s *session) bodyDone(size int) error {
	if size <= s.src.Size() {
		return pgwire.Skip(s.src, size)
	}
	if cap(s.scratch) > 64<<10 {
		s.scratch = nil
	}
	return nil
}

// write sends s.out and then the given bytes; the error of a broken server
// connection is left to the goroutine that reads it.
func (s *session) write(srv *server, typ byte, body []byte) {
	if typ != 0 {
		s.out = pgwire.AppendHeader(s.out, typ, len(body))
	}
	srv.wr.Lock()
	defer srv.wr.Unlock()
	_, _ = srv.bw.Write(s.out)
	_, _ = srv.bw.Write(body)
}

// flush sends what is written unless more has already arrived from the client.
func (s *session) flush(srv *server) {
	if !pgwire.HasFullMessage(s.src) {
		srv.flushWrites()
	}
}

func (s *session) simpleQuery(size int) error {
	if size > maxInspected {
		return s.unread(size, route.PinSessionState)
	}
	body, err := s.body(size)
	if err != nil {
		return err
	}
	srv, err := s.runQuery(body)
	if err != nil {
		return err
	}
	if err := s.bodyDone(size); err != nil || srv == nil {
		return err
	}
	s.flush(srv)
	return nil
}

// runQuery handles a simple query given its body. It returns the server that
// the query was written to, for the caller to flush, or nil.
func (s *session) runQuery(body []byte) (*server, error) {
	sql, rest, ok := pgwire.CString(body)
	if !ok || len(rest) != 0 {
		return nil, fmt.Errorf("%w: query without end", pgwire.ErrProtocol)
	}
	facts := route.Scan(sql)
	if facts.Hint == route.HintInvalid {
		body, sql, facts = append([]byte(refuseRoute), 0), []byte(refuseRoute), route.Facts{}
	}
	if facts.Kind == route.Deallocate {
		if handled, err := s.deallocate(facts.Name); handled {
			return nil, err
		}
	}
	srv, err := s.lockAttached()
	switch {
	case err == nil:
	case errors.Is(err, errLost):
		return nil, s.lostQuery(facts)
	case errors.Is(err, errSkip):
		// PostgreSQL discards up to Sync only what is not a Sync: a query too.
		return nil, nil
	default:
		return nil, s.refuse(err, true)
	}
	s.startBatch()
	s.keep(srv, 'Q', body)
	o := op{kind: opQuery, kept: s.kept.ended(), renames: true, old: s.unnamed, batch: batch{facts: facts, ends: facts.EndsTransaction, runs: true}}
	s.note(&o.batch, facts, sql)
	if facts.Kind == route.Begin && s.status == 'I' && s.begin == "" {
		s.begin = string(sql)
	}
	s.unnamed, srv.unnamed = nil, nil // a simple query ends the unnamed statement
	s.push(o)
	s.mu.Unlock()
	s.write(srv, 'Q', body)
	return srv, nil
}

// unread passes on a request that ends with ReadyForQuery and is not read: a
// simple query that is too long, which may do anything, or a function call.
func (s *session) unread(size int, pin route.Pin) error {
	srv, err := s.lockAttached()
	if err != nil {
		if skipErr := pgwire.Skip(s.src, size); skipErr != nil {
			return skipErr
		}
		switch {
		case errors.Is(err, errLost):
			return s.lostQuery(route.Facts{})
		case errors.Is(err, errSkip):
			return nil
		}
		return s.refuse(err, true)
	}
	s.startBatch()
	s.keep(srv, 0, nil)
	if pin != route.NoPin { // a query, which ends the unnamed statement
		s.pin(pin)
		s.ddl = true // for all that is known
		s.unnamed, srv.unnamed = nil, nil
	}
	s.push(op{kind: opQuery, batch: batch{ends: true, runs: true}})
	s.mu.Unlock()
	return s.pass(srv, size)
}

// pass copies the message at the front of the read buffer to the server.
func (s *session) pass(srv *server, size int) error {
	s.write(srv, 0, nil)
	return s.stream(srv, size)
}

// stream copies the next n bytes to the server. When the server breaks the
// bytes are dropped; its reading goroutine answers the client.
func (s *session) stream(srv *server, n int) error {
	srv.wr.Lock()
	done, err := pgwire.Copy(srv.bw, s.src, n)
	srv.wr.Unlock()
	if err == nil {
		s.flush(srv)
		return nil
	}
	var we *pgwire.WriteError // on the heap, so only where it is needed
	if errors.As(err, &we) {
		return pgwire.Skip(s.src, n-done)
	}
	return err
}

// pin ties the session to its server connection. mu is held.
func (s *session) pin(why route.Pin) {
	if s.pinned == route.NoPin {
		s.pinned = why
		s.p.metrics.pins[why].Add(1)
	}
}

// note records what a statement that is about to run means for the session.
// mu is held.
func (s *session) note(b *batch, f route.Facts, sql []byte) {
	if f.Pin != route.NoPin {
		s.pin(f.Pin)
	}
	s.foreign = s.foreign || f.Foreign
	s.ddl = s.ddl || f.DDL && f.Pin != route.PinTemporary
	b.ends = b.ends || f.EndsTransaction
	b.facts.OwnCommits = b.facts.OwnCommits || f.OwnCommits
	switch f.Kind {
	case route.Set, route.Reset, route.ResetAll, route.DiscardAll, route.DeallocateAll:
		if s.savepoint {
			s.pin(route.PinSessionState)
		}
		b.changes = append(b.changes, change{kind: f.Kind, name: f.Name, sql: string(sql), hint: f.Hint})
	case route.Savepoint:
		s.savepoint = true
		if len(s.txChanges) > 0 || len(b.changes) > 0 {
			s.pin(route.PinSessionState)
		}
	}
}

// refuse answers a request that was not sent anywhere. ready adds the
// ReadyForQuery that a simple query ends with.
func (s *session) refuse(err error, ready bool) error {
	e := toClient(err)
	s.p.metrics.error(e.Code)
	if e.Severity == "FATAL" {
		return e
	}
	b := pgwire.AppendError(nil, &e.ErrorResponse)
	s.mu.Lock()
	if ready {
		b = pgwire.AppendReady(b, s.status)
	} else {
		s.skip = true
	}
	s.mu.Unlock()
	return s.send(b)
}

// attachOrAnswer is lockAttached for the extended protocol: handled is true
// when the message was answered or dropped here.
func (s *session) attachOrAnswer(typ byte, f *route.Facts) (srv *server, handled bool, err error) {
	srv, err = s.lockAttached()
	switch {
	case err == nil:
		if !s.open {
			s.startBatch()
			s.open = true
		}
		return srv, false, nil
	case errors.Is(err, errSkip):
		return nil, true, nil
	case errors.Is(err, errLost):
		return nil, true, s.lostExtended(typ, f)
	}
	return nil, true, s.refuse(err, false)
}

func (s *session) parse(size int) error {
	limit := s.p.live.Load().cfg.Limits
	if size > limit.StatementBytes {
		return newError("FATAL", codeLimit, "statement of %d bytes is over the limit of %d", size, limit.StatementBytes)
	}
	body, err := s.body(size)
	if err != nil {
		return err
	}
	nameBytes, rest, ok := pgwire.CString(body)
	sql, _, ok2 := pgwire.CString(rest)
	if !ok || !ok2 {
		return fmt.Errorf("%w: Parse", pgwire.ErrProtocol)
	}
	facts := route.Scan(sql)
	if facts.Hint == route.HintInvalid {
		rest, facts = append([]byte(refuseRoute), 0, 0, 0), route.Facts{}
		body = append(append(bytes.Clone(nameBytes), 0), rest...)
	}
	srv, handled, err := s.attachOrAnswer('P', &facts)
	if handled || err != nil {
		if err == nil {
			err = s.bodyDone(size)
		}
		return err
	}
	s.keep(srv, 'P', body)
	if len(nameBytes) == 0 {
		st := &statement{rest: bytes.Clone(rest), facts: facts}
		s.push(op{kind: opParse, st: st, renames: true, old: s.unnamed})
		s.unnamed, srv.unnamed = st, st
		s.mu.Unlock()
		s.write(srv, 'P', body)
	} else {
		s.parseNamed(srv, string(nameBytes), rest, facts, limit.Statements)
		s.mu.Unlock()
		s.write(srv, 0, nil)
	}
	if err := s.bodyDone(size); err != nil {
		return err
	}
	s.flush(srv)
	return nil
}

func (s *session) bind(size int) error {
	// Parameters may be large: only the two names are looked at, the rest streams.
	b, err := s.src.Peek(min(size, s.src.Size()))
	if err != nil {
		return err
	}
	portal, rest, ok := pgwire.CString(b[pgwire.HeaderLen:])
	name, _, ok2 := pgwire.CString(rest)
	if !ok || !ok2 {
		return fmt.Errorf("%w: Bind", pgwire.ErrProtocol)
	}
	prefix := pgwire.HeaderLen + len(portal) + 1 + len(name) + 1
	st := s.lookup(name)
	var facts *route.Facts
	if st != nil {
		facts = &st.facts
	}
	srv, handled, err := s.attachOrAnswer('B', facts)
	if handled || err != nil {
		if err == nil {
			err = pgwire.Skip(s.src, size)
		}
		return err
	}
	if size <= len(b) {
		s.keep(srv, 'B', b[pgwire.HeaderLen:])
	} else {
		s.keep(srv, 'B', nil)
	}
	serverName := string(name)
	if st != nil {
		serverName = s.ensure(srv, st)
	}
	if st != nil {
		s.portals[string(portal)] = st
	} else {
		delete(s.portals, string(portal))
	}
	s.mu.Unlock()
	s.out = pgwire.AppendHeader(s.out, 'B', size-prefix+len(portal)+1+len(serverName)+1)
	s.out = append(s.out, portal...)
	s.out = append(s.out, 0)
	s.out = append(s.out, serverName...)
	s.out = append(s.out, 0)
	s.write(srv, 0, nil)
	if err := pgwire.Skip(s.src, prefix); err != nil {
		return err
	}
	return s.stream(srv, size-prefix)
}

func (s *session) describeOrClose(typ byte, size int) error {
	if size > s.src.Size() || size < pgwire.HeaderLen+2 {
		return fmt.Errorf("%w: message %q of %d bytes", pgwire.ErrProtocol, typ, size)
	}
	b, err := s.src.Peek(size)
	if err != nil {
		return err
	}
	kind := b[pgwire.HeaderLen]
	nameBytes, _, ok := pgwire.CString(b[pgwire.HeaderLen+1:])
	if !ok || kind != 'S' && kind != 'P' {
		return fmt.Errorf("%w: message %q", pgwire.ErrProtocol, typ)
	}
	name := string(nameBytes)
	srv, handled, err := s.attachOrAnswer(typ, nil)
	if handled || err != nil {
		if err == nil {
			err = pgwire.Skip(s.src, size)
		}
		return err
	}
	s.keep(srv, typ, b[pgwire.HeaderLen:])
	closes := op{kind: opClose}
	if kind == 'S' && typ == 'C' {
		closes.renames, closes.name, closes.old = true, name, s.lookupLocked(name)
	}
	if kind == 'S' {
		if typ == 'D' {
			if st := s.lookupLocked(name); st != nil {
				name = s.ensure(srv, st)
			}
		} else if name != "" {
			s.forget(name)
			name = noStatement // the server's copy serves other clients
		} else {
			s.unnamed, srv.unnamed = nil, nil
		}
	} else if typ == 'C' {
		delete(s.portals, name)
	}
	if typ == 'C' {
		s.push(closes)
	}
	s.mu.Unlock()
	if err := pgwire.Skip(s.src, size); err != nil {
		return err
	}
	s.out = pgwire.AppendNamed(s.out, typ, kind, name)
	s.write(srv, 0, nil)
	s.flush(srv)
	return nil
}

func (s *session) execute(size int) error {
	if size > s.src.Size() {
		return fmt.Errorf("%w: Execute of %d bytes", pgwire.ErrProtocol, size)
	}
	b, err := s.src.Peek(size)
	if err != nil {
		return err
	}
	portal, _, ok := pgwire.CString(b[pgwire.HeaderLen:])
	if !ok {
		return fmt.Errorf("%w: Execute", pgwire.ErrProtocol)
	}
	st := s.portals[string(portal)]
	srv, handled, err := s.attachOrAnswer('E', nil)
	if handled || err != nil {
		if err == nil {
			err = pgwire.Skip(s.src, size)
		}
		return err
	}
	s.keep(srv, 'E', b[pgwire.HeaderLen:])
	s.batch.runs = true
	if st != nil {
		var sql []byte
		if st.facts.Kind != route.Other {
			sql, _, _ = pgwire.CString(st.rest)
		}
		s.note(&s.batch, st.facts, sql)
	}
	s.mu.Unlock()
	return s.pass(srv, size)
}

func (s *session) flushMessage(size int) error {
	s.mu.Lock()
	srv := s.srv
	s.out = s.out[:0]
	if srv != nil {
		s.keep(srv, 'H', noBody)
	}
	s.mu.Unlock()
	if srv == nil {
		return pgwire.Skip(s.src, size)
	}
	if err := s.pass(srv, size); err != nil {
		return err
	}
	srv.flushWrites()
	return nil
}

func (s *session) sync(size int) error {
	if err := pgwire.Skip(s.src, size); err != nil {
		return err
	}
	s.mu.Lock()
	s.out = s.out[:0]
	srv := s.srv
	switch {
	case srv == nil && s.reading.active.Load(): // the unit will run again
		s.mu.Unlock()
		return nil
	case s.skip || srv == nil:
		s.skip = false
		s.batch = batch{}
		out := pgwire.AppendReady(nil, s.lostSync())
		if s.draining != nil && s.idle() {
			s.wake()
		}
		s.mu.Unlock()
		return s.send(out)
	case s.copyIn:
		// The server ignores it during a copy, so no answer is due.
	default:
		s.keep(srv, 'S', noBody)
		s.push(op{kind: opSync, kept: s.kept.ended(), batch: s.batch})
		s.batch = batch{}
		s.open = false
	}
	s.mu.Unlock()
	s.out = pgwire.Append(s.out, 'S')
	s.write(srv, 0, nil)
	s.flush(srv)
	return nil
}

func (s *session) copyMessage(typ byte, size int) error {
	s.mu.Lock()
	srv := s.srv
	s.out = s.out[:0]
	if typ != 'd' {
		s.copyIn = false
	}
	s.mu.Unlock()
	if srv == nil {
		return pgwire.Skip(s.src, size) // the copy has failed; PostgreSQL drops these too
	}
	return s.pass(srv, size)
}
