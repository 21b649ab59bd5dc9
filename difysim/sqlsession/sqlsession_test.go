package sqlsession_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/difysim/sqlsession"
	"fournines/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func engine(t *testing.T, pg *servertest.Postgres, cfg sqlsession.Config) *sqlsession.Engine {
	t.Helper()
	cfg.Host, cfg.Port, cfg.User, cfg.Database, cfg.Password = pg.Host(), pg.Port(), "dify", "dify", pg.Password("dify")
	e, err := sqlsession.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// TestTraffic compares what the server logs with what SQLAlchemy sends.
func TestTraffic(t *testing.T) {
	pg := servertest.NewPostgres(t, servertest.PostgresOptions{Settings: map[string]string{"log_statement": "all", "log_line_prefix": "%u|"}})
	e := engine(t, pg, sqlsession.Config{})
	ctx := t.Context()
	s := e.Session()
	if _, err := s.Exec(ctx, "CREATE TABLE t (a text, n int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(ctx, "INSERT INTO t (a, n) VALUES ($1, $2)", `it's a \ test`, 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	var a, zone string
	if found, err := s.First(ctx, "SELECT a, current_setting('TimeZone') FROM t WHERE n = $1", []any{7}, &a, &zone); err != nil || !found || a != `it's a \ test` || zone != "UTC" {
		t.Errorf("got %q %q %v %v", a, zone, found, err)
	}
	if found, err := s.First(ctx, "SELECT a FROM t WHERE n = $1", []any{8}, &a); err != nil || found {
		t.Errorf("a row that is not there: %v %v", found, err)
	}
	s.Close()
	var statements []string
	for line := range strings.SplitSeq(pg.Log(), "\n") {
		if rest, ok := strings.CutPrefix(line, "dify|"); ok {
			if _, st, ok := strings.Cut(rest, "statement: "); ok {
				statements = append(statements, st)
			} else if strings.Contains(rest, "execute") {
				t.Errorf("extended protocol was used: %s", rest)
			}
		}
	}
	got := strings.Join(statements, "\n")
	want := strings.Join([]string{
		"BEGIN", "SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'",
		"select pg_catalog.version()", "select current_schema()", "show standard_conforming_strings", "ROLLBACK",
		"BEGIN", "CREATE TABLE t (a text, n int)", `INSERT INTO t (a, n) VALUES ( 'it''s a \ test' ,  '7' )`, "COMMIT",
		"BEGIN", "SELECT a, current_setting('TimeZone') FROM t WHERE n =  '7' ", "SELECT a FROM t WHERE n =  '8' ", "ROLLBACK",
	}, "\n")
	if got != want {
		t.Errorf("the server saw\n%s\nwant\n%s", got, want)
	}
}

// TestPool shows its limits and what a dead connection does to it.
func TestPool(t *testing.T) {
	pg := servertest.NewPostgres(t, servertest.PostgresOptions{})
	e := engine(t, pg, sqlsession.Config{PoolSize: 2, MaxOverflow: 1, PoolTimeout: 200 * time.Millisecond})
	ctx := t.Context()
	var open []*sqlsession.Session
	for range 3 {
		s := e.Session()
		if _, err := s.Exec(ctx, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	if _, err := e.Session().Exec(ctx, "SELECT 1"); !errors.Is(err, sqlsession.ErrPoolTimeout) {
		t.Errorf("a fourth connection: %v", err)
	}
	for _, s := range open {
		s.Close()
	}
	if used, idle := e.Stat(); used != 0 || idle != 2 {
		t.Errorf("%d used, %d idle, want 0 and 2", used, idle)
	}

	// An error of a statement does not cost the connection.
	s := e.Session()
	if _, err := s.Exec(ctx, "SELECT 1/0"); err == nil {
		t.Error("no error")
	}
	if _, err := s.Exec(ctx, "SELECT 1"); err == nil {
		t.Error("a failed transaction went on")
	}
	s.Close()
	if _, idle := e.Stat(); idle != 2 {
		t.Errorf("%d idle after a failed statement, want 2", idle)
	}

	pg.Restart()
	if _, err := e.Session().Exec(ctx, "SELECT 1"); err == nil {
		t.Error("the first use after a restart did not fail: is there a check before use?")
	}
	for range 2 {
		s := e.Session()
		if _, err := s.Exec(ctx, "SELECT 1"); err != nil {
			t.Errorf("after the pool was invalidated: %v", err)
		}
		s.Close()
	}
}
