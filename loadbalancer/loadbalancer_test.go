package loadbalancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/topology"
)

const patience = 30 * time.Second

// server is a real TCP server: it says its name, then echoes until the end of
// the stream, and then says "bye".
type server struct {
	name string
	addr string
	ln   net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	group sync.WaitGroup
}

// anyAddress is a loopback address that nobody else uses, so that a port on it
// stays free when its listener is closed.
func anyAddress() string {
	return net.JoinHostPort(servertest.LoopbackHost(), "0")
}

func startServer(t testing.TB, name string) *server {
	t.Helper()
	s := &server{name: name}
	s.start(t, anyAddress())
	t.Cleanup(s.stop)
	return s
}

func (s *server) start(t testing.TB, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.ln, s.addr, s.conns = ln, ln.Addr().String(), map[net.Conn]struct{}{}
	s.group.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.group.Go(func() {
				defer func() {
					_ = c.Close()
					s.mu.Lock()
					delete(s.conns, c)
					s.mu.Unlock()
				}()
				if _, err := fmt.Fprintln(c, s.name); err != nil {
					return
				}
				if _, err := io.Copy(c, c); err == nil {
					_, _ = io.WriteString(c, "bye\n")
				}
			})
		}
	})
}

// closeListener refuses new connections; open ones live on.
func (s *server) closeListener() { _ = s.ln.Close() }

// stop ends like a killed process.
func (s *server) stop() {
	s.closeListener()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.group.Wait()
}

func (s *server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *server) backend(zone string) Backend {
	return Backend{Endpoint: topology.Endpoint{Name: s.name, Zone: zone, Address: s.addr}}
}

type running struct {
	*Balancer
	addr string
	reg  *prometheus.Registry
	stop func()
}

// start runs a balancer with one service called "test".
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	listeners, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	b, err := New(cfg, listeners, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	r := &running{Balancer: b, addr: listeners["test"][0].Addr().String(), reg: reg}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func config(backends ...Backend) Config {
	drain := time.Duration(0)
	return Config{
		Drain: &drain,
		Services: []Service{{
			Name: "test", Listen: []string{anyAddress()}, Backends: backends,
			Check: Check{Interval: 50 * time.Millisecond, Timeout: 10 * time.Second, Fall: 1, Rise: 1},
		}},
	}
}

// waitUp waits until so many backends are healthy.
func (r *running) waitUp(t testing.TB, want int) {
	t.Helper()
	eventually.Nil(t, patience, func() error {
		got := 0
		for _, b := range r.services[0].current.Load().backends {
			if b.healthy() {
				got++
			}
		}
		if got != want {
			return fmt.Errorf("%d backends are healthy, want %d", got, want)
		}
		return nil
	})
}

type client struct {
	*net.TCPConn
	r      *bufio.Reader
	server string
}

// connect makes a connection from a source address, and reads the server's name.
func connect(addr, source string) (*client, error) {
	d := net.Dialer{Timeout: patience}
	if source != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	out := &client{TCPConn: c.(*net.TCPConn), r: bufio.NewReader(c)}
	name, err := out.r.ReadString('\n')
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	out.server = strings.TrimSpace(name)
	return out, nil
}

func mustConnect(t testing.TB, addr, source string) *client {
	t.Helper()
	c, err := connect(addr, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (c *client) echo(line string) error {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err
	}
	got, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	if got != line+"\n" {
		return fmt.Errorf("echo of %q is %q", line, got)
	}
	return nil
}

func TestCallersZoneComesFirst(t *testing.T) {
	a, b := startServer(t, "a"), startServer(t, "b")
	cfg := config(a.backend("zone-a"), b.backend("zone-b"))
	cfg.ZoneOf = []ZoneRange{{"127.9.1.0/24", "zone-a"}, {"127.9.2.0/24", "zone-b"}}
	r := start(t, cfg)
	r.waitUp(t, 2)
	for range 10 {
		for source, want := range map[string]string{"127.9.1.7": "a", "127.9.2.7": "b"} {
			if c := mustConnect(t, r.addr, source); c.server != want {
				t.Errorf("from %s: got server %s, want %s", source, c.server, want)
			}
		}
	}
	// Without a zone: the one with the fewest connections, so even in the end.
	count := map[string]int{}
	for range 10 {
		count[mustConnect(t, r.addr, "").server]++
	}
	if count["a"] != 5 || count["b"] != 5 {
		t.Errorf("without a zone: %v", count)
	}
	if got := testutil.ToFloat64(r.metrics.connections.WithLabelValues("test", "zone-a", "a")); got != 15 {
		t.Errorf("connections of a = %v, want 15", got)
	}
	// The zone's own server dies: the other one serves.
	a.stop()
	for range 10 {
		if c := mustConnect(t, r.addr, "127.9.1.7"); c.server != "b" {
			t.Errorf("got server %s", c.server)
		}
	}
	// It comes back: so do its callers.
	a.start(t, a.addr)
	r.waitUp(t, 2)
	if c := mustConnect(t, r.addr, "127.9.1.7"); c.server != "a" {
		t.Errorf("after its return: got server %s", c.server)
	}
}

func TestDeathBetweenChecksRefusesNobody(t *testing.T) {
	a, b := startServer(t, "a"), startServer(t, "b")
	cfg := config(a.backend(""), b.backend(""))
	cfg.Services[0].Check.Interval = time.Hour // only the first check
	r := start(t, cfg)
	r.waitUp(t, 2)
	var group sync.WaitGroup
	var total atomic.Int64
	stop := make(chan struct{})
	for range 8 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := connect(r.addr, "")
				if err != nil {
					// The server may have died after it took the connection.
					if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("connection refused: %v", err)
					}
					continue
				}
				total.Add(1)
				_ = c.Close()
			}
		})
	}
	enough := func(more int64) {
		t.Helper()
		from := total.Load()
		eventually.Nil(t, patience, func() error {
			if total.Load() < from+more {
				return errors.New("too few connections")
			}
			return nil
		})
	}
	enough(200)
	a.closeListener()
	enough(200)
	close(stop)
	group.Wait()
	if got := testutil.ToFloat64(r.metrics.refused.WithLabelValues("test")); got != 0 {
		t.Errorf("%v connections were refused", got)
	}
	// Passive failure: only those tried that were under way.
	if got := testutil.ToFloat64(r.metrics.connectErrors.WithLabelValues("test", "", "a")); got < 1 || got > 20 {
		t.Errorf("%v failed attempts", got)
	}
}

func TestHalfClose(t *testing.T) {
	s := startServer(t, "s")
	r := start(t, config(s.backend("")))
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	payload := strings.Repeat("x", 1<<20)
	go func() {
		_, _ = io.WriteString(c, payload)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c.r)
	if err != nil || string(got) != payload+"bye\n" {
		t.Errorf("read %d bytes, %v; want %d and the server's last word", len(got), err, len(payload)+4)
	}
	eventually.Nil(t, patience, func() error {
		if got := testutil.ToFloat64(r.metrics.connections.WithLabelValues("test", "", "s")); got != 0 {
			return fmt.Errorf("%v connections are open", got)
		}
		return nil
	})
	if got := testutil.ToFloat64(r.metrics.bytes.WithLabelValues("test", "in")); got != 1<<20 {
		t.Errorf("bytes in = %v", got)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	s := startServer(t, "s")
	r := start(t, config(s.backend("")))
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	reset(c.TCPConn)
	eventually.Nil(t, patience, func() error {
		if n := s.open(); n != 0 {
			return fmt.Errorf("%d connections are open at the server", n)
		}
		return nil
	})
}

func TestNoBackendResets(t *testing.T) {
	a := startServer(t, "a")
	a.closeListener()
	r := start(t, config(a.backend(""), Backend{Endpoint: topology.Endpoint{Name: "b", Address: "127.0.0.1:1"}}))
	if _, err := connect(r.addr, ""); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("without a backend: %v, want a reset", err)
	}
	if got := testutil.ToFloat64(r.metrics.refused.WithLabelValues("test")); got != 1 {
		t.Errorf("refused = %v", got)
	}
	// Each was tried once, though both seem down.
	for _, name := range []string{"a", "b"} {
		if got := testutil.ToFloat64(r.metrics.connectErrors.WithLabelValues("test", "", name)); got != 1 {
			t.Errorf("attempts at %s = %v", name, got)
		}
	}
}

// checkedServer is a server with a health page.
func checkedServer(t testing.TB, name string) (s *server, b Backend, status *atomic.Int64, page *httptest.Server) {
	t.Helper()
	s = startServer(t, name)
	status = &atomic.Int64{}
	status.Store(200)
	page = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(int(status.Load()))
	}))
	t.Cleanup(page.Close)
	b = s.backend("")
	b.CheckAddress = strings.TrimPrefix(page.URL, "http://")
	return s, b, status, page
}

func TestNotReadyDrainsAndSilenceResets(t *testing.T) {
	_, ab, status, page := checkedServer(t, "a")
	_, bb, bStatus, _ := checkedServer(t, "b")
	bStatus.Store(503)
	cfg := config(ab, bb)
	cfg.Services[0].Check.Kind = CheckHTTP
	r := start(t, cfg)
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	if c.server != "a" {
		t.Fatalf("got server %s, want the only one that is ready", c.server)
	}
	// Not ready: no new connections, the open one lives.
	bStatus.Store(200)
	status.Store(503)
	eventually.Nil(t, patience, func() error {
		next, err := connect(r.addr, "")
		if err != nil {
			return err
		}
		defer next.Close()
		if next.server != "b" {
			return errors.New("a gets connections")
		}
		return nil
	})
	if err := c.echo("still there"); err != nil {
		t.Error(err)
	}
	// Both not ready: better than nothing.
	bStatus.Store(503)
	r.waitUp(t, 0)
	mustConnect(t, r.addr, "")
	// No answer: the open connection is reset.
	page.Close()
	_, err := c.r.ReadString('\n')
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to a silent backend: %v, want a reset", err)
	}
	eventually.Nil(t, patience, func() error {
		if got := testutil.ToFloat64(r.metrics.reset.WithLabelValues("test", "", "a", resetUnreachable)); got < 1 {
			return fmt.Errorf("resets = %v", got)
		}
		return nil
	})
}

func TestKeepConnections(t *testing.T) {
	_, ab, _, page := checkedServer(t, "a")
	cfg := config(ab)
	cfg.Services[0].Check.Kind = CheckHTTP
	cfg.Services[0].Check.KeepConnections = true
	r := start(t, cfg)
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	page.Close()
	r.waitUp(t, 0)
	if err := c.echo("still there"); err != nil {
		t.Error(err)
	}
}

func TestDrain(t *testing.T) {
	s := startServer(t, "s")
	cfg := config(s.backend(""))
	drain := patience
	cfg.Drain = &drain
	r := start(t, cfg)
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	eventually.Nil(t, patience, func() error {
		if x, err := net.Dial("tcp", r.addr); err == nil {
			_ = x.Close()
			return errors.New("new connections are accepted")
		}
		return nil
	})
	if err := c.echo("the last words"); err != nil {
		t.Errorf("while draining: %v", err)
	}
	_ = c.Close()
	select {
	case <-stopped: // long before the drain time is over
	case <-time.After(patience / 2):
		t.Error("Run waits though nothing is open")
	}
	<-stopped
}

func TestDrainCutsWhatStays(t *testing.T) {
	s := startServer(t, "s")
	cfg := config(s.backend(""))
	drain := 50 * time.Millisecond
	cfg.Drain = &drain
	r := start(t, cfg)
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")
	r.stop()
	if _, err := c.r.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the drain: %v, want a reset", err)
	}
	if got := testutil.ToFloat64(r.metrics.reset.WithLabelValues("test", "", "s", resetDrain)); got != 1 {
		t.Errorf("cut connections = %v", got)
	}
}

func TestThousandConnections(t *testing.T) {
	a, b := startServer(t, "a"), startServer(t, "b")
	r := start(t, config(a.backend(""), b.backend("")))
	r.waitUp(t, 2)
	const total = 1000
	var group sync.WaitGroup
	var open atomic.Int64
	all := make(chan struct{})
	for k := range total {
		group.Go(func() {
			c, err := connect(r.addr, "")
			if err != nil {
				t.Error(err)
				open.Add(1)
				return
			}
			defer c.Close()
			if open.Add(1) == total {
				close(all)
			}
			select {
			case <-all:
			case <-time.After(patience):
			}
			if err := c.echo(fmt.Sprint("connection ", k)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	got := map[string]float64{}
	for _, s := range []string{"a", "b"} {
		got[s] = testutil.ToFloat64(r.metrics.accepted.WithLabelValues("test", "", s))
	}
	if got["a"]+got["b"] != total || got["a"] < total/4 || got["b"] < total/4 {
		t.Errorf("distribution %v", got)
	}
}

func TestReload(t *testing.T) {
	a, b := startServer(t, "a"), startServer(t, "b")
	cfg := config(a.backend("zone-a"))
	r := start(t, cfg)
	r.waitUp(t, 1)
	c := mustConnect(t, r.addr, "")

	same := func() Config {
		next := config(b.backend("zone-b"))
		next.Services[0].Listen = cfg.Services[0].Listen
		return next
	}
	bad := same()
	bad.Services[0].Check.Kind = "nonsense"
	if err := r.Reload(bad); err == nil {
		t.Error("a wrong configuration is taken")
	}
	moved := same()
	moved.Services[0].Listen = []string{"127.0.0.1:1"}
	if err := r.Reload(moved); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("changed listener: %v", err)
	}
	if x := mustConnect(t, r.addr, ""); x.server != "a" {
		t.Errorf("after refused reloads: server %s", x.server)
	}

	if err := r.Reload(same()); err != nil {
		t.Fatal(err)
	}
	if x := mustConnect(t, r.addr, ""); x.server != "b" {
		t.Errorf("after the reload: server %s", x.server)
	}
	if err := c.echo("from before"); err != nil {
		t.Errorf("connection from before the reload: %v", err)
	}
	if n := testutil.CollectAndCount(r.metrics.up); n != 1 {
		t.Errorf("%d backends in the metrics, want 1", n)
	}
	// The connection to the removed backend still ends with the balancer.
	r.stop()
	if err := c.echo("too late"); err == nil {
		t.Error("the connection outlives the balancer")
	}
}

func TestListenIsAllOrNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", anyAddress())
	if err != nil {
		t.Fatal(err)
	}
	first := free.Addr().String()
	_ = free.Close()
	cfg := config()
	cfg.Services[0].Listen = []string{first, taken.Addr().String()}
	if _, err := Listen(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "service test: listen on "+taken.Addr().String()) {
		t.Errorf("Listen = %v", err)
	}
	again, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatalf("the first listener is left open: %v", err)
	}
	_ = again.Close()
}

func BenchmarkThroughput(b *testing.B) {
	s := startServer(b, "s")
	r := start(b, config(s.backend("")))
	r.waitUp(b, 1)
	c := mustConnect(b, r.addr, "")
	_ = c.SetDeadline(time.Time{})
	chunk := make([]byte, 256<<10)
	back := make([]byte, len(chunk))
	b.SetBytes(int64(2 * len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		go func() { _, _ = c.Write(chunk) }()
		if _, err := io.ReadFull(c.r, back); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConnect(b *testing.B) {
	s := startServer(b, "s")
	r := start(b, config(s.backend("")))
	r.waitUp(b, 1)
	for b.Loop() {
		c, err := connect(r.addr, "")
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
