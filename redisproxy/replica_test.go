package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/redisproxy"
)

// metricOf is a counter with one label's value.
func (r *rig) metricOf(tb testing.TB, name, label string) float64 {
	tb.Helper()
	fams, err := r.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range fams {
		if f.GetName() != "fournines_redisproxy_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestReplicas(t *testing.T) {
	plain := newRig(t, nil)
	t.Run("reads", func(t *testing.T) { readsFromReplicas(t, plain) })
	t.Run("confirmed writes", func(t *testing.T) { confirmedWrites(t, plain) })
}

func readsFromReplicas(t *testing.T, plain *rig) {
	t.Helper()
	ctx := context.Background()
	r := startProxy(t, plain.cluster, func(c *redisproxy.Config) {
		c.Reads.From = "replica"
		c.Reads.AfterWrite = time.Minute
		c.Timeouts.Refresh = 100 * time.Millisecond
	})
	fromReplica := func() float64 { return r.metricOf(t, "replica_reads_total", "replica") }
	fromMaster := func() float64 { return r.metricOf(t, "replica_reads_total", "master") }
	for _, version := range []int{2, 3} {
		for _, db := range []int{0, 1} {
			t.Run(fmt.Sprintf("resp%d db%d", version, db), func(t *testing.T) {
				change := func(o *redis.Options) { o.Protocol = version; o.PoolSize = 1 }
				writer := plain.client(t, db)
				reader := r.client(t, db, change)
				key := keyOf(1)
				if err := writer.HSet(ctx, key, "f", "v").Err(); err != nil {
					t.Fatal(err)
				}
				before := fromReplica()
				eventually.Nil(t, time.Minute, func() error {
					if v, err := reader.HGet(ctx, key, "f").Result(); err != nil || v != "v" {
						return fmt.Errorf("got %q, %w", v, err)
					}
					if fromReplica() == before {
						return errors.New("no replica was asked")
					}
					return nil
				})
				before = fromMaster()
				if err := reader.Get(ctx, "absent").Err(); !errors.Is(err, redis.Nil) {
					t.Errorf("an absent key: %v", err)
				}
				if fromMaster() != before+1 {
					t.Error("a miss was not asked of the master")
				}
				// After its own write a client sees it.
				before = fromReplica()
				if err := reader.Set(ctx, "own", "1", 0).Err(); err != nil {
					t.Fatal(err)
				}
				if v, err := reader.Get(ctx, "own").Result(); v != "1" || err != nil {
					t.Errorf("own write: %q, %v", v, err)
				}
				if fromReplica() != before {
					t.Error("a replica was asked right after a write")
				}
			})
		}
	}
	// Without its replica a master answers.
	reader := r.client(t, 0)
	r.cluster.Kill(t, 4)
	for range 20 {
		if v, err := reader.HGet(ctx, keyOf(1), "f").Result(); err != nil || v != "v" {
			t.Fatalf("without a replica: %q, %v", v, err)
		}
	}
	r.cluster.Restart(t, 4)
	r.cluster.WaitHealthy(t)
}

func confirmedWrites(t *testing.T, plain *rig) {
	t.Helper()
	ctx := context.Background()
	r := startProxy(t, plain.cluster, func(c *redisproxy.Config) {
		c.Writes = redisproxy.Writes{Replicas: 1, Wait: 500 * time.Millisecond}
		c.OnLost = "error"
	})
	cl := r.client(t, 0)
	key := keyOf(1)
	if err := cl.Set(ctx, key, 0, 0).Err(); err != nil {
		t.Fatal(err)
	}
	// A write that no replica has taken is not answered as if it were safe.
	r.cluster.Pause(t, 4)
	if err := cl.Incr(ctx, key).Err(); err == nil || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("INCR without its replica: %v", err)
	}
	if _, err := cl.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Incr(ctx, key).Err() }); err == nil {
		t.Error("a transaction without its replica was answered")
	}
	// The master has it, so it was executed: not repeated as if it had not been.
	if err := cl.HSet(ctx, "{"+key+"}h", "f", 1).Err(); err == nil || !strings.Contains(err.Error(), "may or may not") {
		t.Errorf("HSET without its replica: %v", err)
	}
	err := cl.Watch(ctx, func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Incr(ctx, key).Err() })
		return err
	}, key)
	if err == nil || errors.Is(err, redis.TxFailedErr) {
		t.Errorf("a transaction with WATCH without its replica: %v", err)
	}
	if n := r.metricOf(t, "unconfirmed_writes_total", "lost"); n != 4 {
		t.Errorf("%v writes counted as lost, want 4", n)
	}
	if err := cl.Set(ctx, keyOf(0), 0, 0).Err(); err != nil {
		t.Errorf("another shard: %v", err)
	}
	r.cluster.Resume(t, 4)
	r.cluster.WaitHealthy(t)
	eventually.Nil(t, time.Minute, func() error { return cl.Incr(ctx, key).Err() })
	// One that has no replica at all goes on, without waiting each time.
	r.cluster.Kill(t, 4)
	eventually.Nil(t, time.Minute, func() error { return cl.Incr(ctx, key).Err() })
	if n := r.metricOf(t, "unconfirmed_writes_total", "answered"); n < 1 {
		t.Errorf("%v writes counted as answered by a master alone", n)
	}
	r.cluster.Restart(t, 4)
	r.cluster.WaitHealthy(t)
	eventually.Nil(t, time.Minute, func() error {
		before := r.metricOf(t, "unconfirmed_writes_total", "answered")
		if err := cl.Incr(ctx, key).Err(); err != nil {
			return err
		}
		if n := r.metricOf(t, "unconfirmed_writes_total", "answered"); n != before {
			return fmt.Errorf("%v writes answered alone, %v before", n, before)
		}
		return nil
	})
}
