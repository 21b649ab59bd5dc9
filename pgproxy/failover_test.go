package pgproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/internal/pgwire"
	"fournines/internal/servertest"
)

// pair starts a primary that commits only with its standby.
func pair(t *testing.T) (primary, standby *servertest.Postgres) {
	t.Helper()
	primary = servertest.NewPostgres(t, servertest.PostgresOptions{})
	standby = servertest.NewStandby(t, primary)
	primary.Exec("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	eventually.Nil(t, time.Minute, func() error {
		var state string
		if err := primary.QueryRow("SELECT coalesce(max(sync_state), '') FROM pg_stat_replication").Scan(&state); err != nil || state != "sync" {
			return fmt.Errorf("sync state %q, %w", state, err)
		}
		return nil
	})
	return primary, standby
}

func TestFailoverLosesNothing(t *testing.T) {
	a, b := pair(t)
	r := startProxy(t, func(c *Config) { c.Pool.Size = 6 }, a, b)
	idle := r.connect(t)
	mustExec(t, idle, "CREATE TABLE w (id text PRIMARY KEY)")
	mustExec(t, idle, "SELECT 1")
	inTx := r.connect(t)
	mustExec(t, inTx, "BEGIN")
	mustExec(t, inTx, "INSERT INTO w VALUES ('never')")
	begun := r.connect(t, "default_query_exec_mode=simple_protocol")
	mustExec(t, begun, "BEGIN")

	var mu sync.Mutex
	acked := map[string]bool{}
	codes := map[string]int{}
	stop := make(chan struct{})
	var after atomic.Int64
	var killed atomic.Bool
	var wg sync.WaitGroup
	for i := range 8 {
		c := r.connect(t)
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("%d-%d", i, j)
				_, err := c.Exec(ctxT(t), "INSERT INTO w VALUES ($1)", id)
				mu.Lock()
				if err == nil {
					acked[id] = true
					if killed.Load() {
						after.Add(1)
					}
				} else {
					codes[code(err)]++
				}
				mu.Unlock()
				if err != nil && c.IsClosed() {
					t.Errorf("the client's connection was closed: %v", err)
					return
				}
			}
		})
	}
	eventually.Nil(t, time.Minute, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(acked) < 200 {
			return errors.New("too few writes")
		}
		return nil
	})
	a.Kill()
	b.Promote()
	b.Exec("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
	killed.Store(true)
	eventually.Nil(t, time.Minute, func() error {
		if after.Load() < 200 {
			return errors.New("no writes after the failover")
		}
		return nil
	})
	close(stop)
	wg.Wait()
	t.Logf("%d acknowledged, errors %v", len(acked), codes)
	for c := range codes {
		if c != codeOutcomeUnknown && c != codeRolledBack {
			t.Errorf("unexpected SQLSTATE %q", c)
		}
	}
	found := map[string]bool{}
	rows, err := idle.Query(ctxT(t), "SELECT id FROM w")
	if err != nil {
		t.Fatalf("the idle client saw the failover: %v", err)
	}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		found[id] = true
	}
	for id := range acked {
		if !found[id] {
			t.Errorf("acknowledged row %s is lost", id)
		}
	}
	if found["never"] {
		t.Error("an uncommitted row appeared")
	}
	if _, err := inTx.Exec(ctxT(t), "SELECT 1"); code(err) != codeRolledBack {
		t.Errorf("statement in the lost transaction: %v", err)
	}
	mustExec(t, inTx, "ROLLBACK")
	mustExec(t, inTx, "INSERT INTO w VALUES ('again')")
	mustExec(t, begun, "INSERT INTO w VALUES ('begun')") // BEGIN had done nothing yet
	mustExec(t, begun, "COMMIT")
	if got := scan[int](t, idle, "SELECT count(*)::int FROM w WHERE id IN ('begun','again')"); got != 2 {
		t.Fatal(got)
	}
	if r.Ready() != nil {
		t.Fatal("not ready after the failover")
	}
}

func TestHangIsBounded(t *testing.T) {
	a, b := pair(t)
	r := startProxy(t, nil, a, b)
	c := r.connect(t)
	mustExec(t, c, "CREATE TABLE h (n int)")
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO h VALUES (1)")
	a.Pause()
	if _, err := c.Exec(ctxT(t), "INSERT INTO h VALUES (2)"); code(err) != codeRolledBack {
		t.Errorf("statement on a hanging server: %v", err)
	}
	b.Promote()
	b.Exec("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
	mustExec(t, c, "ROLLBACK")
	mustExec(t, c, "INSERT INTO h VALUES (3)")
	a.Resume() // it still believes to be the primary; nobody must use it
	for range 20 {
		if got := scan[int](t, c, "SELECT sum(n)::int FROM h"); got != 3 {
			t.Fatalf("got %d", got)
		}
	}
	a.Kill()
}

func TestPlannedSwitchoverFailsNothing(t *testing.T) {
	a := servertest.NewPostgres(t, servertest.PostgresOptions{})
	b := servertest.NewStandby(t, a)
	r := startProxy(t, func(c *Config) { c.Pool.Size = 4 }, a, b)
	mustExec(t, r.connect(t), "CREATE TABLE s (id serial PRIMARY KEY, w int)")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var n atomic.Int64
	for i := range 4 {
		c := r.connect(t, "default_query_exec_mode=simple_protocol")
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.Exec(ctxT(t), "INSERT INTO s (w) VALUES ($1)", i); err != nil {
					t.Errorf("a statement failed: %v", err)
					return
				}
				n.Add(1)
			}
		})
	}
	count := func(min int64) {
		t.Helper()
		want := n.Load() + min
		eventually.Nil(t, time.Minute, func() error {
			if n.Load() < want {
				return errors.New("no progress")
			}
			return nil
		})
	}
	count(100)
	a.Stop()
	b.Promote()
	count(100)
	close(stop)
	wg.Wait()
	if got := scan[int64](t, r.connect(t), "SELECT count(*) FROM s"); got != n.Load() {
		t.Fatalf("%d rows for %d acknowledged inserts", got, n.Load())
	}
}

// A client that comes while there is no primary gets in; its first statement waits.
func TestLoginWithoutPrimary(t *testing.T) {
	a, b := pair(t)
	r := startProxy(t, nil, a, b)
	mustExec(t, r.connect(t, "application_name=somebody"), "CREATE TABLE l (n int)")
	a.Kill()
	eventually.Nil(t, time.Minute, func() error {
		if v := r.Status(); v.Primary != nil || !v.Servers[1].Up {
			return errors.New("the primary is not missed yet, or the standby not found")
		}
		return nil
	})
	c := r.connect(t, "options=-c%20timezone%3DAsia/Tokyo", "application_name=late") // nobody has logged in like this before
	for name, want := range map[string]string{
		"TimeZone": "Asia/Tokyo", "application_name": "late", "in_hot_standby": "off", "session_authorization": "dify", "server_encoding": "UTF8",
	} {
		if got := c.PgConn().ParameterStatus(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctxT(t), "INSERT INTO l VALUES (1)")
		done <- err
	}()
	b.Promote()
	b.Exec("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
	if err := <-done; err != nil {
		t.Errorf("the statement that waited: %v", err)
	}
	if got := scan[string](t, c, "SHOW timezone"); got != "Asia/Tokyo" {
		t.Errorf("time zone after the wait is %q", got)
	}
}

func TestHoldGivesUp(t *testing.T) {
	a := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Hold.Timeout = 300 * time.Millisecond }, a)
	c := r.connect(t)
	mustExec(t, c, "SELECT 1")
	a.Kill()
	eventually.Nil(t, time.Minute, func() error {
		if _, err := c.Exec(ctxT(t), "SELECT 1"); code(err) != codeNoPrimary {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	eventually.Nil(t, time.Minute, func() error {
		if r.Ready() == nil {
			return errors.New("still ready")
		}
		return nil
	})
	a.Start()
	eventually.Nil(t, time.Minute, func() error { _, err := c.Exec(ctxT(t), "SELECT 1"); return err })
}

func TestLargeResultWithSlowReader(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	c := r.connect(t)
	if _, err := c.PgConn().Conn().Write(pgwire.AppendQuery(nil, "SELECT repeat('x', 100000) FROM generate_series(1, 1000)")); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReaderSize(c.PgConn().Conn(), 32<<10)
	if _, err := br.Peek(5); err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapInuse > 64<<20 {
		t.Errorf("heap is %d MiB", m.HeapInuse>>20)
	}
	total := 0
	for {
		typ, size, err := pgwire.PeekHeader(br)
		if err != nil {
			t.Fatal(err)
		}
		total += size
		if err := pgwire.Skip(br, size); err != nil {
			t.Fatal(err)
		}
		if typ == 'Z' {
			break
		}
	}
	if total < 100_000_000 {
		t.Fatalf("%d bytes", total)
	}
	runtime.ReadMemStats(&m)
	if m.HeapInuse > 64<<20 {
		t.Errorf("heap is %d MiB", m.HeapInuse>>20)
	}
}

func TestDrain(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	idle, busy := r.connect(t), r.connect(t)
	mustExec(t, idle, "SELECT 1")
	mustExec(t, busy, "CREATE TABLE d (n int)")
	mustExec(t, busy, "BEGIN")
	r.cancel()
	eventually.Nil(t, time.Minute, func() error {
		if n := r.clients.Load(); n != 1 {
			return fmt.Errorf("%d clients", n)
		}
		return nil
	})
	mustExec(t, busy, "INSERT INTO d VALUES (1)")
	mustExec(t, busy, "COMMIT")
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	r.done <- nil
	var n int
	conn, err := pgx.Connect(ctxT(t), db.DSN("dify"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(ctxT(t), "SELECT count(*) FROM d").Scan(&n); err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("listen: 127.0.0.1:1\nbackends: [{address: \"127.0.0.1:2\", zone: a}]\nusers: [{name: dify, passwordFile: f}]\nprobe: {passwordFile: g, interval: 250ms}\n")
	c, err := LoadConfig(path)
	if err != nil || c.Probe.Interval != 250*time.Millisecond || c.Backends[0].Name != "127.0.0.1:2" || c.Pool.Size != 20 || c.Splitting.Mode != SplittingFence {
		t.Fatal(c, err)
	}
	write("listen: 127.0.0.1:1\nbackends: [{address: \"127.0.0.1:2\"}]\nusers: [{name: dify, passwordFile: f}]\nprobe: {passwordFile: g}\npool: {mode: session}\n")
	if c, err = LoadConfig(path); err != nil || c.Splitting.Mode != SplittingOff {
		t.Fatal(c, err)
	}
	write("backends: [{address: x}]\nusers: [{name: \"\"}]\npool: {mode: x, size: 0}\nserverTLS: {mode: verify-full}\ntls: {certFile: x}\n")
	_, err = LoadConfig(path)
	for _, want := range []string{"backends[0].address", "users[0].name", "users[0].passwordFile", "probe.passwordFile", "pool.mode", "pool.size", "serverTLS.caFile", "tls: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no mention of %s in: %v", want, err)
		}
	}
	write("nonsense: 1\n")
	if _, err := LoadConfig(path); err == nil {
		t.Error("unknown field accepted")
	}
}
