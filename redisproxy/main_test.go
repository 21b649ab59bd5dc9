package redisproxy_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/redisproxy"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a proxy in front of a cluster.
type rig struct {
	cluster *servertest.RedisCluster
	addr    string
	proxy   *redisproxy.Proxy
	reg     *prometheus.Registry
}

func newRig(tb testing.TB, change func(*redisproxy.Config)) *rig {
	tb.Helper()
	c := servertest.NewRedisCluster(tb)
	return startProxy(tb, c, change)
}

func startProxy(tb testing.TB, c *servertest.RedisCluster, change func(*redisproxy.Config)) *rig {
	tb.Helper()
	cfg := redisproxy.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	for _, a := range c.Addrs()[:3] {
		cfg.Nodes = append(cfg.Nodes, topology.Endpoint{Address: a})
	}
	cfg.Upstream = redisproxy.Upstream{User: "redisproxy", PasswordFile: c.PasswordFile("redisproxy")}
	cfg.Users = []redisproxy.User{{Name: "dify", PasswordFile: c.PasswordFile("dify")}}
	cfg.Timeouts.Hold = 30 * time.Second // the machine may be loaded
	if change != nil {
		change(&cfg)
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		tb.Fatal(err)
	}
	out := io.Discard
	if os.Getenv("FOURNINES_TEST_LOG") != "" {
		out = os.Stderr
	}
	reg := prometheus.NewRegistry()
	p, err := redisproxy.New(cfg, slog.New(slog.NewJSONHandler(out, nil)), reg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, ln) }()
	tb.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("proxy ended with %v", err)
			}
		case <-time.After(time.Minute):
			tb.Error("the proxy does not stop")
		}
	})
	eventually.Nil(tb, 30*time.Second, p.Ready)
	return &rig{cluster: c, addr: ln.Addr().String(), proxy: p, reg: reg}
}

// client connects to a database through the proxy.
func (r *rig) client(tb testing.TB, db int, change ...func(*redis.Options)) *redis.Client {
	tb.Helper()
	opt := &redis.Options{
		Addr: r.addr, Username: "dify", Password: r.cluster.Password("dify"), DB: db, Protocol: 2,
		MaxRetries: -1, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
	}
	for _, f := range change {
		f(opt)
	}
	cl := redis.NewClient(opt)
	tb.Cleanup(func() { _ = cl.Close() })
	return cl
}

// metric sums a metric over its labels.
func (r *rig) metric(tb testing.TB, name string) float64 {
	tb.Helper()
	fams, err := r.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, f := range fams {
		if f.GetName() != "fournines_redisproxy_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
