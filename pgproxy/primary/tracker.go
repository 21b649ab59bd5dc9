package primary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"fournines/topology"
)

// Options are what a Tracker needs to know.
type Options struct {
	// Endpoints are the servers to watch.
	Endpoints []topology.Endpoint
	// Connect opens a session for probes.
	Connect func(ctx context.Context, e topology.Endpoint) (*pgconn.PgConn, error)
	// Interval is the time between two probes of a server.
	Interval time.Duration
	// Timeout bounds one probe, connecting included.
	Timeout time.Duration
	// Misses is how many timeouts in a row make a server count as down. A
	// refused or reset connection counts at once.
	Misses int
}

// searchInterval is the longest time between two probes of a server while there is
// no primary: clients wait for the first probe that finds one.
const searchInterval = 100 * time.Millisecond

// Tracker asks every server at an interval and publishes Views. Create it
// with New; Run does the work.
type Tracker struct {
	opts Options
	log  *slog.Logger
	view atomic.Pointer[View]
	kick []chan struct{}

	mu         sync.Mutex
	servers    []Status
	asked      []bool // once, with or without an answer
	highest    uint32
	written    proven
	generation uint64
	current    *Target
	standbys   []*Target
	changed    chan struct{}
	since      time.Time
	failovers  atomic.Uint64
	conflicts  atomic.Uint64
}

// New returns a Tracker that knows no primary yet.
func New(opts Options, log *slog.Logger) *Tracker {
	t := &Tracker{opts: opts, log: log, changed: make(chan struct{}), since: time.Now()}
	for _, e := range opts.Endpoints {
		t.servers = append(t.servers, Status{Endpoint: e})
		t.asked = append(t.asked, false)
		t.kick = append(t.kick, make(chan struct{}, 1))
	}
	t.view.Store(&View{Why: "no server has been asked yet", Servers: append([]Status(nil), t.servers...), Changed: t.changed, Since: t.since})
	return t
}

// View returns the newest snapshot.
func (t *Tracker) View() *View { return t.view.Load() }

// Failovers is how often the primary has changed to another server or reign
// since the first one was found.
func (t *Tracker) Failovers() uint64 { return t.failovers.Load() }

// Conflicts is how often two servers were seen claiming the same timeline.
func (t *Tracker) Conflicts() uint64 { return t.conflicts.Load() }

// Kick asks the server at address without waiting for the interval to pass.
func (t *Tracker) Kick(address string) {
	for i, e := range t.opts.Endpoints {
		if e.Address == address {
			select {
			case t.kick[i] <- struct{}{}:
			default:
			}
		}
	}
}

// KickAll asks every server at once.
func (t *Tracker) KickAll() {
	for _, e := range t.opts.Endpoints {
		t.Kick(e.Address)
	}
}

// Run probes until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range t.opts.Endpoints {
		wg.Go(func() { t.watch(ctx, i) })
	}
	wg.Wait()
	return nil
}

func (t *Tracker) watch(ctx context.Context, i int) {
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			closeConn(ctx, conn)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-t.kick[i]:
		}
		pctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
		fresh := conn == nil
		st, err := t.probe(pctx, i, &conn)
		if err != nil && !fresh && ctx.Err() == nil && pctx.Err() == nil {
			// The old session broke; a new one says whether the server did.
			st, err = t.probe(pctx, i, &conn)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		t.report(i, st, err)
		interval := t.opts.Interval
		if t.View().Primary == nil {
			interval = min(interval, searchInterval)
		}
		timer.Reset(interval)
	}
}

func closeConn(ctx context.Context, conn *pgconn.PgConn) {
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
	defer cancel()
	_ = conn.Close(cctx)
}

// probeSQL avoids functions that fail in the other role, and takes a
// primary's timeline from its WAL file name: after a promotion the control
// file still names the old one until the next checkpoint ends.
const probeSQL = `SELECT r, CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END,
 CASE WHEN r THEN coalesce((SELECT received_tli FROM pg_catalog.pg_stat_get_wal_receiver()),
 (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))::text ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END,
 pg_catalog.current_setting('transaction_read_only'), (SELECT system_identifier FROM pg_catalog.pg_control_system()),
 CASE WHEN r THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END
 FROM (SELECT pg_catalog.pg_is_in_recovery() AS r) AS x`

func (t *Tracker) probe(ctx context.Context, i int, conn **pgconn.PgConn) (Status, error) {
	st := Status{Endpoint: t.opts.Endpoints[i]}
	if *conn == nil {
		c, err := t.opts.Connect(ctx, st.Endpoint)
		if err != nil {
			return st, err
		}
		*conn = c
	} else {
		st.kept = true
	}
	st.Parameters = reportedParameters(*conn)
	t.mu.Lock()
	written := t.written // as it was before the server is asked
	t.mu.Unlock()
	asked := time.Now()
	results, err := (*conn).Exec(ctx, probeSQL).ReadAll()
	if err == nil && (len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 6) {
		err = errors.New("unexpected answer to the probe")
	}
	if err != nil {
		closeConn(ctx, *conn)
		*conn = nil
		return st, err
	}
	st.RTT = time.Since(asked)
	row := results[0].Rows[0]
	st.InRecovery = string(row[0]) == "t"
	st.ReadOnly = string(row[3]) == "on"
	st.SystemID = string(row[4])
	if st.LSN, err = ParseLSN(string(row[1])); err != nil {
		return st, err
	}
	var tl uint64
	if st.InRecovery {
		tl, err = strconv.ParseUint(string(row[2]), 10, 32)
	} else if len(row[2]) == 24 {
		tl, err = strconv.ParseUint(string(row[2][:8]), 16, 32)
	} else {
		err = fmt.Errorf("unexpected WAL file name %q", row[2])
	}
	st.Timeline = uint32(tl)
	if err == nil {
		st.flushed, err = ParseLSN(string(row[5]))
		st.lacks, st.shown = written.lacking(&st), written
	}
	return st, err
}

// reportedParameters are those that every PostgreSQL from 14 on reports.
func reportedParameters(conn *pgconn.PgConn) map[string]string {
	all := make(map[string]string)
	for _, name := range []string{
		"application_name", "client_encoding", "DateStyle", "default_transaction_read_only", "in_hot_standby", "integer_datetimes",
		"IntervalStyle", "is_superuser", "server_encoding", "server_version", "session_authorization", "standard_conforming_strings", "TimeZone",
	} {
		if value := conn.ParameterStatus(name); value != "" {
			all[name] = value
		}
	}
	return all
}

// ParseLSN reads a WAL position as PostgreSQL writes it, "16/B374D848"; nothing
// is position 0.
func ParseLSN(s string) (uint64, error) {
	if s == "" {
		return 0, nil // a standby that has replayed nothing yet
	}
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("unexpected WAL position %q", s)
	}
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	return h<<32 | l, errors.Join(err1, err2)
}

// decisive says whether the error proves that nobody serves at the address, as
// opposed to a silence that may be short.
func decisive(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return true // it answers, and refuses: starting, stopping or misconfigured
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// report stores one probe's result and publishes a new View.
func (t *Tracker) report(i int, st Status, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.servers[i]
	t.asked[i] = true
	if err != nil {
		next := old
		next.Misses++
		next.Err = err
		next.Up = old.Up && next.Misses < t.opts.Misses && !decisive(err)
		if old.Up != next.Up {
			t.log.Warn("server is down", "server", old.Endpoint.Name, "misses", next.Misses, "err", err)
		}
		t.servers[i] = next
	} else {
		st.Up, st.At = true, time.Now()
		st.addRTT(&old, st.RTT)
		if !old.Up || old.InRecovery != st.InRecovery || old.Timeline != st.Timeline {
			t.log.Info("server answers", "server", st.Endpoint.Name, "standby", st.InRecovery, "timeline", st.Timeline)
		}
		if st.refutes(&old) {
			t.distrust(&st)
		}
		if old.ahead != nil && old.Up && st.InRecovery && st.Timeline == old.Timeline {
			st.ahead = old.ahead // until it is made anew
		}
		// What it lacks does not come back as it goes on writing: only when it
		// becomes a standby, or is promoted onto another timeline.
		if old.lacks != nil && !st.InRecovery && st.Timeline == old.Timeline {
			st.lacks = old.lacks
		}
		if st.lacks != nil && old.lacks == nil {
			t.log.Error("a server that claims to be the primary lacks WAL; it is not used", "server", st.Endpoint.Name, "reason", st.lacks)
		}
		t.written.add(&st)
		t.servers[i] = st
	}
	t.publish()
}

// distrust takes back what a standby has shown that is refuted by its running
// primary. t.mu is held.
func (t *Tracker) distrust(primary *Status) {
	primary.lacks = nil
	t.written = proven{systemID: primary.SystemID, timeline: primary.Timeline}
	for i := range t.servers {
		s := &t.servers[i]
		switch {
		case s.Endpoint.Name == primary.shown.server && s.InRecovery:
			s.ahead = fmt.Errorf("it has WAL up to %s of timeline %d, and the primary %s, which has run on, only up to %s: make it anew",
				FormatLSN(primary.shown.lsn), primary.Timeline, primary.Endpoint.Name, FormatLSN(primary.LSN))
			t.log.Error("a standby has WAL that its primary never wrote; it is not used", "server", s.Endpoint.Name, "reason", s.ahead)
		case s.Up && s.InRecovery:
			t.written.add(s)
		}
	}
}

func (t *Tracker) publish() {
	best, highest, why := choose(t.servers, t.highest)
	t.highest = highest
	if best != nil && slices.Contains(t.asked, false) {
		// Another one may know better. This takes one probe at most.
		best, why = nil, "not every server has been asked yet"
	}
	prev := t.view.Load()
	changed := false
	if (best == nil) != (t.current == nil) || best != nil &&
		(best.Endpoint != t.current.Endpoint || best.Timeline != t.current.Timeline) {
		if t.current != nil {
			close(t.current.lost)
		}
		t.current = nil
		if best != nil {
			if t.generation > 0 {
				t.failovers.Add(1)
			}
			t.generation++
			lost := make(chan struct{})
			t.current = &Target{Endpoint: best.Endpoint, Timeline: best.Timeline, Generation: t.generation, Lost: lost, lost: lost}
			t.log.Info("primary found", "server", best.Endpoint.Name, "timeline", best.Timeline, "generation", t.generation)
		} else {
			t.log.Warn("no primary", "reason", why)
		}
		t.since = time.Now()
		changed = true
	}
	if t.follow(best) || changed {
		old := t.changed
		t.changed = make(chan struct{})
		defer close(old) // after the new View is visible
	}
	if best == nil && why != prev.Why && strings.HasPrefix(why, "more than one") {
		t.conflicts.Add(1)
		t.log.Error("two primaries", "reason", why)
	}
	t.view.Store(&View{Primary: t.current, Why: why, Standbys: t.standbys, Servers: append([]Status(nil), t.servers...), Changed: t.changed, Since: t.since})
}

// follow brings the list of standbys up to date and reports whether it changed.
func (t *Tracker) follow(best *Status) bool {
	var next []*Target
	kept := make(map[*Target]bool)
	for i := range t.servers {
		s := &t.servers[i]
		if best == nil || !s.follows(best) {
			continue
		}
		var target *Target
		for _, old := range t.standbys {
			if old.Endpoint == s.Endpoint && old.Generation == t.current.Generation {
				target = old
				kept[old] = true
			}
		}
		if target == nil {
			lost := make(chan struct{})
			target = &Target{Endpoint: s.Endpoint, Timeline: s.Timeline, Generation: t.current.Generation, Standby: true, Lost: lost, lost: lost}
			t.log.Info("standby found", "server", s.Endpoint.Name, "timeline", s.Timeline, "generation", target.Generation)
		}
		next = append(next, target)
	}
	changed := len(next) != len(t.standbys)
	for _, old := range t.standbys {
		if !kept[old] {
			close(old.lost)
			changed = true
		}
	}
	t.standbys = next
	return changed
}
