package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/redisproxy"
	"fournines/redisproxy/keyspace"
)

// tagOf returns a hash tag whose slot belongs to the i-th third of the slots.
func tagOf(shard int) string {
	for n := 0; ; n++ {
		tag := fmt.Sprintf("{t%d}", n)
		if keyspace.Slot([]byte(tag))*3/keyspace.Slots == shard {
			return tag
		}
	}
}

// writer appends numbers to a list of its own and notes what was answered.
type writer struct {
	shard    int
	key      string
	answered []int
	// longest is the longest time without an answer since the last reset, in
	// nanoseconds; last is when there was one.
	longest, last atomic.Int64
	// done is how many were answered, unknown how many ended with an error: they
	// may be there or not.
	done, unknown atomic.Int64
}

func (w *writer) run(ctx context.Context, cl *redis.Client) {
	w.last.Store(time.Now().UnixNano())
	for i := 0; ctx.Err() == nil; i++ {
		if err := cl.RPush(context.WithoutCancel(ctx), w.key, i).Err(); err != nil {
			w.unknown.Add(1)
			continue
		}
		w.answered = append(w.answered, i)
		now := time.Now().UnixNano()
		w.longest.Store(max(w.longest.Load(), now-w.last.Swap(now)))
		w.done.Add(1)
	}
}

// failoverResult is what writers saw while masters died.
type failoverResult struct {
	// hit is the longest wait of each writer of a killed master, others that of
	// each other writer, at each failover.
	hit, others []time.Duration
	// answered is how many writes were answered, lost how many of these are gone,
	// unknown how many ended with an error.
	answered, lost, unknown int
}

// failovers kills masters one after another while writers write to all shards.
func failovers(t *testing.T, replicas, n int) (r failoverResult) {
	t.Helper()
	c, address, _ := throughProxy(t, func(cfg *redisproxy.Config) {
		cfg.Writes.Replicas = replicas
		cfg.OnLost = "error" // so that the clients' reconnecting is not measured
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var writers []*writer
	var wg sync.WaitGroup
	for shard := range 3 {
		for k := range 3 {
			w := &writer{shard: shard, key: tagOf(shard) + strconv.Itoa(k)}
			writers = append(writers, w)
			cl := redis.NewClient(&redis.Options{
				Addr: address, Username: "dify", Password: c.Password("dify"), Protocol: 2, MaxRetries: -1, PoolSize: 1,
				ReadTimeout: time.Minute, WriteTimeout: time.Minute, DisableIdentity: true,
			})
			t.Cleanup(func() { _ = cl.Close() })
			wg.Go(func() { w.run(ctx, cl) })
		}
	}
	progress := func() {
		t.Helper()
		from := make([]int64, len(writers))
		for i, w := range writers {
			from[i] = w.done.Load()
		}
		eventually.Nil(t, time.Minute, func() error {
			for i, w := range writers {
				if w.done.Load() < from[i]+20 {
					return fmt.Errorf("writer %d of shard %d makes no progress", i, w.shard)
				}
			}
			return nil
		})
	}
	for i := range n {
		progress()
		for _, w := range writers {
			w.longest.Store(0)
		}
		shard := i % 3
		killed := c.KillMaster(t, shard)
		progress()
		for _, w := range writers {
			waited := time.Duration(w.longest.Load())
			if w.shard == shard {
				r.hit = append(r.hit, waited)
			} else {
				r.others = append(r.others, waited)
			}
		}
		awaitFailover(t, c, shard, killed)
	}
	cancel()
	wg.Wait()
	cl := redis.NewClient(&redis.Options{Addr: address, Username: "dify", Password: c.Password("dify"), Protocol: 2, ReadTimeout: time.Minute})
	defer cl.Close()
	for _, w := range writers {
		stored, err := cl.LRange(context.Background(), w.key, 0, -1).Result()
		if err != nil {
			t.Fatal(err)
		}
		there := make(map[string]int, len(stored))
		for _, s := range stored {
			there[s]++
		}
		for _, i := range w.answered {
			switch there[strconv.Itoa(i)] {
			case 0:
				r.lost++
			case 1:
			default:
				t.Errorf("%s: %d is there %d times", w.key, i, there[strconv.Itoa(i)])
			}
		}
		r.answered += len(w.answered)
		r.unknown += int(w.unknown.Load())
	}
	slices.Sort(r.hit)
	slices.Sort(r.others)
	return r
}

// With writes.replicas a failover loses nothing that was answered.
func TestFailoverKeepsConfirmedWrites(t *testing.T) {
	r := failovers(t, 1, 1)
	t.Logf("%d writes answered; those of the killed master waited up to %v, others up to %v", r.answered, slices.Max(r.hit), slices.Max(r.others))
	if r.lost > 0 {
		t.Errorf("%d of %d answered writes are gone", r.lost, r.answered)
	}
}

// awaitFailover returns when the replica of a killed master has taken over and the
// killed one follows it.
func awaitFailover(t *testing.T, c *servertest.RedisCluster, shard, killed int) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		if o := c.Owner(t, servertest.RedisSlots/3*shard+1); o < 0 || o == killed {
			return errors.New("no failover yet")
		}
		return nil
	})
	c.Restart(t, killed)
	c.WaitHealthy(t)
}
