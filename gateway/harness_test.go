package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// A pool of the Redis client whose server was away still sleeps for a second
// after it has been closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// patience bounds every wait: the machine may be busy.
const patience = 30 * time.Second

// instance stands in for one Dify API process. Its handler can be replaced and
// it can be killed: listener and connections closed at once.
type instance struct {
	addr    string
	zone    string
	srv     *http.Server
	handler atomic.Pointer[http.HandlerFunc]
	healthy atomic.Bool
	served  atomic.Int64 // requests other than /health
	done    chan struct{}
	once    sync.Once
}

func newInstance(tb testing.TB, zone string, h http.HandlerFunc) *instance {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	in := &instance{addr: ln.Addr().String(), zone: zone, done: make(chan struct{})}
	in.healthy.Store(true)
	in.handler.Store(&h)
	in.serve(ln)
	tb.Cleanup(in.kill)
	return in
}

func (in *instance) serve(ln net.Listener) {
	in.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			if !in.healthy.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return
		}
		in.served.Add(1)
		(*in.handler.Load())(w, r)
	}), IdleTimeout: 2 * time.Second}
	go func() {
		defer close(in.done)
		_ = in.srv.Serve(ln)
	}()
}

func (in *instance) kill() {
	in.once.Do(func() {
		_ = in.srv.Close()
		<-in.done
	})
}

func (in *instance) upstream() Upstream {
	u, err := ParseUpstream("http://" + in.addr + "@" + in.zone)
	if err != nil {
		panic(err)
	}
	return u
}

// running is a gateway under test.
type running struct {
	*Gateway
	url, addr string
	reg       *prometheus.Registry
	cfg       Config
	logs      *servertest.Output
	stop      context.CancelFunc
	done      chan error
}

func testConfig(ins ...*instance) Config {
	cfg := DefaultConfig()
	cfg.Zone = "zone-a"
	cfg.Health.Interval = 50 * time.Millisecond
	cfg.Health.Timeout = 5 * time.Second // a busy machine is not an ill instance
	cfg.Drain = Drain{Announce: 0, Timeout: 5 * time.Second}
	cfg.AccessLog = true
	cfg.Stream.Hold = 0 // the tests that look at the header turn it on
	for _, in := range ins {
		cfg.Upstreams = append(cfg.Upstreams, in.upstream())
	}
	return cfg
}

// start runs a gateway until the test ends and waits until all instances of
// the configuration are known to be healthy.
func start(tb testing.TB, cfg Config) *running {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &running{cfg: cfg, reg: prometheus.NewRegistry(), logs: &servertest.Output{}, done: make(chan error, 1)}
	r.Gateway, err = New(cfg, slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), r.reg)
	if err != nil {
		tb.Fatal(err)
	}
	r.addr = ln.Addr().String()
	r.url = "http://" + r.addr
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- r.Run(ctx, ln) }()
	tb.Cleanup(func() {
		r.stop()
		if err := r.wait(); err != nil {
			tb.Errorf("Run: %v", err)
		}
		if tb.Failed() {
			tb.Logf("gateway log:\n%s", tail(r.logs.String(), 40))
		}
		if strings.Contains(r.logs.String(), "handler panicked") {
			tb.Errorf("a handler panicked:\n%s", r.logs)
		}
	})
	eventually.Nil(tb, patience, func() error {
		if usable, all := r.pool.Healthy(); usable != all {
			return fmt.Errorf("%d of %d healthy", usable, all)
		}
		return r.Ready()
	})
	return r
}

func (r *running) wait() error {
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(patience):
		return fmt.Errorf("still running after %v", patience)
	}
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// client makes a client with connections of its own.
func client(tb testing.TB) *http.Client {
	tb.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func get(tb testing.TB, c *http.Client, url string) (int, string, http.Header) {
	tb.Helper()
	resp, err := c.Get(url)
	if err != nil {
		tb.Fatalf("GET %s: %v", url, err)
	}
	return read(tb, resp)
}

func post(tb testing.TB, c *http.Client, url, body string) (int, string, http.Header) {
	tb.Helper()
	resp, err := c.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		tb.Fatalf("POST %s: %v", url, err)
	}
	return read(tb, resp)
}

func read(tb testing.TB, resp *http.Response) (int, string, http.Header) {
	tb.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("read answer: %v (after %q)", err, b)
	}
	return resp.StatusCode, string(b), resp.Header
}

func (r *running) metric(tb testing.TB, c prometheus.Collector) float64 {
	tb.Helper()
	return testutil.ToFloat64(c)
}

// say answers with the name, in one piece.
func say(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, name)
	}
}

// abort breaks the connection of a request without an answer.
func abort(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = conn.Close()
}

// nobodyInFlight says whether all requests have ended, here and in the pool's
// books.
func nobodyInFlight(g *running) error {
	if n := g.inFlight.Load(); n != 0 {
		return fmt.Errorf("%d requests in flight", n)
	}
	for _, e := range g.pool.Endpoints() {
		if n := e.InFlight(); n != 0 {
			return fmt.Errorf("%d requests counted at %s", n, e.Name)
		}
	}
	return nil
}
