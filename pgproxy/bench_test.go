package pgproxy

import (
	"testing"

	"github.com/jackc/pgx/v5"

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
