//go:build cgo

package route

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// schema is what the statements of the tests are about.
const schema = `
CREATE EXTENSION "uuid-ossp"; CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION tablefunc;
CREATE TABLE t (id int PRIMARY KEY, a int, b text, c citext, j jsonb, h hstore, u uuid, ts timestamptz, arr int[], "Quoted Name" text);
CREATE TABLE "Select" (id int);
CREATE TABLE "we""ird; INSERT" (id int);
CREATE UNLOGGED TABLE un (id int);
CREATE SEQUENCE seq;
SELECT nextval('seq');
CREATE SCHEMA other;
CREATE TABLE other.t2 (id int, t_id int);
CREATE TABLE counters (id int PRIMARY KEY, n int);
INSERT INTO counters VALUES (1, 0);
INSERT INTO t (id, a, b) SELECT i, i % 7, 'b' || i FROM generate_series(1, 100) i;

CREATE FUNCTION f_volatile(x int DEFAULT 0) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE counters SET n = n + 1; RETURN x; END $$;
CREATE FUNCTION f_unlabelled(x int) RETURNS int LANGUAGE sql AS 'SELECT x';
CREATE FUNCTION f_stable(x int) RETURNS int LANGUAGE sql STABLE AS 'SELECT a FROM public.t WHERE id = x';
CREATE FUNCTION f_immutable(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x + 1';
CREATE FUNCTION f_default(x int DEFAULT f_volatile(1)) RETURNS int LANGUAGE sql STABLE AS 'SELECT x';
CREATE FUNCTION f_rows() RETURNS SETOF t LANGUAGE sql STABLE AS 'SELECT * FROM public.t';
CREATE FUNCTION overloaded(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x';
CREATE FUNCTION other.overloaded(x text) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE FUNCTION status(r t) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE counters SET n = n + 1; RETURN 1; END $$;
CREATE FUNCTION step(s int, x int) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE counters SET n = n + 1; RETURN s + x; END $$;
CREATE AGGREGATE agg_writes(int) (SFUNC = step, STYPE = int, INITCOND = '0');
CREATE FUNCTION step_ok(s int, x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT s + x';
CREATE AGGREGATE agg_reads(int) (SFUNC = step_ok, STYPE = int, INITCOND = '0');
CREATE PROCEDURE proc() LANGUAGE sql AS 'UPDATE counters SET n = n + 1';

CREATE FUNCTION op_writes(a int, b text) RETURNS bool LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE counters SET n = n + 1; RETURN true; END $$;
CREATE OPERATOR ### (LEFTARG = int, RIGHTARG = text, FUNCTION = op_writes);
CREATE FUNCTION op_reads(a int, b text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR @#@ (LEFTARG = int, RIGHTARG = text, FUNCTION = op_reads);

CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN checked AS int CHECK (f_volatile(VALUE) > 0);
CREATE DOMAIN over_checked AS checked;
CREATE DOMAIN checked_by_operator AS int CHECK (VALUE ### 'x');
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (x int, y text);
CREATE TYPE checked_pair AS (x checked, y text);
CREATE TABLE has_checked (id int, c checked);
CREATE FUNCTION takes_checked(x checked) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
CREATE TYPE odd AS (x int);
CREATE FUNCTION odd_to_text(o odd) RETURNS text LANGUAGE plpgsql VOLATILE AS $$ BEGIN UPDATE counters SET n = n + 1; RETURN 'x'; END $$;
CREATE CAST (odd AS text) WITH FUNCTION odd_to_text(odd) AS IMPLICIT;
CREATE TABLE has_odd (o odd);

CREATE VIEW v_read AS SELECT id, upper(b) AS b FROM t WHERE a > 1;
CREATE VIEW v_over AS SELECT * FROM v_read;
CREATE VIEW v_writes AS SELECT f_volatile(id) AS x FROM t;
CREATE VIEW v_over_writes AS SELECT * FROM v_writes;
CREATE VIEW v_lock AS SELECT * FROM t FOR UPDATE;
CREATE VIEW v_state AS SELECT pg_backend_pid() AS pid;
CREATE VIEW v_unlogged AS SELECT * FROM un;
CREATE MATERIALIZED VIEW m_read AS SELECT * FROM t;

CREATE TABLE part (id int, x int) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE upart (id int, x int) PARTITION BY RANGE (id);
CREATE UNLOGGED TABLE upart_1 PARTITION OF upart FOR VALUES FROM (0) TO (10);
CREATE TABLE parent (id int);
CREATE UNLOGGED TABLE child () INHERITS (parent);

CREATE TABLE rls_read (id int, owner text);
ALTER TABLE rls_read ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_read USING (owner = current_user);
CREATE TABLE rls_writes (id int, owner text);
ALTER TABLE rls_writes ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_writes FOR SELECT USING (f_volatile(id) > 0);
CREATE TABLE rls_insert (id int);
ALTER TABLE rls_insert ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_insert FOR INSERT WITH CHECK (f_volatile(id) > 0);
CREATE TABLE same_name (id int);
CREATE UNLOGGED TABLE other.same_name (id int);
`

// pgxQuerier is a Querier over one connection.
type pgxQuerier struct{ conn *pgconn.PgConn }

func (q pgxQuerier) Query(ctx context.Context, sql string, row func([][]byte) error) error {
	results := q.conn.Exec(ctx, sql)
	for results.NextResult() {
		r := results.ResultReader()
		for r.NextRow() {
			if err := row(r.Values()); err != nil {
				return errors.Join(err, results.Close())
			}
		}
	}
	return results.Close()
}

// known is a router over a real database that holds the schema.
type known struct {
	primary  *servertest.Postgres
	conn     *pgx.Conn // to the database
	database *Database
	router   *Router
}

func newKnown(t *testing.T, cfg DatabaseConfig) known {
	t.Helper()
	k := known{primary: servertest.NewPostgres(t, servertest.PostgresOptions{})}
	conn := connect(t, k.primary)
	if _, err := conn.Exec(t.Context(), schema, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	k.conn = conn
	k.database = NewDatabase(pgxQuerier{connect(t, k.primary).PgConn()}, cfg)
	if _, err := k.database.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.router = New(k.database, Config{})
	return k
}

func connect(t *testing.T, p *servertest.Postgres) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// TestRoute judges a table of statements with the catalog of a real server,
// and proves each verdict that is not Primary on a real standby and primary.
func TestRoute(t *testing.T) {
	k := newKnown(t, DatabaseConfig{})
	for _, tt := range statements {
		d := k.router.Route([]byte(tt.sql))
		if d.Target != tt.target || d.Reason != tt.reason || tt.subject != "" && d.Subject != tt.subject {
			t.Errorf("%s\n\tgot %s %s %q want %s %s %q", tt.sql, d.Target, d.Reason, d.Subject, tt.target, tt.reason, tt.subject)
		}
		again := k.router.Route([]byte(tt.sql))
		if again != d {
			t.Errorf("%s\n\tfirst %+v, from the cache %+v", tt.sql, d, again)
		}
	}
	t.Run("proof", func(t *testing.T) { prove(t, k, servertest.NewStandby(t, k.primary)) })
}

// prove runs what is called a read on the standby, where no write can pass, and
// on the primary, where a write would be given a transaction id.
func prove(t *testing.T, k known, standby *servertest.Postgres) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		var caughtUp bool
		lsn := ""
		if err := k.primary.QueryRow("SELECT pg_current_wal_lsn()").Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		if err := standby.QueryRow("SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn", lsn).Scan(&caughtUp); err != nil {
			t.Fatal(err)
		}
		if !caughtUp {
			return errors.New("the standby is behind")
		}
		return nil
	})
	onStandby, onPrimary := connect(t, standby).PgConn(), connect(t, k.primary).PgConn()
	proved := 0
	for _, tt := range statements {
		if d := k.router.Route([]byte(tt.sql)); d.Target == Primary || d.Reason == ReasonControl {
			continue
		}
		sql := tt.sql
		for i := range 9 { // parameters need a type in a simple query
			sql = strings.ReplaceAll(sql, "$"+string(rune('1'+i)), "NULL")
		}
		if _, err := onStandby.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Errorf("%s\n\ton a standby: %v", tt.sql, err)
		}
		results, err := onPrimary.Exec(t.Context(), "BEGIN;"+sql+"\n;SELECT pg_current_xact_id_if_assigned() IS NULL; ROLLBACK").ReadAll()
		if err != nil {
			t.Errorf("%s\n\ton the primary: %v", tt.sql, err)
			if _, err := onPrimary.Exec(t.Context(), "ROLLBACK").ReadAll(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if unassigned := results[len(results)-2].Rows[0][0]; !bytes.Equal(unassigned, []byte("t")) {
			t.Errorf("%s\n\twrites", tt.sql)
		}
		proved++
	}
	if proved < 100 {
		t.Errorf("only %d reads were proved", proved)
	}
}
