package pgproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestConsoleWords(t *testing.T) {
	tests := []struct {
		in   string
		want []consoleWord
		bad  bool
	}{
		{in: ""},
		{in: " ;; "},
		{in: "SHOW pools;", want: []consoleWord{{text: "SHOW"}, {text: "pools"}}},
		{in: "-- a remark\nshow\tpools", want: []consoleWord{{text: "show"}, {text: "pools"}}},
		{in: `PAUSE "My ""db"""`, want: []consoleWord{{text: "PAUSE"}, {text: `My "db"`, quoted: true}}},
		{in: `EXPLAIN ROUTE 'select ''a;'''`, want: []consoleWord{{text: "EXPLAIN"}, {text: "ROUTE"}, {text: "select 'a;'", literal: true}}},
		{in: "pause; resume", bad: true},
		{in: "pause 'x", bad: true},
		{in: `pause "`, bad: true},
	}
	for _, tt := range tests {
		got, err := consoleWords(tt.in)
		if (err != nil) != tt.bad {
			t.Errorf("%q: %v", tt.in, err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(consoleWord{})); !tt.bad && diff != "" {
			t.Errorf("%q: %s", tt.in, diff)
		}
	}
}

func TestConsole(t *testing.T) {
	servertest.Need(t, "psql")
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	const password = "console's password"
	file := filepath.Join(t.TempDir(), "console")
	if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startProxy(t, func(c *Config) {
		c.Pool.Size = 3
		c.Console.Users = []User{{Name: "admin", PasswordFile: file}}
	}, db)
	c := r.connect(t, "application_name=somebody")
	mustExec(t, c, "SELECT 1")
	mustExec(t, c, "CREATE TABLE judged (n int)")
	awaitCatalog(t, r, "SELECT n FROM judged")
	mustExec(t, c, "LISTEN ch")

	console := func(t *testing.T, user, password, database string) (*pgx.Conn, error) {
		t.Helper()
		host, port, err := net.SplitHostPort(r.addr)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=disable default_query_exec_mode=simple_protocol", host, port, user, database))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Password = password
		conn, err := pgx.ConnectConfig(ctxT(t), cfg)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
		}
		return conn, err
	}
	// Neither side's users get in on the other.
	if _, err := console(t, "dify", db.Password("dify"), "pgproxy"); code(err) != codeWrongPassword {
		t.Errorf("an application's user at the console: %v", err)
	}
	if _, err := console(t, "admin", password, "dify"); code(err) != codeWrongPassword {
		t.Errorf("the console's user at a database: %v", err)
	}
	admin, err := console(t, "admin", password, "pgproxy")
	if err != nil {
		t.Fatal(err)
	}
	// show returns the rows of a command as maps of text.
	show := func(t *testing.T, command string) []map[string]string {
		t.Helper()
		results, err := admin.PgConn().Exec(ctxT(t), command).ReadAll()
		if err != nil || len(results) != 1 {
			t.Fatalf("%s: %d results, %v", command, len(results), err)
		}
		var out []map[string]string
		for _, row := range results[0].Rows {
			m := map[string]string{}
			for i, f := range results[0].FieldDescriptions {
				if row[i] == nil {
					m[f.Name] = "NULL"
				} else {
					m[f.Name] = string(row[i])
				}
			}
			out = append(out, m)
		}
		return out
	}
	for _, tt := range []struct {
		command string
		want    map[string]string // of one row, at least
	}{
		{"SHOW POOLS", map[string]string{"database": "dify", "user": "dify", "cl_active": "0", "cl_idle": "1", "cl_waiting": "0", "sv_active": "1", "maxwait": "0", "pool_mode": "transaction", "standby_active": "0", "standby_idle": "0"}},
		{"show servers;", map[string]string{"type": "S", "database": "dify", "state": "active", "server": "pg0"}},
		{"SHOW CLIENTS", map[string]string{"type": "C", "user": "dify", "application_name": "somebody", "pinned": "listen", "tls": "NULL", "wait": "0"}},
		{"SHOW STATS", map[string]string{"database": "dify"}},
		{"SHOW DATABASES", map[string]string{"name": "dify", "pool_size": "3", "paused": "0"}},
		{"SHOW BACKENDS", map[string]string{"name": "pg0", "state": "primary", "error": "NULL"}},
		{"SHOW LISTS", map[string]string{"list": "pools", "items": "1"}},
		{"SHOW CONFIG", map[string]string{"key": "pool.size", "value": "3", "default": "20", "changeable": "yes"}},
		{"SHOW CONFIG", map[string]string{"key": "pool.mode", "value": "transaction", "changeable": "no"}},
		{"SHOW VERSION", map[string]string{"version": "fournines pgproxy v1"}},
		{"SHOW HELP", map[string]string{"command": "RELOAD"}},
		{"EXPLAIN ROUTE 'INSERT INTO t VALUES (1)'", map[string]string{"target": "primary"}},
		{"EXPLAIN ROUTE 'SELECT ''x'''", map[string]string{"statement": "all"}},
		{"EXPLAIN ROUTE 'SELECT n FROM judged'", map[string]string{"database": "dify", "target": "standby", "reason": "read"}},
		{"EXPLAIN ROUTE 'SELECT n FROM judged' IN dify", map[string]string{"target": "standby"}},
		{"EXPLAIN ROUTE 'SELECT n FROM unknown'", map[string]string{"target": "primary", "reason": "unknown_relation", "subject": "unknown"}},
	} {
		found := false
		rows := show(t, tt.command)
		for _, row := range rows {
			all := true
			for k, v := range tt.want {
				all = all && row[k] == v
			}
			found = found || all
		}
		if !found {
			t.Errorf("%s: no row with %v in %v", tt.command, tt.want, rows)
		}
	}
	if row := show(t, "SHOW STATS")[0]; row["total_query_count"] == "0" || row["total_xact_count"] == "0" || row["total_sent"] == "0" {
		t.Errorf("SHOW STATS: %v", row)
	}
	for command, want := range map[string]string{
		"SHOW": "42601", "SHOW NOTHING": "42601", "SELECT 1": "42601", "PAUSE a b": "42601", "PAUSE dify FOR ever": "42601", "RELOAD now": "42601",
		"PAUSE FOR 1h": "F0000", "EXPLAIN SELECT 1": "42601", "RESUME": "55000", "SHOW POOLS; SHOW STATS": "42601", "PAUSE 'dify'": "42601",
		"EXPLAIN ROUTE 'SELECT 1' IN nowhere": "3D000", "EXPLAIN ROUTE 'SELECT 1' IN": "42601", "EXPLAIN ROUTE 'SELECT 1' FROM dify": "42601",
	} {
		if _, err := admin.Exec(ctxT(t), command); code(err) != want {
			t.Errorf("%s: %v, want %s", command, err, want)
		}
	}
	if tag, err := admin.Exec(ctxT(t), ";"); err != nil || tag.String() != "" {
		t.Errorf("empty command: %q %v", tag, err)
	}

	// PAUSE waits for transactions, and holds new ones.
	other := r.connect(t)
	mustExec(t, admin, "PAUSE dify FOR 1m")
	held := make(chan error, 1)
	go func() { _, err := other.Exec(context.Background(), "SELECT 1"); held <- err }()
	eventually.Nil(t, time.Minute, func() error {
		if row := show(t, "SHOW POOLS")[0]; row["cl_waiting"] != "1" {
			return fmt.Errorf("%v", row)
		}
		return nil
	})
	if row := show(t, "SHOW DATABASES")[0]; row["paused"] != "1" {
		t.Errorf("%v", row)
	}
	mustExec(t, admin, "RESUME dify")
	if err := <-held; err != nil {
		t.Error(err)
	}

	// RELOAD takes what may change, and says what may not.
	next := r.live.Load().cfg
	var failure error
	r.opts.Load = func() (Config, error) { return next, failure }
	next.Pool.Size = 5
	mustExec(t, admin, "RELOAD")
	if row := show(t, "SHOW POOLS")[0]; row["pool_size"] != "5" {
		t.Errorf("after RELOAD: %v", row)
	}
	next.Pool.Mode, next.Splitting.Mode = ModeSession, SplittingOff
	if _, err := admin.Exec(ctxT(t), "RELOAD"); code(err) != "F0000" || !strings.Contains(err.Error(), "pool.mode: cannot be reloaded") {
		t.Errorf("RELOAD of pool.mode: %v", err)
	}
	failure = errors.New("no such file")
	if _, err := admin.Exec(ctxT(t), "RELOAD"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("RELOAD without a file: %v", err)
	}
	mustExec(t, c, "SELECT 1") // through all of it

	// A driver that prepares its statements is told so, and can go on.
	prepared, err := console(t, "admin", password, "pgproxy")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := prepared.PgConn().ExecParams(ctxT(t), "SHOW POOLS", nil, nil, nil, nil).Read().Err; code(err) != codeUnsupported {
			t.Errorf("extended protocol: %v", err)
		}
	}
	// psql is what people have.
	host, port, _ := net.SplitHostPort(r.addr)
	cmd := exec.Command("psql", "--no-psqlrc", "-h", host, "-p", port, "-U", "admin", "-d", "pgproxy", "-At")
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGSSLMODE=disable")
	cmd.Stdin = strings.NewReader("\\conninfo\nSHOW VERSION;\nSHOW NONSENSE;\nPAUSE;\nRESUME;\n")
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"fournines pgproxy v1", "ERROR:  unknown command: SHOW NONSENSE", "SHOW HELP lists", "NOTICE:  new transactions are held", "\nPAUSE\nRESUME\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("psql does not say %q: %v\n%s", want, err, out)
		}
	}
	if strings.Contains(string(out), "WARNING") {
		t.Errorf("psql warns:\n%s", out)
	}
}
