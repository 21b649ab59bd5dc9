package pgproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/pool"
	"fournines/pgproxy/primary"
)

const bufferSize = 16 << 10

// server is one connection to a PostgreSQL server. Its own goroutine reads it
// from the first to the last byte, idle or lent; the session that it is lent
// to writes to it.
type server struct {
	p      *Proxy
	pool   *pool.Pool[*server]
	target *primary.Target
	conn   net.Conn
	br     *bufio.Reader
	bw     *bufio.Writer // written by the session that holds the server
	cw     *bufio.Writer // towards the client of that session
	pid    uint32
	key    []byte
	began  time.Time
	// database and user that it is logged in to.
	database, user string

	// wr is held while bw is used: the answer to a request may come, and the
	// server be lent to the next client, before Flush has returned.
	wr sync.Mutex

	sess atomic.Pointer[session]
	used atomic.Int64 // unix nanoseconds of the last release

	mu             sync.Mutex
	dead           bool
	cancels        int  // cancel requests under way
	releasePending bool // wants back into the pool when cancels is 0
	reported       map[string]string
	closed         bool

	// The following belong to the session that holds the server, under its mu.
	applied  *settings
	prepared map[string]*prepared
	unnamed  *statement
	uses     uint64
	seen     uint64 // position that the standby has said to have replayed

	// The following belong to the reading goroutine.
	resetting   atomic.Bool // DISCARD ALL runs for nobody
	rollingBack atomic.Bool // ROLLBACK runs for nobody
	resetFailed bool
	commitDoubt bool // the warning that a commit may be on one server only
	warned      bool // it has said that it is about to go
	lastFatal   *pgwire.ErrorResponse
	torn        bool // part of a message has gone to the client

	// The same, of a standby. See filter.
	holding  bool        // the client has seen nothing of the present answer
	dropped  why         // the client will see nothing of it; whys is not so
	dropping atomic.Bool // the same for the client's goroutine
	unclean  bool        // its settings are unknown

	queries, transactions, bytesIn, bytesOut atomic.Uint64
}

// prepared is a statement as the server knows it.
type prepared struct {
	st   *statement
	used uint64
}

// dial opens a connection to the target, which becomes a member of the pool, and
// starts its goroutine.
func (p *Proxy) dial(ctx context.Context, t *primary.Target, s *session, pl *pool.Pool[*server]) (*server, error) {
	l := p.live.Load()
	acc, ok := l.accounts[s.user]
	if !ok {
		return nil, newError("FATAL", codeNoAuthorisation, "role %q may no longer log in", s.user)
	}
	dctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	go func() { // a reign that ends also ends the attempt
		select {
		case <-t.Lost:
			cancel()
		case <-dctx.Done():
		}
	}()
	pc, err := connect(dctx, l, t.Endpoint, s.user, acc.password, s.database)
	if err != nil {
		return nil, err
	}
	// After a slow write pgconn may still be reading in the background; that
	// reader would take the first answer away.
	if err := pc.SyncConn(dctx); err != nil {
		_ = pc.Close(dctx)
		return nil, err
	}
	h, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	if standby := h.ParameterStatuses["in_hot_standby"] == "on"; standby != t.Standby {
		_ = h.Conn.Close()
		if standby {
			return nil, errors.New("the server has become a standby")
		}
		return nil, errors.New("the server is no longer a standby")
	}
	_ = h.Conn.SetDeadline(time.Time{})
	srv := &server{
		p: p, pool: pl, target: t, conn: h.Conn, pid: h.PID, key: h.SecretKey,
		began: time.Now(), database: s.database, user: s.user,
		br: bufio.NewReaderSize(h.Conn, bufferSize), bw: bufio.NewWriterSize(h.Conn, bufferSize),
		cw: bufio.NewWriterSize(nil, bufferSize), reported: maps.Clone(h.ParameterStatuses),
		applied: newSettings(nil), prepared: make(map[string]*prepared), holding: true, dropped: whys,
	}
	srv.used.Store(time.Now().UnixNano())
	srv.pool.Add(srv)
	p.metrics.addServer(srv)
	p.wg.Go(srv.run)
	return srv, nil
}

func (srv *server) usedAt() time.Time { return time.Unix(0, srv.used.Load()) }

// close ends the connection; the reading goroutine does the rest.
func (srv *server) close() {
	srv.mu.Lock()
	srv.closed = true
	srv.mu.Unlock()
	_ = srv.conn.Close()
}

func (srv *server) flushWrites() {
	srv.wr.Lock()
	defer srv.wr.Unlock()
	_ = srv.bw.Flush()
}

// query sends a simple query of the proxy itself.
func (srv *server) query(sql string) error {
	srv.wr.Lock()
	defer srv.wr.Unlock()
	if _, err := srv.bw.Write(pgwire.AppendQuery(nil, sql)); err != nil {
		return err
	}
	return srv.bw.Flush()
}

// rollback ends a transaction that its client has left; then the connection goes
// back to the pool. rollingBack was set before the session was detached.
func (srv *server) rollback() {
	if srv.query("ROLLBACK") != nil {
		srv.close()
	}
}

// stale reports whether the server must not be used any more.
func (srv *server) stale() bool {
	select {
	case <-srv.target.Lost:
		return true
	default:
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.dead || srv.closed
}

// release puts a clean connection back. A cancel request that is still under
// way delays it, so that it cannot hit the next client's statement.
func (srv *server) release() {
	srv.mu.Lock()
	if srv.cancels > 0 {
		srv.releasePending = true
		srv.mu.Unlock()
		return
	}
	srv.mu.Unlock()
	srv.used.Store(time.Now().UnixNano())
	if srv.stale() || !srv.pool.Put(srv) {
		srv.close()
	}
}

// holdForCancel keeps the server out of the pool until endCancel.
func (srv *server) holdForCancel() {
	srv.mu.Lock()
	srv.cancels++
	srv.mu.Unlock()
}

func (srv *server) endCancel() {
	srv.mu.Lock()
	srv.cancels--
	release := srv.cancels == 0 && srv.releasePending
	if release {
		srv.releasePending = false
	}
	srv.mu.Unlock()
	if release {
		srv.release()
	}
}

// run reads until the connection ends, then tells whoever it was lent to.
func (srv *server) run() {
	err := srv.relay()
	_ = srv.conn.Close()
	srv.mu.Lock()
	ours := srv.closed
	srv.dead, srv.closed = true, true
	s := srv.sess.Load()
	srv.mu.Unlock()
	srv.pool.Remove(srv)
	srv.p.metrics.removeServer(srv)
	if srv.lastFatal != nil && serverRestarting(srv.lastFatal.Code) || srv.lastFatal == nil && s != nil {
		srv.p.tracker.Kick(srv.target.Endpoint.Address)
	}
	if s != nil {
		s.serverLost(srv, &lostError{fatal: srv.lastFatal, err: err, ours: ours})
	}
}

// relay passes messages to the client. It holds the client's write lock from
// the first byte of a batch to its flush.
func (srv *server) relay() error {
	var locked *session
	defer func() {
		if locked != nil {
			if !srv.held(locked) {
				_ = srv.cw.Flush() // whole messages that arrived before the end
			}
			locked.wmu.Unlock()
		}
	}()
	flush := func() error {
		if locked == nil {
			return nil
		}
		err := srv.cw.Flush()
		locked.wmu.Unlock()
		locked = nil
		if err != nil {
			return &pgwire.WriteError{Err: err}
		}
		return nil
	}
	for {
		if !pgwire.HasFullMessage(srv.br) && !srv.held(locked) {
			if err := flush(); err != nil {
				return err
			}
		}
		typ, size, err := pgwire.PeekHeader(srv.br)
		if err != nil {
			return err
		}
		srv.bytesIn.Add(uint64(size))
		s := srv.sess.Load()
		if s == nil || s.internal.Load() {
			if err := srv.swallow(s, typ, size); err != nil {
				return err
			}
			continue
		}
		if srv.target.Standby {
			done, err := srv.filter(s, typ, size)
			if err != nil {
				return err
			}
			if done {
				continue
			}
			if typ == 'Z' && srv.dropped != whys {
				if locked != nil {
					srv.cw.Reset(nil)
					locked.wmu.Unlock()
					locked = nil
				}
				if err := srv.dropEnd(s); err != nil {
					return err
				}
				continue
			}
		}
		forward := true
		switch typ {
		case 'D', 'd', 'T', '2', 'n', 't', 's', 'I', 'c':
		case 'C':
			b, err := srv.br.Peek(min(size, pgwire.HeaderLen+9))
			if err != nil {
				return err
			}
			if string(b[pgwire.HeaderLen:]) == "ROLLBACK\x00" {
				s.noteRollback()
			}
		case '1', '3':
			var as byte
			if as, forward = s.answered(typ); forward && as != typ {
				if err := pgwire.Skip(srv.br, size); err != nil {
					return err
				}
				if locked == nil {
					s.wmu.Lock()
					locked = s
					srv.cw.Reset(s.conn)
				}
				s.output.Store(true)
				if _, err := srv.cw.Write([]byte{as, 0, 0, 0, 4}); err != nil {
					return &pgwire.WriteError{Err: err}
				}
				continue
			}
		case 'G', 'W':
			s.copyStarted()
		case 'E', 'N':
			if forward, err = srv.notice(s, typ, size); err != nil {
				return err
			}
		case 'S':
			if forward, err = srv.parameter(s, size); err != nil {
				return err
			}
		case 'Z':
			b, err := srv.br.Peek(size)
			if err != nil || size != pgwire.HeaderLen+1 {
				return fmt.Errorf("%w: ReadyForQuery of %d bytes", pgwire.ErrProtocol, size)
			}
			status := b[pgwire.HeaderLen]
			// Locked before the session may be woken, so that whatever it says
			// comes after this message.
			if locked == nil {
				s.wmu.Lock()
				locked = s
				srv.cw.Reset(s.conn)
			}
			early, ok := s.ready(srv, status)
			if !ok {
				return fmt.Errorf("%w: ReadyForQuery that nobody waits for", pgwire.ErrProtocol)
			}
			if _, err := pgwire.Copy(srv.cw, srv.br, size); err != nil {
				return err
			}
			standby := srv.target.Standby
			if early || standby || !pgwire.HasFullMessage(srv.br) {
				if err := flush(); err != nil {
					return err
				}
			}
			srv.holding = true
			if early || s.releaseIfDone(srv) {
				if err := flush(); err != nil {
					return err
				}
				srv.release()
			}
			if standby {
				s.finish(whys)
			}
			continue
		}
		if !forward {
			if err := pgwire.Skip(srv.br, size); err != nil {
				return err
			}
			continue
		}
		if locked == nil {
			s.wmu.Lock()
			locked = s
			srv.cw.Reset(s.conn)
		}
		if typ != 'S' && typ != 'A' { // they may come at any time
			s.output.Store(true)
		}
		srv.torn = true
		if _, err := pgwire.Copy(srv.cw, srv.br, size); err != nil {
			return err
		}
		srv.torn = false
		srv.bytesOut.Add(uint64(size))
	}
}

// notice looks at an error or notice. A FATAL, or a warning that the server goes
// away at once, is kept back: serverLost decides what the client is told.
func (srv *server) notice(s *session, typ byte, size int) (forward bool, err error) {
	if size > bufferSize {
		if typ == 'E' {
			s.failed.Store(true)
			srv.p.metrics.error("XX")
		}
		return true, nil
	}
	b, err := srv.br.Peek(size)
	if err != nil {
		return false, err
	}
	e := pgwire.ParseError(b[pgwire.HeaderLen:])
	if typ == 'N' {
		if e.Code != "57P01" && e.Code != "57P02" {
			return true, nil
		}
		srv.commitDoubt, srv.warned = true, true
		return false, nil
	}
	srv.p.metrics.error(e.Code)
	if e.Severity == "FATAL" || e.Severity == "PANIC" {
		srv.lastFatal = &e
		return false, nil
	}
	s.failed.Store(true)
	return true, nil
}

// parameter remembers a ParameterStatus and says whether the client should see it.
func (srv *server) parameter(s *session, size int) (forward bool, err error) {
	if size > bufferSize {
		return true, nil
	}
	b, err := srv.br.Peek(size)
	if err != nil {
		return false, err
	}
	name, rest, ok := pgwire.CString(b[pgwire.HeaderLen:])
	value, _, ok2 := pgwire.CString(rest)
	if !ok || !ok2 {
		return false, fmt.Errorf("%w: ParameterStatus", pgwire.ErrProtocol)
	}
	srv.mu.Lock()
	srv.reported[string(name)] = string(value)
	srv.mu.Unlock()
	if srv.target.Standby && string(name) == "in_hot_standby" {
		return false, nil // the client is told what holds on the primary
	}
	return s != nil && !s.internal.Load(), nil
}

// swallow handles a message that no client waits for: of an idle connection,
// of a reset, or of the settings that go before a client's own statement.
func (srv *server) swallow(s *session, typ byte, size int) error {
	switch typ {
	case 'D':
		if s != nil && srv.target.Standby && size <= bufferSize {
			b, err := srv.br.Peek(size)
			if err != nil {
				return err
			}
			s.checkRow(b[pgwire.HeaderLen:])
		}
	case 'E':
		b, err := srv.br.Peek(min(size, bufferSize))
		if err != nil {
			return err
		}
		e := pgwire.ParseError(b[pgwire.HeaderLen:])
		if e.Severity == "FATAL" || e.Severity == "PANIC" {
			srv.lastFatal = &e
		} else if s != nil {
			s.internalErr.Store(&e)
		}
		srv.resetFailed = true
	case 'S':
		if _, err := srv.parameter(s, size); err != nil {
			return err
		}
	case 'Z':
		b, err := srv.br.Peek(size)
		if err != nil || size != pgwire.HeaderLen+1 {
			return fmt.Errorf("%w: ReadyForQuery of %d bytes", pgwire.ErrProtocol, size)
		}
		status := b[pgwire.HeaderLen]
		if err := pgwire.Skip(srv.br, size); err != nil {
			return err
		}
		switch {
		case s != nil:
			if s.internalDone(srv, status) {
				srv.release()
			}
		case srv.rollingBack.Load():
			srv.rollingBack.Store(false)
			if status != 'I' {
				return errors.New("the transaction could not be rolled back")
			}
			srv.release()
		case srv.resetting.Load():
			if status != 'I' || srv.resetFailed {
				return errors.New("the session could not be reset")
			}
			srv.applied = newSettings(nil)
			clear(srv.prepared)
			srv.unnamed = nil
			srv.resetting.Store(false)
			srv.release()
		}
		return nil
	}
	return pgwire.Skip(srv.br, size)
}

// held reports that what was written for a client must not reach it yet.
func (srv *server) held(s *session) bool {
	return srv.target.Standby && srv.holding && s != nil && s.reading.active.Load()
}
