package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/pgproxy/route"
)

// wordRouter decides by a few words, so that these tests are about sessions and
// not about SQL.
type wordRouter struct{}

var writes = regexp.MustCompile(`(?i)\b(insert|update|delete|create|nextval|lock|into|copy|show)\b`)

func (wordRouter) Route(sql []byte) route.Decision {
	d := route.Decision{Facts: route.Scan(sql), Reason: route.ReasonUtility}
	text := strings.ToLower(string(sql))
	switch d.Facts.Kind {
	case route.Empty, route.Commit, route.Rollback, route.Begin:
		d.Target, d.Reason = route.Any, route.ReasonControl
		if strings.Contains(text, "serializable") {
			d.Facts.Isolation = route.Serializable
		}
	case route.SetTransaction:
	case route.Other:
		switch {
		case strings.HasPrefix(text, "set transaction"):
			d.Facts.Kind = route.SetTransaction
		case text == "select 1", text == "show transaction_isolation":
			d.Target, d.Reason = route.Any, route.ReasonNoTable
		case !strings.HasPrefix(text, "select"), writes.MatchString(text):
		default:
			d.Target, d.Reason = route.Standby, route.ReasonRead
		}
		switch {
		case strings.Contains(text, "/* standby */"):
			d.Hint = route.HintStandby
		case strings.Contains(text, "/* primary */"):
			d.Target, d.Reason, d.Hint = route.Primary, route.ReasonHint, route.HintPrimary
		}
	}
	if d.Facts.Name == route.RouteSetting {
		d.Facts.Hint = route.HintPrimary
	}
	return d
}

func (w wordRouter) Explain(sql []byte) route.Explanation {
	d := w.Route(sql)
	return route.Explanation{Target: d.Target, Reason: d.Reason, Hint: d.Hint}
}

func (wordRouter) Changed() {}

// cluster is one primary with two standbys, for all tests of splitting.
type cluster struct {
	primary  *servertest.Postgres
	standbys []*servertest.Postgres
	admins   map[*servertest.Postgres]*pgx.Conn // of catchUp
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	p := servertest.NewPostgres(t, servertest.PostgresOptions{Settings: map[string]string{"max_standby_streaming_delay": "100ms"}})
	c := &cluster{primary: p, standbys: []*servertest.Postgres{servertest.NewStandby(t, p), servertest.NewStandby(t, p)}}
	c.admins = make(map[*servertest.Postgres]*pgx.Conn)
	for _, s := range append([]*servertest.Postgres{p}, c.standbys...) {
		conn, err := pgx.Connect(ctxT(t), s.DSN("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		c.admins[s] = conn
	}
	return c
}

// anyAge makes a proxy use a standby whatever it has missed, for tests of
// which server it is that answers.
func anyAge(cfg *Config) {
	cfg.Splitting.Mode, cfg.Splitting.MaxStaleness = SplittingBounded, time.Minute
}

// proxy starts one with splitting and waits until it knows the standbys.
func (c *cluster) proxy(t *testing.T, change func(*Config)) *running {
	t.Helper()
	r := startProxyWith(t, func(cfg *Config) {
		cfg.Splitting.Mode = SplittingFence
		if change != nil {
			change(cfg)
		}
	}, func(p *Proxy) { p.newRouter = func(string, string) router { return wordRouter{} } }, c.primary, c.standbys[0], c.standbys[1])
	eventually.Nil(t, time.Minute, func() error {
		if v := r.Status(); v.Primary == nil || len(v.Standbys) != 2 {
			return fmt.Errorf("primary %v, %d standbys", v.Primary, len(v.Standbys))
		}
		return nil
	})
	return r
}

// catchUp waits until the standbys have replayed all that is written.
func (c *cluster) catchUp(t *testing.T) {
	t.Helper()
	var lsn string
	if err := c.admins[c.primary].QueryRow(ctxT(t), "SELECT pg_current_wal_flush_lsn()::text").Scan(&lsn); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.standbys {
		eventually.Nil(t, time.Minute, func() error {
			var done bool
			if err := c.admins[s].QueryRow(ctxT(t), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn).Scan(&done); err != nil || !done {
				return fmt.Errorf("standby is behind: %w", err)
			}
			return nil
		})
	}
}

func TestSplitting(t *testing.T) {
	c := newCluster(t)
	t.Run("routing", func(t *testing.T) { testSplitRouting(t, c) })
	t.Run("wire", func(t *testing.T) { testSplitWire(t, c) })
	t.Run("settings", func(t *testing.T) { testSplitSettings(t, c) })
	t.Run("stale", func(t *testing.T) { testSplitStale(t, c) })
	t.Run("lags for ever", func(t *testing.T) { testSplitLagging(t, c) })
	t.Run("none or far", func(t *testing.T) { testSplitNoStandby(t, c) })
	t.Run("standby lost", func(t *testing.T) { testSplitStandbyLost(t, c) })
	t.Run("concurrent", func(t *testing.T) { testSplitConcurrent(t, c) })
	t.Run("failover", func(t *testing.T) { testSplitFailover(t, c) })
}

// where asks a server which one it is.
const where = "SELECT inet_server_port()"

func testSplitRouting(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, anyAge)
	setup := r.connect(t)
	mustExec(t, setup, "CREATE TABLE r (n int PRIMARY KEY, s text)")
	mustExec(t, setup, "CREATE SEQUENCE rs")
	c.catchUp(t)
	tests := []struct {
		name string
		// steps are statements; after "->" stands where a question about the
		// server must have been answered, "s" or "p", or a SQLSTATE.
		steps []string
	}{
		{"autocommit read", []string{where + " -> s", "INSERT INTO r VALUES (1)", where + " -> s"}},
		{"reads of a transaction", []string{"BEGIN", where + " -> s", where + " -> s", "COMMIT"}},
		{"moved by a write", []string{"BEGIN", where + " -> s", "INSERT INTO r VALUES (2)", where + " -> p", "COMMIT"}},
		{"write first", []string{"BEGIN", "INSERT INTO r VALUES (3)", where + " -> p", "COMMIT"}},
		{"rolled back write", []string{"BEGIN", where + " -> s", "INSERT INTO r VALUES (9) -> 23505", where + " -> 25P02", "ROLLBACK"}},
		{"serializable", []string{"BEGIN ISOLATION LEVEL SERIALIZABLE", where + " -> p", "COMMIT"}},
		{"set transaction after begin", []string{"BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", where + " -> p", "COMMIT"}},
		{"set transaction after a read", []string{"BEGIN", where + " -> s", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE -> 25001", where + " -> 25P02", "ROLLBACK"}},
		{"set transaction after a read and a lock", []string{"BEGIN", where + " -> s", "LOCK TABLE r IN SHARE MODE", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ -> 25001", "ROLLBACK"}},
		{"set transaction after a lock", []string{"BEGIN", "LOCK TABLE r IN SHARE MODE", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "COMMIT"}},
		{"set transaction after a show", []string{"BEGIN", "SHOW transaction_isolation -> =read committed", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SHOW transaction_isolation -> =repeatable read", "COMMIT"}},
		{"error on a standby", []string{"BEGIN", where + " -> s", "SELECT 1/0, n FROM r -> 22012", where + " -> 25P02", "INSERT INTO r VALUES (4) -> 25P02", "COMMIT", where + " -> s"}},
		{"savepoint", []string{"BEGIN", where + " -> s", "SAVEPOINT a", where + " -> p", "ROLLBACK TO a", where + " -> p", "COMMIT"}},
		{"set local", []string{"BEGIN", where + " -> s", "SET LOCAL work_mem = '1MB'", where + " -> p", "COMMIT"}},
		{"a write that looked like a read", []string{"BEGIN", where + " -> s", "SELECT setval('rs', 10) -> =10", where + " -> p", "COMMIT", "SELECT setval('rs', 11) -> =11"}},
		{"empty transaction", []string{"BEGIN", "COMMIT", "BEGIN", "ROLLBACK", where + " -> s"}},
		{"and chain", []string{"BEGIN", where + " -> s", "COMMIT AND CHAIN", where + " -> p", "COMMIT"}},
		{"and chain after an error", []string{"BEGIN READ ONLY", "SELECT 1/0, n FROM r -> 22012", "COMMIT AND CHAIN", where + " -> s", "INSERT INTO r VALUES (6)", where + " -> p", "COMMIT"}},
		{"read only", []string{"BEGIN READ ONLY", where + " -> s", "INSERT INTO r VALUES (5) -> 25006", "ROLLBACK"}},
		{"no transaction", []string{"COMMIT", "ROLLBACK", where + " -> s"}},
		{"begin twice", []string{"BEGIN", where + " -> s", "BEGIN", where + " -> p", "COMMIT"}},
		{"cursor", []string{"BEGIN", where + " -> s", "DECLARE k CURSOR FOR SELECT 7", "FETCH k", where + " -> p", "COMMIT"}},
		{"several statements", []string{"BEGIN; " + where + " -> *", "COMMIT"}},
		{"hints", []string{where + " /* primary */ -> p", where + " /* standby */ -> s"}},
		{"temporary table", []string{where + " -> s", "CREATE TEMP TABLE tmp (n int)", where + " -> p", "BEGIN", where + " -> p", "COMMIT"}},
	}
	for _, mode := range []string{"simple_protocol", "cache_statement"} {
		conn2 := r.connect(t)
		for _, tt := range tests {
			t.Run(mode+"/"+tt.name, func(t *testing.T) {
				conn := r.connect(t, "default_query_exec_mode="+mode)
				mustExec(t, conn2, "TRUNCATE r; INSERT INTO r VALUES (9)")
				for _, step := range tt.steps {
					sql, want, _ := strings.Cut(step, "->")
					sql, want = strings.TrimSpace(sql), strings.TrimSpace(want)
					if strings.Contains(sql, ";") {
						mustExec(t, conn, sql)
						continue
					}
					got, err := c.one(t, conn, sql)
					switch want {
					case "":
						if err != nil {
							t.Fatalf("%s: %v", sql, err)
						}
					default:
						if err != nil {
							got = code(err)
						}
						if strings.TrimPrefix(want, "=") != got {
							t.Fatalf("%s: got %q (%v), want %q", sql, got, err, want)
						}
					}
				}
				if st := conn.PgConn().TxStatus(); st != 'I' {
					t.Fatalf("status %c at the end", st)
				}
			})
		}
	}
	row := r.showPools()[0]
	if active, idle := row[len(row)-3].(int), row[len(row)-2].(int); active+idle == 0 {
		t.Errorf("SHOW POOLS has no connections to standbys: %v", row)
	}
}

// one runs a statement and returns its only value: for a question about the
// server "p" or "s".
func (c *cluster) one(t *testing.T, conn *pgx.Conn, sql string) (string, error) {
	t.Helper()
	rows, err := conn.Query(ctxT(t), sql)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	value := ""
	for rows.Next() {
		v, err := rows.Values()
		if err != nil {
			return "", err
		}
		value = fmt.Sprint(v[0])
	}
	if rows.Err() == nil && strings.HasPrefix(sql, where) {
		if value == fmt.Sprint(c.primary.Port()) {
			return "p", nil
		}
		return "s", nil
	}
	return value, rows.Err()
}

// testSplitWire looks at the messages themselves: pipelines, and statements
// that live on both sides.
func testSplitWire(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, anyAge)
	conn := r.connect(t)
	mustExec(t, conn, "CREATE TABLE IF NOT EXISTS wire (n int)")
	c.catchUp(t)
	pc := conn.PgConn()
	fe := pc.Frontend()
	exchange := func(syncs int, messages ...pgproto3.FrontendMessage) string {
		t.Helper()
		for _, m := range messages {
			fe.Send(m)
		}
		if err := fe.Flush(); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for syncs > 0 {
			m, err := fe.Receive()
			if err != nil {
				t.Fatalf("%s: %v", out.String(), err)
			}
			switch m := m.(type) {
			case *pgproto3.ParseComplete:
				out.WriteString("1 ")
			case *pgproto3.BindComplete:
				out.WriteString("2 ")
			case *pgproto3.CloseComplete:
				out.WriteString("3 ")
			case *pgproto3.RowDescription:
				out.WriteString("T ")
			case *pgproto3.ParameterDescription:
				out.WriteString("t ")
			case *pgproto3.NoData:
				out.WriteString("n ")
			case *pgproto3.DataRow:
				v := string(m.Values[0])
				switch v {
				case fmt.Sprint(c.primary.Port()):
					v = "p"
				case fmt.Sprint(c.standbys[0].Port()), fmt.Sprint(c.standbys[1].Port()):
					v = "s"
				}
				out.WriteString("D:" + v + " ")
			case *pgproto3.CommandComplete:
				out.WriteString("C:" + string(m.CommandTag) + " ")
			case *pgproto3.EmptyQueryResponse:
				out.WriteString("I ")
			case *pgproto3.ErrorResponse:
				out.WriteString("E:" + m.Code + " ")
			case *pgproto3.ReadyForQuery:
				out.WriteString("Z" + string(m.TxStatus) + " ")
				syncs--
			case *pgproto3.ParameterStatus, *pgproto3.NoticeResponse:
			default:
				t.Fatalf("unexpected %T", m)
			}
		}
		return strings.TrimSpace(out.String())
	}
	parse := func(name, sql string) pgproto3.FrontendMessage { return &pgproto3.Parse{Name: name, Query: sql} }
	bind := func(name string) pgproto3.FrontendMessage { return &pgproto3.Bind{PreparedStatement: name} }
	text := where + "::text"
	execute, sync := &pgproto3.Execute{}, &pgproto3.Sync{}
	query := func(sql string) pgproto3.FrontendMessage { return &pgproto3.Query{String: sql} }
	tests := []struct {
		name     string
		syncs    int
		messages []pgproto3.FrontendMessage
		want     string
	}{
		{"batch of reads", 1, []pgproto3.FrontendMessage{parse("", text), bind(""), execute, parse("", text), bind(""), execute, sync}, "1 2 D:s C:SELECT 1 1 2 D:s C:SELECT 1 ZI"},
		{"a write in the batch", 1, []pgproto3.FrontendMessage{parse("", text), bind(""), execute, parse("", "INSERT INTO wire VALUES (1)"), bind(""), execute, sync}, "1 2 D:p C:SELECT 1 1 2 C:INSERT 0 1 ZI"},
		{"named, prepared on a standby", 1, []pgproto3.FrontendMessage{parse("a", text), &pgproto3.Describe{ObjectType: 'S', Name: "a"}, sync}, "1 t T ZI"},
		{"used on a standby", 1, []pgproto3.FrontendMessage{bind("a"), execute, sync}, "2 D:s C:SELECT 1 ZI"},
		{"extended begin", 1, []pgproto3.FrontendMessage{parse("", "BEGIN"), bind(""), &pgproto3.Describe{ObjectType: 'P'}, execute, sync}, "1 2 n C:BEGIN ZT"},
		{"in the transaction", 1, []pgproto3.FrontendMessage{bind("a"), execute, sync}, "2 D:s C:SELECT 1 ZT"},
		{"moves", 1, []pgproto3.FrontendMessage{parse("", "INSERT INTO wire VALUES (2)"), bind(""), execute, sync}, "1 2 C:INSERT 0 1 ZT"},
		{"used on the primary", 1, []pgproto3.FrontendMessage{bind("a"), execute, sync}, "2 D:p C:SELECT 1 ZT"},
		{"extended commit", 1, []pgproto3.FrontendMessage{parse("", "COMMIT"), bind(""), execute, sync}, "1 2 C:COMMIT ZI"},
		{"begin and commit alone", 2, []pgproto3.FrontendMessage{parse("", "BEGIN"), bind(""), execute, sync, parse("", "ROLLBACK"), bind(""), execute, sync}, "1 2 C:BEGIN ZT 1 2 C:ROLLBACK ZI"},
		{"start transaction", 2, []pgproto3.FrontendMessage{query("start transaction"), query("END")}, "C:START TRANSACTION ZT C:COMMIT ZI"},
		{"pipelined queries", 5, []pgproto3.FrontendMessage{query("BEGIN"), query(text), query("INSERT INTO wire VALUES (3)"), query(text), query("COMMIT")}, "C:BEGIN ZT T D:s C:SELECT 1 ZT C:INSERT 0 1 ZT T D:p C:SELECT 1 ZT C:COMMIT ZI"},
		{"pipelined batches", 2, []pgproto3.FrontendMessage{parse("", text), bind(""), execute, sync, parse("", text), bind(""), execute, sync}, "1 2 D:s C:SELECT 1 ZI 1 2 D:s C:SELECT 1 ZI"},
		{"error in a batch", 1, []pgproto3.FrontendMessage{parse("", "SELECT 1/(n-n) FROM wire"), bind(""), execute, parse("b", text), sync}, "1 2 E:22012 ZI"},
		{"what was skipped is not prepared", 1, []pgproto3.FrontendMessage{bind("b"), execute, sync}, "E:26000 ZI"},
		{"close", 1, []pgproto3.FrontendMessage{&pgproto3.Close{ObjectType: 'S', Name: "a"}, sync}, "3 ZI"},
		{"closed", 1, []pgproto3.FrontendMessage{bind("a"), execute, sync}, "E:26000 ZI"},
		{"row limit", 1, []pgproto3.FrontendMessage{parse("", text), bind(""), &pgproto3.Execute{MaxRows: 5}, sync}, "1 2 D:p C:SELECT 1 ZI"},
		{"with a flush", 1, []pgproto3.FrontendMessage{parse("", text), bind(""), &pgproto3.Flush{}, execute, sync}, "1 2 D:p C:SELECT 1 ZI"},
		{"empty", 1, []pgproto3.FrontendMessage{query("")}, "I ZI"},
		{"too long to be placed", 1, []pgproto3.FrontendMessage{query(text + "/*" + strings.Repeat("x", 20000) + "*/")}, "T D:p C:SELECT 1 ZI"},
		{"refused by the standby, run by the primary", 1, []pgproto3.FrontendMessage{parse("c", "SELECT set_config('a.b', 'c', false), txid_current()"), bind("c"), execute, sync}, "1 2 D:c C:SELECT 1 ZI"},
	}
	for _, tt := range tests {
		got := exchange(tt.syncs, tt.messages...)
		if got != tt.want {
			t.Fatalf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func testSplitSettings(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, func(cfg *Config) {
		anyAge(cfg)
		cfg.Pool.Size = 1
	})
	mustExec(t, r.connect(t), "CREATE TABLE IF NOT EXISTS settings (n int)")
	c.catchUp(t)
	a, b := r.connect(t, "application_name=a"), r.connect(t, "application_name=b")
	const ask = "SELECT current_setting('application_name') || ' ' || current_setting('work_mem') || ' ' || pg_is_in_recovery()"
	mustExec(t, a, "SET work_mem = '3MB'")
	for range 3 {
		if got := scan[string](t, a, ask); got != "a 3MB true" {
			t.Fatal(got)
		}
		if got := scan[string](t, b, ask); got != "b 4MB true" {
			t.Fatal(got)
		}
	}
	// Settings are made before BEGIN and must not end with the transaction.
	mustExec(t, a, "BEGIN")
	if got := scan[string](t, a, ask); got != "a 3MB true" {
		t.Fatal(got)
	}
	mustExec(t, a, "ROLLBACK")
	if got := scan[string](t, a, ask); got != "a 3MB true" {
		t.Fatal(got)
	}
	mustExec(t, a, "BEGIN")
	mustExec(t, a, "INSERT INTO settings VALUES (1)")
	mustExec(t, a, "ROLLBACK")
	if got := scan[string](t, a, ask+" FROM nextval('rs')"); got != "a 3MB false" {
		t.Fatal(got)
	}
	// A default isolation level that needs one snapshot is found out.
	for _, level := range []string{"repeatable read", "serializable"} {
		mustExec(t, a, "SET default_transaction_isolation = '"+level+"'")
		for range 2 {
			mustExec(t, a, "BEGIN")
			if got, err := c.one(t, a, where); got != "p" || err != nil {
				t.Fatalf("%s: %s, %v", level, got, err)
			}
			if got := scan[string](t, a, "SELECT current_setting('transaction_isolation')"); got != level {
				t.Fatal(got)
			}
			mustExec(t, a, "COMMIT")
		}
	}
	mustExec(t, a, "RESET default_transaction_isolation")
	mustExec(t, a, "BEGIN")
	if got, err := c.one(t, a, where); got != "s" || err != nil {
		t.Fatalf("after RESET: %s, %v", got, err)
	}
	mustExec(t, a, "COMMIT")
	primaryOnly := r.connect(t, "options=-c%20fournines.route%3Dprimary")
	if got, err := c.one(t, primaryOnly, where); got != "p" || err != nil {
		t.Fatalf("fournines.route=primary: %s, %v", got, err)
	}
	if _, err := pgx.Connect(ctxT(t), r.dsn()+"&options=-c%20fournines.route%3Dnowhere"); code(err) != codeInvalidValue {
		t.Fatalf("invalid fournines.route: %v", err)
	}
	off := c.proxy(t, func(cfg *Config) { cfg.Splitting.Mode = SplittingOff })
	if got, err := c.one(t, off.connect(t), where); got != "p" || err != nil {
		t.Fatalf("splitting off: %s, %v", got, err)
	}
}

// testSplitStale stops replay: no read may miss what was acknowledged.
func testSplitStale(t *testing.T, c *cluster) {
	t.Helper()
	fence := c.proxy(t, nil)
	session := c.proxy(t, func(cfg *Config) { cfg.Splitting.Mode = SplittingSession })
	bounded := c.proxy(t, func(cfg *Config) {
		cfg.Splitting.Mode, cfg.Splitting.MaxStaleness = SplittingBounded, time.Minute
	})
	w := fence.connect(t)
	mustExec(t, w, "CREATE TABLE stale (n int)")
	c.catchUp(t)
	count := func(conn *pgx.Conn) int { return scan[int](t, conn, "SELECT count(*)::int FROM stale") }
	readers := map[string]*pgx.Conn{"fence": fence.connect(t), "session": session.connect(t), "bounded": bounded.connect(t)}
	for name, conn := range readers {
		if got, err := c.one(t, conn, where); got != "s" || err != nil {
			t.Fatalf("%s: %s, %v", name, got, err)
		}
		mustExec(t, conn, "SET extra_float_digits = 1") // makes a read of a session on the primary
	}
	own := session.connect(t)
	inTx := fence.connect(t)
	mustExec(t, inTx, "BEGIN")
	if got, err := c.one(t, inTx, where); got != "s" || err != nil {
		t.Fatal(got, err)
	}
	c.catchUp(t)
	for _, conn := range readers {
		_ = count(conn) // the session's position from here on
	}
	for _, s := range c.standbys {
		s.PauseReplay()
	}
	defer func() {
		for _, s := range c.standbys {
			s.ResumeReplay()
		}
	}()
	mustExec(t, w, "INSERT INTO stale VALUES (1)")
	mustExec(t, own, "INSERT INTO stale VALUES (2)")
	if got := count(readers["fence"]); got != 2 {
		t.Errorf("fence: %d of 2 rows", got)
	}
	if got := count(inTx); got != 2 {
		t.Errorf("in a transaction that was on the standby: %d of 2 rows", got)
	}
	if got, err := c.one(t, inTx, where); got != "p" || err != nil {
		t.Errorf("the transaction has not moved: %s, %v", got, err)
	}
	mustExec(t, inTx, "COMMIT")
	if got := count(own); got != 2 {
		t.Errorf("session, own write: %d of 2 rows", got)
	}
	if got := count(readers["session"]); got != 0 {
		t.Errorf("session, others' writes: %d rows, although the standbys have none", got)
	}
	if got := count(readers["bounded"]); got != 0 {
		t.Errorf("bounded: %d rows, although the standbys have none", got)
	}
	if got := scan[int](t, readers["fence"], "SELECT count(*)::int FROM stale /* standby */"); got != 0 {
		t.Errorf("hint: %d rows, although the standbys have none", got)
	}
}

// testSplitLagging reads on while no standby replays anything: that costs next to
// nothing, and ends by itself.
func testSplitLagging(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, nil)
	conn := r.connect(t)
	mustExec(t, conn, "CREATE TABLE lagging (n int)")
	c.catchUp(t)
	for _, s := range c.standbys {
		s.PauseReplay()
	}
	resume := func() {
		for _, s := range c.standbys {
			s.ResumeReplay()
		}
	}
	defer resume()
	mustExec(t, conn, "INSERT INTO lagging VALUES (1)")
	began := time.Now()
	const reads = 2000
	for range reads {
		if got := scan[int](t, conn, "SELECT count(*)::int FROM lagging"); got != 1 {
			t.Fatalf("%d rows, although one was committed", got)
		}
	}
	// Each standby is tried ten times on the way to the longest pause, and then
	// once in each such pause.
	most := len(c.standbys) * (11 + int(time.Since(began)/longestPause))
	if n := int(r.metrics.routed[onPrimary][routed(whyStale)].Load()); n == 0 || n > most {
		t.Errorf("%d of %d answers were thrown away, want at most %d", n, reads, most)
	}
	// The primary is asked for those only.
	if n := int(r.fence.Questions()); n > most+1 {
		t.Errorf("the primary was asked %d times, want at most %d", n, most+1)
	}
	resume()
	c.catchUp(t)
	eventually.Nil(t, time.Minute, func() error {
		if got, err := c.one(t, conn, where); got != "s" {
			return fmt.Errorf("reads are on %q, %w", got, err)
		}
		return nil
	})
}

// testSplitNoStandby has nothing to read on: the primary answers, and is not
// asked for its position in vain.
func testSplitNoStandby(t *testing.T, c *cluster) {
	t.Helper()
	check := func(r *running, no why) {
		t.Helper()
		conn := r.connect(t)
		mustExec(t, conn, "CREATE TABLE IF NOT EXISTS none (n int)")
		for range 20 {
			mustExec(t, conn, "BEGIN")
			if got, err := c.one(t, conn, where); got != "p" || err != nil {
				t.Fatal(got, err)
			}
			mustExec(t, conn, "INSERT INTO none VALUES (1)")
			mustExec(t, conn, "COMMIT")
		}
		if n := r.metrics.routed[onPrimary][routed(no)].Load(); n != 20 {
			t.Errorf("%d of 20 reads were on the primary because of %s", n, whyLabels[no])
		}
		if n := r.fence.Questions(); n != 0 {
			t.Errorf("the primary was asked for its position %d times", n)
		}
	}
	check(startProxyWith(t, func(cfg *Config) { cfg.Splitting.Mode = SplittingFence }, func(p *Proxy) {
		p.newRouter = func(string, string) router { return wordRouter{} }
	}, c.primary), whyNoStandby)
	// No way is so short.
	far := func(cfg *Config) { cfg.Zone, cfg.Splitting.MaxAddedLatency = "z", 0 }
	check(c.proxy(t, far), whyFar)
	// A standby of the own zone is never too far.
	near := c.proxy(t, func(cfg *Config) {
		far(cfg)
		anyAge(cfg)
		cfg.Backends[2].Zone = "z"
	})
	for range 5 {
		if got := scan[int](t, near.connect(t), where); got != c.standbys[1].Port() {
			t.Errorf("port %d has answered, want %d", got, c.standbys[1].Port())
		}
	}
}

func testSplitStandbyLost(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, nil)
	mustExec(t, r.connect(t), "CREATE TABLE IF NOT EXISTS lost (n int)")
	c.catchUp(t)
	terminate := func() {
		t.Helper()
		for _, s := range c.standbys {
			var n int
			if err := s.QueryRow("SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity WHERE usename = 'dify'").Scan(&n); err != nil {
				t.Fatal(err)
			}
		}
	}
	// In a transaction, between statements and at its end.
	conn := r.connect(t)
	for _, last := range []string{where, "COMMIT", "INSERT INTO lost VALUES (1)"} {
		mustExec(t, conn, "BEGIN")
		if got, err := c.one(t, conn, where); got != "s" || err != nil {
			t.Fatal(got, err)
		}
		terminate()
		mustExec(t, conn, last)
		if st := conn.PgConn().TxStatus(); (st == 'I') != (last == "COMMIT") {
			t.Fatalf("after %s: status %c", last, st)
		}
		if last != "COMMIT" {
			mustExec(t, conn, "COMMIT")
		}
		c.catchUp(t)
	}
	// Under a statement that has not answered yet.
	sleeping := func() {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			for _, s := range c.standbys {
				var n int
				if err := s.QueryRow("SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&n); err != nil || n == 1 {
					return err
				}
			}
			return errors.New("the statement does not run on a standby")
		})
	}
	for _, tx := range []bool{false, true} {
		if tx {
			mustExec(t, conn, "BEGIN")
		}
		done := make(chan error, 1)
		go func() {
			var port string
			err := conn.QueryRow(context.Background(), "SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 600 ELSE 0 END)::text || inet_server_port()", pgx.QueryExecModeExec).Scan(&port)
			if err == nil && port != fmt.Sprint(c.primary.Port()) {
				err = fmt.Errorf("answered by port %s", port)
			}
			done <- err
		}()
		sleeping()
		terminate()
		if err := <-done; err != nil {
			t.Fatalf("in transaction %v: %v", tx, err)
		}
		if tx {
			mustExec(t, conn, "COMMIT")
		}
	}
	// A conflict with the replay of a VACUUM or DROP.
	mustExec(t, conn, "CREATE TABLE doomed (n int)")
	mustExec(t, conn, "INSERT INTO doomed SELECT generate_series(1, 10)")
	c.catchUp(t)
	other := r.connect(t)
	done := make(chan error, 1)
	go func() {
		var n string
		err := other.QueryRow(context.Background(), "SELECT pg_sleep(CASE WHEN pg_is_in_recovery() THEN 600 ELSE 0 END)::text || count(*) FROM doomed", pgx.QueryExecModeExec).Scan(&n)
		if err == nil && n != "0" {
			err = fmt.Errorf("%s rows", n)
		}
		done <- err
	}()
	sleeping()
	mustExec(t, conn, "DELETE FROM doomed")
	mustExec(t, conn, "ALTER TABLE doomed ADD m int")
	if err := <-done; err != nil {
		t.Fatalf("conflict with recovery: %v", err)
	}
	// A client's cancel reaches the standby.
	c.catchUp(t)
	go func() {
		_, err := other.Exec(context.Background(), "SELECT pg_sleep(600) FROM doomed RIGHT JOIN (VALUES (1)) v ON true")
		done <- err
	}()
	sleeping()
	if err := other.PgConn().CancelRequest(ctxT(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; code(err) != "57014" {
		t.Fatalf("cancelled: %v", err)
	}
	// A client that leaves ends its statement.
	go func() {
		_, _ = other.Exec(context.Background(), "SELECT pg_sleep(600) FROM doomed RIGHT JOIN (VALUES (1)) v ON true")
	}()
	sleeping()
	_ = other.PgConn().Conn().Close()
	eventually.Nil(t, time.Minute, func() error {
		for _, s := range c.standbys {
			var n int
			if err := s.QueryRow("SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&n); err != nil || n != 0 {
				return fmt.Errorf("still runs: %w", err)
			}
		}
		return nil
	})
}

// testSplitConcurrent lets many clients share few connections in all ways at
// once: nobody may see another's answer.
func testSplitConcurrent(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, func(cfg *Config) { cfg.Pool.Size, cfg.Pool.MaxPrepared = 2, 5 })
	mustExec(t, r.connect(t), "CREATE TABLE many (id int PRIMARY KEY, n int)")
	var wg sync.WaitGroup
	for i := range 12 {
		mode := []string{"simple_protocol", "exec", "cache_statement", "cache_describe"}[i%4]
		conn := r.connect(t, "default_query_exec_mode="+mode)
		wg.Go(func() {
			ctx := ctxT(t)
			fail := func(err error) bool {
				if err != nil {
					t.Errorf("%d (%s): %v", i, mode, err)
				}
				return err != nil
			}
			if _, err := conn.Exec(ctx, "INSERT INTO many VALUES ($1, 0)", i); fail(err) {
				return
			}
			for j := 1; j <= 40; j++ {
				tx, err := conn.Begin(ctx)
				if fail(err) {
					return
				}
				var n int
				if fail(tx.QueryRow(ctx, "SELECT n FROM many WHERE id = $1", i).Scan(&n)) {
					return
				}
				if n != j-1 {
					t.Errorf("client %d read %d after it had written %d", i, n, j-1)
					return
				}
				if j%3 == 0 {
					if _, err := tx.Exec(ctx, "SELECT n/0 FROM many WHERE id = $1", i); code(err) != "22012" {
						t.Errorf("division: %v", err)
						return
					}
					if fail(tx.Rollback(ctx)) {
						return
					}
					if _, err := conn.Exec(ctx, "UPDATE many SET n = $1 WHERE id = $2", j, i); fail(err) {
						return
					}
					continue
				}
				if _, err := tx.Exec(ctx, "UPDATE many SET n = $1 WHERE id = $2", j, i); fail(err) {
					return
				}
				if fail(tx.QueryRow(ctx, "SELECT n FROM many WHERE id = $1", i).Scan(&n)) {
					return
				}
				if n != j {
					t.Errorf("client %d does not see its own write", i)
					return
				}
				if fail(tx.Commit(ctx)) {
					return
				}
				batch := &pgx.Batch{}
				batch.Queue("SELECT n FROM many WHERE id = $1", i).QueryRow(func(row pgx.Row) error {
					if err := row.Scan(&n); err != nil || n != j {
						return fmt.Errorf("batch: %d instead of %d, %w", n, j, err)
					}
					return nil
				})
				batch.Queue("SELECT id FROM many WHERE id = $1", i).QueryRow(func(row pgx.Row) error {
					if err := row.Scan(&n); err != nil || n != i {
						return fmt.Errorf("batch: client %d instead of %d, %w", n, i, err)
					}
					return nil
				})
				if mode != "simple_protocol" && fail(conn.SendBatch(ctx, batch).Close()) {
					return
				}
			}
		})
	}
	wg.Wait()
	if n := r.metrics.routed[onStandby][route.ReasonRead].Load(); n < 100 {
		t.Errorf("%d reads ran on standbys", n)
	}
}

// testSplitFailover kills the primary under readers: they notice nothing.
func testSplitFailover(t *testing.T, c *cluster) {
	t.Helper()
	r := c.proxy(t, nil)
	w := r.connect(t)
	mustExec(t, w, "CREATE TABLE fo (n int)")
	mustExec(t, w, "INSERT INTO fo VALUES (1)")
	c.catchUp(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 6 {
		conn := r.connect(t)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var err error
				if i%2 == 0 {
					_, err = conn.Exec(ctxT(t), "SELECT n FROM fo")
				} else {
					err = pgx.BeginFunc(ctxT(t), conn, func(tx pgx.Tx) error {
						var n int
						return tx.QueryRow(ctxT(t), "SELECT n FROM fo").Scan(&n)
					})
				}
				// A transaction that went on to the primary ends with it.
				if err != nil && (i%2 == 0 || code(err) != codeOutcomeUnknown && code(err) != codeRolledBack) {
					t.Errorf("reader %d: %v", i, err)
					return
				}
			}
		})
	}
	c.primary.Kill()
	c.standbys[0].Promote()
	c.standbys[1].Follow(c.standbys[0])
	eventually.Nil(t, time.Minute, func() error {
		if v := r.Status(); v.Primary == nil || len(v.Standbys) != 1 {
			return fmt.Errorf("primary %v, %d standbys", v.Primary, len(v.Standbys))
		}
		return nil
	})
	mustExec(t, w, "INSERT INTO fo VALUES (2)")
	if got := scan[int](t, r.connect(t), "SELECT count(*)::int FROM fo"); got != 2 {
		t.Errorf("%d of 2 rows after the failover", got)
	}
	before := r.metrics.routed[onStandby][route.ReasonRead].Load()
	eventually.Nil(t, time.Minute, func() error {
		if r.metrics.routed[onStandby][route.ReasonRead].Load() < before+20 {
			return errors.New("no reads on the standby of the new primary")
		}
		return nil
	})
	close(stop)
	wg.Wait()
}
