package splitting

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/pgproxy"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is one primary with two standbys.
type cluster struct {
	primary  *servertest.Postgres
	standbys []*servertest.Postgres
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	p := servertest.NewPostgres(t, servertest.PostgresOptions{})
	return &cluster{primary: p, standbys: []*servertest.Postgres{servertest.NewStandby(t, p), servertest.NewStandby(t, p)}}
}

// proxy is one pgproxy with the metrics that it publishes.
type proxy struct {
	cluster *cluster
	addr    string
	metrics *prometheus.Registry
}

// proxy starts a proxy in a zone of its own and waits until it sends reads of
// the probe table to standbys.
func (c *cluster) proxy(t *testing.T, splitting pgproxy.Splitting) *proxy {
	t.Helper()
	cfg := pgproxy.DefaultConfig()
	for i, s := range append([]*servertest.Postgres{c.primary}, c.standbys...) {
		cfg.Backends = append(cfg.Backends, topology.Endpoint{Name: fmt.Sprint("pg", i), Address: s.Address()})
	}
	cfg.Users = []pgproxy.User{{Name: "dify", PasswordFile: c.primary.PasswordFile(t, "dify")}}
	cfg.Probe.PasswordFile = c.primary.PasswordFile(t, "pgproxy")
	// No server is lost here, however busy the machine is.
	cfg.Probe.Timeout = 15 * time.Second
	cfg.Splitting = splitting
	reg := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("PGPROXY_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	p, err := pgproxy.New(cfg, pgproxy.Options{}, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := &proxy{cluster: c, addr: ln.Addr().String(), metrics: reg}
	eventually.Nil(t, time.Minute, func() error {
		if v := p.Status(); v.Primary == nil || len(v.Standbys) != len(c.standbys) {
			return fmt.Errorf("primary %v, %d standbys", v.Primary, len(v.Standbys))
		}
		return nil
	})
	conn := r.connect(t)
	defer func() { _ = conn.Close(context.Background()) }()
	eventually.Nil(t, time.Minute, func() error {
		if _, err := conn.Exec(t.Context(), "SELECT 1 FROM probe"); err != nil {
			return err
		}
		if r.reads() == 0 {
			return fmt.Errorf("no read on a standby yet")
		}
		return nil
	})
	return r
}

// connect logs in as the application.
func (r *proxy) connect(t *testing.T, params ...string) *pgx.Conn {
	t.Helper()
	return connect(t, r.cluster.primary.DSNVia(r.addr, "dify"), params...)
}

func connect(t *testing.T, dsn string, params ...string) *pgx.Conn {
	t.Helper()
	for _, p := range params {
		dsn += "&" + p
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// direct logs in at the primary itself.
func (c *cluster) direct(t *testing.T, params ...string) *pgx.Conn {
	t.Helper()
	return connect(t, c.primary.DSN("dify"), params...)
}

func mustExec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// reads is how many reads of tables standbys have answered.
func (r *proxy) reads() int { return r.routed("standby", "read") }

// routed reads one of the proxy's counters.
func (r *proxy) routed(target, reason string) int { return r.allRouted()[target+" "+reason] }

// allRouted are the proxy's counters of queries and batches, by target and reason.
func (r *proxy) allRouted() map[string]int {
	all := map[string]int{}
	families, err := r.metrics.Gather()
	if err != nil {
		return all
	}
	for _, f := range families {
		if f.GetName() != "fournines_pgproxy_routed_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			all[labels["target"]+" "+labels["reason"]] = int(m.GetCounter().GetValue())
		}
	}
	return all
}

// reportEvery is how often a long run says how far it is.
const reportEvery = 30 * time.Second

// report tells every while how much of a run is done and how long the rest will
// take, until the returned function is called. Short runs end before it speaks.
func report(t *testing.T, what string, total int, done func() (n int, detail string)) (stop func()) {
	t.Helper()
	began := time.Now()
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			n, detail := done()
			if n == 0 {
				continue
			}
			took := time.Since(began)
			left := time.Duration(float64(took) / float64(n) * float64(total-n))
			t.Logf("%d of %d %s (%.0f/s, %v left): %s", n, total, what, float64(n)/took.Seconds(), left.Round(time.Second), detail)
		}
	})
	return func() {
		close(end)
		wg.Wait()
	}
}
