package redisproxy_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// BenchmarkGet compares one GET through the proxy with one at the node that
// has the key, by 50 clients without pipelining and by 8 with pipelines of 32.
func BenchmarkGet(b *testing.B) {
	r := newRig(b, nil)
	ctx := context.Background()
	key := keyOf(0)
	proxied := r.client(b, 0, func(o *redis.Options) { o.PoolSize = 50 })
	if err := proxied.Set(ctx, key, "0123456789012345678901234567890123456789", 0).Err(); err != nil {
		b.Fatal(err)
	}
	direct := redis.NewClient(&redis.Options{
		Addr: r.cluster.Nodes[r.cluster.Owner(b, 1)].Addr, Username: "dify", Password: r.cluster.Password("dify"), Protocol: 2, PoolSize: 50,
	})
	b.Cleanup(func() { _ = direct.Close() })
	for _, bb := range []struct {
		name string
		cl   *redis.Client
	}{{"direct", direct}, {"proxy", proxied}} {
		for _, depth := range []int{1, 32} {
			clients := 50
			if depth > 1 {
				clients = 8
			}
			b.Run(fmt.Sprintf("%s/pipeline%d", bb.name, depth), func(b *testing.B) {
				var wg sync.WaitGroup
				for w := range clients {
					wg.Go(func() {
						for i := w; i < b.N; i += clients * depth {
							pipe := bb.cl.Pipeline()
							for range depth {
								pipe.Get(ctx, key)
							}
							if _, err := pipe.Exec(ctx); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			})
		}
	}
}
