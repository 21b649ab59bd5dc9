package splitting

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"fournines/pgproxy"
)

// author writes random SQL over a small schema. What it writes has one right
// answer: rows are ordered, and nothing depends on time or on the server.
type author struct {
	rng         *rand.Rand
	transaction bool // it believes that one is open
}

func (a *author) pick(choices ...string) string { return choices[a.rng.IntN(len(choices))] }

func (a *author) table() string { return a.pick("app", "message") }

func (a *author) expression(depth int) string {
	if depth == 0 {
		return a.pick("id", "n", "length(s)", "1", "7", "NULL", fmt.Sprint(a.rng.IntN(100)))
	}
	x, y := a.expression(depth-1), a.expression(depth-1)
	return a.pick(
		fmt.Sprintf("(%s + %s)", x, y), fmt.Sprintf("(%s - %s)", x, y), fmt.Sprintf("(%s * %s)", x, y),
		fmt.Sprintf("coalesce(%s, %s)", x, y), fmt.Sprintf("CASE WHEN %s > %s THEN %s END", x, y, x),
		fmt.Sprintf("greatest(%s, %s)", x, y), fmt.Sprintf("abs(%s)", x), fmt.Sprintf("(%s %% 7)", x))
}

func (a *author) condition() string {
	e := a.expression(a.rng.IntN(2))
	return a.pick(e+" > 3", e+" IS NULL", e+" IN (1, 2, 3)", e+" BETWEEN 2 AND 9", "s LIKE '%a%'", "s = 'it''s'", "s ~ '^[a-c]'", "NOT ("+e+" = 4)",
		fmt.Sprintf("EXISTS (SELECT FROM message m WHERE m.app_id = %s.id)", "t"))
}

func (a *author) query() string {
	return a.pick(
		fmt.Sprintf("SELECT id, n, s, %s FROM %s t WHERE %s ORDER BY id", a.expression(2), a.table(), a.condition()),
		fmt.Sprintf("SELECT count(*), sum(n), min(s), max(%s) FROM %s t WHERE %s", a.expression(1), a.table(), a.condition()),
		"SELECT a.id, m.s FROM app a LEFT JOIN message m ON m.app_id = a.id ORDER BY a.id, m.id",
		fmt.Sprintf("WITH x AS (SELECT id, n FROM app t WHERE %s) SELECT x.id, count(m.id) FROM x LEFT JOIN message m ON m.app_id = x.id GROUP BY 1 ORDER BY 1", a.condition()),
		"SELECT s, row_number() OVER (PARTITION BY n ORDER BY id) FROM app ORDER BY id",
		fmt.Sprintf("SELECT id FROM app UNION SELECT app_id FROM message ORDER BY 1 LIMIT %d OFFSET 1", a.rng.IntN(5)),
		fmt.Sprintf("VALUES (%d, 'a'), (2, 'b')", a.rng.IntN(9)),
		"TABLE app ORDER BY id",
		"SELECT 1", "SELECT current_setting('search_path')", "SHOW search_path", "SHOW transaction_isolation", "SHOW work_mem",
		"SELECT * FROM app_view ORDER BY 1",
		"SELECT twice(n) FROM app ORDER BY id",
		fmt.Sprintf("/* a comment; with -- marks */ SELECT s::text, n::numeric / %d FROM app ORDER BY id", 1+a.rng.IntN(3)),
		"SELECT id, string_agg(s, ',' ORDER BY id) FROM app GROUP BY id ORDER BY id",
		"SELECT $$a dollar; quote$$, E'\\n', U&'\\0061'",
		"SELECT doc->>'k', doc @> '{\"k\": 1}' FROM app ORDER BY id",
	)
}

func (a *author) change() string {
	id := a.rng.IntN(12)
	return a.pick(
		fmt.Sprintf("INSERT INTO app (id, n, s) VALUES (%d, %d, 'abc')", id, a.rng.IntN(10)), // often a duplicate
		fmt.Sprintf("INSERT INTO app (id, n, s) VALUES (%d, 1, 'it''s') ON CONFLICT (id) DO UPDATE SET n = app.n + 1 RETURNING id, n", id),
		fmt.Sprintf("INSERT INTO message (id, app_id, n, s) VALUES (%d, %d, 2, 'm')", a.rng.IntN(30), id), // often without its app
		fmt.Sprintf("UPDATE app t SET n = %s WHERE %s", a.expression(1), a.condition()),
		fmt.Sprintf("UPDATE app SET doc = '{\"k\": %d}' WHERE id = %d RETURNING *", id, id),
		fmt.Sprintf("DELETE FROM message t WHERE %s", a.condition()),
		fmt.Sprintf("WITH gone AS (DELETE FROM message WHERE id = %d RETURNING id) SELECT count(*) FROM gone", a.rng.IntN(30)),
		"SELECT id FROM app WHERE id < 3 ORDER BY id FOR UPDATE",
		"SELECT touch(1)",
	)
}

func (a *author) mistake() string {
	return a.pick("SELECT 1/0", "SELECT n/0 FROM app ORDER BY id", "SELECT nothing FROM app", "SELECT * FROM nowhere", "SELEC 1", "SELECT 'x'::int",
		"SELECT id FROM app WHERE", "INSERT INTO app (id) VALUES (NULL)", "SELECT no_such_function(1)", "SELECT s + n FROM app", "SELECT (SELECT id FROM app)",
		"UPDATE app SET n = 'x'", "SELECT 'a' || ;", "SELECT array[1,2][", "SELECT repeat('x', -1) FROM app, LATERAL (SELECT 1/(n-n)) z")
}

func (a *author) control() string {
	if a.transaction {
		s := a.pick("COMMIT", "ROLLBACK", "COMMIT", "END", "abort", "COMMIT AND CHAIN", "SAVEPOINT a", "ROLLBACK TO a", "RELEASE a", "SET LOCAL work_mem = '2MB'",
			"BEGIN", "SET TRANSACTION READ ONLY", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "DECLARE c CURSOR FOR SELECT id FROM app ORDER BY id", "FETCH 2 FROM c", "CLOSE c", "LOCK TABLE app IN SHARE MODE")
		switch s {
		case "COMMIT", "ROLLBACK", "END", "abort":
			a.transaction = false
		}
		return s
	}
	s := a.pick("BEGIN", "BEGIN", "START TRANSACTION", "BEGIN READ ONLY", "BEGIN ISOLATION LEVEL READ COMMITTED", "BEGIN ISOLATION LEVEL REPEATABLE READ",
		"BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN READ WRITE", "COMMIT", "SET work_mem = '3MB'", "RESET work_mem", "SET search_path = public", "RESET search_path",
		"SET default_transaction_isolation = 'repeatable read'", "RESET default_transaction_isolation", "SAVEPOINT outside", "SET LOCAL work_mem = '5MB'")
	if strings.HasPrefix(s, "BEGIN") || strings.HasPrefix(s, "START") {
		a.transaction = true
	}
	return s
}

// statement writes the next one.
func (a *author) statement() string {
	switch n := a.rng.IntN(100); {
	case n < 50:
		return a.query()
	case n < 65:
		return a.change()
	case n < 73:
		return a.mistake()
	case n < 76:
		return a.query() + "; " + a.query()
	case n < 78:
		return a.query() + "; " + a.change() + "; " + a.mistake()
	}
	return a.control()
}

// outcome is all that a client sees of a statement.
type outcome struct {
	Results []result
	Error   string
	Status  string
}

type result struct {
	Columns []string
	Rows    [][]string
	Tag     string
}

// execute runs a statement; extended says by which protocol.
func execute(ctx context.Context, conn *pgconn.PgConn, sql string, extended bool) outcome {
	var out outcome
	var err error
	if extended {
		r := conn.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
		out.add(r)
		err = r.Err
	} else {
		var all []*pgconn.Result
		all, err = conn.Exec(ctx, sql).ReadAll()
		for _, r := range all {
			out.add(r)
		}
	}
	var pe *pgconn.PgError
	switch {
	case errors.As(err, &pe):
		out.Error = fmt.Sprintf("%s %s at %d: %s", pe.Severity, pe.Code, pe.Position, pe.Message)
	case err != nil:
		out.Error = err.Error()
	}
	out.Status = string(rune(conn.TxStatus()))
	return out
}

func (o *outcome) add(r *pgconn.Result) {
	res := result{Tag: r.CommandTag.String()}
	for _, f := range r.FieldDescriptions {
		res.Columns = append(res.Columns, fmt.Sprint(f.Name, " ", f.DataTypeOID))
	}
	for _, row := range r.Rows {
		var values []string
		for _, v := range row {
			if v == nil {
				values = append(values, "NULL")
				continue
			}
			values = append(values, fmt.Sprintf("%q", v))
		}
		res.Rows = append(res.Rows, values)
	}
	o.Results = append(o.Results, res)
}

// schema makes the tables in a schema of their own; both sides have one.
func schema(name string) []string {
	return []string{
		"CREATE SCHEMA " + name,
		"SET search_path = " + name,
		"CREATE TABLE app (id int PRIMARY KEY, n int, s text, doc jsonb)",
		"CREATE TABLE message (id int PRIMARY KEY, app_id int REFERENCES app, n int, s text)",
		"CREATE VIEW app_view AS SELECT id, upper(s) FROM app WHERE n > 1",
		"CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2'",
		"CREATE FUNCTION touch(int) RETURNS int LANGUAGE sql VOLATILE AS 'UPDATE app SET n = n + 1 WHERE id = $1 RETURNING n'",
	}
}

// side names the schema of one of the two sides of a comparer.
func side(name string, n int) string { return fmt.Sprint(name, "_", n) }

// comparer runs scripts past the proxy and through it, in schemas of its own.
type comparer struct {
	n       int
	cluster *cluster
	proxy   *proxy
	setup   *pgx.Conn
}

// script runs one random script on both sides, and returns where they differ.
func (c *comparer) script(ctx context.Context, seed, i uint64) error {
	a := &author{rng: rand.New(rand.NewPCG(seed, i))} //nolint:gosec // not a secret
	for _, name := range []string{"direct", "proxied"} {
		if _, err := c.setup.Exec(ctx, strings.ReplaceAll("TRUNCATE @.message, @.app; INSERT INTO @.app SELECT i, i % 4, chr(96 + i), '{\"k\": 1}' FROM generate_series(1, 6) i;"+
			" INSERT INTO @.message SELECT i, 1 + i % 6, i, 'm' || i FROM generate_series(1, 12) i", "@", side(name, c.n))); err != nil {
			return err
		}
	}
	direct, err := pgx.Connect(ctx, c.cluster.primary.DSN("dify")+"&default_query_exec_mode=exec&search_path="+side("direct", c.n))
	if err != nil {
		return err
	}
	defer direct.Close(context.WithoutCancel(ctx))
	proxied, err := pgx.Connect(ctx, c.cluster.primary.DSNVia(c.proxy.addr, "dify")+"&default_query_exec_mode=exec&search_path="+side("proxied", c.n))
	if err != nil {
		return err
	}
	defer proxied.Close(context.WithoutCancel(ctx))
	var script []string
	for range 40 {
		sql := a.statement()
		extended := a.rng.IntN(2) == 0 && !strings.Contains(sql, "; ")
		script = append(script, fmt.Sprintf("%v %s", extended, sql))
		want := execute(ctx, direct.PgConn(), sql, extended)
		got := execute(ctx, proxied.PgConn(), sql, extended)
		got.rename(side("proxied", c.n), side("direct", c.n)) // the one difference that there is
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("seed %d, script %d (- direct, + through the proxy):\n%s\n%s", seed, i, diff, strings.Join(script, "\n"))
		}
	}
	return nil
}

// compare runs random scripts past the proxy and through it, a few at a time.
func compare(t *testing.T, scripts int, seed uint64) {
	t.Helper()
	const comparers = 4
	c := newCluster(t)
	mustExec(t, c.direct(t), "CREATE TABLE probe ()")
	var all []*comparer
	for n := range comparers {
		k := &comparer{n: n, cluster: c, setup: c.direct(t)}
		mustExec(t, k.setup, schema(side("direct", n))...)
		mustExec(t, k.setup, schema(side("proxied", n))...)
		all = append(all, k)
	}
	p := c.proxy(t, pgproxy.Splitting{Mode: pgproxy.SplittingFence, MaxStaleness: time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(scripts)*10*time.Second)
	defer cancel()
	var next atomic.Int64
	stop := report(t, "scripts", scripts, func() (int, string) {
		return int(min(next.Load(), int64(scripts))), fmt.Sprintf("%d reads on standbys", p.reads())
	})
	var wg sync.WaitGroup
	for _, k := range all {
		k.proxy = p
		wg.Go(func() {
			for i := next.Add(1); i <= int64(scripts) && !t.Failed(); i = next.Add(1) {
				if err := k.script(ctx, seed, uint64(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	stop()
	t.Logf("%d reads on standbys", p.reads())
	if p.reads() < 3*scripts {
		t.Errorf("%d reads ran on standbys in %d scripts", p.reads(), scripts)
	}
}

// rename replaces a name in all values.
func (o *outcome) rename(from, to string) {
	for i := range o.Results {
		for _, row := range o.Results[i].Rows {
			for j := range row {
				row[j] = strings.ReplaceAll(row[j], from, to)
			}
		}
	}
}

func TestSameAnswersAsDirect(t *testing.T) { compare(t, 25, 1) }
