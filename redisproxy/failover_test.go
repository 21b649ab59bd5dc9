package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/redisproxy/keyspace"
)

// keyOf returns a key whose slot belongs to the i-th third of the slots.
func keyOf(shard int) string {
	for n := 0; ; n++ {
		k := fmt.Sprintf("key-%d", n)
		if keyspace.Slot([]byte(k))*3/keyspace.Slots == shard {
			return k
		}
	}
}

func TestFailoverUnderLoad(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	idle := r.client(t, 0, func(o *redis.Options) { o.PoolSize = 1; o.MinIdleConns = 1 })
	if err := idle.Set(ctx, keyOf(0), "idle", 0).Err(); err != nil {
		t.Fatal(err)
	}
	idleID := idle.ClientID(ctx).Val()

	type result struct{ done, failed atomic.Int64 }
	var res [3]result
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for shard := range 3 {
		for w := range 4 {
			cl := r.client(t, 0)
			key := fmt.Sprintf("{%s}%d", keyOf(shard), w)
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					// Retried by the proxy: a plain SET may run twice.
					if err := cl.Set(ctx, key, i, 0).Err(); err != nil {
						res[shard].failed.Add(1)
						t.Logf("shard %d: SET: %v", shard, err)
					}
					res[shard].done.Add(1)
				}
			})
		}
	}
	progress := func(shard int, more int64) {
		t.Helper()
		from := res[shard].done.Load()
		eventually.Nil(t, time.Minute, func() error {
			if n := res[shard].done.Load() - from; n < more {
				return fmt.Errorf("shard %d: %d commands done", shard, n)
			}
			return nil
		})
	}
	for s := range 3 {
		progress(s, 50)
	}
	killed := r.cluster.KillMaster(t, 1)
	progress(0, 50)
	progress(2, 50)
	progress(1, 50) // only after the failover
	close(stop)
	wg.Wait()
	for s := range 3 {
		if n := res[s].failed.Load(); n != 0 {
			t.Errorf("shard %d: %d SETs failed", s, n)
		}
	}
	if got := idle.ClientID(ctx).Val(); got != idleID {
		t.Errorf("the idle client's connection was replaced: id %d, then %d", idleID, got)
	}
	r.cluster.Restart(t, killed)
	r.cluster.WaitHealthy(t)
}

func TestLostWriteIsNotRepeated(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	cl := r.client(t, 0)
	key := keyOf(0)
	if err := cl.Set(ctx, key, 0, 0).Err(); err != nil {
		t.Fatal(err)
	}
	// A stopped server has the command in its socket, unanswered.
	owner := r.cluster.Owner(t, keyspace.Slot([]byte(key)))
	r.cluster.Pause(t, owner)
	failed := make(chan error, 1)
	go func() { failed <- cl.Incr(ctx, key).Err() }()
	// What these write is not at the next master, so they are repeated.
	repeated := map[string]func(cl *redis.Client) error{
		"HSET": func(cl *redis.Client) error { return wantNew(cl.HSet(ctx, "{"+key+"}h", "f", 1, "g", 2)) },
		"ZADD": func(cl *redis.Client) error {
			return wantNew(cl.ZAdd(ctx, "{"+key+"}z", redis.Z{Score: 1.5, Member: "m"}))
		},
		"SADD": func(cl *redis.Client) error { return wantNew(cl.SAdd(ctx, "{"+key+"}s", "m")) },
		"transaction": func(cl *redis.Client) error { // as kombu's
			cmds, err := cl.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.ZAdd(ctx, "{"+key+"}unacked_index", redis.Z{Score: 1700000000.25, Member: "tag"})
				return p.HSet(ctx, "{"+key+"}unacked", "tag", "message").Err()
			})
			if err != nil {
				return err
			}
			return errors.Join(wantNew(cmds[0].(*redis.IntCmd)), wantNew(cmds[1].(*redis.IntCmd)))
		},
	}
	answers := make(chan error, len(repeated))
	for name, do := range repeated {
		cl := r.client(t, 0)
		go func() {
			if err := do(cl); err != nil {
				answers <- fmt.Errorf("%s: %w", name, err)
			} else {
				answers <- nil
			}
		}()
	}
	// A transaction that counts is not: somebody may have changed its witness.
	counted := make(chan error, 1)
	counter := r.client(t, 0)
	go func() {
		_, err := counter.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Incr(ctx, "{"+key+"}n")
			return p.HSet(ctx, "{"+key+"}witness", "f", 1).Err()
		})
		counted <- err
	}()
	for range 2 {
		var err error
		select {
		case err = <-failed:
		case err = <-counted:
		case <-time.After(30 * time.Second):
			t.Fatal("a stopped server is not noticed")
		}
		if err == nil {
			t.Fatal("INCR at a stopped server succeeded")
		}
	}
	for range repeated {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	eventually.Nil(t, time.Minute, func() error {
		if o := r.cluster.Owner(t, keyspace.Slot([]byte(key))); o < 0 || o == owner {
			return errors.New("no failover yet")
		}
		return nil
	})
	n, err := cl.Get(ctx, key).Int()
	if err != nil || n > 1 {
		t.Fatalf("after one INCR of unknown result: %d, %v", n, err)
	}
	r.cluster.Resume(t, owner)
	r.cluster.WaitHealthy(t)
	if n := r.metric(t, "ambiguous_total"); n != 2 {
		t.Errorf("ambiguous_total = %v, want the two INCRs", n)
	}
}

// wantNew is the error of a command that did not add all that it could.
func wantNew(c *redis.IntCmd) error {
	want := int64((len(c.Args()) - 2) / 2)
	if c.Name() == "sadd" {
		want = 1
	}
	n, err := c.Result()
	if err == nil && n != want {
		err = fmt.Errorf("%v: %d, want %d", c.Args(), n, want)
	}
	return err
}

func TestSubscriptionSurvivesNode(t *testing.T) {
	r := newRig(t, nil)
	ctx := context.Background()
	cl := r.client(t, 0)
	ps := cl.Subscribe(ctx, "news")
	t.Cleanup(func() { _ = ps.Close() })
	if _, err := ps.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10000)
	go func() {
		for {
			m, err := ps.ReceiveMessage(ctx)
			if err != nil {
				close(got)
				return
			}
			got <- m.Payload
		}
	}()
	receive := func(payload string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			if err := cl.Publish(ctx, "news", payload).Err(); err != nil {
				return err
			}
			for {
				select {
				case p, ok := <-got:
					if !ok {
						t.Fatal("the subscription ended")
					}
					if p == payload {
						return nil
					}
				default:
					return errors.New("not received")
				}
			}
		})
	}
	receive("before")
	// Every node dies once, one after the other, so the subscription's did too.
	for i := range 3 {
		killed := r.cluster.KillMaster(t, i)
		receive(fmt.Sprint("after ", i))
		eventually.Nil(t, time.Minute, func() error {
			if o := r.cluster.Owner(t, servertest.RedisSlots/3*i+1); o < 0 || o == killed {
				return errors.New("no failover yet")
			}
			return nil
		})
		r.cluster.Restart(t, killed)
		r.cluster.WaitHealthy(t)
	}
}
