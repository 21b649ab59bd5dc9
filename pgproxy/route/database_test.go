//go:build cgo

package route

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fournines/internal/eventually"
)

// TestDatabase follows a real database through changes.
func TestDatabase(t *testing.T) {
	k := newKnown(t, DatabaseConfig{Interval: time.Hour})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.database.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	becomes := func(sql string, want Target) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			if d := k.router.Route([]byte(sql)); d.Target != want {
				return errors.New(d.Target.String() + ", " + d.Reason.String())
			}
			return nil
		})
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := k.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	becomes("SELECT * FROM t", Standby)
	version := k.database.Version()

	t.Run("same content, same version", func(t *testing.T) {
		k.database.Changed()
		if d := k.router.Route([]byte("SELECT * FROM t")); d.Target != Primary || d.Reason != ReasonCatalog {
			t.Errorf("while the catalog is blind: %+v", d)
		}
		becomes("SELECT * FROM t", Standby)
		if v := k.database.Version(); v != version {
			t.Errorf("version %d, was %d", v, version)
		}
	})
	t.Run("a miss is looked up", func(t *testing.T) {
		exec("CREATE TABLE made_elsewhere (id int)")
		becomes("SELECT * FROM made_elsewhere", Standby)
		if v := k.database.Version(); v == version {
			t.Error("the version is still the same")
		}
	})
	t.Run("a change is seen", func(t *testing.T) {
		becomes("SELECT f_immutable(id) FROM t", Standby)
		exec("ALTER FUNCTION f_immutable(int) VOLATILE")
		k.database.Changed()
		if d := k.router.Route([]byte("SELECT f_immutable(id) FROM t")); d.Target != Primary {
			t.Errorf("right after the change: %+v", d)
		}
		eventually.Nil(t, time.Minute, func() error {
			if d := k.router.Route([]byte("SELECT f_immutable(id) FROM t")); d.Reason != ReasonVolatile {
				return errors.New(d.Reason.String())
			}
			return nil
		})
		becomes("SELECT * FROM t", Standby)
		exec("ALTER TABLE t SET UNLOGGED")
		k.database.Changed()
		eventually.Nil(t, time.Minute, func() error {
			if d := k.router.Route([]byte("SELECT * FROM t")); d.Reason != ReasonRelation {
				return errors.New(d.Reason.String())
			}
			return nil
		})
	})
}

// reply answers a reading with rows; a change while it reads is made by during.
type reply struct {
	rows   [][]string
	err    error
	reads  atomic.Int32
	during func()
}

func (r *reply) Query(_ context.Context, _ string, row func([][]byte) error) error {
	r.reads.Add(1)
	for _, values := range r.rows {
		var b [][]byte
		for _, v := range values {
			b = append(b, []byte(v))
		}
		if err := row(b); err != nil {
			return err
		}
	}
	if r.during != nil {
		r.during()
	}
	return r.err
}

func TestDatabaseReading(t *testing.T) {
	good := [][]string{{"f", "pg_catalog", "now", "1", ""}, {"r", "public", "t", "t", ""}}
	t.Run("too many names", func(t *testing.T) {
		d := NewDatabase(&reply{rows: good}, DatabaseConfig{MaxNames: 1})
		if _, err := d.read(t.Context()); !errors.Is(err, errTooLarge) || d.Version() != Blind {
			t.Errorf("got %v, version %d", err, d.Version())
		}
	})
	t.Run("no rows, wrong rows", func(t *testing.T) {
		for _, rows := range [][][]string{nil, {{"f", "x"}}, {{"f", "a", "b", "", ""}}} {
			d := NewDatabase(&reply{rows: rows}, DatabaseConfig{})
			if _, err := d.read(t.Context()); err == nil || !strings.Contains(err.Error(), "read catalog") || d.Version() != Blind {
				t.Errorf("%v: got %v, version %d", rows, err, d.Version())
			}
		}
	})
	t.Run("the last reading stands", func(t *testing.T) {
		r := &reply{rows: good}
		d := NewDatabase(r, DatabaseConfig{})
		if fresh, err := d.read(t.Context()); err != nil || !fresh {
			t.Fatal(fresh, err)
		}
		version := d.Version()
		r.err = errors.New("gone")
		if _, err := d.read(t.Context()); !errors.Is(err, r.err) {
			t.Fatal(err)
		}
		if d.Version() != version || d.Function("", "now") != Stable || d.Relation("public", "t").Kind != Table {
			t.Error("the catalog forgot what it knew")
		}
	})
	t.Run("a change while it reads", func(t *testing.T) {
		r := &reply{rows: good}
		d := NewDatabase(r, DatabaseConfig{})
		r.during = d.Changed
		if _, err := d.read(t.Context()); err != nil || d.Version() != Blind {
			t.Errorf("got %v, version %d", err, d.Version())
		}
		r.during = nil
		if _, err := d.read(t.Context()); err != nil || d.Version() == Blind {
			t.Errorf("then %v, version %d", err, d.Version())
		}
	})
}

func TestDatabaseRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reply{rows: [][]string{{"f", "pg_catalog", "now", "1", ""}, {"r", "public", "t", "t", ""}}}
		d := NewDatabase(r, DatabaseConfig{Interval: time.Minute})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		after := func(wait time.Duration, want int32) {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			if got := r.reads.Load(); got != want {
				t.Errorf("%d readings, want %d", got, want)
			}
		}
		after(time.Second, 1)
		after(time.Minute, 2) // by the interval
		// Misses without anything new are looked up less and less often.
		for range 300 {
			d.Missed()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := r.reads.Load(); n < 5 || n > 15 {
			t.Errorf("%d readings after misses in five minutes", n)
		}
		n := r.reads.Load()
		d.Changed()
		after(0, n+1)
		if d.Version() == Blind {
			t.Error("blind after a change was read")
		}
		r.err = errors.New("gone")
		d.Changed()
		after(3*time.Second+time.Millisecond, n+5) // at once, then each second
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
