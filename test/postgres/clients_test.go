package postgres

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fournines/internal/servertest"
	"fournines/pgproxy"
	"fournines/topology"
)

// throughProxy starts a server and a proxy before it that has few server
// connections, and returns the address of the proxy.
func throughProxy(t *testing.T) (db *servertest.Postgres, address string) {
	t.Helper()
	servertest.Need(t, "psql", "pgbench", "pg_dump", "pg_restore")
	db = servertest.NewPostgres(t, servertest.PostgresOptions{})
	cfg := pgproxy.DefaultConfig()
	cfg.Backends = []topology.Endpoint{{Name: "pg", Address: db.Address()}}
	cfg.Users = []pgproxy.User{{Name: "dify", PasswordFile: db.PasswordFile(t, "dify")}}
	cfg.Probe.PasswordFile = db.PasswordFile(t, "pgproxy")
	cfg.Pool.Size = 8
	p, err := pgproxy.New(cfg, pgproxy.Options{}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the proxy ended: %v", err)
		}
	})
	return db, ln.Addr().String()
}

// tool runs a client program as dify, and returns what it printed.
func tool(t *testing.T, db *servertest.Postgres, address, input, name string, args ...string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "PGHOST="+host, "PGPORT="+port, "PGUSER=dify", "PGDATABASE=dify", "PGSSLMODE=disable",
		"PGPASSWORD="+db.Password("dify"), "FOURNINES_POSTGRES_URL="+db.DSNVia(address, "dify"), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPgbench(t *testing.T) {
	db, address := throughProxy(t)
	tool(t, db, address, "", "pgbench", "-i", "-q", "-s", "1")
	for _, mode := range []string{"simple", "extended", "prepared"} {
		// With prepared statements a thread of pgbench waits for an answer when it
		// prepares, so no more clients than server connections.
		out := tool(t, db, address, "", "pgbench", "-n", "-M", mode, "-c", "8", "-j", "2", "-t", "25", "-b", "tpcb-like", "-b", "select-only")
		if !strings.Contains(out, "number of transactions actually processed: 200/200") {
			t.Errorf("%s: %s", mode, out)
		}
	}
	const books = `select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
 and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history) and (select count(*) from pgbench_history) > 0`
	if got := tool(t, db, db.Address(), books, "psql", "-AtX"); got != "t\n" {
		t.Errorf("the books do not agree: %q", got)
	}
}

func TestPsql(t *testing.T) {
	db, address := throughProxy(t)
	const script = `\set VERBOSITY verbose
create table psql_a (id int primary key, text text);
insert into psql_a values (1, 'one'), (2, null); select count(*) from psql_a \; select 'two results';
\d psql_a
\dt
\copy psql_a to stdout
\copy psql_a from stdin
3	three
4	\\N
\.
copy psql_a from stdin;
5	five
\.
select count(*) as five from psql_a;
select * from no_such_table;
begin; insert into psql_a values (1, 'again');
select 1;
rollback;
copy psql_a from stdin;
x	wrong
\.
select 'still' || ' here';
prepare q(int) as select text from psql_a where id = $1;
execute q(3);
deallocate q;
select 1 as a, 'b'::text as b \gdesc
listen psql_news;
notify psql_news, 'payload';
select 'bye';
`
	out := tool(t, db, address, script, "psql", "--no-psqlrc", "-AtX")
	for _, want := range []string{
		"2\ntwo results\n", "psql_a_pkey", "1\tone", "2\t\\N", "\n5\n", "42P01", "23505", "25P02", "22P02", "still here", "three",
		"a|integer", `Asynchronous notification "psql_news" with payload "payload"`, "bye",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("psql did not print %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestDumpAndRestore(t *testing.T) {
	db, address := throughProxy(t)
	tool(t, db, address, "", "pgbench", "-i", "-q", "-s", "1")
	tool(t, db, address, `create view v as select aid from pgbench_accounts; create sequence s start 42;
create function f(int) returns int language sql immutable as 'select $1 + 1'; create type mood as enum ('good', 'bad');
create table parts (id int, m mood default 'good', b bytea) partition by range (id); create table parts_1 partition of parts for values from (0) to (100);
insert into parts select g, 'bad', decode('00ff', 'hex') from generate_series(1, 50) g;`, "psql", "-X", "-v", "ON_ERROR_STOP=1")
	const sums = `select count(*), sum(aid), sum(abalance) from pgbench_accounts; select count(*), sum(id), min(b::text) from parts; select f(41), count(*) from v; select last_value from s;`
	before := tool(t, db, address, sums, "psql", "-AtX")
	for _, format := range []string{"custom", "plain"} {
		file := filepath.Join(t.TempDir(), "dump")
		tool(t, db, address, "", "pg_dump", "--format", format, "--file", file)
		tool(t, db, address, "drop schema public cascade; create schema public;", "psql", "-X", "-v", "ON_ERROR_STOP=1")
		if format == "custom" {
			tool(t, db, address, "", "pg_restore", "--dbname", "dify", "--exit-on-error", "--no-owner", "--jobs", "2", file)
		} else {
			tool(t, db, address, "", "psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", file)
		}
		if after := tool(t, db, address, sums, "psql", "-AtX"); after != before {
			t.Errorf("%s: restored %q, dumped %q", format, after, before)
		}
	}
}

func TestPython(t *testing.T) {
	python, err := filepath.Abs("../../.tools/venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	servertest.Need(t, python)
	db, address := throughProxy(t)
	if out := tool(t, db, address, "", python, "../clients/postgres_client.py"); !strings.HasSuffix(out, "ok\n") {
		t.Errorf("the script did not come to its end: %s", out)
	}
}
