package drill

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// writer commits rows one after another on several connections and remembers
// which commits were acknowledged, so that each can be looked for afterwards.
type writer struct {
	url   string
	run   int64
	acked sync.Map // row id -> struct{}
	next  atomic.Int64
	fails atomic.Int64
}

// writers is how many connections write at once.
const writers = 4

// writePause keeps the table small and the disk of a test machine calm.
const writePause = 5 * time.Millisecond

func newWriter(ctx context.Context, url string) (*writer, error) {
	w := &writer{url: url, run: time.Now().UnixNano()}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL for the write check: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, `create table if not exists fournines_drill_writes (
		run bigint not null, id bigint not null, primary key (run, id))`)
	if err != nil {
		return nil, fmt.Errorf("create the table of the write check: %w", err)
	}
	return w, nil
}

// loop writes until ctx ends.
func (w *writer) loop(ctx context.Context) {
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for ctx.Err() == nil {
				w.session(ctx)
			}
		})
	}
	all.Wait()
}

// session writes on one connection until it breaks or ctx ends.
func (w *writer) session(ctx context.Context) {
	pause := time.NewTicker(writePause)
	defer pause.Stop()
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		w.fails.Add(1)
		<-pause.C
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		id := w.next.Add(1)
		if _, err := conn.Exec(ctx, "insert into fournines_drill_writes (run, id) values ($1, $2)", w.run, id); err != nil {
			w.fails.Add(1)
			if conn.IsClosed() {
				return
			}
			continue
		}
		w.acked.Store(id, struct{}{})
	}
}

// check looks for every acknowledged row and removes the run's rows.
func (w *writer) check(ctx context.Context) Check {
	c := Check{Name: "acknowledged-writes"}
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		c.Detail = "cannot look: " + err.Error()
		return c
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "select id from fournines_drill_writes where run = $1", w.run)
	if err != nil {
		c.Detail = "cannot look: " + err.Error()
		return c
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		c.Detail = "cannot look: " + err.Error()
		return c
	}
	found := make(map[int64]bool, len(ids))
	for _, id := range ids {
		found[id] = true
	}
	acked, missing := 0, 0
	w.acked.Range(func(id, _ any) bool {
		acked++
		if !found[id.(int64)] {
			missing++
		}
		return true
	})
	c.OK = missing == 0 && acked > 0
	c.Detail = fmt.Sprintf("%d of %d found, %d attempts got an error", acked-missing, acked, w.fails.Load())
	if acked == 0 {
		c.Detail += "; no write was ever acknowledged, so nothing was proven"
	}
	// The rows are only evidence; failing to remove them does not change the verdict.
	_, _ = conn.Exec(ctx, "delete from fournines_drill_writes where run = $1", w.run)
	return c
}
