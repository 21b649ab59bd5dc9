package redisproxy_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
)

func TestTypicalUse(t *testing.T) {
	r := newRig(t, nil)
	for _, version := range []int{2, 3} {
		for _, db := range []int{0, 1} {
			t.Run(fmt.Sprintf("resp%d db%d", version, db), func(t *testing.T) {
				typicalUse(t, r.client(t, db, func(o *redis.Options) { o.Protocol = version }), r, db)
			})
		}
	}
}

func typicalUse(t *testing.T, cl *redis.Client, r *rig, db int) {
	t.Helper()
	ctx := context.Background()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(cl.FlushDB(ctx).Err())
	want := make([]string, 0, 200)
	pairs := make([]any, 0, 400)
	keys := make([]string, 0, 200)
	for i := range 200 {
		keys = append(keys, fmt.Sprintf("k%d", i))
		want = append(want, fmt.Sprint(i))
		pairs = append(pairs, keys[i], i)
	}
	ok(cl.MSet(ctx, pairs...).Err())
	vals, err := cl.MGet(ctx, append(keys, "absent")...).Result()
	ok(err)
	for i, w := range want {
		if vals[i] != w {
			t.Fatalf("MGET[%d] = %v, want %v", i, vals[i], w)
		}
	}
	if vals[200] != nil {
		t.Fatalf("absent key gave %v", vals[200])
	}
	if n := cl.DBSize(ctx).Val(); n != 200 {
		t.Fatalf("DBSIZE = %d", n)
	}
	var scanned []string
	it := cl.Scan(ctx, 0, "k*", 17).Iterator()
	for it.Next(ctx) {
		scanned = append(scanned, it.Val())
	}
	ok(it.Err())
	sort.Strings(scanned)
	sorted := append([]string(nil), keys...)
	sort.Strings(sorted)
	if d := cmp.Diff(sorted, dedupe(scanned)); d != "" {
		t.Fatalf("SCAN: %s", d)
	}
	listed, err := cl.Keys(ctx, "k1?").Result()
	ok(err)
	if len(listed) != 10 {
		t.Fatalf("KEYS k1? = %v", listed)
	}
	if k := cl.RandomKey(ctx).Val(); !strings.HasPrefix(k, "k") {
		t.Fatalf("RANDOMKEY = %q", k)
	}
	if n := cl.Exists(ctx, "k1", "k2", "k1", "nope").Val(); n != 3 {
		t.Fatalf("EXISTS = %d", n)
	}
	if n := cl.Del(ctx, keys...).Val(); n != 200 {
		t.Fatalf("DEL = %d", n)
	}

	// Transactions as Celery's result backend uses them.
	cmds, err := cl.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.SetEx(ctx, "celery-task-meta-1", "x", time.Minute)
		p.Publish(ctx, "celery-task-meta-1", "x")
		p.Get(ctx, "celery-task-meta-1")
		return nil
	})
	ok(err)
	if got := cmds[2].(*redis.StringCmd).Val(); got != "x" {
		t.Fatalf("GET in MULTI = %q", got)
	}
	// WATCH notices a change by another connection.
	err = cl.Watch(ctx, func(tx *redis.Tx) error {
		ok(cl.Set(ctx, "watched", "other", 0).Err())
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "watched", "mine", 0).Err() })
		return err
	}, "watched")
	if !errors.Is(err, redis.TxFailedErr) {
		t.Fatalf("EXEC after a change: %v", err)
	}
	err = cl.Watch(ctx, func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "watched", "mine", 0).Err() })
		return err
	}, "watched")
	ok(err)

	// Scripts are known on every node, whoever loaded them.
	script := redis.NewScript(`return redis.call('INCRBY', KEYS[1], ARGV[1])`)
	sha, err := script.Load(ctx, cl).Result()
	ok(err)
	for i := range 5 {
		if n, err := cl.EvalSha(ctx, sha, []string{fmt.Sprintf("n%d", i)}, 3).Int(); n != 3 || err != nil {
			t.Fatalf("EVALSHA = %d, %v", n, err)
		}
	}
	for i := range r.cluster.Nodes[:3] {
		ok(r.cluster.Client(t, i).ScriptFlush(ctx).Err())
	}
	if n, err := cl.EvalSha(ctx, sha, []string{"n1"}, 3).Int(); n != 6 || err != nil {
		t.Fatalf("EVALSHA after the node forgot the script = %d, %v", n, err)
	}

	// Blocking pops, one slot.
	popped := make(chan []string, 1)
	go func() {
		v, _ := cl.BRPop(ctx, time.Minute, "{q}a", "{q}b").Result()
		popped <- v
	}()
	eventually.Nil(t, 30*time.Second, func() error {
		if n := r.metric(t, "node_connections"); n < 1 {
			return errors.New("no connection")
		}
		return nil
	})
	ok(cl.LPush(ctx, "{q}b", "job").Err())
	select {
	case v := <-popped:
		if d := cmp.Diff([]string{"{q}b", "job"}, v); d != "" {
			t.Fatal(d)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("BRPOP does not return")
	}
	if _, err := cl.BLPop(ctx, time.Second, "{q}a").Result(); !errors.Is(err, redis.Nil) {
		t.Fatalf("BLPOP of nothing: %v", err)
	}

	// Streams and groups.
	id, err := cl.XAdd(ctx, &redis.XAddArgs{Stream: "st", Values: []any{"f", "v"}}).Result()
	ok(err)
	ok(cl.XGroupCreate(ctx, "st", "g", "0").Err())
	got, err := cl.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"st", ">"}, Block: time.Second}).Result()
	ok(err)
	if len(got) != 1 || got[0].Stream != "st" || got[0].Messages[0].ID != id {
		t.Fatalf("XREADGROUP = %+v", got)
	}
	err = cl.XGroupCreateConsumer(ctx, "absent", "g", "c").Err()
	if err == nil || strings.Contains(err.Error(), "{db") {
		t.Fatalf("error shows the mapping: %v", err)
	}

	// Pub/sub.
	ps := cl.Subscribe(ctx, "ch")
	defer func() { _ = ps.Close() }()
	if _, err := ps.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	ok(ps.PSubscribe(ctx, "c?"))
	if _, err := ps.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	ok(cl.Publish(ctx, "ch", "hello").Err())
	var seen []string
	for range 2 {
		m, err := ps.ReceiveMessage(ctx)
		ok(err)
		seen = append(seen, m.Pattern+"/"+m.Channel+"/"+m.Payload)
	}
	sort.Strings(seen)
	if d := cmp.Diff([]string{"/ch/hello", "c?/ch/hello"}, seen); d != "" {
		t.Fatal(d)
	}

	// Databases do not see each other.
	ok(cl.FlushDB(ctx).Err())
	ok(cl.Set(ctx, "mine", 1, 0).Err())
	other := r.client(t, (db+1)%2)
	ok(other.FlushDB(ctx).Err())
	if k := other.Keys(ctx, "*").Val(); len(k) != 0 {
		t.Fatalf("the other database shows %v", k)
	}
	if cl.Get(ctx, "mine").Val() != "1" {
		t.Fatal("FLUSHDB of another database took the key")
	}
	info, err := cl.Info(ctx).Result()
	ok(err)
	for _, line := range []string{"role:master", "cluster_enabled:0", "redis_mode:standalone", fmt.Sprintf("db%d:keys=1,", db)} {
		if !strings.Contains(info, line) {
			t.Errorf("INFO lacks %s", line)
		}
	}
}

func dedupe(sorted []string) []string {
	var out []string
	for i, s := range sorted {
		if i == 0 || s != sorted[i-1] {
			out = append(out, s)
		}
	}
	return out
}
