package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/redisproxy/keyspace"
)

// moveSlot moves a slot with its keys to another node while pause runs
// between the steps.
func moveSlot(t *testing.T, r *rig, slot, from, to int, pause func()) {
	t.Helper()
	ctx := context.Background()
	src, dst := r.cluster.Client(t, from), r.cluster.Client(t, to)
	ids := make([]string, 2)
	for i, cl := range []*redis.Client{src, dst} {
		ids[i] = cl.Do(ctx, "CLUSTER", "MYID").Val().(string)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(dst.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0]).Err())
	must(src.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1]).Err())
	host, port, _ := net.SplitHostPort(r.cluster.Nodes[to].Addr)
	for {
		keys, err := src.ClusterGetKeysInSlot(ctx, slot, 5).Result()
		must(err)
		if len(keys) == 0 {
			break
		}
		pause()
		args := []any{"MIGRATE", host, port, "", 0, 5000, "AUTH2", "admin", r.cluster.Password("admin"), "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		must(src.Do(ctx, args...).Err())
		pause()
	}
	must(dst.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", ids[1]).Err())
	must(src.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", ids[1]).Err())
}

func TestReshardingUnderLoad(t *testing.T) {
	r := newRig(t, nil)
	for _, db := range []int{0, 1} {
		t.Run(fmt.Sprint("db", db), func(t *testing.T) { reshard(t, r, db) })
	}
}

func reshard(t *testing.T, r *rig, db int) {
	t.Helper()
	ctx := context.Background()
	slot := keyspace.New(db).Slot
	if db == 0 {
		slot = keyspace.Slot([]byte("{tag}"))
	}
	from := r.cluster.Owner(t, slot)
	to := (from + 1) % 3
	const keys = 30
	var counts [keys]atomic.Int64
	var steps atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var failed atomic.Int64
	for w := range 4 {
		cl := r.client(t, db)
		wg.Go(func() {
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k := i % keys
				var err error
				if w == 0 {
					// A transaction on one key, while the slot is moved: done or, when
					// that cannot be told from the slot's state, refused.
					_, err = cl.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Incr(ctx, fmt.Sprintf("{tag}%d", k)).Err() })
				} else {
					err = cl.Incr(ctx, fmt.Sprintf("{tag}%d", k)).Err()
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("INCR: %v", err)
					return
				}
				counts[k].Add(1)
				steps.Add(1)
			}
		})
	}
	advance := func() {
		want := steps.Load() + 20
		eventually.Nil(t, time.Minute, func() error {
			if steps.Load() < want && failed.Load() == 0 {
				return errors.New("no progress")
			}
			return nil
		})
	}
	advance()
	moveSlot(t, r, slot, from, to, advance)
	advance()
	close(stop)
	wg.Wait()
	cl := r.client(t, db)
	for k := range keys {
		if got, err := cl.Get(ctx, fmt.Sprintf("{tag}%d", k)).Int64(); err != nil || got != counts[k].Load() {
			t.Errorf("key %d: %d, %v; %d INCRs were acknowledged", k, got, err, counts[k].Load())
		}
	}
	if r.cluster.Owner(t, slot) != to {
		t.Error("the slot has not moved")
	}
}

func TestBlockedPopFollowsItsSlot(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	cl := r.client(t, 1)
	got := make(chan error, 1)
	go func() {
		v, err := cl.BRPop(ctx, 2*time.Minute, "a", "b").Result()
		if err == nil && v[1] != "x" {
			err = fmt.Errorf("popped %v", v)
		}
		got <- err
	}()
	slot := keyspace.New(1).Slot
	from := r.cluster.Owner(t, slot)
	eventually.Nil(t, time.Minute, func() error { return blockedClients(t, r, from, 1) })
	moveSlot(t, r, slot, from, (from+1)%3, func() {})
	// The old owner sends its blocked clients on; the proxy follows.
	eventually.Nil(t, time.Minute, func() error { return blockedClients(t, r, (from+1)%3, 1) })
	if err := r.client(t, 1).LPush(ctx, "b", "x").Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("BRPOP does not return")
	}
}

func blockedClients(t *testing.T, r *rig, node, want int) error {
	t.Helper()
	info, err := r.cluster.Client(t, node).Info(context.Background(), "clients").Result()
	if err != nil {
		return err
	}
	if !containsLine(info, fmt.Sprintf("blocked_clients:%d", want)) {
		return fmt.Errorf("want %d blocked clients: %s", want, info)
	}
	return nil
}
