// Package sqlsession talks to PostgreSQL the way SQLAlchemy with psycopg2 does:
// simple query protocol with the values written into the statement, BEGIN before
// the first statement of every unit of work, a bounded pool without a check
// before use, and a pool that is thrown away as a whole when one connection
// turns out to be dead. It exists so that a proxy in between sees the same
// traffic as from Dify.
package sqlsession

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Config says which database and how many connections.
type Config struct {
	Host     string
	Port     int
	User     string
	Password string
	Database string
	// PoolSize connections are kept; 0 means 30.
	PoolSize int
	// MaxOverflow more may be open at once; negative means none, 0 means 10.
	MaxOverflow int
	// PoolTimeout is the wait for a free connection; 0 means 30 s.
	PoolTimeout time.Duration
	// Recycle replaces connections older than this; 0 means 1 h.
	Recycle time.Duration
	// ConnectTimeout bounds one connection attempt; 0 means 10 s (libpq has none).
	ConnectTimeout time.Duration
	// StatementTimeout bounds one statement; 0 means 30 s (psycopg2 has none). A
	// connection that does not answer in time is dropped.
	StatementTimeout time.Duration
}

// ErrPoolTimeout is SQLAlchemy's "QueuePool limit reached": all connections are
// in use and none came back in time.
var ErrPoolTimeout = errors.New("connection pool limit reached, connection timed out")

// Engine is the pool. It is safe for concurrent use.
type Engine struct {
	cfg   Config
	pgx   *pgx.ConnConfig
	slots chan struct{} // one token per connection in use

	// epoch grows when a dead connection was seen; idle connections of older
	// epochs are replaced at their next use.
	epoch       atomic.Int64
	initialized atomic.Bool

	mu     sync.Mutex
	idle   []*pooled // first in, first out, as SQLAlchemy's queue
	closed bool
}

type pooled struct {
	conn  *pgx.Conn
	epoch int64
	born  time.Time
}

// New returns an engine; it opens nothing.
func New(cfg Config) (*Engine, error) {
	if cfg.PoolSize == 0 {
		cfg.PoolSize = 30
	}
	switch {
	case cfg.MaxOverflow == 0:
		cfg.MaxOverflow = 10
	case cfg.MaxOverflow < 0:
		cfg.MaxOverflow = 0
	}
	if cfg.PoolTimeout == 0 {
		cfg.PoolTimeout = 30 * time.Second
	}
	if cfg.Recycle == 0 {
		cfg.Recycle = time.Hour
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.StatementTimeout == 0 {
		cfg.StatementTimeout = 30 * time.Second
	}
	// The connection string carries only what cannot come from the environment
	// of this process; everything else is set below, the password never as text.
	pc, err := pgx.ParseConfig("host=127.0.0.1 port=5432 user=x dbname=x sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("database settings: %w", err)
	}
	port, err := strconv.ParseUint(strconv.Itoa(cfg.Port), 10, 16)
	if err != nil {
		return nil, fmt.Errorf("database port %d: %w", cfg.Port, err)
	}
	pc.Host, pc.Port, pc.User, pc.Password, pc.Database = cfg.Host, uint16(port), cfg.User, cfg.Password, cfg.Database
	pc.Fallbacks = nil
	pc.ConnectTimeout = cfg.ConnectTimeout
	pc.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	pc.StatementCacheCapacity, pc.DescriptionCacheCapacity = 0, 0
	pc.RuntimeParams = map[string]string{"options": "-c timezone=UTC", "client_encoding": "UTF8"}
	return &Engine{cfg: cfg, pgx: pc, slots: make(chan struct{}, cfg.PoolSize+cfg.MaxOverflow)}, nil
}

// Address is where the database is, for messages.
func (e *Engine) Address() string { return net.JoinHostPort(e.cfg.Host, strconv.Itoa(e.cfg.Port)) }

// Stat returns how many connections are in use and idle.
func (e *Engine) Stat() (used, idle int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.slots), len(e.idle)
}

// Close closes the idle connections; those in use are closed when they return.
func (e *Engine) Close() {
	e.mu.Lock()
	idle := e.idle
	e.idle, e.closed = nil, true
	e.mu.Unlock()
	for _, p := range idle {
		closeConn(p.conn)
	}
}

func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

func (e *Engine) checkout(ctx context.Context) (*pooled, error) {
	timer := time.NewTimer(e.cfg.PoolTimeout)
	defer timer.Stop()
	select {
	case e.slots <- struct{}{}:
	case <-timer.C:
		return nil, fmt.Errorf("pool size %d overflow %d: %w", e.cfg.PoolSize, e.cfg.MaxOverflow, ErrPoolTimeout)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		e.mu.Lock()
		var p *pooled
		if len(e.idle) > 0 {
			p = e.idle[0]
			e.idle = e.idle[1:]
		}
		e.mu.Unlock()
		if p == nil {
			break
		}
		if p.epoch == e.epoch.Load() && time.Since(p.born) < e.cfg.Recycle && !p.conn.IsClosed() {
			return p, nil
		}
		closeConn(p.conn)
	}
	p, err := e.connect(ctx)
	if err != nil {
		<-e.slots
		return nil, err
	}
	return p, nil
}

// connect opens a connection and asks what SQLAlchemy asks: version, schema and
// string syntax once per engine, the hstore type on every connection.
func (e *Engine) connect(ctx context.Context) (*pooled, error) {
	epoch := e.epoch.Load()
	conn, err := pgx.ConnectConfig(ctx, e.pgx.Copy())
	if err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", e.Address(), err)
	}
	statements := []string{
		"SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'",
	}
	if !e.initialized.Load() {
		statements = append(statements, "select pg_catalog.version()", "select current_schema()", "show standard_conforming_strings")
	}
	statements = append([]string{"BEGIN"}, append(statements, "ROLLBACK")...)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			closeConn(conn)
			return nil, fmt.Errorf("greet database %s: %w", e.Address(), err)
		}
	}
	e.initialized.Store(true)
	return &pooled{conn: conn, epoch: epoch, born: time.Now()}, nil
}

// release returns a connection to the pool, or closes it when it is dead or the
// pool has its fill.
func (e *Engine) release(p *pooled) {
	defer func() { <-e.slots }()
	if p.conn.IsClosed() {
		return
	}
	e.mu.Lock()
	keep := !e.closed && len(e.idle) < e.cfg.PoolSize
	if keep {
		e.idle = append(e.idle, p)
	}
	e.mu.Unlock()
	if !keep {
		closeConn(p.conn)
	}
}

// invalidate is what SQLAlchemy does on a disconnect error: this connection
// dies now, all others that are as old at their next use.
func (e *Engine) invalidate(p *pooled) {
	e.epoch.CompareAndSwap(p.epoch, p.epoch+1)
	closeConn(p.conn)
}

// Session is one unit of work after another on at most one connection, as
// SQLAlchemy's session. It is not safe for concurrent use.
type Session struct {
	engine *Engine
	p      *pooled
	begun  bool
}

// Session returns a session; it takes a connection at its first statement.
func (e *Engine) Session() *Session { return &Session{engine: e} }

func (s *Session) begin(ctx context.Context) error {
	if s.p == nil {
		p, err := s.engine.checkout(ctx)
		if err != nil {
			return err
		}
		s.p = p
	}
	if s.begun {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.engine.cfg.StatementTimeout)
	defer cancel()
	if _, err := s.p.conn.Exec(ctx, "BEGIN"); err != nil {
		return s.failed(err)
	}
	s.begun = true
	return nil
}

// failed passes an error on, and drops the connection when it is gone.
func (s *Session) failed(err error) error {
	if s.p == nil {
		return err
	}
	var pgErr *pgconn.PgError
	gone := s.p.conn.IsClosed()
	if errors.As(err, &pgErr) && (strings.HasPrefix(pgErr.Code, "57P") || strings.HasPrefix(pgErr.Code, "08")) {
		gone = true // shutdown, crash or a lost connection that the server announced
	}
	if gone {
		s.engine.invalidate(s.p)
		s.engine.release(s.p)
		s.p, s.begun = nil, false
	}
	return err
}

// Exec runs a statement, opening the transaction when there is none, and
// returns the number of rows it touched.
func (s *Session) Exec(ctx context.Context, sql string, args ...any) (int64, error) {
	if err := s.begin(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.engine.cfg.StatementTimeout)
	defer cancel()
	tag, err := s.p.conn.Exec(ctx, sql, args...)
	if err != nil {
		return 0, s.failed(err)
	}
	return tag.RowsAffected(), nil
}

// Rows calls each for every row; its argument scans the row.
func (s *Session) Rows(ctx context.Context, sql string, args []any, each func(scan func(dest ...any) error) error) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.engine.cfg.StatementTimeout)
	defer cancel()
	rows, err := s.p.conn.Query(ctx, sql, args...)
	if err != nil {
		return s.failed(err)
	}
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			rows.Close()
			return s.failed(err)
		}
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return s.failed(err)
	}
	return nil
}

// First reads the first row into dest and tells whether there was one.
func (s *Session) First(ctx context.Context, sql string, args []any, dest ...any) (bool, error) {
	found := false
	err := s.Rows(ctx, sql, args, func(scan func(...any) error) error {
		if found {
			return nil
		}
		found = true
		return scan(dest...)
	})
	return found && err == nil, err
}

// Commit ends the unit of work and gives the connection back.
func (s *Session) Commit(ctx context.Context) error { return s.end(ctx, "COMMIT") }

// Rollback abandons the unit of work and gives the connection back.
func (s *Session) Rollback(ctx context.Context) error { return s.end(ctx, "ROLLBACK") }

func (s *Session) end(ctx context.Context, how string) error {
	if s.p == nil {
		return nil
	}
	if s.begun {
		ctx, cancel := context.WithTimeout(ctx, s.engine.cfg.StatementTimeout)
		defer cancel()
		tag, err := s.p.conn.Exec(ctx, how)
		if err != nil {
			err = s.failed(err)
			if s.p != nil { // still usable in theory, but its state is unknown
				s.engine.invalidate(s.p)
				s.engine.release(s.p)
				s.p, s.begun = nil, false
			}
			return err
		}
		if how == "COMMIT" && tag.String() == "ROLLBACK" {
			s.begun = false
			s.give()
			return errors.New("transaction was rolled back by the server")
		}
	}
	s.begun = false
	s.give()
	return nil
}

func (s *Session) give() {
	s.engine.release(s.p)
	s.p = nil
}

// Close rolls back what is open and gives the connection back. It is safe after
// Commit and may be deferred; it works when the request's context has ended.
func (s *Session) Close() {
	if s.p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.Rollback(ctx)
}
