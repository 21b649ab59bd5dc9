package gateway

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// history is what a data set's writers were told, and when.
type history struct {
	mu    sync.Mutex
	acked []ack
}

type ack struct {
	at      time.Time
	version int
}

func (h *history) add(version int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.acked = append(h.acked, ack{time.Now(), version})
}

// least is the version that every answer asked for after t must have seen.
func (h *history) least(t time.Time) (version int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.acked {
		if !a.at.After(t) {
			version = max(version, a.version)
		}
	}
	return version
}

// behind is how long before t the first write was acknowledged that version has
// not seen; 0 when it has seen all.
func (h *history) behind(t time.Time, version int) (d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.acked {
		if a.version > version {
			d = max(d, t.Sub(a.at))
		}
	}
	return d
}

// sharedGateways are two gateways in front of one instance, with one Redis Cluster.
func sharedGateways(t *testing.T, k *knowledge, change func(*Config)) (*servertest.RedisCluster, [2]*running) {
	t.Helper()
	redis := servertest.NewRedisCluster(t)
	in := newInstance(t, "zone-a", k.serve)
	cfg := cacheConfig(in)
	cfg.AccessLog = false
	cfg.Redis = Redis{Nodes: redis.Addrs(), User: "gateway", PasswordFile: redis.PasswordFile("gateway")}
	change(&cfg)
	return redis, [2]*running{start(t, cfg), start(t, cfg)}
}

// TestNoAnswerIsOlderThanTheBound writes and retrieves through two gateways, and
// kills a Redis master meanwhile: an answer that is not marked as stale has seen
// every write that was acknowledged the bound before it was asked for.
func TestNoAnswerIsOlderThanTheBound(t *testing.T) {
	var k knowledge
	const lag = 300 * time.Millisecond
	redis, gates := sharedGateways(t, &k, func(cfg *Config) {
		cfg.Cache.MaxStaleness = lag
	})
	sets := [...]string{setA, setB}
	var histories [len(sets)]history
	var bound atomic.Int64
	bound.Store(int64(lag))
	var hits, answers, writes, worst atomic.Int64
	end := make(chan struct{})
	var wg sync.WaitGroup
	running := func() bool {
		select {
		case <-end:
			return false
		default:
			return true
		}
	}
	for i, set := range sets {
		h := &histories[i]
		wg.Go(func() {
			c := client(t)
			for running() {
				g := gates[rand.N(len(gates))]
				status, answer, _ := call(t, c, http.MethodPatch, g.url+"/v1/datasets/"+set, "key-1", `{}`)
				var said struct{ Version int }
				if status != http.StatusOK || json.Unmarshal([]byte(answer), &said) != nil {
					t.Errorf("write: %d %s", status, answer)
					return
				}
				h.add(said.Version)
				writes.Add(1)
				time.Sleep(rand.N(200 * time.Millisecond)) // between writes there must be hits
			}
		})
		for range 3 {
			wg.Go(func() {
				c := client(t)
				for running() {
					g := gates[rand.N(len(gates))]
					before := time.Now()
					want := h.least(before.Add(-time.Duration(bound.Load())))
					status, answer, head := call(t, c, http.MethodPost, g.url+"/v1/datasets/"+set+"/retrieve", "key-1", fmt.Sprintf(`{"query":"q%d"}`, rand.N(5)))
					var said struct{ Version int }
					if status != http.StatusOK || json.Unmarshal([]byte(answer), &said) != nil {
						t.Errorf("retrieve: %d %s", status, answer)
						return
					}
					answers.Add(1)
					if head.Get(cacheHeader) == "hit" {
						hits.Add(1)
					}
					for d, old := int64(h.behind(before, said.Version)), worst.Load(); d > old && !worst.CompareAndSwap(old, d); old = worst.Load() {
					}
					if said.Version < want {
						t.Errorf("%s: version %d, %d was acknowledged %v before", head.Get(cacheHeader), said.Version, want, time.Duration(bound.Load()))
						return
					}
				}
			})
		}
	}
	more := func(what *atomic.Int64, n int64) {
		t.Helper()
		from := what.Load()
		eventually.Nil(t, patience, func() error {
			if t.Failed() {
				return nil
			}
			if got := what.Load() - from; got < n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
	}
	more(&writes, 30)
	more(&hits, 300)
	t.Logf("at most %v behind", time.Duration(worst.Swap(0)))
	// Without a master nothing of its scopes is confirmed; its successor may
	// not have heard of a write until it is told of it again.
	bound.Store(int64(lag + 3*time.Second))
	redis.KillMaster(t, 0)
	more(&writes, 30)
	redis.WaitHealthy(t)
	more(&hits, 300)
	close(end)
	wg.Wait()
	t.Logf("%d writes, %d answers, %d of them hits; at most %v behind with a failover", writes.Load(), answers.Load(), hits.Load(), time.Duration(worst.Load()))
}

func TestGatewayWithoutItsRedisDoesNotAnswerFromMemory(t *testing.T) {
	var k knowledge
	redis, gates := sharedGateways(t, &k, func(cfg *Config) { cfg.Cache.MaxStaleness = 200 * time.Millisecond })
	a, b := &asker{t, client(t), gates[0].url}, &asker{t, client(t), gates[1].url}
	const q = `{"query":"q"}`
	eventually.Nil(t, patience, func() error { // the first connections to Redis may take their time
		_, _, h := call(t, b.c, http.MethodPost, b.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q)
		if got := h.Get(cacheHeader); got != "hit" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})

	// A write at one gateway is known to the other one.
	a.write(http.MethodPatch, "/v1/datasets/"+setA, `{}`)
	eventually.Nil(t, patience, func() error {
		_, answer, _ := call(t, b.c, http.MethodPost, b.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q)
		if !strings.Contains(answer, `"version":1`) {
			return fmt.Errorf("%s", answer)
		}
		return nil
	})
	p := gates[0].cache.Purge(t.Context(), "", "")
	if !p.Shared {
		t.Errorf("purge: %+v", p)
	}

	for i := range redis.Nodes {
		redis.Pause(t, i)
	}
	resumed := false
	resume := func() {
		if !resumed {
			resumed = true
			for i := range redis.Nodes {
				redis.Resume(t, i)
			}
		}
	}
	defer resume()
	a.write(http.MethodPatch, "/v1/datasets/"+setA, `{}`)
	acked := time.Now()
	eventually.Nil(t, patience, func() error {
		if time.Since(acked) <= 200*time.Millisecond {
			return fmt.Errorf("too early to say")
		}
		return nil
	})
	for range 5 {
		if got := b.retrieve("bypass", setA, "key-1", q); !strings.Contains(got, `"version":2`) {
			t.Errorf("without Redis: %s", got)
		}
	}
	// But while the instances fail too, what it has is better than nothing.
	k.broken.Store(true)
	b.retrieve("stale", setA, "key-1", q)
	k.broken.Store(false)

	resume()
	redis.WaitHealthy(t)
	eventually.Nil(t, patience, func() error {
		if n := gates[0].cache.Stats().Pending; n != 0 {
			return fmt.Errorf("%d untold", n)
		}
		_, answer, h := call(t, b.c, http.MethodPost, b.url+"/v1/datasets/"+setA+"/retrieve", "key-1", q)
		if got := h.Get(cacheHeader); got != "hit" || !strings.Contains(answer, `"version":2`) {
			return fmt.Errorf("%s %s", got, answer)
		}
		return nil
	})
}
