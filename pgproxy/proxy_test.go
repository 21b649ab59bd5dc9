package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a proxy under test.
type running struct {
	*Proxy
	addr   string
	db     *servertest.Postgres
	cancel context.CancelFunc
	done   chan error
}

func startProxy(t testing.TB, change func(*Config), servers ...*servertest.Postgres) *running {
	t.Helper()
	return startProxyWith(t, change, nil, servers...)
}

// startProxyWith lets a test change the proxy itself before it runs.
func startProxyWith(t testing.TB, change func(*Config), prepare func(*Proxy), servers ...*servertest.Postgres) *running {
	t.Helper()
	cfg := DefaultConfig()
	for i, s := range servers {
		cfg.Backends = append(cfg.Backends, topology.Endpoint{Name: fmt.Sprint("pg", i), Address: s.Address()})
	}
	cfg.Users = []User{{Name: "dify", PasswordFile: servers[0].PasswordFile(t, "dify")}}
	cfg.Probe.PasswordFile = servers[0].PasswordFile(t, "pgproxy")
	cfg.Probe.Interval = 100 * time.Millisecond
	cfg.Limits.AuthFailureDelay, cfg.Limits.AuthFailureMaxDelay = 10*time.Millisecond, 20*time.Millisecond
	cfg.Hold.Timeout = time.Minute
	if change != nil {
		change(&cfg)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("PGPROXY_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	p, err := New(cfg, Options{Version: "v1", Load: func() (Config, error) { return cfg, nil }}, log, nil)
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(p)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Proxy: p, addr: ln.Addr().String(), db: servers[0], cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- p.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		p.mu.Lock()
		for _, s := range p.sessions {
			s.cut(newError("FATAL", codeShutdown, "test ended"))
		}
		p.mu.Unlock()
		<-r.done
	})
	return r
}

func (r *running) dsn() string { return r.db.DSNVia(r.addr, "dify") }

func (r *running) connect(t testing.TB, params ...string) *pgx.Conn {
	t.Helper()
	dsn := r.dsn()
	for _, p := range params {
		dsn += "&" + p
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx)
	})
	return c
}

func ctxT(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func mustExec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(ctxT(t), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func scan[T any](t testing.TB, c *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := c.QueryRow(ctxT(t), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func code(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

func TestQueryModes(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 2 }, db)
	for _, mode := range []string{"simple_protocol", "exec", "describe_exec", "cache_describe", "cache_statement"} {
		t.Run(mode, func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 6 {
				c := r.connect(t, "default_query_exec_mode="+mode)
				wg.Go(func() {
					for j := range 50 {
						var got string
						if err := c.QueryRow(ctxT(t), "SELECT $1::int::text || $2::text", i*1000+j, "x").Scan(&got); err != nil {
							t.Error(err)
							return
						}
						if want := fmt.Sprintf("%dx", i*1000+j); got != want {
							t.Errorf("got %s want %s", got, want)
							return
						}
					}
					if _, err := c.Exec(ctxT(t), "SELECT 1/0"); code(err) != "22012" {
						t.Errorf("error: %v", err)
					}
					tx, err := c.Begin(ctxT(t))
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := tx.Exec(ctxT(t), "SELECT $1::int/0", 1); code(err) != "22012" {
						t.Errorf("error in transaction: %v", err)
					}
					if _, err := tx.Exec(ctxT(t), "SELECT 1"); code(err) != "25P02" {
						t.Errorf("aborted transaction: %v", err)
					}
					if err := tx.Rollback(ctxT(t)); err != nil {
						t.Error(err)
					}
					batch := &pgx.Batch{}
					for j := range 200 {
						batch.Queue("SELECT $1::int", j)
					}
					if err := c.SendBatch(ctxT(t), batch).Close(); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestSettings(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 1 }, db)
	a := r.connect(t, "options=-c%20timezone%3DAsia/Tokyo", "application_name=a")
	b := r.connect(t, "application_name=b", "search_path=pg_catalog")
	if got := a.PgConn().ParameterStatus("TimeZone"); got != "Asia/Tokyo" {
		t.Fatalf("reported time zone %q", got)
	}
	show := func(c *pgx.Conn, name string) string {
		return scan[string](t, c, "SELECT current_setting($1)", pgx.QueryExecModeExec, name)
	}
	for range 3 {
		if got := show(a, "timezone"); got != "Asia/Tokyo" {
			t.Fatal(got)
		}
		if got := show(b, "timezone"); got == "Asia/Tokyo" {
			t.Fatal("setting leaked to another client")
		}
		if show(a, "application_name") != "a" || show(b, "application_name") != "b" {
			t.Fatal("application names mixed up")
		}
		if show(b, "search_path") != "pg_catalog" || show(a, "search_path") == "pg_catalog" {
			t.Fatal("search paths mixed up")
		}
	}
	mustExec(t, a, "SET statement_timeout = '77s'")
	if show(b, "statement_timeout") != "0" || show(a, "statement_timeout") != "77s" {
		t.Fatal("SET is not tracked")
	}
	mustExec(t, a, "BEGIN")
	mustExec(t, a, "SET statement_timeout = '88s'")
	mustExec(t, a, "ROLLBACK")
	if show(a, "statement_timeout") != "77s" {
		t.Fatal("SET survived its rollback")
	}
	mustExec(t, a, "BEGIN")
	mustExec(t, a, "SET statement_timeout = '99s'")
	mustExec(t, a, "COMMIT")
	if show(b, "statement_timeout") != "0" || show(a, "statement_timeout") != "99s" {
		t.Fatal("SET in a transaction is not tracked")
	}
	mustExec(t, a, "RESET timezone")
	_ = show(b, "timezone")
	if show(a, "timezone") != "Asia/Tokyo" {
		t.Fatal("RESET must restore the startup value")
	}
	mustExec(t, a, "DISCARD ALL")
	_ = show(b, "timezone")
	if show(a, "timezone") != "Asia/Tokyo" || show(a, "statement_timeout") != "0" {
		t.Fatal("DISCARD ALL")
	}
	if _, err := pgx.Connect(ctxT(t), r.dsn()+"&no_such_setting=1"); code(err) != "42704" {
		t.Fatalf("unknown setting: %v", err)
	}
	if _, err := pgx.Connect(ctxT(t), strings.Replace(r.dsn(), "/dify?", "/nowhere?", 1)); code(err) != "3D000" {
		t.Fatalf("unknown database: %v", err)
	}
}

// PostgreSQL would take any value, and nobody would know that it does nothing.
func TestRouteSettingIsChecked(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	for _, mode := range []string{"simple_protocol", "cache_statement", "exec"} {
		c := r.connect(t, "default_query_exec_mode="+mode)
		refused := func(sql string) {
			t.Helper()
			_, err := c.Exec(ctxT(t), sql)
			var pe *pgconn.PgError
			if !errors.As(err, &pe) || pe.Code != codeInvalidValue || pe.Message != `invalid value for parameter "fournines.route"` || pe.Hint != "Available values: auto, primary, standby." {
				t.Errorf("%s: %s: %v", mode, sql, err)
			}
		}
		mustExec(t, c, "SET fournines.route = standby")
		refused("SET fournines.route = nonsense")
		refused("SET fournines.route TO 'Primary or so'")
		if got := scan[string](t, c, "SHOW fournines.route"); got != "standby" {
			t.Errorf("%s: %q afterwards", mode, got)
		}
		mustExec(t, c, "BEGIN")
		refused("SET LOCAL fournines.route = nonsense")
		if _, err := c.Exec(ctxT(t), "SELECT 1"); code(err) != codeAborted {
			t.Errorf("%s: in the transaction: %v", mode, err)
		}
		mustExec(t, c, "ROLLBACK")
	}
}

func TestPreparedStatementsShareServers(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 2; c.Pool.MaxPrepared = 3 }, db)
	var wg sync.WaitGroup
	for i := range 12 {
		c := r.connect(t)
		wg.Go(func() {
			ctx := ctxT(t)
			for k := range 5 {
				if _, err := c.Prepare(ctx, fmt.Sprint("s", k), fmt.Sprintf("SELECT $1::int + %d", k)); err != nil {
					t.Error(err)
					return
				}
			}
			for j := range 60 {
				var got int
				if err := c.QueryRow(ctx, fmt.Sprint("s", j%5), i).Scan(&got); err != nil || got != i+j%5 {
					t.Errorf("got %d, %v", got, err)
					return
				}
			}
			if _, err := c.Prepare(ctx, "bad", "SELEC"); code(err) != "42601" {
				t.Errorf("syntax error: %v", err)
			}
			if err := c.Deallocate(ctx, "s1"); err != nil {
				t.Error(err)
			}
			if _, err := c.Exec(ctx, "DEALLOCATE s2"); err != nil {
				t.Error(err)
			}
			if _, err := c.PgConn().Prepare(ctx, "s3", "SELECT 9", nil); code(err) != "42P05" {
				t.Errorf("duplicate name: %v", err)
			}
			if _, err := c.PgConn().ExecPrepared(ctx, "s2", [][]byte{[]byte("1")}, nil, nil).Close(); code(err) != "26000" {
				t.Errorf("deallocated statement: %v", err)
			}
			if _, err := c.Exec(ctx, "DEALLOCATE ALL"); err != nil {
				t.Error(err)
			}
			if _, err := c.PgConn().ExecPrepared(ctx, "s4", [][]byte{[]byte("1")}, nil, nil).Close(); code(err) != "26000" {
				t.Errorf("deallocated statement: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestPinning(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 3 }, db)
	l, c := r.connect(t), r.connect(t)
	mustExec(t, l, "LISTEN ch")
	mustExec(t, c, "NOTIFY ch, 'hello'")
	n, err := l.WaitForNotification(ctxT(t))
	if err != nil || n.Payload != "hello" {
		t.Fatal(n, err)
	}
	mustExec(t, c, "CREATE TEMP TABLE tt (n int)")
	mustExec(t, c, "INSERT INTO tt VALUES (5)")
	for range 5 {
		if got := scan[int](t, c, "SELECT n FROM tt"); got != 5 {
			t.Fatal(got)
		}
	}
	_ = c.Close(ctxT(t))
	// The connection comes back clean: the table is gone with its client.
	eventually.Nil(t, time.Minute, func() error {
		d, err := pgx.Connect(ctxT(t), r.dsn())
		if err != nil {
			return err
		}
		defer d.Close(ctxT(t))
		if _, err := d.Exec(ctxT(t), "SELECT * FROM tt"); code(err) != "42P01" {
			return fmt.Errorf("temporary table is still there: %w", err)
		}
		return nil
	})
}

func TestCopy(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 1 }, db)
	c := r.connect(t)
	mustExec(t, c, "CREATE TABLE c (n int PRIMARY KEY, s text)")
	rows := make([][]any, 20000)
	for i := range rows {
		rows[i] = []any{i, strings.Repeat("x", i%100)}
	}
	if n, err := c.CopyFrom(ctxT(t), pgx.Identifier{"c"}, []string{"n", "s"}, pgx.CopyFromRows(rows)); err != nil || n != 20000 {
		t.Fatal(n, err)
	}
	if _, err := c.CopyFrom(ctxT(t), pgx.Identifier{"c"}, []string{"n", "s"}, pgx.CopyFromRows(rows)); code(err) != "23505" {
		t.Fatalf("duplicate copy: %v", err)
	}
	var out strings.Builder
	if tag, err := c.PgConn().CopyTo(ctxT(t), &out, "COPY c TO STDOUT"); err != nil || tag.RowsAffected() != 20000 {
		t.Fatal(tag, err)
	}
	if got := scan[int](t, r.connect(t), "SELECT count(*)::int FROM c"); got != 20000 {
		t.Fatal(got)
	}
}

func TestCancel(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 1 }, db)
	c := r.connect(t)
	ctx, cancel := context.WithCancel(ctxT(t))
	go func() {
		eventually.Nil(t, time.Minute, func() error {
			var n int
			if err := db.QueryRow("SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&n); err != nil || n == 0 {
				return fmt.Errorf("not running: %w", err)
			}
			return nil
		})
		_ = c.PgConn().CancelRequest(ctxT(t))
	}()
	_, err := c.Exec(ctx, "SELECT pg_sleep(60)")
	cancel()
	if code(err) != "57014" {
		t.Fatalf("cancelled query: %v", err)
	}
	if got := scan[int](t, c, "SELECT 1"); got != 1 {
		t.Fatal("connection is unusable after a cancel")
	}
	// Cancel requests of one client never hit the other's statements, although
	// both share the only server connection.
	victim := r.connect(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, err := c.Exec(ctxT(t), "SELECT 1")
				if err != nil && code(err) != "57014" {
					t.Error(err)
					return
				}
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = c.PgConn().CancelRequest(ctxT(t))
			}
		}
	})
	for range 400 {
		if _, err := victim.Exec(ctxT(t), "SELECT count(*) FROM generate_series(1, 2000)"); err != nil {
			t.Errorf("another client's cancel hit: %v", err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func TestClientVanishes(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 1 }, db)
	c := r.connect(t)
	mustExec(t, c, "CREATE TABLE v (n int)")
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO v VALUES (1)")
	_ = c.PgConn().Conn().Close()
	d := r.connect(t)
	if got := scan[int](t, d, "SELECT count(*)::int FROM v"); got != 0 {
		t.Fatal("a vanished client's transaction went on")
	}
	go func() { _, _ = d.Exec(context.Background(), "SELECT pg_sleep(600)") }()
	running := func() (n int, err error) {
		err = db.QueryRow("SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&n)
		return n, err
	}
	eventually.Nil(t, time.Minute, func() error {
		if n, err := running(); err != nil || n != 1 {
			return fmt.Errorf("%d run, %w", n, err)
		}
		return nil
	})
	_ = d.PgConn().Conn().Close()
	eventually.Nil(t, time.Minute, func() error {
		if n, err := running(); err != nil || n != 0 {
			return fmt.Errorf("%d run, %w", n, err)
		}
		return nil
	})
}

func TestPgbench(t *testing.T) {
	servertest.Need(t, "pgbench")
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 4 }, db)
	bench := func(args ...string) {
		t.Helper()
		host, port, _ := net.SplitHostPort(r.addr)
		cmd := exec.Command("pgbench", append([]string{"-h", host, "-p", port, "-U", "dify"}, append(args, "dify")...)...)
		cmd.Env = append(os.Environ(), "PGPASSWORD="+db.Password("dify"), "PGSSLMODE=disable")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("pgbench %v: %v\n%s", args, err, out)
		}
		for _, line := range strings.Split(string(out), "\n") {
			if strings.HasPrefix(line, "tps") {
				t.Log(args, line)
			}
		}
	}
	bench("-i", "-q", "-s", "1")
	for _, mode := range []string{"simple", "extended", "prepared"} {
		bench("-n", "-M", mode, "-c", "8", "-j", "8", "-T", "2")
		bench("-n", "-S", "-M", mode, "-c", "8", "-j", "8", "-T", "2")
	}
}

// Many clients never take more server connections than their pool has.
func TestPoolSizes(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxyWith(t, func(c *Config) {
		c.Pool.Size = 3
		c.Pool.Sizes = []PoolSize{{Database: "postgres", User: "dify", Size: 1}, {User: "nobody", Size: 9}, {Database: "postgres", Size: 8}}
	}, func(p *Proxy) { p.newRouter = func(string, string) router { return wordRouter{} } }, db) // no connections for the catalog
	for _, tt := range []struct {
		database string
		want     int
	}{{"dify", 3}, {"postgres", 1}} {
		var wg sync.WaitGroup
		for range 8 {
			c, err := pgx.Connect(ctxT(t), strings.Replace(r.dsn(), "/dify?", "/"+tt.database+"?", 1))
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer c.Close(context.Background())
				for range 5 {
					var n int
					if err := c.QueryRow(ctxT(t), "SELECT count(*)::int FROM pg_stat_activity WHERE usename = 'dify' AND datname = current_database()").Scan(&n); err != nil || n > tt.want {
						t.Errorf("%s: %d server connections, want at most %d: %v", tt.database, n, tt.want, err)
					}
				}
			})
		}
		wg.Wait()
	}
	next := r.live.Load().cfg
	next.Pool.Sizes = []PoolSize{{Size: 4}}
	if err := r.Reload(next); err == nil || !strings.Contains(err.Error(), "pool.sizes[0]") {
		t.Errorf("an entry for nobody: %v", err)
	}
	next.Pool.Sizes = []PoolSize{{Database: "dify", Size: 2}}
	if err := r.Reload(next); err != nil {
		t.Fatal(err)
	}
	if got := r.poolFor("dify", "dify").Stats().Size; got != 2 {
		t.Errorf("size %d after the reload, want 2", got)
	}
}
