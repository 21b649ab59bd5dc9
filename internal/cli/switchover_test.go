package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"fournines/component/etcd"
	"fournines/component/postgres"
	"fournines/internal/adminhttp"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/pgproxy"
	"fournines/topology"
)

// databaseLayer is a cluster of two Patroni nodes that replicate synchronously,
// and two pgproxies in front of it.
type databaseLayer struct {
	dify, token, rest, superuser string // password and token files
	password                     string // dify's
	patroni, admin, clients      []string
}

func startDatabaseLayer(t *testing.T) *databaseLayer {
	t.Helper()
	servertest.Need(t, "etcd", "patroni", filepath.Join(postgres.DefaultBinDir, "postgres"))
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	secret := func(name string) string { return servertest.Secret(t, owner, dir, name, "secret of "+name) }
	d := &databaseLayer{
		dify: secret("dify"), password: "secret of dify", token: secret("token-of-the-proxies"), rest: secret("rest"), superuser: secret("superuser"),
	}
	store, err := etcd.Unit(etcd.Config{
		Name: "etcd", Zone: "a", Members: []etcd.Member{{Name: "etcd", Host: "127.64.1.10"}}, Cluster: "switchover-test",
		DataDir: filepath.Join(dir, "etcd"), Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	servertest.Launch(t, owner, store)
	var nodes []*servertest.Unit
	var backends []topology.Endpoint
	var addresses []string
	for i, zone := range []string{"a", "b"} {
		host := fmt.Sprintf("127.64.%d.20", i+1)
		unit, err := postgres.Unit(postgres.Config{
			Name: "postgres-" + zone, Zone: zone, Cluster: "test", Host: host, Etcd: []string{"127.64.1.10:2379"},
			Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			DataDir:  filepath.Join(dir, "postgres-"+zone), Owner: owner, MaxConnections: 50,
			Passwords: postgres.NodePasswords{Superuser: d.superuser, Replicator: secret("replicator"), Rewind: secret("rewind"), REST: d.rest},
		})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, servertest.Launch(t, owner, unit))
		backends = append(backends, topology.Endpoint{Name: unit.Name, Zone: zone, Address: unit.Address})
		addresses = append(addresses, unit.Address)
		d.patroni = append(d.patroni, net.JoinHostPort(host, "8008"))
	}
	probe := secret("pgproxy")
	for _, n := range nodes {
		n.WaitReady()
	}
	task, err := postgres.BootstrapTask(postgres.BootstrapConfig{
		Nodes: addresses, Superuser: d.superuser, Dify: d.dify, Monitor: secret("monitor"), PGProxy: probe,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Task(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"a", "b"} {
		cfg := pgproxy.DefaultConfig()
		cfg.Zone, cfg.Backends, cfg.Probe.PasswordFile, cfg.Admin.TokenFile = zone, backends, probe, d.token
		cfg.Users = []pgproxy.User{{Name: "dify", PasswordFile: d.dify}}
		cfg.Pool.Size = 10
		reg := prometheus.NewRegistry()
		p, err := pgproxy.New(cfg, pgproxy.Options{Version: "test"}, slog.New(slog.DiscardHandler), reg)
		if err != nil {
			t.Fatal(err)
		}
		admin := &adminhttp.Server{Gatherer: reg, Ready: p.Ready, Handlers: p.AdminHandlers(), Token: p.AdminToken}
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for _, s := range []struct {
			addresses *[]string
			run       func(context.Context, net.Listener) error
		}{{&d.clients, p.Run}, {&d.admin, admin.Run}} {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			*s.addresses = append(*s.addresses, ln.Addr().String())
			wg.Go(func() {
				if err := s.run(ctx, ln); err != nil {
					t.Error(err)
				}
			})
		}
		t.Cleanup(func() { stop(); wg.Wait() })
	}
	return d
}

// connect opens a connection through one of the proxies.
func (d *databaseLayer) connect(t *testing.T, i int, simple bool) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig("postgres://dify@" + d.clients[i%len(d.clients)] + "/dify?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Password = d.password
	if simple {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// switchover runs the command and returns what it printed.
func (d *databaseLayer) switchover(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	a := &app{stdout: &out, stderr: &out}
	args = append([]string{
		"switchover", "--proxy", d.admin[0], "--proxy", d.admin[1], "--proxy-token-file", d.token, "--patroni", d.patroni[1], "--patroni", d.patroni[0],
		"--patroni-password-file", d.rest, "--superuser-password-file", d.superuser,
	}, args...)
	if code := a.run(ctx, args); code != 0 {
		return out.String(), fmt.Errorf("exit status %d", code)
	}
	return out.String(), nil
}

// transfers are short transactions that write, like pgbench's.
type transfers struct {
	committed, longest atomic.Int64 // longest in nanoseconds
}

func (b *transfers) run(ctx context.Context, conn *pgx.Conn, client int) error {
	defer conn.Close(context.Background())
	for n := 0; ctx.Err() == nil; n++ {
		begun := time.Now()
		err := pgx.BeginFunc(context.Background(), conn, func(tx pgx.Tx) error {
			_, err1 := tx.Exec(context.Background(), "UPDATE accounts SET balance = balance + $1 WHERE id = $2", n%7-3, client)
			_, err2 := tx.Exec(context.Background(), "INSERT INTO history (account, delta) VALUES ($2, $1)", n%7-3, client)
			return errors.Join(err1, err2)
		})
		if err != nil {
			return err
		}
		b.committed.Add(1)
		took := int64(time.Since(begun))
		for old := b.longest.Load(); took > old && !b.longest.CompareAndSwap(old, took); old = b.longest.Load() {
		}
	}
	return nil
}

// The primary changes under load, there and back: not one statement fails,
// nothing that was committed is lost, and nothing happens twice.
func TestSwitchover(t *testing.T) {
	d := startDatabaseLayer(t)
	admin := d.connect(t, 0, true)
	defer admin.Close(context.Background())
	const clients = 8
	if _, err := admin.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
		INSERT INTO accounts SELECT generate_series(0, %d); CREATE TABLE history (account int, delta int)`, clients-1)); err != nil {
		t.Fatal(err)
	}
	var b transfers
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range clients {
		conn := d.connect(t, i, i%4 < 2) // both protocols through both proxies
		wg.Go(func() {
			if err := b.run(ctx, conn, i); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	defer wg.Wait()
	defer stop()
	progress := func() {
		t.Helper()
		want := b.committed.Load() + 100
		eventually.Nil(t, time.Minute, func() error {
			if got := b.committed.Load(); got < want {
				return fmt.Errorf("%d of %d transactions", got, want)
			}
			return nil
		})
	}
	// awaitCheck waits until a switchover is possible, and returns the plan.
	awaitCheck := func(args ...string) (out string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() (err error) {
			if out, err = d.switchover(t.Context(), append(args, "--check")...); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			return nil
		})
		return out
	}
	progress()
	first := strings.Fields(awaitCheck())[2]
	for _, tt := range []struct{ name, to, wait, want string }{
		{"to the primary", first, "2s", "is the primary already"},
		{"to nobody", "nobody", "2s", `no member "nobody"`},
		{"with an open transaction", "", "100ms", "still run"},
	} {
		if tt.to == "" {
			if _, err := admin.Exec(t.Context(), "BEGIN; SELECT 1"); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := d.switchover(t.Context(), "--to", tt.to, "--wait", tt.wait); err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("switchover %s: %v\n%s", tt.name, err, out)
		}
	}
	if _, err := admin.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	progress()
	for _, args := range [][]string{nil, {"--to", first}} {
		awaitCheck(args...) // the new primary needs a synchronous standby before it can be left
		b.longest.Store(0)
		out, err := d.switchover(t.Context(), args...)
		if err != nil {
			t.Fatalf("switchover: %v\n%s", err, out)
		}
		progress()
		t.Logf("longest transaction %.2f s\n%s", time.Duration(b.longest.Load()).Seconds(), out)
	}
	if last := strings.Fields(awaitCheck())[2]; last != first {
		t.Errorf("the primary is %s, want %s", last, first)
	}
	stop()
	wg.Wait()
	var rows int64
	var wrong int
	err := admin.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM history),
		(SELECT count(*) FROM accounts a WHERE balance <> (SELECT coalesce(sum(delta), 0) FROM history WHERE account = a.id))`).Scan(&rows, &wrong)
	if err != nil || wrong != 0 || rows != b.committed.Load() {
		t.Errorf("%d rows for %d committed transactions, %d accounts are wrong: %v", rows, b.committed.Load(), wrong, err)
	}
}

// When Patroni refuses, or nobody becomes primary in time, the proxies resume.
func TestSwitchoverThatFailsResumes(t *testing.T) {
	var resumed atomic.Int32
	paused := atomic.Bool{}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/pause":
			paused.Store(true)
		case "/v1/resume":
			resumed.Add(1)
			paused.Store(false)
		}
		list := "[]"
		if paused.Load() {
			list = `[{"until":"2030-01-01T00:00:00Z"}]`
		}
		fmt.Fprintf(w, `{"primary": "10.0.0.1:5432", "paused": %s}`, list)
	}))
	defer proxy.Close()
	var patroni *httptest.Server
	patroni = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/switchover" {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "Switchover failed")
			return
		}
		fmt.Fprintf(w, `{"members": [
			{"name": "a", "role": "leader", "state": "running", "api_url": "%[1]s/patroni", "host": "10.0.0.1", "port": 5432, "timeline": 1},
			{"name": "b", "role": "sync_standby", "state": "streaming", "api_url": "%[1]s/patroni", "host": "10.0.0.2", "port": 5432, "timeline": 1, "lag": 0}]}`, patroni.URL)
	}))
	defer patroni.Close()
	var out bytes.Buffer
	a := &app{stdout: &out, stderr: &out}
	code := a.run(t.Context(), []string{"switchover", "--proxy", proxy.Listener.Addr().String(), "--patroni", patroni.Listener.Addr().String()})
	if code != 1 || resumed.Load() != 1 {
		t.Errorf("exit status %d, %d times resumed", code, resumed.Load())
	}
	for _, want := range []string{"a is the primary; b, its sync standby, is 0 bytes behind; 1 proxies", "Switchover failed", "transactions go on", "--wait"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
