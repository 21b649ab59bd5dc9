package rediscluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/topology"
)

func TestOperator(t *testing.T) {
	c := servertest.NewRedisCluster(t)
	cfg := OperatorConfig{User: "admin", PasswordFile: c.PasswordFile("admin")}
	for i, a := range c.Addrs() {
		// Node i+3 is the replica of node i, and stands in the next zone.
		zone := []string{"a", "b", "c", "b", "c", "a"}[i]
		cfg.Nodes = append(cfg.Nodes, topology.Endpoint{Name: fmt.Sprint("redis-", i), Zone: zone, Address: a})
	}
	o, err := NewOperator(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	status := func() *Status {
		t.Helper()
		s, err := o.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	healthy := func() {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			if s := status(); s.State != "ok" || len(s.Shards) != 3 || s.SlotsServed != 16384 {
				return fmt.Errorf("%s: %v", s.State, s.Problems)
			}
			return nil
		})
	}
	complains := func(want string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			s := status()
			if !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, want) }) {
				return fmt.Errorf("no word of %q: %v", want, s.Problems)
			}
			return nil
		})
	}
	healthy()

	// Slots move with their keys.
	first := c.Client(t, 0)
	key := "" // in the highest slot of the first shard
	for n := 0; key == ""; n += 2000 {
		asked, err := first.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 2000 {
				p.ClusterKeySlot(ctx, fmt.Sprint("k", n+i))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range asked {
			if a.(*redis.IntCmd).Val() == 5460 {
				key = fmt.Sprintf("{k%d}", n+i)
			}
		}
	}
	for i := range 120 {
		if err := first.Set(ctx, fmt.Sprint(key, i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for name, call := range map[string][2]string{"no such node": {"redis-0", "redis-9"}, "to itself": {"redis-0", "redis-0"}, "to a replica": {"redis-0", "redis-4"}} {
		if _, err := status().PlanMove(call[0], call[1], 1); err == nil {
			t.Errorf("%s was planned", name)
		}
	}
	if _, err := status().PlanMove("redis-0", "redis-1", 10000); err == nil {
		t.Error("more slots than there are were planned")
	}
	m, err := status().PlanMove("redis-0", "redis-1", 3)
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	if err := o.Execute(ctx, m, func(_, n int) { keys += n }); err != nil {
		t.Fatal(err)
	}
	if keys != 120 {
		t.Errorf("%d keys moved, want 120", keys)
	}
	if v, err := c.Client(t, 1).Get(ctx, key+"7").Result(); v != "7" || err != nil {
		t.Errorf("at the new master: %q, %v", v, err)
	}
	healthy()
	mendsMoves(t, o, c)
	healthy()
	// The masters have 5460, 5462 and 5462 slots.
	total := 0
	for _, m := range status().PlanBalance() {
		if m.To.Name != "redis-0" {
			t.Fatalf("%d slots would go from %s to %s", len(m.Slots), m.From.Name, m.To.Name)
		}
		total += len(m.Slots)
		if err := o.Execute(ctx, m, func(int, int) {}); err != nil {
			t.Fatal(err)
		}
	}
	if total != 1 {
		t.Errorf("%d slots were moved into balance, want 1", total)
	}
	eventually.Nil(t, time.Minute, func() error {
		if moves := status().PlanBalance(); len(moves) > 0 {
			return fmt.Errorf("still to move: %+v", moves)
		}
		return nil
	})

	// A replica takes over; two masters of three in one zone are named.
	if _, _, err := o.Failover(ctx, "redis-1", false); err == nil {
		t.Error("a master became master")
	}
	if old, next, err := o.Failover(ctx, "redis-3", false); err != nil || old.Name != "redis-0" || next.Name != "redis-3" {
		t.Fatalf("%s to %s: %v", old.Name, next.Name, err)
	}
	complains("zone b has 2 of 3 masters")
	if _, _, err := o.Failover(ctx, "redis-0", false); err != nil {
		t.Fatal(err)
	}
	healthy()
	c.Kill(t, 5)
	complains("redis-2 has no replica that is up")
	c.Restart(t, 5)
	c.WaitHealthy(t)
	healthy()

	// A dead master whose replica does not stand for election by itself.
	if err := c.Client(t, 5).ConfigSet(ctx, "cluster-replica-no-failover", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	c.Kill(t, 2)
	complains("redis-2 is failed")
	if s := status(); s.State != "down" || s.SlotsServed == 16384 {
		t.Errorf("without a master: %s, %d slots served", s.State, s.SlotsServed)
	}
	if _, _, err := o.Failover(ctx, "redis-5", false); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("with a dead master: %v, want a word about --force", err)
	}
	if old, next, err := o.Failover(ctx, "redis-5", true); err != nil || old.Name != "redis-2" || next.Name != "redis-5" {
		t.Fatalf("%s to %s: %v", old.Name, next.Name, err)
	}
	c.Restart(t, 2)
	c.WaitHealthy(t)

	nobody, err := NewOperator(OperatorConfig{Nodes: []topology.Endpoint{{Address: servertest.FreeAddress(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if _, err := nobody.Status(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cluster that is not there: %v", err)
	}
}

// mendsMoves cuts a move of slot 5460 from redis-1 back to redis-0 off at each of
// its steps.
func mendsMoves(t *testing.T, o *Operator, c *servertest.RedisCluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	to, from := c.Client(t, 0), c.Client(t, 1)
	var toID, fromID string
	setSlot := func(at *redis.Client, args ...any) {
		t.Helper()
		if err := at.Do(ctx, append([]any{"CLUSTER", "SETSLOT"}, args...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	mend := func(slot int) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			s, err := o.Status(ctx)
			if err == nil && !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, fmt.Sprintf("slots [%d] are on their way", slot)) }) {
				err = fmt.Errorf("no word of the slot: %v", s.Problems)
			}
			return err
		})
		if got, err := o.Mend(ctx); err != nil || !slices.Equal(got, []int{slot}) {
			t.Fatalf("mended %v, %v, want slot %d", got, err, slot)
		}
		if got, err := o.Mend(ctx); err != nil || len(got) > 0 {
			t.Fatalf("once more: %v, %v", got, err)
		}
	}
	for client, id := range map[*redis.Client]*string{to: &toID, from: &fromID} {
		var err error
		if *id, err = client.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
			t.Fatal(err)
		}
	}

	// Only the receiver had been told: the slot stays.
	setSlot(to, 5460, "IMPORTING", fromID)
	mend(5460)
	if c.Owner(t, 5460) != 1 {
		t.Error("a move that nobody had begun was made")
	}
	// Some of the keys had gone: the others follow.
	setSlot(to, 5460, "IMPORTING", fromID)
	setSlot(from, 5460, "MIGRATING", toID)
	keys, err := from.ClusterGetKeysInSlot(ctx, 5460, 40).Result()
	if err != nil || len(keys) != 40 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	host, port, _ := net.SplitHostPort(c.Nodes[0].Addr)
	args := []any{"MIGRATE", host, port, "", 0, 10000, "AUTH2", "admin", c.Password("admin"), "KEYS"}
	for _, k := range keys {
		args = append(args, k)
	}
	if err := from.Do(ctx, args...).Err(); err != nil {
		t.Fatal(err)
	}
	mend(5460)
	if n, err := to.ClusterCountKeysInSlot(ctx, 5460).Result(); n != 120 || err != nil {
		t.Errorf("%d of 120 keys are at the receiver: %v", n, err)
	}
	// The receiver had the slot already, and the giver had not been told.
	setSlot(to, 5459, "IMPORTING", fromID)
	setSlot(from, 5459, "MIGRATING", toID)
	setSlot(to, 5459, "NODE", toID)
	mend(5459)
	if c.Owner(t, 5459) != 0 {
		t.Error("the slot went back")
	}
}
