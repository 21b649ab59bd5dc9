package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"fournines/internal/pgwire"
	"fournines/pgproxy/fence"
	"fournines/pgproxy/pool"
	"fournines/pgproxy/primary"
	"fournines/pgproxy/route"
)

// checkColumns travel before a read. Replay only goes forward, so the read that
// follows sees at least the position that they answer with. The isolation
// level shows what a role or a database may have as its default.
const checkColumns = `CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() END,` +
	` pg_catalog.current_setting('transaction_isolation')`

// checkSQL asks for these columns. When the standby may need a moment to replay
// up to a position, it waits for that, so that a read that comes right after a
// write need not run twice: 1, 2 and 4 ms at most, since the server's sleep knows
// milliseconds only.
func checkSQL(patient bool, need uint64) string {
	if !patient {
		return "SELECT " + checkColumns
	}
	behind := fmt.Sprintf("CASE WHEN pg_catalog.pg_last_wal_replay_lsn() OPERATOR(pg_catalog.<) '%X/%X'::pg_catalog.pg_lsn THEN pg_catalog.pg_sleep(", need>>32, need&0xffffffff)
	const end = ")::pg_catalog.text END, "
	return "SELECT " + behind + "0.001" + end + behind + "0.002" + end + behind + "0.004" + end + checkColumns
}

// reading is the unit that runs on a standby. The client's goroutine waits for
// its outcome, so there is one at a time.
type reading struct {
	active  atomic.Bool
	outcome chan why // whys when the client has its answer

	// Under the session's mu.
	checked, fresh, inTransaction bool
	reads                         bool // it takes a snapshot
	need                          fence.Position
	row                           bool // the check has answered
	seen                          uint64
	isolation                     string
	// undo takes back what the unit did to the session's prepared statements,
	// before it is run again.
	undo    []named
	unnamed *statement
	logging bool
}

// named is what a name stood for.
type named struct {
	name string
	st   *statement
}

// instead says whether a unit has to be run on the primary, and why.
type instead struct {
	needed bool
	why    why
	// sent: it was sent to a standby, and is out of the read buffer.
	sent bool
}

// readOnStandby runs a unit of n bytes from the read buffer on a standby, so that
// the client has its answer; otherwise it says why not, and the client has seen
// nothing.
func (s *session) readOnStandby(pl placement, n int) (instead, error) {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	if srv == nil {
		// Without one that could be used the primary is not asked in vain.
		if no := s.p.anyStandby(); no != whys {
			return instead{needed: true, why: no}, nil
		}
	}
	var need fence.Position
	if pl.fresh {
		var err error
		if need, err = s.position(); err != nil {
			if cause := context.Cause(s.ctx); cause != nil {
				return instead{}, cause
			}
			s.mu.Lock()
			s.leaveStandby(&unit{})
			s.mu.Unlock()
			return instead{needed: true, why: whyNoPosition}, nil
		}
	}
	s.mu.Lock()
	srv = s.srv
	s.mu.Unlock()
	if srv == nil {
		var no why
		var err error
		if srv, no, err = s.p.acquireStandby(s); err != nil {
			return instead{}, err
		}
		if srv == nil {
			return instead{needed: true, why: no}, nil
		}
	}
	if !s.attachStandby(srv, pl, need) {
		return instead{needed: true, why: whyLost}, nil
	}
	err := s.runMessages(s.br, n)
	srv.flushWrites()
	if err != nil {
		s.reading.active.Store(false)
		return instead{}, err
	}
	no, err := s.await(srv)
	if err != nil {
		return instead{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading.active.Store(false)
	s.reading.logging = false
	if no == whys {
		s.p.metrics.route(onStandby, pl.reason)
		return instead{}, nil
	}
	for i := len(s.reading.undo) - 1; i >= 0; i-- {
		if u := s.reading.undo[i]; u.st != nil {
			s.stmts[u.name] = u.st
		} else {
			delete(s.stmts, u.name)
		}
	}
	s.unnamed = s.reading.unnamed
	s.batch = batch{}
	return instead{needed: true, why: no, sent: true}, nil
}

// position returns what a standby must have replayed for the next read.
func (s *session) position() (fence.Position, error) {
	cfg := &s.p.live.Load().cfg.Splitting
	switch cfg.Mode {
	case SplittingBounded:
		return s.p.fence.Recent(s.ctx, cfg.MaxStaleness)
	case SplittingSession:
		var generation uint64
		if v := s.p.tracker.View(); v.Primary != nil {
			generation = v.Primary.Generation
		}
		s.mu.Lock()
		known := !s.onPrimary && s.token.Generation == generation
		token := s.token
		s.mu.Unlock()
		if known {
			return token, nil
		}
	}
	start := time.Now()
	pos, err := s.p.fence.Position(s.ctx)
	s.p.metrics.fenceWaits.Observe(time.Since(start).Seconds())
	if err == nil {
		s.mu.Lock()
		s.token, s.onPrimary = fence.Position{LSN: max(pos.LSN, s.token.LSN), Generation: pos.Generation}, false
		pos = s.token
		s.mu.Unlock()
	}
	return pos, err
}

// attachStandby makes srv the session's server and writes to it what goes
// before the client's own messages, all in one packet with them. It returns
// false when the server was lost.
func (s *session) attachStandby(srv *server, pl placement, need fence.Position) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.srv == nil:
		srv.mu.Lock()
		if srv.dead {
			srv.mu.Unlock()
			return false
		}
		srv.sess.Store(s)
		srv.mu.Unlock()
		s.srv = srv
	case s.srv != srv:
		return false
	default:
		srv.mu.Lock()
		dead := srv.dead
		srv.mu.Unlock()
		if dead { // serverLost is about to be called, and will find nothing to do
			s.detach()
			s.leaveLost()
			return false
		}
	}
	r := &s.reading
	if r.outcome == nil {
		r.outcome = make(chan why, 1)
	}
	select {
	case <-r.outcome: // of a server that was lost after the last unit had ended
	default:
	}
	r.fresh, r.need, r.row, r.seen = pl.fresh && !s.knownFresh(srv, need), need, false, 0
	r.checked = r.fresh || pl.first
	r.inTransaction, r.reads = s.status == 'T', pl.reads
	r.undo, r.unnamed, r.logging = r.undo[:0], s.unnamed, true
	r.active.Store(true)
	s.out = s.out[:0]
	if sql := changeSQL(srv.applied, s.params); sql != "" {
		srv.applied = s.params
		s.internalQuery(srv, sql)
	}
	check := s.deferred
	s.deferred = ""
	if r.checked {
		if check != "" {
			check += "\n;"
		}
		check += checkSQL(r.fresh && s.p.standbys.nearly(srv.target, need.LSN), need.LSN)
	}
	if check != "" {
		s.internalQuery(srv, check)
	}
	s.write(srv, 0, nil)
	return true
}

// knownFresh reports that the standby needs no check: this connection has seen it
// at the position already, and replay does not go back while a server runs. With
// consistency per session it is asked all the same, because the session has to
// know what it has read. mu is held.
func (s *session) knownFresh(srv *server, need fence.Position) bool {
	return srv.seen >= need.LSN && (need.Generation == 0 || need.Generation == srv.target.Generation) &&
		s.p.live.Load().cfg.Splitting.Mode != SplittingSession
}

// internalQuery adds a simple query of the proxy itself to s.out. mu is held.
func (s *session) internalQuery(srv *server, sql string) {
	srv.unnamed = nil
	s.internal.Store(true)
	s.q = append(s.q, op{kind: opInternal})
	s.out = pgwire.AppendQuery(s.out, sql)
}

// cancelStale is how long the answer of a standby that was found to be too old
// may take until its statement is cancelled.
const cancelStale = 50 * time.Millisecond

// await waits until the unit on the standby has ended, and looks after the
// client meanwhile. The server's goroutine, or serverLost, tells the outcome.
func (s *session) await(srv *server) (why, error) {
	select {
	case w := <-s.reading.outcome:
		return w, nil
	default:
	}
	timer := time.NewTimer(cancelStale)
	defer timer.Stop()
	first := true
	for {
		select {
		case w := <-s.reading.outcome:
			return w, nil
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		case <-timer.C:
			if hungUp(s.conn) {
				return 0, errBye
			}
			if first && srv.dropping.Load() {
				s.cancelDropped(srv)
			}
			first = false
			timer.Reset(time.Second)
		}
	}
}

// cancelDropped ends a statement whose answer nobody will see.
func (s *session) cancelDropped(srv *server) {
	s.mu.Lock()
	if s.srv != srv {
		s.mu.Unlock()
		return
	}
	srv.holdForCancel()
	s.mu.Unlock()
	s.p.wg.Go(func() {
		defer srv.endCancel()
		s.p.deliverCancel(srv)
	})
}

// finish tells the client's goroutine how its unit ended.
func (s *session) finish(w why) {
	select {
	case s.reading.outcome <- w:
	default:
	}
}

// checkRow reads the answer to checkSQL: a DataRow's body.
func (s *session) checkRow(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values, ok := pgwire.Columns(body)
	if !ok || len(values) < 2 {
		return
	}
	values = values[len(values)-2:]
	if values[0] == nil {
		return // no longer a standby
	}
	pos, err := primary.ParseLSN(string(values[0]))
	if err != nil {
		return
	}
	s.reading.row, s.reading.seen, s.reading.isolation = true, pos, string(values[1])
}

// judge says whether the standby may answer, once its own statements are done.
// mu is held.
func (s *session) judge(srv *server) why {
	r := &s.reading
	if e := s.internalErr.Swap(nil); e != nil {
		// Its settings cannot be made there, or its isolation level is not allowed.
		srv.unclean = true
		if e.Code != codeCancelled { // that was the check itself, by the client or by its statement_timeout
			s.oneSnapshot = true
		}
		return whyRefused
	}
	if !r.checked {
		return whys
	}
	if r.inTransaction && r.isolation != "read committed" && r.isolation != "read uncommitted" && r.row {
		s.oneSnapshot = true
		return whyIsolation
	}
	behind := !r.row || r.fresh && (r.seen < r.need.LSN || r.need.Generation != 0 && r.need.Generation != srv.target.Generation)
	if r.row {
		srv.seen = max(srv.seen, r.seen)
	}
	srv.p.standbys.judged(srv.target, r.seen, behind)
	if behind {
		return whyStale
	}
	if s.token.LSN < r.seen && s.p.live.Load().cfg.Splitting.Mode == SplittingSession {
		s.token.LSN = r.seen
	}
	return whys
}

// filter handles a message of a standby that the client may not see, or not
// yet. done means that it is consumed.
func (srv *server) filter(s *session, typ byte, size int) (done bool, err error) {
	if !s.reading.active.Load() {
		return false, nil
	}
	switch {
	case typ == 'Z':
		return false, nil
	case srv.dropped != whys:
		switch typ {
		case '1', '3':
			s.answered(typ)
		case 'E':
			b, err := srv.br.Peek(min(size, bufferSize))
			if err != nil {
				return false, err
			}
			if e := pgwire.ParseError(b[pgwire.HeaderLen:]); e.Severity == "FATAL" || e.Severity == "PANIC" {
				srv.lastFatal = &e
			}
		}
		return true, pgwire.Skip(srv.br, size)
	case typ == 'E' && srv.holding && size <= bufferSize:
		b, err := srv.br.Peek(size)
		if err != nil {
			return false, err
		}
		e := pgwire.ParseError(b[pgwire.HeaderLen:])
		switch {
		case e.Severity == "FATAL" || e.Severity == "PANIC":
			srv.lastFatal = &e
			return true, pgwire.Skip(srv.br, size)
		case errElsewhere(e.Code):
			srv.drop(whyRefused)
			return true, pgwire.Skip(srv.br, size)
		}
		srv.holding = false
	case typ == 'D', typ == 'C', typ == 'I', typ == 's', typ == 'H', typ == 'E':
		srv.holding = false
	}
	if srv.cw.Available() < size {
		srv.holding = false
	}
	return false, nil
}

// drop decides that the client sees nothing of the present answer.
func (srv *server) drop(w why) {
	srv.dropped = w
	srv.dropping.Store(true)
	if srv.holding && srv.cw.Buffered() > 0 {
		srv.cw.Reset(nil)
	}
}

// dropEnd handles the end of an answer that the client does not see: the
// session leaves the standby.
func (srv *server) dropEnd(s *session) error {
	b, err := srv.br.Peek(pgwire.HeaderLen + 1)
	if err != nil {
		return err
	}
	status := b[pgwire.HeaderLen]
	if err := pgwire.Skip(srv.br, pgwire.HeaderLen+1); err != nil {
		return err
	}
	s.mu.Lock()
	if s.srv != srv {
		s.mu.Unlock()
		return nil
	}
	s.popBatch(srv)
	s.leaveLost()
	if status != 'I' && !srv.unclean {
		srv.rollingBack.Store(true)
	}
	s.detach()
	w := srv.dropped
	srv.dropped = whys
	srv.dropping.Store(false)
	unclean := srv.unclean
	s.mu.Unlock()
	switch {
	case unclean:
		srv.close()
	case status != 'I':
		srv.rollback()
	default:
		srv.release()
	}
	s.finish(w)
	return nil
}

// leaveLost makes the session ready for another server, on which the open
// transaction begins anew. mu is held.
func (s *session) leaveLost() {
	s.q, s.head = s.q[:0], 0
	s.open = false
	s.internal.Store(false)
	s.failed.Store(false)
	if s.status == 'T' {
		s.deferred = s.begin
	}
	s.quiet.Broadcast()
}

// standbyLost ends a unit whose standby is gone: the client is told when it has
// seen a part of the answer, and otherwise the primary answers. It runs on the
// server's goroutine.
func (s *session) standbyLost(srv *server, lost *lostError) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.srv != srv {
		return
	}
	s.detach()
	var writeErr *pgwire.WriteError
	if errors.As(lost.err, &writeErr) || srv.torn {
		_ = s.conn.Close()
		s.cancel(errBye)
		return
	}
	s.p.log.Debug("standby lost under a read", "server", srv.target.Endpoint.Name, "err", lost)
	if srv.holding {
		s.leaveLost()
		s.finish(whyLost)
		return
	}
	status := s.status
	if status == 'T' {
		status = 'E'
		s.lost = &lostTransaction{told: true}
	}
	s.leaveLost()
	s.status, s.deferred = status, ""
	s.batch = batch{}
	s.p.metrics.error(codeRolledBack)
	out := pgwire.AppendError(nil, &pgwire.ErrorResponse{Severity: "ERROR", Code: codeRolledBack, Message: "the standby was lost while it answered; run the transaction again"})
	_, _ = s.conn.Write(pgwire.AppendReady(out, status))
	s.finish(whys)
}

// acquireStandby lends the session a connection to the best standby, or says
// why there is none.
func (p *Proxy) acquireStandby(s *session) (*server, why, error) {
	v := p.tracker.View()
	if len(v.Standbys) == 0 {
		return nil, whyNoStandby, nil
	}
	var tried uint64 // bits by index
	var first *primary.Target
	for {
		i := p.bestStandby(s, v, tried)
		if i < 0 {
			break
		}
		t := v.Standbys[i]
		if first == nil {
			first = t
		}
		tried |= 1 << i
		pl := p.standbyPool(s.database, s.user, t)
		srv, dial, err := pl.Get(s.ctx, 0, nil)
		if err != nil {
			continue // all of its connections are in use
		}
		if srv, err = p.openStandby(s, pl, t, srv, dial); srv != nil || err != nil {
			return srv, whyNoStandby, err
		}
	}
	if first == nil {
		return nil, whyBehind, nil
	}
	// Every standby is busy: wait for the best one, as for the primary.
	w := waiter{s: s}
	defer w.end(p)
	w.start()
	pl := p.standbyPool(s.database, s.user, first)
	srv, dial, err := pl.Get(s.ctx, p.live.Load().cfg.Pool.QueueTimeout, s.stays)
	switch {
	case errors.Is(err, pool.ErrFull) || errors.Is(err, pool.ErrTimeout):
		return nil, whyNoStandby, nil
	case err != nil:
		return nil, whyNoStandby, err
	}
	srv, err = p.openStandby(s, pl, first, srv, dial)
	return srv, whyNoStandby, err
}

// openStandby makes what a pool gave usable. nil and no error means that
// another server should be tried.
func (p *Proxy) openStandby(s *session, pl *pool.Pool[*server], t *primary.Target, srv *server, dial bool) (*server, error) {
	if !dial {
		if !srv.stale() {
			return srv, nil
		}
		srv.close()
		pl.Remove(srv)
		if _, dial, _ = pl.Get(s.ctx, 0, nil); !dial {
			return nil, nil
		}
	}
	srv, err := p.dial(s.ctx, t, s, pl)
	if err == nil {
		return srv, nil
	}
	pl.Cancel()
	if cause := context.Cause(s.ctx); cause != nil {
		return nil, cause
	}
	p.log.Debug("cannot connect to a standby", "server", t.Endpoint.Name, "err", err)
	p.tracker.Kick(t.Endpoint.Address)
	p.standbys.judged(t, 0, true)
	return nil, nil
}

// fit says whether a standby can be used now: whys, or why not.
func (p *Proxy) fit(cfg *Config, v *primary.View, t *primary.Target, now time.Time) why {
	if cfg.Zone != "" && t.Endpoint.Zone != cfg.Zone &&
		cfg.Splitting.added(v.Server(t.Endpoint).RTT, v.Server(v.Primary.Endpoint).RTT) > cfg.Splitting.MaxAddedLatency {
		return whyFar
	}
	if !p.standbys.usable(t, now) {
		return whyBehind
	}
	return whys
}

// anyStandby returns whys when there is one that can be used now, or why not.
func (p *Proxy) anyStandby() why {
	v, cfg, now := p.tracker.View(), &p.live.Load().cfg, time.Now()
	no := whyNoStandby
	for _, t := range v.Standbys {
		no = p.fit(cfg, v, t, now)
		if no == whys {
			break
		}
	}
	return no
}

// bestStandby chooses among the standbys that were not tried: of the proxy's
// own zone before others, then near ones before far ones, then the one with the
// fewest connections in use. It returns an index, or -1.
func (p *Proxy) bestStandby(s *session, v *primary.View, tried uint64) int {
	cfg := &p.live.Load().cfg
	turn := int(p.standbys.turn.Add(1))
	best := -1
	var bestZone, bestRTT, bestUsed int
	now := time.Now()
	for i := range v.Standbys {
		i = (i + turn) % len(v.Standbys)
		t := v.Standbys[i]
		if i >= 64 || tried&(1<<i) != 0 || p.fit(cfg, v, t, now) != whys {
			continue
		}
		remote, rtt := 1, 0
		if cfg.Zone != "" && t.Endpoint.Zone == cfg.Zone {
			remote = 0
		} else {
			rtt = int(v.Server(t.Endpoint).RTT / (5 * time.Millisecond))
		}
		used := p.standbyPool(s.database, s.user, t).Stats().Used
		if best < 0 || remote < bestZone || remote == bestZone && (rtt < bestRTT || rtt == bestRTT && used < bestUsed) {
			best, bestZone, bestRTT, bestUsed = i, remote, rtt, used
		}
	}
	return best
}

// added is how much longer a read takes on a standby than on the primary, given
// the round trips to the two. With the fence the primary is asked first.
func (c *Splitting) added(standby, primary time.Duration) time.Duration {
	if c.Mode == SplittingFence {
		return standby
	}
	return standby - primary
}

// standbyPool returns the pool of connections to a standby.
func (p *Proxy) standbyPool(database, user string, t *primary.Target) *pool.Pool[*server] {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := standbyKey{poolKey{database, user}, t.Endpoint.Name}
	pl := p.standbyPools[k]
	if pl == nil {
		c := p.live.Load().cfg.Pool
		pl = pool.New[*server](c.sizeOf(k.poolKey), c.Queue)
		p.standbyPools[k] = pl
	}
	return pl
}

// standbyKey names a pool of connections to a standby.
type standbyKey struct {
	poolKey
	backend string
}

// settingsChanged follows what the session's settings mean for splitting. mu is
// held.
func (s *session) settingsChanged(name string, hint route.Hint) {
	s.oneSnapshot = false
	if name == route.RouteSetting {
		s.hint = hint
	}
}
