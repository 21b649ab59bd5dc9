package pgproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// writers insert rows until stop, and count what was acknowledged. A statement
// that fails is a failure of the test.
type writers struct {
	acknowledged atomic.Int64
	stop         func()
}

func startWriters(t *testing.T, r *running, n int, params ...string) *writers {
	t.Helper()
	w := &writers{}
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		c := r.connect(t, params...)
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				err := pgx.BeginFunc(ctxT(t), c, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctxT(t), "INSERT INTO w (who) VALUES ($1)", i)
					return err
				})
				if err != nil {
					t.Errorf("a transaction failed: %v", err)
					return
				}
				w.acknowledged.Add(1)
			}
		})
	}
	w.stop = sync.OnceFunc(func() { close(end); wg.Wait() })
	t.Cleanup(w.stop)
	return w
}

// progress waits until so many more rows are acknowledged.
func (w *writers) progress(t *testing.T, rows int64) {
	t.Helper()
	want := w.acknowledged.Load() + rows
	eventually.Nil(t, time.Minute, func() error {
		if got := w.acknowledged.Load(); got < want {
			return fmt.Errorf("%d of %d rows", got, want)
		}
		return nil
	})
}

func TestPause(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, func(c *Config) { c.Pool.Size = 3 }, db)
	c := r.connect(t)
	mustExec(t, c, "CREATE TABLE w (id serial PRIMARY KEY, who int)")
	listener := r.connect(t)
	mustExec(t, listener, "LISTEN ch") // tied to a server, and idle
	load := startWriters(t, r, 6)
	load.progress(t, 20)

	// A transaction that does not end: nothing is paused.
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "INSERT INTO w (who) VALUES (-1)")
	o := PauseOptions{Wait: 50 * time.Millisecond, Lease: time.Minute}
	if err := r.Pause(t.Context(), o); !errors.Is(err, ErrStillRunning) {
		t.Fatalf("pause with an open transaction: %v", err)
	}
	load.progress(t, 20)
	// One that ends meanwhile: the pause waits for it.
	paused := make(chan error, 1)
	o.Wait = MaxPauseWait
	go func() { paused <- r.Pause(context.Background(), o) }()
	eventually.Nil(t, time.Minute, func() error {
		if r.gates.at("dify") == nil {
			return errors.New("the gate is open")
		}
		return nil
	})
	mustExec(t, c, "INSERT INTO w (who) VALUES (-2)")
	mustExec(t, c, "COMMIT")
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	direct, err := pgx.Connect(ctxT(t), db.DSN("dify"))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close(context.Background())
	count := func() int { return scan[int](t, direct, "SELECT count(*)::int FROM w") }
	before := count()
	held := make(chan error, 2)
	for _, c := range []*pgx.Conn{c, listener} {
		go func() {
			_, err := c.Exec(context.Background(), "INSERT INTO w (who) VALUES (-3)")
			held <- err
		}()
	}
	eventually.Nil(t, time.Minute, func() error {
		if n := r.held.Load(); n != 8 {
			return fmt.Errorf("%d clients are held, want 8", n)
		}
		return nil
	})
	if n := count(); n != before {
		t.Errorf("%d rows were written during the pause", n-before)
	}
	if err := r.Pause(t.Context(), o); !errors.Is(err, ErrPaused) {
		t.Errorf("second pause: %v", err)
	}
	if err := r.Resume("other"); !errors.Is(err, ErrNotPaused) {
		t.Errorf("resume of a database that is not paused: %v", err)
	}
	if err := r.Resume(""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-held; err != nil {
			t.Errorf("a held statement failed: %v", err)
		}
	}
	load.progress(t, 20)

	// Another database is not held; a pause that nobody ends, ends by itself.
	if err := r.Pause(t.Context(), PauseOptions{Database: "dify", Wait: MaxPauseWait, Lease: MaxPauseLease}); err != nil {
		t.Fatal(err)
	}
	other, err := pgx.Connect(ctxT(t), strings.Replace(r.dsn(), "/dify?", "/postgres?", 1))
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, other, "SELECT 1")
	_ = other.Close(ctxT(t))
	if err := r.Resume("dify"); err != nil {
		t.Fatal(err)
	}
	if err := r.Pause(t.Context(), PauseOptions{Wait: MaxPauseWait, Lease: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	load.progress(t, 20)
	if n := r.gates.expired.Load(); n != 1 {
		t.Errorf("%d leases ended, want 1", n)
	}
	load.stop()
	if got := count(); int64(got) != load.acknowledged.Load()+4 {
		t.Errorf("%d rows for %d acknowledged transactions and 4 statements", got, load.acknowledged.Load())
	}
	for _, bad := range []PauseOptions{{Wait: -1, Lease: time.Second}, {Wait: MaxPauseWait + 1, Lease: time.Second}, {}, {Lease: MaxPauseLease + 1}} {
		if err := r.Pause(t.Context(), bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// A switchover under a pause fails nothing, in the extended protocol either,
// and the pause ends by itself when the successor is there.
func TestPausedSwitchoverFailsNothing(t *testing.T) {
	a, b := pair(t)
	r := startProxy(t, func(c *Config) { c.Pool.Size = 4 }, a, b)
	mustExec(t, r.connect(t), "CREATE TABLE w (id serial PRIMARY KEY, who int)")
	load := startWriters(t, r, 8)
	load.progress(t, 50)
	if err := r.Pause(t.Context(), PauseOptions{Wait: MaxPauseWait, Lease: time.Minute, UntilPrimary: true}); err != nil {
		t.Fatal(err)
	}
	a.Stop()
	b.Promote()
	b.Exec("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
	load.progress(t, 50)
	load.stop()
	if r.gates.at("dify") != nil {
		t.Error("still paused")
	}
	if got := scan[int64](t, r.connect(t), "SELECT count(*) FROM w"); got != load.acknowledged.Load() {
		t.Errorf("%d rows for %d acknowledged transactions", got, load.acknowledged.Load())
	}
}

func TestAdminAPI(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	c := r.connect(t)
	mustExec(t, c, "SELECT 1")
	var reload error
	cfg := r.live.Load().cfg
	r.opts.Load = func() (Config, error) { return cfg, reload }
	mux := http.NewServeMux()
	for pattern, h := range r.AdminHandlers() {
		mux.Handle(pattern, h)
	}
	call := func(method, path string, want int) (s Status, e adminError) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != want {
			t.Fatalf("%s %s: %d %s, want %d", method, path, w.Code, w.Body, want)
		}
		if err := errors.Join(json.Unmarshal(w.Body.Bytes(), &s), json.Unmarshal(w.Body.Bytes(), &e)); err != nil {
			t.Fatal(err)
		}
		return s, e
	}
	s, _ := call("GET", "/v1/status", 200)
	if s.Version != "v1" || !s.Ready || s.Primary != db.Address() || s.Servers[0].State != "primary" || s.Servers[0].LSN == "0/0" || len(s.Paused) != 0 {
		t.Errorf("%+v", s)
	}
	if s, _ = call("POST", "/v1/pause?database=dify&lease=1m", 200); len(s.Paused) != 1 || s.Paused[0].Database != "dify" {
		t.Errorf("%+v", s)
	}
	if _, e := call("POST", "/v1/pause?database=dify", 409); e.Code != "paused" {
		t.Errorf("%+v", e)
	}
	call("POST", "/v1/resume", 409)
	if s, _ = call("POST", "/v1/resume?database=dify", 200); len(s.Paused) != 0 {
		t.Errorf("%+v", s)
	}
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "SELECT 1")
	if _, e := call("POST", "/v1/pause?wait=0s", 409); e.Code != "still_running" {
		t.Errorf("%+v", e)
	}
	for _, bad := range []string{"wait=x", "wait=1h", "lease=0s", "until=never", "force=1"} {
		if _, e := call("POST", "/v1/pause?"+bad, 400); !strings.HasPrefix(e.Message, strings.Split(bad, "=")[0]) {
			t.Errorf("%s: %+v", bad, e)
		}
	}
	reload = errors.New("no such file")
	if _, e := call("POST", "/v1/reload", 422); e.Message != reload.Error() {
		t.Errorf("%+v", e)
	}
	reload = nil
	cfg.Zone, cfg.Probe.Interval = "elsewhere", time.Second
	if _, e := call("POST", "/v1/reload", 422); !strings.Contains(e.Message, "zone: cannot be reloaded") || !strings.Contains(e.Message, "probe.interval: cannot") {
		t.Errorf("%+v", e)
	}
	cfg = r.live.Load().cfg
	cfg.Hold.Max = 7
	if s, _ := call("POST", "/v1/reload", 200); s.LastReload == nil || s.LastReloadError != "" || r.live.Load().cfg.Hold.Max != 7 {
		t.Errorf("%+v", s)
	}
}
