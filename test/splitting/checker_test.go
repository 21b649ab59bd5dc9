package splitting

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/pgproxy"
)

// register is one row with a counter. Its writer holds the lock, so that the
// next value is known; what was acknowledged and what was seen is published for
// the readers of all sessions.
type register struct {
	mu    sync.Mutex
	next  int64
	acked atomic.Int64
	seen  atomic.Int64
}

// findings are what a run has counted.
type findings struct {
	operations, reads, writes atomic.Int64
	// stale reads have missed a write that was acknowledged, to anybody, before
	// the read was sent.
	stale atomic.Int64
	// backwards reads have missed what a read had seen, of anybody, that had
	// ended before they were sent.
	backwards atomic.Int64
	// own reads have missed a write, or what was read before, of their own session.
	own atomic.Int64
}

func (f *findings) String() string {
	return fmt.Sprintf("%d operations, %d reads, %d writes: %d stale, %d backwards, %d behind the own session",
		f.operations.Load(), f.reads.Load(), f.writes.Load(), f.stale.Load(), f.backwards.Load(), f.own.Load())
}

// checker runs concurrent sessions over several proxies against one table.
type checker struct {
	t         *testing.T
	proxies   []*proxy
	registers []register
	found     findings
	// enough ends the run early, when it returns true.
	enough func(*findings) bool
}

const registers = 32

func newChecker(t *testing.T, c *cluster, proxies ...*proxy) *checker {
	t.Helper()
	conn := c.direct(t)
	mustExec(t, conn, "DROP TABLE IF EXISTS registers", "CREATE TABLE registers (k int PRIMARY KEY, v bigint NOT NULL)",
		fmt.Sprintf("INSERT INTO registers SELECT k, 0 FROM generate_series(0, %d) k", registers-1))
	k := &checker{t: t, proxies: proxies, registers: make([]register, registers)}
	for _, p := range proxies {
		k.awaitCatalog(p)
	}
	return k
}

// awaitCatalog waits until a proxy knows the new table.
func (k *checker) awaitCatalog(p *proxy) {
	k.t.Helper()
	conn := p.connect(k.t)
	before := p.reads()
	deadline := time.Now().Add(2 * time.Minute)
	for p.reads() == before {
		if time.Now().After(deadline) {
			k.t.Fatal("reads of the table do not go to standbys")
		}
		if _, err := conn.Exec(k.t.Context(), "SELECT v FROM registers WHERE k = 0"); err != nil {
			k.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// run does at least n operations in the given number of sessions.
func (k *checker) run(sessions, n int, seed uint64) {
	k.t.Helper()
	stop := report(k.t, "operations", n, func() (int, string) { return int(k.found.operations.Load()), k.found.String() })
	defer stop()
	var wg sync.WaitGroup
	for i := range sessions {
		mode := []string{"simple_protocol", "cache_statement", "exec"}[i%3]
		var conns []*pgx.Conn
		for _, p := range k.proxies {
			conns = append(conns, p.connect(k.t, "default_query_exec_mode="+mode))
		}
		wg.Go(func() {
			s := &client{checker: k, conns: conns, rng: rand.New(rand.NewPCG(seed, uint64(i))), least: make(map[*pgx.Conn][]int64)} //nolint:gosec // not a secret
			for _, c := range conns {
				s.least[c] = make([]int64, registers)
			}
			for k.found.operations.Load() < int64(n) && !k.t.Failed() && (k.enough == nil || !k.enough(&k.found)) {
				if err := s.step(); err != nil {
					k.t.Errorf("session %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	k.t.Log(&k.found)
}

// client is one session of the application: a connection to each proxy.
type client struct {
	*checker
	conns []*pgx.Conn
	rng   *rand.Rand
	least map[*pgx.Conn][]int64 // by connection and register: written or read through it
}

// querier is a connection or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// step does one thing that applications do.
func (s *client) step() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn := s.conns[s.rng.IntN(len(s.conns))]
	switch s.rng.IntN(8) {
	case 0:
		return s.write(ctx, conn, s.key())
	case 1:
		return s.moving(ctx, conn)
	case 2: // what another connection reads at once
		key := s.key()
		if err := s.write(ctx, conn, key); err != nil {
			return err
		}
		other := s.conns[s.rng.IntN(len(s.conns))]
		return s.read(ctx, other, other, key)
	case 3: // a transaction of reads
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for range 1 + s.rng.IntN(3) {
				if err := s.read(ctx, conn, tx, s.key()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return s.read(ctx, conn, conn, s.key())
}

func (s *client) key() int { return s.rng.IntN(registers) }

const countUp = "UPDATE registers SET v = v + 1 WHERE k = $1 RETURNING v"

// write counts a register up by one.
func (s *client) write(ctx context.Context, conn *pgx.Conn, key int) error {
	r := &s.registers[key]
	r.mu.Lock()
	defer r.mu.Unlock()
	var got int64
	if err := conn.QueryRow(ctx, countUp, key).Scan(&got); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return s.acknowledged(conn, key, got)
}

// acknowledged notes a write. The register's lock is held.
func (s *client) acknowledged(conn *pgx.Conn, key int, got int64) error {
	r := &s.registers[key]
	r.next++
	if got != r.next {
		return fmt.Errorf("register %d: the write made it %d, expected %d", key, got, r.next)
	}
	r.acked.Store(got)
	s.least[conn][key] = got
	s.found.operations.Add(1)
	s.found.writes.Add(1)
	return nil
}

// moving is a transaction that reads, writes, and reads what it wrote.
func (s *client) moving(ctx context.Context, conn *pgx.Conn) error {
	key := s.key()
	r := &s.registers[key]
	r.mu.Lock()
	defer r.mu.Unlock()
	var wrote int64
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := s.read(ctx, conn, tx, s.key()); err != nil {
			return err
		}
		var before, after int64
		if err := tx.QueryRow(ctx, "SELECT v FROM registers WHERE k = $1", key).Scan(&before); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if err := tx.QueryRow(ctx, countUp, key).Scan(&wrote); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := tx.QueryRow(ctx, "SELECT v FROM registers WHERE k = $1", key).Scan(&after); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if before < r.acked.Load() {
			s.found.stale.Add(1)
		}
		if after != wrote {
			return fmt.Errorf("register %d: %d in the transaction that has made it %d", key, after, wrote)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.acknowledged(conn, key, wrote)
}

// read holds what it gets against what was known before it was sent.
func (s *client) read(ctx context.Context, conn *pgx.Conn, q querier, key int) error {
	r := &s.registers[key]
	acked, seen := r.acked.Load(), r.seen.Load()
	var got int64
	if err := q.QueryRow(ctx, "SELECT v FROM registers WHERE k = $1", key).Scan(&got); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if got < acked {
		s.found.stale.Add(1)
	}
	if got < seen {
		s.found.backwards.Add(1)
	}
	if got < s.least[conn][key] {
		s.found.own.Add(1)
	}
	s.least[conn][key] = got
	for old := r.seen.Load(); old < got && !r.seen.CompareAndSwap(old, got); old = r.seen.Load() {
	}
	s.found.operations.Add(1)
	s.found.reads.Add(1)
	return nil
}

// delayReplay stops and continues the standbys' replay at random until the
// returned function is called.
func (c *cluster) delayReplay(t *testing.T, seed uint64) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, s := range c.standbys {
		conn, err := pgx.Connect(ctx, s.DSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(seed, uint64(1000+i))) //nolint:gosec // not a secret
		wg.Go(func() {
			defer func() { _ = conn.Close(context.Background()) }()
			// Mostly it runs and is at most some milliseconds late; now and then long.
			for ctx.Err() == nil {
				late := time.Duration(rng.IntN(20)) * time.Millisecond
				if rng.IntN(20) == 0 {
					late = 200 * time.Millisecond
				}
				for _, step := range []struct {
					sql  string
					rest time.Duration
				}{{"SELECT pg_wal_replay_pause()", late}, {"SELECT pg_wal_replay_resume()", time.Duration(rng.IntN(60)) * time.Millisecond}} {
					if _, err := conn.Exec(context.Background(), step.sql); err != nil {
						t.Errorf("%s: %v", step.sql, err)
						return
					}
					time.Sleep(step.rest)
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// checkConsistency runs the checker in each mode.
func checkConsistency(t *testing.T, c *cluster, operations, sessions int, seed uint64) {
	t.Helper()
	two := func(t *testing.T, splitting pgproxy.Splitting) *checker {
		t.Helper()
		splitting.MaxStaleness = max(splitting.MaxStaleness, time.Millisecond)
		k := newChecker(t, c, c.proxy(t, splitting), c.proxy(t, splitting))
		t.Cleanup(func() {
			for i, p := range k.proxies {
				t.Logf("proxy %d: %d reads on standbys, %d thrown away as stale, %d not tried as standbys were behind, %d retried", i,
					p.reads(), p.routed("primary", "stale"), p.routed("primary", "standbys_behind"), p.routed("primary", "standby_error"))
			}
		})
		return k
	}
	// onStandbys asserts that the run has tested something.
	onStandbys := func(t *testing.T, k *checker) {
		t.Helper()
		n := 0
		for _, p := range k.proxies {
			n += p.reads()
		}
		if n < int(k.found.reads.Load())/20 {
			t.Errorf("%d of %d reads ran on standbys", n, k.found.reads.Load())
		}
	}
	t.Run("fence", func(t *testing.T) {
		k := two(t, pgproxy.Splitting{Mode: pgproxy.SplittingFence})
		stop := c.delayReplay(t, seed)
		defer stop()
		k.run(sessions, operations, seed)
		if k.found.stale.Load()+k.found.backwards.Load()+k.found.own.Load() != 0 {
			t.Errorf("seed %d: reads have missed what they must see", seed)
		}
		onStandbys(t, k)
	})
	t.Run("session", func(t *testing.T) {
		k := two(t, pgproxy.Splitting{Mode: pgproxy.SplittingSession})
		stop := c.delayReplay(t, seed)
		defer stop()
		k.run(sessions, operations/5, seed)
		if k.found.own.Load() != 0 {
			t.Errorf("seed %d: sessions do not see what they have written or read", seed)
		}
		onStandbys(t, k)
	})
	// The same checker must find what a weaker mode allows.
	t.Run("bounded", func(t *testing.T) {
		k := two(t, pgproxy.Splitting{Mode: pgproxy.SplittingBounded, MaxStaleness: 30 * time.Second})
		stop := c.delayReplay(t, seed)
		defer stop()
		k.enough = func(f *findings) bool { return f.stale.Load() > 0 && f.backwards.Load() > 0 && f.own.Load() > 0 }
		k.run(sessions, max(operations, 100_000), seed)
		if !k.enough(&k.found) {
			t.Errorf("seed %d: the checker has not seen all that bounded allows", seed)
		}
	})
}

func TestConsistency(t *testing.T) {
	c := newCluster(t)
	mustExec(t, c.direct(t), "CREATE TABLE probe ()", "CREATE TABLE registers (k int)")
	checkConsistency(t, c, 3000, 8, 1)
}
