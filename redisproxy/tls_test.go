package redisproxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/servertest"
	"fournines/redisproxy"
)

// Both sides encrypted: shared, dedicated and subscription connections.
func TestTLS(t *testing.T) {
	cert, key := servertest.Certificate(t, t.TempDir(), "test", "127.0.0.1")
	cluster := servertest.NewRedisClusterTLS(t)
	r := startProxy(t, cluster, func(c *redisproxy.Config) {
		c.TLS = redisproxy.TLS{Enabled: true, CertFile: cert, KeyFile: key}
		c.Upstream.TLS = redisproxy.TLS{Enabled: true, CAFile: cluster.CAFile}
	})
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	ctx := context.Background()
	cl := r.client(t, 1, func(o *redis.Options) { o.TLSConfig = &tls.Config{RootCAs: roots} })
	ps := cl.Subscribe(ctx, "news")
	t.Cleanup(func() { _ = ps.Close() })
	if _, err := ps.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	if err := cl.LPush(ctx, "q", "x").Err(); err != nil {
		t.Fatal(err)
	}
	if v, err := cl.BRPop(ctx, time.Minute, "p", "q").Result(); err != nil || v[1] != "x" {
		t.Errorf("BRPOP = %v, %v", v, err)
	}
	// Idle dedicated connections are looked at through TLS too.
	if _, err := cl.BRPop(ctx, time.Second, "p").Result(); !errors.Is(err, redis.Nil) {
		t.Errorf("BRPOP of nothing: %v", err)
	}
	if err := cl.Publish(ctx, "news", "hello").Err(); err != nil {
		t.Fatal(err)
	}
	if m, err := ps.ReceiveMessage(ctx); err != nil || m.Payload != "hello" {
		t.Errorf("message %v, %v", m, err)
	}
	if err := r.client(t, 0).Ping(ctx).Err(); err == nil {
		t.Error("a client without TLS was served")
	}
	stranger := r.client(t, 0, func(o *redis.Options) { o.TLSConfig = &tls.Config{RootCAs: x509.NewCertPool()} })
	if err := stranger.Ping(ctx).Err(); err == nil {
		t.Error("the certificate is trusted by everybody")
	}
}
