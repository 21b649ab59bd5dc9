package postgresdrill

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// opLimit bounds one statement; it is longer than pgproxy holds work.
const opLimit = 40 * time.Second

// effect is what is known about a write.
type effect int

const (
	// done: the server acknowledged it.
	done effect = iota
	// undone: it was refused or rolled back for certain.
	undone
	// unknown: it was sent and nothing came back, or nobody knows.
	unknown
)

// effectOf says what an error of a statement outside of a transaction means.
func effectOf(err error) effect {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return done
	case !errors.As(err, &pg):
		return unknown
	case strings.HasPrefix(pg.Code, "08"), pg.Code == "57P01", pg.Code == "57P02":
		return unknown
	}
	return undone
}

// errorName is a short stable reason.
func errorName(err error) string {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pg):
		return "SQLSTATE " + pg.Code
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return "connection lost"
}

// write is one row of the ledger.
type write struct {
	id     int64
	zone   string
	due    time.Time // by the schedule, whatever happens (an open loop)
	end    time.Time
	effect effect
	err    string
}

// read is one statement of a client that only reads.
type read struct {
	zone  string
	begin time.Time
	end   time.Time
	err   string
}

// load is what the clients of one repetition do and what they got.
type load struct {
	c   *Cluster
	run int
	p   Plan

	mu     sync.Mutex
	writes []write
	reads  []read
	idle   []read // the one statement after the long idleness
	regs   []registerOp
	lists  []listOp

	stop    context.CancelFunc // ends the schedule; statements may end
	running sync.WaitGroup
	idlers  []*idler
	ended   time.Time
}

// idler is a client that has nothing to do while the cluster is broken.
type idler struct {
	zone string
	conn *pgx.Conn
}

// begin makes the rows of the run and starts all clients.
func (c *Cluster) begin(ctx context.Context, run int, p Plan) (*load, error) {
	l := &load{c: c, run: run, p: p}
	conn, err := c.connect(ctx, proxyZones[0], modeSimple)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `INSERT INTO register SELECT $1, k, 0 FROM generate_series(1, $2) k`, run, registers); err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `INSERT INTO list SELECT $1, k, '{}' FROM generate_series(1, $2) k`, run, lists); err != nil {
		return nil, err
	}
	for _, zone := range proxyZones {
		for range p.Idle {
			idle, err := c.connect(ctx, zone, "")
			if err != nil {
				return nil, errors.Join(err, l.closeIdle())
			}
			l.idlers = append(l.idlers, &idler{zone, idle})
			if _, err := idle.Exec(ctx, "SELECT 1"); err != nil {
				return nil, errors.Join(err, l.closeIdle())
			}
		}
	}
	scheduled, stop := context.WithCancel(ctx)
	l.stop = stop
	l.running.Go(func() { l.ledger(scheduled) })
	for i, zone := range proxyZones {
		for range p.Readers {
			l.running.Go(func() { l.reader(scheduled, zone) })
		}
		for n := range p.Clients {
			client := n*len(proxyZones) + i
			l.running.Go(func() { l.registerClient(scheduled, zone, client) })
			l.running.Go(func() { l.listClient(scheduled, zone, client) })
		}
	}
	return l, nil
}

// end ends the schedule, waits for what is under way, and lets the idle clients
// speak again.
func (l *load) end(ctx context.Context) {
	if !l.ended.IsZero() {
		return
	}
	l.stop()
	l.ended = time.Now()
	l.running.Wait()
	for _, i := range l.idlers {
		r := read{zone: i.zone, begin: time.Now()}
		opCtx, cancel := context.WithTimeout(ctx, opLimit)
		_, err := i.conn.Exec(opCtx, "SELECT 1")
		cancel()
		r.end, r.err = time.Now(), errorName(err)
		l.idle = append(l.idle, r)
	}
	_ = l.closeIdle()
}

func (l *load) closeIdle() error {
	for _, i := range l.idlers {
		closeSoon(i.conn)
	}
	l.idlers = nil
	return nil
}

func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// lastWrite is when a write was last acknowledged to a client outside of the zone.
func (l *load) lastWrite(without string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last time.Time
	for i := range l.writes {
		if w := &l.writes[i]; w.effect == done && w.zone != without && w.end.After(last) {
			last = w.end
		}
	}
	return last
}

// ledger sends writes at a constant rate, whatever becomes of them. Those of the
// first zone are transactions in the simple protocol, as SQLAlchemy's are with
// psycopg2; those of the second are prepared statements by themselves.
func (l *load) ledger(ctx context.Context) {
	pools := map[string]*conns{}
	for i, zone := range proxyZones {
		mode := ""
		if i == 0 {
			mode = modeSimple
		}
		pools[zone] = &conns{c: l.c, zone: zone, mode: mode}
	}
	var running sync.WaitGroup
	begin := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for id := int64(1); ; id++ {
		select {
		case <-ctx.Done():
			running.Wait()
			for _, p := range pools {
				p.close()
			}
			return
		case <-timer.C:
		}
		w := write{id: id, zone: proxyZones[id%int64(len(proxyZones))], due: begin.Add(time.Duration(float64(id-1) / l.p.Rate * float64(time.Second)))}
		running.Go(func() {
			// A write that was sent is waited for, also when the load has ended.
			opCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
			defer cancel()
			var err error
			w.effect, err = l.write(opCtx, pools[w.zone], w.id)
			w.end, w.err = time.Now(), errorName(err)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.writes = append(l.writes, w)
		})
		timer.Reset(time.Until(begin.Add(time.Duration(float64(id) / l.p.Rate * float64(time.Second)))))
	}
}

func (l *load) write(ctx context.Context, pool *conns, id int64) (effect, error) {
	conn, err := pool.get(ctx)
	if err != nil {
		return undone, err // nothing was sent
	}
	defer pool.put(conn)
	const insert = "INSERT INTO ledger VALUES ($1, $2)"
	if pool.mode != modeSimple {
		_, err := conn.Exec(ctx, insert, l.run, id)
		return effectOf(err), err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return undone, err
	}
	if _, err := tx.Exec(ctx, insert, l.run, id); err != nil {
		_ = tx.Rollback(ctx)
		return undone, err // COMMIT was never sent
	}
	err = tx.Commit(ctx)
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return undone, err
	}
	return effectOf(err), err
}

// reader reads again and again, each statement by itself.
func (l *load) reader(ctx context.Context, zone string) {
	pool := &conns{c: l.c, zone: zone, mode: modeSimple}
	defer pool.close()
	for ctx.Err() == nil {
		r := read{zone: zone, begin: time.Now()}
		_, err := l.client(ctx, pool, func(ctx context.Context, conn *pgx.Conn) error {
			var n int
			return conn.QueryRow(ctx, "SELECT count(*) FROM register WHERE run = $1", l.run).Scan(&n)
		})
		r.end, r.err = time.Now(), errorName(err)
		l.mu.Lock()
		l.reads = append(l.reads, r)
		l.mu.Unlock()
		pause(ctx, 50*time.Millisecond)
	}
}

// client runs one statement of a client that does one after the other. sent
// tells that the client had a connection.
func (l *load) client(ctx context.Context, pool *conns, f func(context.Context, *pgx.Conn) error) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opLimit)
	defer cancel()
	conn, err := pool.get(ctx)
	if err != nil {
		return false, err
	}
	defer pool.put(conn)
	return true, f(ctx, conn)
}

// pause waits about d, so that clients do not march in step.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// conns are connections of one zone that are used again.
type conns struct {
	c          *Cluster
	zone, mode string

	mu   sync.Mutex
	free []*pgx.Conn
}

func (p *conns) get(ctx context.Context) (*pgx.Conn, error) {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		conn := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return conn, nil
	}
	p.mu.Unlock()
	return p.c.connect(ctx, p.zone, p.mode)
}

func (p *conns) put(conn *pgx.Conn) {
	if conn.IsClosed() || conn.PgConn().TxStatus() != 'I' {
		closeSoon(conn)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, conn)
}

func (p *conns) close() {
	for _, conn := range p.free {
		closeSoon(conn)
	}
}
