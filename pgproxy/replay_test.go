package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/pgproxy/route"
)

// underWay is what a client has sent when its server goes.
type underWay struct {
	name string
	mode string // pgx's query mode
	// before brings the client to where it sends.
	before func(t *testing.T, c *pgx.Conn)
	send   func(ctx context.Context, c *pgx.Conn) error
	// The SQLSTATE when the server has said nothing, or only that it goes at
	// once; and when it has said that the statement was rolled back.
	silent, told string
}

// oneRow reads the only row of the table that is locked.
func oneRow(ctx context.Context, c *pgx.Conn, sql string, args ...any) error {
	var n int
	if err := c.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
		return err
	}
	if n != 7 {
		return fmt.Errorf("got %d", n)
	}
	return nil
}

// answers sends messages in one packet and lists what comes back for each of
// the Queries or Syncs among them.
func answers(c *pgx.Conn, ends int, messages ...pgproto3.FrontendMessage) ([]string, error) {
	fe := c.PgConn().Frontend()
	for _, m := range messages {
		fe.Send(m)
	}
	if err := fe.Flush(); err != nil {
		return nil, err
	}
	var all []string
	var got strings.Builder
	for len(all) < ends {
		m, err := fe.Receive()
		if err != nil {
			return all, err
		}
		switch m := m.(type) {
		case *pgproto3.ParseComplete:
			got.WriteString("1")
		case *pgproto3.BindComplete:
			got.WriteString("2")
		case *pgproto3.CloseComplete:
			got.WriteString("3")
		case *pgproto3.DataRow:
			fmt.Fprintf(&got, "(%s)", m.Values[0])
		case *pgproto3.CommandComplete:
			fmt.Fprintf(&got, "C[%s]", m.CommandTag)
		case *pgproto3.ErrorResponse:
			fmt.Fprintf(&got, "E%s", m.Code)
		case *pgproto3.ReadyForQuery:
			fmt.Fprintf(&got, "Z%c", m.TxStatus)
			all = append(all, got.String())
			got.Reset()
		}
	}
	return all, nil
}

func begun(t *testing.T, c *pgx.Conn) { t.Helper(); mustExec(t, c, "BEGIN") }

// underWays are all kinds of work that can be under way. fresh is a comment that
// makes the text of a statement one that no server connection knows: where one
// knows it, the proxy says itself that it is prepared, and an answer that has
// begun is not begun again.
func underWays(fresh string) []underWay {
	row := func(sql string, args ...any) func(context.Context, *pgx.Conn) error {
		return func(ctx context.Context, c *pgx.Conn) error { return oneRow(ctx, c, sql, args...) }
	}
	exec := func(sql string) func(context.Context, *pgx.Conn) error {
		return func(ctx context.Context, c *pgx.Conn) error { _, err := c.Exec(ctx, sql); return err }
	}
	committed := func(send func(context.Context, *pgx.Conn) error) func(context.Context, *pgx.Conn) error {
		return func(ctx context.Context, c *pgx.Conn) error {
			if err := send(ctx, c); err != nil {
				return err
			}
			_, err := c.Exec(ctx, "COMMIT")
			return err
		}
	}
	wire := func(want []string, messages ...pgproto3.FrontendMessage) func(context.Context, *pgx.Conn) error {
		return func(_ context.Context, c *pgx.Conn) error {
			got, err := answers(c, len(want), messages...)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("got %v, %w, want %v", got, err, want)
			}
			return nil
		}
	}
	const simple, named, unnamed = "simple_protocol", "cache_statement", "exec"
	literal := row("SELECT n FROM held WHERE s = 'it''s'")
	argument := row("SELECT n FROM held WHERE s = $1", "it's")
	freshArgument := row("SELECT n FROM held WHERE s = $1 /* "+fresh+" */", "it's")
	q := func(sql string) pgproto3.FrontendMessage { return &pgproto3.Query{String: sql} }
	parse := func(name, sql string) pgproto3.FrontendMessage { return &pgproto3.Parse{Name: name, Query: sql} }
	bind := func(name string) pgproto3.FrontendMessage { return &pgproto3.Bind{PreparedStatement: name} }
	execute, sync := &pgproto3.Execute{}, &pgproto3.Sync{}
	return []underWay{
		{"literals", simple, nil, literal, "", ""},
		{"prepared", named, func(t *testing.T, c *pgx.Conn) {
			t.Helper()
			scan[int](t, c, "SELECT n FROM held WHERE s = $1", "it's")
		}, argument, "", ""},
		{"unnamed", unnamed, nil, argument, "", ""},
		{"first of a transaction, literals", simple, begun, committed(literal), "", ""},
		{"first of a transaction, prepared", named, begun, committed(freshArgument), "", ""},
		{"not the first of a transaction", simple, func(t *testing.T, c *pgx.Conn) { t.Helper(); begun(t, c); mustExec(t, c, "SELECT 1") }, literal, codeRolledBack, codeRolledBack},
		{"batch", named, nil, func(ctx context.Context, c *pgx.Conn) error {
			b := &pgx.Batch{}
			for i := range 3 {
				b.Queue("SELECT n + $1 FROM held /* "+fresh+" */", i).QueryRow(func(row pgx.Row) error {
					var n int
					if err := row.Scan(&n); err != nil || n != 7+i {
						return fmt.Errorf("got %d, %w", n, err)
					}
					return nil
				})
			}
			return c.SendBatch(ctx, b).Close()
		}, "", ""},
		{
			"pipeline of queries", simple, nil,
			wire([]string{"C[BEGIN]ZT", "(7)C[SELECT 1]ZT", "C[COMMIT]ZI", "(8)C[SELECT 1]ZI"}, q("BEGIN"), q("SELECT n FROM held"), q("COMMIT"), q("SELECT n + 1 FROM held")),
			"", "",
		},
		{
			"pipeline of batches", simple,
			func(t *testing.T, c *pgx.Conn) {
				t.Helper()
				if got, err := answers(c, 1, parse("a", "SELECT n FROM held"), sync); err != nil || got[0] != "1ZI" {
					t.Fatal(got, err)
				}
			},
			wire([]string{"2(7)C[SELECT 1]ZI", "3ZI", "12(8)C[SELECT 1]ZI", "12(9)C[SELECT 1]2(9)C[SELECT 1]ZI"},
				bind("a"), execute, sync, &pgproto3.Close{ObjectType: 'S', Name: "a"}, sync,
				parse("a", "SELECT n + 1 FROM held"), bind("a"), execute, sync,
				parse("", "SELECT n + 2 FROM held"), bind(""), execute, bind(""), execute, sync),
			"", "",
		},
		{
			"pipeline with a write", simple, nil,
			wire([]string{"E08007ZI", "E08007ZI"}, q("SELECT n FROM held"), q("INSERT INTO held VALUES (1)")),
			"", "-", // "-" is not sent then
		},
		{"batch with a write", simple, nil,
			wire([]string{"E08007ZI"}, parse("", "SELECT n FROM held"), bind(""), execute, parse("", "INSERT INTO held VALUES (1)"), bind(""), execute, sync), "", "-"},
		{"write", simple, nil, exec("INSERT INTO held VALUES (1)"), codeOutcomeUnknown, ""},
		{"prepared write", unnamed, nil, func(ctx context.Context, c *pgx.Conn) error {
			_, err := c.Exec(ctx, "INSERT INTO held VALUES ($1)", 1)
			return err
		}, codeOutcomeUnknown, codeRolledBack},
		{"volatile function", unnamed, nil, row("SELECT nextval('counter')::int FROM held WHERE n = $1", 7), codeOutcomeUnknown, codeRolledBack},
		{"commits of its own", simple, nil, exec("CALL commits()"), codeOutcomeUnknown, codeOutcomeUnknown},
		{"commit within a string", simple, nil, exec("INSERT INTO steps VALUES (2); COMMIT; SELECT n FROM held"), codeOutcomeUnknown, codeOutcomeUnknown},
	}
}

// Reads that have no answer when their server goes are sent again, whatever it
// says in the end; nothing else is.
func TestReadsUnderWay(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{Settings: map[string]string{"max_prepared_transactions": "1"}})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 40 }, db)
	idle := r.connect(t)
	mustExec(t, idle, "CREATE TABLE held (n int, s text)")
	mustExec(t, idle, "CREATE TABLE steps (n int)")
	mustExec(t, idle, "CREATE SEQUENCE counter")
	mustExec(t, idle, `CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO steps VALUES (1); COMMIT; PERFORM n FROM held; END $$`)
	for _, end := range []struct {
		ending
		do func(pid int) // of some session
	}{
		{ending{name: "killed"}, func(int) { db.Kill(); db.Start() }},
		{ending{name: "shut down", told: true}, func(int) { db.Stop(); db.Start() }},
		{ending{name: "shut down at once"}, func(int) { db.Abort(); db.Start() }},
		{ending{name: "crash of another session", twice: true}, func(pid int) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(end.name, func(t *testing.T) { testReadsUnderWay(t, r, idle, end.ending, end.do) })
	}
}

// ending is how a server goes.
type ending struct {
	name string
	told bool // it says to everybody that it goes
	// twice: until the postmaster hears of the crash it takes new sessions, and
	// ends them, too. So what was sent again may be lost again.
	twice bool
}

func testReadsUnderWay(t *testing.T, r *running, idle *pgx.Conn, how ending, end func(pid int)) {
	t.Helper()
	mustExec(t, idle, "TRUNCATE held, steps")
	mustExec(t, idle, "INSERT INTO held VALUES (7, 'it''s')")
	awaitCatalog(t, r, "SELECT n FROM held")
	type client struct {
		underWay
		conn *pgx.Conn
		want string
		err  error
	}
	var clients []*client
	for _, u := range underWays(how.name) {
		c := &client{underWay: u, want: u.silent}
		if how.told {
			c.want = u.told
		}
		if c.want == "-" {
			continue
		}
		c.conn = r.connect(t, "default_query_exec_mode="+u.mode)
		if u.before != nil {
			u.before(t, c.conn)
		}
		clients = append(clients, c)
	}
	// One that has a part of its answer, and reads no further.
	part := r.connect(t, "default_query_exec_mode=simple_protocol")
	rows, err := part.Query(ctxT(t), "SELECT repeat('x', 10000) FROM generate_series(1, 20000)")
	if err != nil || !rows.Next() {
		t.Fatal(err, rows.Err())
	}
	locker, err := pgx.Connect(ctxT(t), r.db.DSN("dify"))
	if err != nil {
		t.Fatal(err)
	}
	defer locker.Close(context.Background())
	// A prepared transaction keeps its locks whichever session ends first.
	for _, sql := range []string{"BEGIN", "LOCK TABLE held IN ACCESS EXCLUSIVE MODE", "PREPARE TRANSACTION 'lock'"} {
		if _, err := locker.Exec(ctxT(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { c.err = c.send(ctxT(t), c.conn) })
	}
	eventually.Nil(t, time.Minute, func() error {
		var n int
		if err := r.db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").Scan(&n); err != nil || n != len(clients) {
			return fmt.Errorf("%d of %d wait: %w", n, len(clients), err)
		}
		return nil
	})
	before := r.metrics.replays.Load()
	end(int(locker.PgConn().PID()))
	eventually.Nil(t, time.Minute, func() error {
		c, err := pgx.Connect(ctxT(t), r.db.DSN("dify"))
		if err != nil {
			return err
		}
		defer c.Close(ctxT(t))
		_, err = c.Exec(ctxT(t), "ROLLBACK PREPARED 'lock'")
		return err
	})
	wg.Wait()
	again := 0
	for _, c := range clients {
		got := code(c.err)
		if how.twice && c.want == "" && (got == codeRolledBack || got == codeOutcomeUnknown) {
			t.Logf("%s: lost twice: %v", c.name, c.err)
			got = c.want
		}
		if got != c.want {
			t.Errorf("%s: %v, want SQLSTATE %q", c.name, c.err, c.want)
		}
		if c.want == "" && !strings.Contains(c.name, "with a write") {
			again++
		}
	}
	if got := r.metrics.replays.Load() - before; got != uint64(again) && (!how.twice || got == 0) {
		t.Errorf("%d were sent again, want %d", got, again)
	}
	for n := 1; ; n++ {
		if rows.Next() {
			continue
		}
		if n == 20000 || rows.Err() == nil {
			t.Errorf("%d rows of an answer that was under way, %v", n, rows.Err())
		}
		break
	}
	rows.Close()
	mustExec(t, idle, "SELECT 1")
	wantRows := 1
	if how.told {
		wantRows = 2 // the write, once
	}
	if got := scan[int](t, idle, "SELECT count(*)::int FROM held"); got != wantRows {
		t.Errorf("%d rows, want %d", got, wantRows)
	}
	if got := scan[int](t, idle, "SELECT count(*)::int FROM steps"); got != 2 {
		t.Errorf("%d commits, want 2", got)
	}
}

// awaitCatalog waits until the proxy knows that a statement is a read.
func awaitCatalog(t *testing.T, r *running, sql string) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		if d := r.routerFor("dify", "dify").Route([]byte(sql)); d.Target == route.Primary {
			return fmt.Errorf("%s: %s", sql, d.Reason)
		}
		return nil
	})
}

// What a server dies of again and again must not be sent to all of them.
func TestReadThatKillsServers(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	c := r.connect(t, "default_query_exec_mode=simple_protocol")
	const long = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
	awaitCatalog(t, r, long)
	done := make(chan error, 1)
	go func() {
		_, err := c.Exec(context.Background(), long)
		done <- err
	}()
	last := 0
	for range 2 {
		eventually.Nil(t, time.Minute, func() error {
			var pid int
			if err := db.QueryRow("SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE query = $1 AND state = 'active'", long).Scan(&pid); err != nil {
				return err
			}
			if pid == 0 || pid == last {
				return errors.New("it does not run")
			}
			last = pid
			return syscall.Kill(pid, syscall.SIGKILL)
		})
	}
	if err := <-done; code(err) != codeOutcomeUnknown {
		t.Errorf("the second time: %v", err)
	}
	mustExec(t, c, "SELECT 1")
	if n := r.metrics.replays.Load(); n != 1 {
		t.Errorf("sent again %d times", n)
	}
}
