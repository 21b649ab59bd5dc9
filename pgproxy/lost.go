package pgproxy

import (
	"bufio"
	"bytes"
	"errors"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// lostBatch follows extended messages that arrive after the transaction they
// belong to was lost.
type lostBatch struct {
	facts route.Facts
	ended bool
}

// serverLost tells the client, in one way or another, that the server it was
// using is gone. It runs on that server's reading goroutine.
//
// What is said depends on what is known: nothing, when nothing was under way;
// 40001, when the transaction was certainly rolled back; 08007, when a commit
// may have happened. The client's connection stays open, except when session
// state was lost that the client relies on.
func (s *session) serverLost(srv *server, lost *lostError) {
	if srv.target.Standby {
		s.mu.Lock()
		active := s.reading.active.Load()
		s.mu.Unlock()
		if active {
			s.standbyLost(srv, lost)
			return
		}
	}
	exclusive := s.lockUp(handlingLimit)
	rerun := s.endServer(srv, lost, exclusive)
	if rerun != nil {
		s.replaying = true
		err := s.runMessages(bufio.NewReaderSize(bytes.NewReader(rerun), clientBuffer), len(rerun))
		s.replaying = false
		if err != nil {
			s.p.log.Debug("replay ended", "err", err)
			s.cancel(err)
			if ce := (*clientError)(nil); errors.As(err, &ce) {
				_ = s.send(pgwire.AppendError(nil, &ce.ErrorResponse))
			}
			_ = s.conn.Close()
		}
	}
	if exclusive {
		s.upMu.Unlock()
	}
}

// handlingLimit is how long serverLost waits for the message that the client's
// goroutine is handling. Handling takes microseconds, unless the rest of the
// message has to come from the client first; what was just written to the lost
// server can be sent again only once it is over.
const handlingLimit = 2 * time.Second

// lockUp locks upMu, so that nobody handles a message of the client, and
// reports whether that was possible within the limit.
func (s *session) lockUp(limit time.Duration) bool {
	const pause = time.Millisecond
	for ; !s.upMu.TryLock(); limit -= pause {
		if limit <= 0 {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// endServer does the work of serverLost, and returns the messages to send again.
func (s *session) endServer(srv *server, lost *lostError, exclusive bool) (rerun []byte) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.quiet.Broadcast()
	if s.srv != srv {
		return nil
	}
	running := s.head < len(s.q)
	s.detach()
	s.internal.Store(false)
	s.failed.Store(false)
	s.copyIn, s.savepoint, s.rolledBack = false, false, false
	s.txChanges = nil

	var writeErr *pgwire.WriteError
	if errors.As(lost.err, &writeErr) { // not the server was lost but the client
		_ = s.conn.Close()
		if running {
			s.p.sendCancel(srv)
		}
		return nil
	}
	if srv.torn {
		_ = s.conn.Close()
		return nil
	}
	var out []byte
	defer func() {
		if len(out) > 0 {
			_, _ = s.conn.Write(out)
		}
	}()
	s.p.log.Debug("server lost under a client", "server", srv.target.Endpoint.Name, "err", lost)
	if lost.fatal != nil && !serverRestarting(lost.fatal.Code) && !srv.target.Standby {
		out = pgwire.AppendError(out, lost.fatal)
		s.cancel(lost)
		s.wake()
		return nil
	}
	if s.pinned != route.NoPin || s.reported == nil {
		e := newError("FATAL", codeShutdown, "terminating connection: the server that held this session's state (%s) was lost", s.pinned)
		s.p.metrics.error(e.Code)
		out = pgwire.AppendError(out, &e.ErrorResponse)
		s.cancel(e)
		s.wake()
		return nil
	}
	rolledBack := lost.rolledBack() && !srv.commitDoubt
	silent := lost.fatal == nil && !srv.warned
	if silent {
		s.lostAt = time.Now()
	}
	defer s.kept.reset()
	if rerun := s.replayable(exclusive, rolledBack, silent && !lost.ours); rerun != nil {
		s.q, s.head = s.q[:0], 0
		s.p.metrics.replays.Add(1)
		return rerun
	}
	status := s.status
	fail := func(code, message string) {
		s.p.metrics.error(code)
		out = pgwire.AppendError(out, &pgwire.ErrorResponse{Severity: "ERROR", Code: code, Message: message})
	}
	any := false
	for {
		o, ok := s.popBatch(srv)
		if !ok {
			break
		}
		if o.kind == opInternal {
			continue
		}
		any = true
		if status == 'I' {
			if rolledBack && !o.mayLast() || o.kind == opQuery && o.facts.Kind == route.Begin {
				fail(codeRolledBack, "the server was lost before the statement took effect; run it again")
			} else {
				fail(codeOutcomeUnknown, "the server was lost while the statement ran; whether it took effect is unknown")
			}
		} else {
			status = s.failTransaction(&out, fail, o, status, rolledBack && !o.mayLast())
		}
		out = pgwire.AppendReady(out, status)
	}
	s.q, s.head = s.q[:0], 0
	switch {
	case s.open:
		if status != 'E' && (s.batch.ends || s.batch.facts.OwnCommits) {
			fail(codeOutcomeUnknown, "the server was lost while the statements ran; whether they took effect is unknown")
		} else {
			fail(codeRolledBack, "the server was lost and the transaction was rolled back; run it again")
		}
		if status == 'T' {
			status = 'E'
		}
		if status == 'E' {
			s.lost = &lostTransaction{told: true}
		}
		s.open, s.skip, s.batch = false, true, batch{}
	case status == 'T' && s.begin != "" && !any:
		s.deferred = s.begin // it has done nothing: the next server begins anew
	case status == 'T':
		s.lost = &lostTransaction{}
	case status == 'E':
		s.lost = &lostTransaction{told: true}
	}
	s.status = status
	if status == 'I' {
		s.begin = ""
		if s.draining != nil && !s.open {
			s.wake()
		}
	}
	return nil
}

// failTransaction answers one batch of a transaction that was lost, and
// returns the status after it.
func (s *session) failTransaction(out *[]byte, fail func(code, message string), o op, status byte, rolledBack bool) byte {
	plainRollback := o.kind == opQuery && o.facts.Kind == route.Rollback
	switch {
	case plainRollback || status == 'E' && o.kind == opQuery && o.ends:
		*out = pgwire.AppendComplete(*out, "ROLLBACK")
		return 'I'
	case status == 'E' && o.ends:
		fail(codeAborted, "the server was lost and the transaction was rolled back")
		return 'I'
	case status == 'E':
		fail(codeAborted, "current transaction is aborted, commands ignored until end of transaction block")
		return 'E'
	case o.ends && !rolledBack:
		fail(codeOutcomeUnknown, "the server was lost during the end of the transaction; whether it was committed is unknown")
		return 'I'
	case o.ends:
		fail(codeRolledBack, "the server was lost and the transaction was rolled back; run it again")
		return 'I'
	}
	fail(codeRolledBack, "the server was lost and the transaction was rolled back; run it again")
	return 'E'
}

// lostQuery answers a simple query inside a transaction whose server is gone.
func (s *session) lostQuery(f route.Facts) error {
	s.mu.Lock()
	told := s.lost.told
	var out []byte
	switch {
	case f.Kind == route.Rollback || f.Kind == route.Commit && told:
		out = pgwire.AppendComplete(out, "ROLLBACK")
		s.lost, s.status = nil, 'I'
	case f.EndsTransaction:
		out = s.appendLost(out)
		s.lost, s.status = nil, 'I'
	default:
		out = s.appendLost(out)
		s.lost.told, s.status = true, 'E'
	}
	if s.status == 'I' && s.draining != nil {
		s.wake()
	}
	out = pgwire.AppendReady(out, s.status)
	s.mu.Unlock()
	return s.send(out)
}

func (s *session) appendLost(out []byte) []byte {
	e := pgwire.ErrorResponse{Severity: "ERROR", Code: codeRolledBack, Message: "the server was lost and the transaction was rolled back; run it again"}
	if s.lost.told {
		e.Code, e.Message = codeAborted, "current transaction is aborted, commands ignored until end of transaction block"
	}
	s.p.metrics.error(e.Code)
	return pgwire.AppendError(out, &e)
}

// lostExtended answers an extended message of such a transaction. facts is
// known for Parse and Bind.
func (s *session) lostExtended(typ byte, facts *route.Facts) error {
	s.mu.Lock()
	var out []byte
	if facts != nil {
		s.lostMsg.facts = *facts
	}
	kind := s.lostMsg.facts.Kind
	quiet := kind == route.Rollback || kind == route.Commit && s.lost.told
	switch {
	case !quiet && typ != 'C':
		if s.lostMsg.facts.EndsTransaction {
			s.lostMsg.ended = true
		}
		out = s.appendLost(out)
		s.lost.told, s.status, s.skip = true, 'E', true
	case typ == 'P':
		out = pgwire.Append(out, '1')
	case typ == 'B':
		out = pgwire.Append(out, '2')
	case typ == 'C':
		out = pgwire.Append(out, '3')
	case typ == 'D':
		out = pgwire.Append(out, 'n')
	case typ == 'E':
		out = pgwire.AppendComplete(out, "ROLLBACK")
		s.lostMsg.ended = true
	}
	s.mu.Unlock()
	return s.send(out)
}

// lostSync returns the status to answer a Sync with. mu is held.
func (s *session) lostSync() byte {
	if s.lost != nil && s.lostMsg.ended {
		s.lost, s.status = nil, 'I'
	}
	s.lostMsg = lostBatch{}
	return s.status
}
