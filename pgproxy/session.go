package pgproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/pgwire"
	"fournines/internal/reactor"
	"fournines/pgproxy/fence"
	"fournines/pgproxy/pool"
	"fournines/pgproxy/route"
)

// session is one client. Its own goroutine reads the client and writes to the
// server that it holds; that server's goroutine writes to the client.
//
// Lock order: upMu, wmu, mu, then a server's mu.
type session struct {
	p     *Proxy
	conn  net.Conn
	br    *bufio.Reader // noBuffer while the client is silent, see awaitInput
	src   *bufio.Reader // under upMu: where messages are handled from, br or what is run again
	input input
	// fillInput is s.fill; inputErr is what it met.
	fillInput func(fd uintptr) bool
	inputErr  error
	user      string
	database  string
	pool      *pool.Pool[*server]
	router    router
	pid       uint32
	key       [4]byte
	hello     []byte // collected answers of the login
	console   bool   // it talks to the proxy itself
	began     time.Time
	// waitSince is when it began to wait for a server, in unix nanoseconds; 0
	// while it does not.
	waitSince atomic.Int64
	waited    *atomic.Int64 // of its database, see metrics
	stays     func() error  // errBye when the client has left
	ctx       context.Context
	cancel    context.CancelCauseFunc

	where     atomic.Uint32 // handling, awaiting or asked
	turns     atomic.Uint32 // how often it has waited for the client
	parkTurns uint32        // the same when parkIdle came last; of its goroutine
	parkMu    sync.Mutex    // last in the lock order
	parked    bool          // the loop watches, and there is no goroutine
	watch     reactor.Watch

	upMu sync.Mutex // who handles a client's message holds it
	wmu  sync.Mutex // who writes to the client holds it

	// Read by both goroutines.
	internal    atomic.Bool // the server works on statements of the proxy
	internalErr atomic.Pointer[pgwire.ErrorResponse]
	output      atomic.Bool // the client has seen a part of the answer
	failed      atomic.Bool // the present batch had an error

	mu         sync.Mutex
	quiet      sync.Cond // on mu: the queue became empty or the server was lost
	srv        *server
	q          []op // requests whose answers are due; q[:head] is done
	head       int
	open       bool // extended messages were sent after the last Sync
	skip       bool // discard extended messages up to the next Sync
	copyIn     bool
	status     byte // 'I', 'T' or 'E', what the client believes
	pinned     route.Pin
	batch      batch    // since the last Sync
	txChanges  []change // settings of the open transaction
	savepoint  bool
	rolledBack bool
	lost       *lostTransaction
	begin      string    // the open transaction's BEGIN while it has done nothing on a primary
	deferred   string    // a BEGIN that the next server must hear first
	kept       kept      // what is under way, while it may be sent again
	replaying  bool      // what was kept is being sent again
	outlived   bool      // it was sent again after a server had died without a word
	replays    uint8     // how often it was sent again
	lostAt     time.Time // when that was
	gone       bool
	draining   *clientError
	startup    *settings
	params     *settings
	stmts      map[string]*statement
	unnamed    *statement
	portals    map[string]*statement
	reported   map[string]string

	// Of read/write splitting.
	reading     reading
	token       fence.Position // at least so far is the next read; for consistency per session
	onPrimary   bool           // something ran on the primary since the token
	hint        route.Hint     // the setting fournines.route
	foreign     bool           // standard_conforming_strings is, or was, off
	oneSnapshot bool           // the default isolation level is not READ COMMITTED
	hasRead     bool           // the open transaction has read on a standby
	unit        unit           // what is placed
	again       bytes.Reader   // over a unit that is run again
	ddl         bool           // the open transaction has changed the schema

	// Of the goroutine that handles messages.
	scratch []byte
	out     []byte
	lostMsg lostBatch
}

// batch is what is known about the messages up to a Sync, or a simple query.
type batch struct {
	changes []change
	ends    bool // may end the transaction
	runs    bool // executes something
	facts   route.Facts
}

// change is a session setting that takes effect when its transaction commits.
type change struct {
	kind      route.Kind
	name, sql string
	hint      route.Hint // of fournines.route
}

// lostTransaction is the state after a server was lost inside a transaction.
type lostTransaction struct{ told bool }

type opKind uint8

const (
	opParse        opKind = iota // the client's Parse
	opParseHidden                // a Parse of the proxy
	opClose                      // the client's Close
	opCloseHidden                // a Close of the proxy, to make room
	opCloseAsParse               // a Close that stands for a Parse that is not needed
	opSync
	opQuery
	opInternal
)

// op is a request whose answer is due.
type op struct {
	kind opKind
	st   *statement
	name string
	// renames: it changed what name, or no name, stands for; it was old.
	renames bool
	old     *statement
	kept    int // how much of session.kept belongs to the request that it ends
	batch
}

func (k opKind) ends() bool { return k >= opSync }

// errSkip tells that a message belongs to a batch that has failed already.
var errSkip = errors.New("skip to sync")

// errLost tells that the transaction was lost with its server.
var errLost = errors.New("transaction lost")

// errBye ends a session without a word.
var errBye = errors.New("client has left")

func (s *session) send(b []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_, err := s.conn.Write(b)
	return err
}

// relay handles the client's messages until it leaves or must leave.
func (s *session) relay() error {
	for {
		var typ byte
		var size int
		park, err := s.awaitMessage()
		if err == nil {
			typ, size, err = pgwire.PeekHeader(s.br)
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if s.ctx.Err() != nil {
					return errBye // it was told why already
				}
				if end := s.drained(); end != nil {
					return end
				}
				if park && s.park() {
					return errParked
				}
				continue
			}
			return err
		}
		if err := pgwire.CheckClientSize(typ, size); err != nil {
			return err
		}
		u, err := s.peekUnit(typ, size)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && s.ctx.Err() == nil {
				_ = s.drained() // there is a message, so it goes on
				continue
			}
			return err
		}
		s.upMu.Lock()
		s.src = s.br
		if u != nil {
			err = s.runUnit(u)
		} else {
			err = s.message(typ, size)
		}
		s.upMu.Unlock()
		if err != nil {
			return err
		}
	}
}

// drained returns the farewell when the session stands at a transaction
// boundary; otherwise it clears the deadline that woke it.
func (s *session) drained() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conn.SetReadDeadline(time.Time{})
	if s.draining != nil && s.idle() && s.br.Buffered() == 0 {
		return s.draining
	}
	return nil
}

// idle reports a transaction boundary with nothing under way. mu is held.
func (s *session) idle() bool { return s.status == 'I' && s.head == len(s.q) && !s.open }

// drain makes the session end at the next transaction boundary.
func (s *session) drain(why *clientError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = why
	if s.idle() {
		s.wake()
		if s.srv == nil {
			s.cancel(why) // it may wait for a server
		}
	}
}

// wake makes the session look at its state. mu is held.
func (s *session) wake() {
	s.wakeReader()
	s.unpark()
}

func (s *session) wakeReader() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// cut ends the session at once.
func (s *session) cut(why *clientError) {
	s.cancel(why)
	s.unpark()
	if s.wmu.TryLock() {
		_ = s.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = s.conn.Write(pgwire.AppendError(nil, &why.ErrorResponse))
		s.wmu.Unlock()
	}
	_ = s.conn.Close()
}

// lockAttached returns with mu held and a server lent to the session. What
// the server must hear first is in s.out.
func (s *session) lockAttached() (*server, error) {
	s.out = s.out[:0]
	s.mu.Lock()
	for {
		if s.skip {
			s.mu.Unlock()
			return nil, errSkip
		}
		if s.lost != nil {
			s.mu.Unlock()
			return nil, errLost
		}
		if s.srv != nil {
			if !s.idle() || s.p.gates.at(s.database) == nil {
				return s.srv, nil
			}
			// A new transaction on a server that the session still holds.
			s.mu.Unlock()
			w := waiter{s: s}
			err := s.p.passGate(s, &w)
			w.end(s.p)
			if err != nil {
				return nil, err
			}
			s.mu.Lock()
			continue
		}
		if s.reading.active.Load() {
			s.mu.Unlock()
			return nil, errSkip // the standby was lost; the whole unit will run again
		}
		s.mu.Unlock()
		srv, err := s.p.acquire(s)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		srv.mu.Lock()
		if srv.dead || s.gone {
			srv.mu.Unlock()
			if s.gone {
				srv.close()
			}
			continue
		}
		srv.sess.Store(s)
		srv.mu.Unlock()
		s.srv = srv
		s.onPrimary = true
		if s.p.mode == ModeSession {
			s.pinned = route.PinSessionState
		}
		// Two queries: settings made in one string with BEGIN would end with the
		// transaction.
		if sql := changeSQL(srv.applied, s.params); sql != "" {
			srv.applied = s.params
			s.internalQuery(srv, sql)
		}
		if s.deferred != "" {
			s.internalQuery(srv, s.deferred)
			s.deferred = ""
		}
		return srv, nil
	}
}

// push records a request. mu is held.
func (s *session) push(o op) {
	if s.head == len(s.q) {
		s.q, s.head = s.q[:0], 0
	}
	s.q = append(s.q, o)
}

// onlyInternal reports that nothing but the proxy's own statements is under way.
// mu is held.
func (s *session) onlyInternal() bool {
	for _, o := range s.q[s.head:] {
		if o.kind != opInternal {
			return false
		}
	}
	return true
}

// startBatch notes the first message of a batch. mu is held.
func (s *session) startBatch() {
	if !s.onlyInternal() {
		return
	}
	s.output.Store(false)
	s.kept.reset()
	if !s.replaying {
		s.outlived, s.replays = false, 0
	}
}

// popBatch removes requests up to the end of the oldest batch, and takes back
// what the unanswered ones of it had assumed. mu is held.
func (s *session) popBatch(srv *server) (op, bool) {
	for s.head < len(s.q) {
		o := s.q[s.head]
		s.q[s.head] = op{}
		s.head++
		if o.kind.ends() {
			return o, true
		}
		s.undo(srv, o)
	}
	return op{}, false
}

func (s *session) undo(srv *server, o op) {
	switch o.kind {
	case opParse, opParseHidden, opCloseAsParse:
		if o.st != nil && o.kind != opCloseAsParse {
			if o.st.name == "" {
				srv.unnamed = nil
				if s.unnamed == o.st && o.kind == opParse {
					s.unnamed = nil
				}
			} else {
				delete(srv.prepared, o.st.name)
			}
		}
		if o.kind != opParseHidden && o.name != "" && o.st != nil {
			s.forget(o.name)
		}
	case opCloseHidden:
		srv.prepared[o.st.name] = &prepared{st: o.st}
	}
}

// answered handles ParseComplete and CloseComplete, the answers that the
// proxy adds or takes away. It returns the type to forward.
func (s *session) answered(typ byte) (as byte, forward bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.head == len(s.q) || s.q[s.head].kind.ends() {
		return typ, true
	}
	o := s.q[s.head]
	s.q[s.head] = op{}
	s.head++
	switch o.kind {
	case opParseHidden, opCloseHidden:
		return 0, false
	case opCloseAsParse:
		return '1', true
	}
	return typ, true
}

func (s *session) noteRollback() {
	s.mu.Lock()
	s.rolledBack = true
	s.mu.Unlock()
}

// copyStarted: from now on the server ignores Sync until the copy ends, also
// those that were sent along with the statement.
func (s *session) copyStarted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copyIn = true
	if s.head < len(s.q) && s.q[s.head].kind == opSync {
		for i := s.head; i < len(s.q); i++ {
			if s.q[i].kind == opSync {
				s.batch.changes = append(s.batch.changes, s.q[i].changes...)
			}
		}
		s.q, s.head = s.q[:0], 0
		s.open = true
	}
	s.kept.giveUp()
}

// ready handles the end of a batch: bookkeeping, and early release when others
// wait for a server.
func (s *session) ready(srv *server, status byte) (early, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != srv {
		return false, false
	}
	o, ok := s.popBatch(srv)
	if !ok {
		if !s.copyIn && !s.open {
			return false, false
		}
		s.open = false // a Sync that crossed with an error of a copy
	}
	s.copyIn = false
	s.kept.answered(o.kept)
	s.output.Store(false) // nothing of the next answer
	failed := s.failed.Swap(false)
	if srv.target.Standby && s.status == 'E' && status == 'T' {
		// AND CHAIN after an error: PostgreSQL has forgotten the modes by then.
		s.begin, s.hasRead = "BEGIN", false
	}
	s.status = status
	if o.kind == opQuery || o.kind == opSync {
		srv.queries.Add(1)
	}
	if !failed {
		s.txChanges = append(s.txChanges, o.changes...)
	}
	if o.facts.Kind != route.Begin && !srv.target.Standby && (o.kind != opSync || o.runs) {
		s.begin = ""
	}
	if srv.target.Standby && s.reading.reads {
		s.hasRead = true
	}
	if status == 'I' {
		srv.transactions.Add(1)
		if s.ddl {
			s.ddl = false
			if s.router != nil {
				s.router.Changed() // before the client hears of its commit
			}
		}
		if !failed && !s.rolledBack && len(s.txChanges) > 0 {
			s.apply(srv)
		}
		s.txChanges, s.rolledBack, s.savepoint = s.txChanges[:0], false, false
		s.begin = ""
		srv.commitDoubt = false
	}
	if s.head == len(s.q) {
		s.q, s.head = s.q[:0], 0
		if !s.open {
			s.kept.reset()
		}
		s.quiet.Broadcast()
		if s.idle() && s.draining != nil {
			s.wake()
		}
	}
	if s.done() && srv.pool.Waiting() > 0 {
		s.detach()
		return true, true
	}
	return false, true
}

// done reports whether the server may go back. mu is held.
func (s *session) done() bool { return s.idle() && s.pinned == route.NoPin && s.srv != nil }

// detach gives up the server without telling it. mu is held.
func (s *session) detach() {
	s.srv.sess.Store(nil)
	s.srv = nil
}

// releaseIfDone takes the server from the session when it needs it no more.
func (s *session) releaseIfDone(srv *server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != srv || !s.done() {
		return false
	}
	s.detach()
	return true
}

// internalDone handles the end of the proxy's own statements before a batch.
func (s *session) internalDone(srv *server, status byte) (release bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != srv {
		return false
	}
	if s.head < len(s.q) && s.q[s.head].kind == opInternal {
		s.head++
	}
	more := s.head < len(s.q) && s.q[s.head].kind == opInternal
	s.internal.Store(more)
	if srv.target.Standby {
		if !more {
			if w := s.judge(srv); w != whys {
				srv.drop(w)
			}
		}
		return false
	}
	if s.reported == nil { // login
		srv.mu.Lock()
		s.reported = make(map[string]string, len(srv.reported))
		for k, v := range srv.reported {
			s.reported[k] = v
		}
		srv.mu.Unlock()
	} else if e := s.internalErr.Load(); e != nil {
		// The statement behind it must not be believed under other settings.
		_ = s.conn.Close()
	}
	_ = status
	if s.head == len(s.q) {
		s.q, s.head = s.q[:0], 0
		s.quiet.Broadcast()
	}
	if s.internalErr.Load() != nil {
		srv.applied = newSettings(nil)
		srv.close() // what it applied is unknown
		s.detach()
		return false
	}
	if s.done() {
		s.detach()
		return true
	}
	return false
}

// apply makes the settings of a committed transaction the session's. mu is held.
func (s *session) apply(srv *server) {
	for _, c := range s.txChanges {
		switch c.kind {
		case route.Set:
			s.settingsChanged(c.name, c.hint)
			s.params, srv.applied = s.params.with(c.name, c.sql), srv.applied.with(c.name, c.sql)
		case route.Reset:
			s.settingsChanged(c.name, s.startup.hint)
			srv.applied = srv.applied.without(c.name)
			if sql, ok := s.startup.get(c.name); ok {
				s.params = s.params.with(c.name, sql)
			} else {
				s.params = s.params.without(c.name)
			}
		case route.ResetAll:
			s.settingsChanged(route.RouteSetting, s.startup.hint)
			srv.applied, s.params = newSettings(nil), s.startup
		case route.DiscardAll, route.DeallocateAll:
			for name := range s.stmts {
				s.forget(name)
			}
			clear(srv.prepared)
			srv.unnamed, s.unnamed = nil, nil
			if c.kind == route.DiscardAll {
				s.settingsChanged(route.RouteSetting, s.startup.hint)
				srv.applied, s.params = newSettings(nil), s.startup
				if s.p.mode != ModeSession {
					s.pinned = route.NoPin
				}
			}
		}
	}
	if srv.applied.key == s.params.key {
		srv.applied = s.params
	}
}

// waitQuiet waits until every answer has come. mu is held.
func (s *session) waitQuiet() {
	for s.srv != nil && s.head < len(s.q) {
		s.quiet.Wait()
	}
}

// leave gives up the server when the client is gone: a clean one is reset, any
// other is closed, and a statement that still runs is cancelled.
func (s *session) leave() {
	s.mu.Lock()
	s.gone = true
	srv := s.srv
	var reset, running bool
	if srv != nil {
		running = s.head < len(s.q)
		reset = s.idle() && !s.internal.Load()
		s.detach()
		if reset {
			srv.resetting.Store(true)
		}
	}
	for name := range s.stmts {
		s.forget(name)
	}
	s.quiet.Broadcast()
	s.mu.Unlock()
	if srv == nil {
		return
	}
	if reset {
		if srv.query("DISCARD ALL") != nil {
			srv.close()
		}
		return
	}
	if running {
		s.p.cancelAndClose(srv)
		return
	}
	srv.close()
}

// isGone reports errors that mean nothing but that the client went away.
func isGone(err error) bool {
	var ne *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, errBye) || errors.As(err, &ne)
}
