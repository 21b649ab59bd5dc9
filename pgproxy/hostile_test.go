package pgproxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/pgwire"
	"fournines/internal/servertest"
)

// startupFor is a startup packet of protocol 3 with these parameters.
func startupFor(params string) string {
	n := 8 + len(params) + 1
	return string([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 0, 3, 0, 0}) + params + "\x00"
}

// lastWordsOf reads what the proxy says until it closes the connection, and
// returns the SQLSTATE of its last error, or "" when there was none.
func lastWordsOf(t *testing.T, name string, conn net.Conn) (code string) {
	t.Helper()
	r := bufio.NewReader(conn)
	for {
		typ, size, err := pgwire.PeekHeader(r)
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("%s: not cut off", name)
			}
			return code
		}
		body, err := pgwire.ReadBody(nil, r, size)
		if err != nil {
			return code
		}
		if typ == 'E' {
			code = pgwire.ParseError(body).Code
		}
	}
}

// Every hostile client gets the answer that docs/postgres.md states, and nobody
// else notices.
func TestHostileClients(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) {
		c.Limits.LoginTimeout = time.Second
		c.Limits.StatementBytes = 64 << 10
		c.Limits.Statements = 10
	}, db)
	good := r.connect(t)
	const protocol, nothing = codeProtocol, ""
	for _, tt := range []struct{ name, bytes, want string }{
		{"another protocol", "GET / HTTP/1.1\r\n\r\n", protocol},
		{"startup packet of 2 GiB", "\x7f\xff\xff\xff", protocol},
		{"negative length", "\xff\xff\xff\xff\x00\x03\x00\x00", protocol},
		{"length below its own", "\x00\x00\x00\x03", protocol},
		{"protocol 2", "\x00\x00\x00\x08\x00\x02\x00\x00", codeUnsupported},
		{"parameters without end", "\x00\x00\x00\x0c\x00\x03\x00\x00abcd", protocol},
		{"endless parameters", startupFor(strings.Repeat("a\x00b\x00", 2400)), protocol},
		{"no user", startupFor("database\x00dify\x00"), codeNoAuthorisation},
		{"replication", startupFor("user\x00dify\x00replication\x00true\x00"), codeUnsupported},
		{"nothing", "", nothing},
		{"half of a startup packet", "\x00\x00", nothing},
		{"half of a login", startupFor("user\x00dify\x00"), nothing},
		{"a query instead of a password", startupFor("user\x00dify\x00") + "Q\x00\x00\x00\x05\x00", protocol},
		{"a password of 1 MiB", startupFor("user\x00dify\x00") + "p\x00\x10\x00\x00" + strings.Repeat("x", 1<<16), protocol},
		{"a SASL mechanism that does not exist", startupFor("user\x00dify\x00") + "p\x00\x00\x00\x0aPLAIN\x00", protocol},
		{"encryption asked for again and again", strings.Repeat("\x00\x00\x00\x08\x04\xd2\x16\x30", 4), protocol},
	} {
		conn, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, _ = io.WriteString(conn, tt.bytes)
		var got string
		if strings.HasPrefix(tt.name, "encryption") {
			_, _ = io.ReadFull(conn, make([]byte, 3)) // three refusals, one byte each
		}
		if got = lastWordsOf(t, tt.name, conn); got != tt.want {
			t.Errorf("%s: SQLSTATE %q, want %q", tt.name, got, tt.want)
		}
		_ = conn.Close()
	}
	// After the login.
	for _, tt := range []struct{ name, bytes, want string }{
		{"unknown message", "Z\x00\x00\x00\x04", protocol},
		{"length of 4 GiB", "Q\xff\xff\xff\xff", protocol},
		{"length below its own", "Q\x00\x00\x00\x03", protocol},
		{"an Execute of 20 KiB", "E\x00\x00\x50\x00", protocol},
		{"a query without its end", "Q\x00\x00\x00\x08SELE", protocol},
		{"a statement over the limit", "P\x00\x02\x00\x00", codeLimit},
	} {
		c := r.connect(t).PgConn().Conn()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, tt.bytes); err != nil {
			t.Fatal(err)
		}
		if got := lastWordsOf(t, tt.name, c); got != tt.want {
			t.Errorf("%s: SQLSTATE %q, want %q", tt.name, got, tt.want)
		}
	}
	// Passwords: wrong ones and users that do not exist look the same, and after
	// a few the next ones wait in line; users who belong there do not.
	wrong := strings.Replace(r.dsn(), db.Password("dify"), "wrong", 1)
	for range freeGuesses {
		if _, err := pgx.Connect(ctxT(t), wrong); code(err) != codeWrongPassword {
			t.Errorf("wrong password: %v", err)
		}
		if _, err := pgx.Connect(ctxT(t), strings.Replace(r.dsn(), "dify:", "nobody:", 1)); code(err) != codeWrongPassword {
			t.Errorf("unknown user: %v", err)
		}
	}
	if n := r.metrics.authFailures.Load(); n != 2*freeGuesses {
		t.Errorf("%d failures counted, want %d", n, 2*freeGuesses)
	}
	next := r.live.Load().cfg
	next.Limits.AuthFailureDelay, next.Limits.AuthFailureMaxDelay = time.Minute, time.Minute
	if err := r.Reload(next); err != nil {
		t.Fatal(err)
	}
	addr := guessAddr(good.PgConn().Conn().RemoteAddr())
	r.guesses.failed(addr, next.Limits, time.Now())
	if _, err := pgx.Connect(ctxT(t), strings.Replace(r.dsn(), "dify:", "nobody:", 1)); code(err) != codeTooMany {
		t.Errorf("one guess more: %v", err)
	}
	if n := r.metrics.authRefused.Load(); n != 1 {
		t.Errorf("%d logins refused, want 1", n)
	}
	mustExec(t, r.connect(t), "SELECT 1")
	mustExec(t, good, "SELECT 1")
}
