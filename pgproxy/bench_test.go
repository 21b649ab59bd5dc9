package pgproxy

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"fournines/internal/pgwire"
	"fournines/internal/servertest"
)

func BenchmarkSelect(b *testing.B) {
	db := servertest.NewPostgres(b, servertest.PostgresOptions{})
	r := startProxy(b, nil, db)
	for name, dsn := range map[string]string{"direct": db.DSN("dify"), "proxy": r.dsn()} {
		b.Run(name, func(b *testing.B) {
			c, err := pgx.Connect(b.Context(), dsn)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				var n int
				if err := c.QueryRow(b.Context(), "SELECT $1::int", 1).Scan(&n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// client sends bytes that were made in advance, so that what a test measures is
// the proxy.
type client struct {
	net.Conn
	buf [512]byte
}

func newClient(tb testing.TB, dsn string) *client {
	tb.Helper()
	pc, err := pgconn.Connect(tb.Context(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	if err := pc.SyncConn(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	h, err := pc.Hijack()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = h.Conn.Close() })
	_ = h.Conn.SetDeadline(time.Now().Add(5 * time.Minute))
	return &client{Conn: h.Conn}
}

// ask sends a request and waits for the ReadyForQuery behind its answer, which
// must fit into the buffer.
func (c *client) ask(request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	for n := 0; ; {
		k, err := c.Read(c.buf[n:])
		if err != nil {
			return err
		}
		n += k
		if bytes.HasSuffix(c.buf[:n], []byte("Z\x00\x00\x00\x05I")) {
			if bytes.Contains(c.buf[:n], []byte("\x00VERROR\x00")) {
				return fmt.Errorf("answer %q", c.buf[:n])
			}
			return nil
		}
	}
}

// The requests of a client: a simple query, and a prepared one.
var (
	simpleRequest   = pgwire.AppendQuery(nil, "SELECT abalance FROM pg_catalog.generate_series(1, 1) abalance WHERE abalance = 1")
	prepareRequest  = pgwire.Append(pgwire.AppendParse(nil, "one", []byte("SELECT abalance FROM pg_catalog.generate_series(1, 1) abalance WHERE abalance = 1\x00\x00\x00")), 'S')
	preparedRequest = pgwire.Append(pgwire.Append(pgwire.Append(pgwire.Append(nil, 'B', []byte("\x00one\x00\x00\x00\x00\x00\x00\x00")...), 'D', 'P', 0), 'E', 0, 0, 0, 0, 0), 'S')
)

// BenchmarkClients has more clients than server connections, as pgbench in make
// bench-pgproxy.
func BenchmarkClients(b *testing.B) {
	db := servertest.NewPostgres(b, servertest.PostgresOptions{})
	r := startProxy(b, func(c *Config) { c.Pool.Size = 8 }, db)
	for name, requests := range map[string][2][]byte{"simple": {simpleRequest, simpleRequest}, "prepared": {prepareRequest, preparedRequest}} {
		b.Run(name, func(b *testing.B) {
			clients := make([]*client, 20)
			for i := range clients {
				clients[i] = newClient(b, r.dsn())
				if err := clients[i].ask(requests[0]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			var left atomic.Int64
			left.Store(int64(b.N))
			for _, c := range clients {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := c.ask(requests[1]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
