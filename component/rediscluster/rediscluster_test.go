package rediscluster_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/component/rediscluster"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestClusterFormsAndSurvivesAZone(t *testing.T) {
	servertest.Need(t, "redis-server")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	password := map[string]string{}
	secret := func(name string) string {
		password[name] = `s3 "cret" ` + name
		return servertest.Secret(t, owner, dir, name+".password", password[name])
	}
	passwords := rediscluster.Passwords{
		Admin: secret("admin"), Replica: secret("replica"), Dify: secret("dify"),
		Monitor: secret("monitor"), RedisProxy: secret("redisproxy"), Gateway: secret("gateway"),
	}
	nodes := rediscluster.Place([]string{"a", "b", "c"}, func(zone int, replica bool) string {
		if replica {
			return fmt.Sprintf("127.63.%d.31", zone+1)
		}
		return fmt.Sprintf("127.63.%d.30", zone+1)
	})
	units := map[string]*servertest.Unit{}
	var addresses []string
	for _, n := range nodes {
		unit, err := rediscluster.Unit(rediscluster.Config{
			Node: n, DataDir: filepath.Join(dir, n.Name), Passwords: passwords, Owner: owner, MaxMemoryMiB: 32,
		})
		if err != nil {
			t.Fatal(err)
		}
		units[n.Name] = servertest.Launch(t, owner, unit)
		addresses = append(addresses, unit.Address)
	}
	for _, u := range units {
		u.WaitReady()
	}
	form := rediscluster.FormConfig{Nodes: nodes, AdminPassword: passwords.Admin}
	task, err := rediscluster.FormTask(form)
	if err != nil {
		t.Fatal(err)
	}

	// An interrupted first run has introduced two nodes and given away one slot.
	admin := client(t, nodes[0].Address(), "admin", password["admin"])
	if err := admin.Do(t.Context(), "CLUSTER", "MEET", nodes[4].Host, 6379).Err(); err != nil {
		t.Fatal(err)
	}
	if err := admin.Do(t.Context(), "CLUSTER", "ADDSLOTS", 7).Err(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := task.Task(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("formed in %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	if err := task.Task(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("found formed in %v", time.Since(begin).Round(time.Millisecond))
	shards, err := rediscluster.Placement(t.Context(), form)
	if err != nil {
		t.Errorf("placement: %v", err)
	}
	for i, s := range shards {
		want := fmt.Sprintf("redis-%c-1", "abc"[i])
		if s.Master.Name != want || len(s.Replicas) != 1 || s.Slots < 5461 {
			t.Errorf("shard %d is %+v, want its master on %s", i, s, want)
		}
	}

	// Accounts.
	if err := client(t, addresses[0], "", "").Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without a password: %v, want NOAUTH", err)
	}
	dify := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addresses, Username: "dify", Password: password["dify"], MaxRedirects: 8})
	defer dify.Close()
	for _, forbidden := range [][]any{{"CONFIG", "GET", "*"}, {"ACL", "LIST"}, {"FLUSHALL"}, {"CLUSTER", "RESET"}, {"SHUTDOWN"}} {
		if err := client(t, addresses[0], "dify", password["dify"]).Do(t.Context(), forbidden...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("dify may run %v: %v", forbidden, err)
		}
	}
	if err := client(t, addresses[0], "monitor", password["monitor"]).Get(t.Context(), "x").Err(); err == nil || errors.Is(err, redis.Nil) {
		t.Errorf("monitor may read keys: %v", err)
	}
	gateway := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addresses, Username: "gateway", Password: password["gateway"], MaxRedirects: 8})
	defer gateway.Close()
	for _, allowed := range [][]any{
		{"SET", "fournines:gw:{x}:a", "1", "PX", "60000"},
		{"EVAL", "redis.call('INCR', KEYS[1]) return redis.call('TIME')", 1, "fournines:gw:{x}:a"},
		{"LPUSH", "asynq:{default}:pending", "1"}, {"DEL", "asynq:{default}:pending"},
		{"PUBLISH", "asynq:cancel", "1"},
	} {
		if err := gateway.Do(t.Context(), allowed...).Err(); err != nil {
			t.Errorf("gateway may not run %v: %v", allowed, err)
		}
	}
	for _, forbidden := range [][]any{
		{"GET", "celery"}, {"EVAL", "return redis.call('GET', 'celery')", 1, "fournines:gw:{celery}"}, {"PUBLISH", "dify", "1"},
		{"KEYS", "*"}, {"SCRIPT", "FLUSH"}, {"FUNCTION", "LIST"}, {"CONFIG", "GET", "*"}, {"ACL", "LIST"}, {"FLUSHALL"}, {"CLUSTER", "RESET"}, {"SHUTDOWN"}, {"CLIENT", "KILL", "ID", "0"},
	} {
		err := gateway.Do(t.Context(), forbidden...).Err()
		if err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "No permissions") && !strings.Contains(err.Error(), "can't access") {
			t.Errorf("gateway may run %v: %v", forbidden, err)
		}
	}
	for _, u := range units {
		for _, p := range password {
			if strings.Contains(u.ArgsOf(), p) || strings.Contains(u.Log(), p) {
				t.Errorf("a password is in the arguments or the log of %s", u.Name)
			}
		}
	}
	for i := range 300 {
		if err := dify.Set(t.Context(), fmt.Sprintf("key-%d", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		if n.Replica {
			continue
		}
		// The check of what survives must not depend on asynchronous replication.
		if got := client(t, n.Address(), "admin", password["admin"]).Wait(t.Context(), 1, 30*time.Second).Val(); got < 1 {
			t.Fatalf("%s: no replica has the keys", n.Name)
		}
	}

	// Zone a loses power: its master and the replica of c.
	killed := time.Now()
	units["redis-a-1"].Kill()
	units["redis-a-2"].Kill()
	eventually.Nil(t, time.Minute, func() error {
		role, err := units["redis-b-2"].Role(t.Context())
		if err == nil && role != "master" {
			err = fmt.Errorf("redis-b-2 is %s", role)
		}
		return err
	})
	for _, name := range []string{"redis-b-1", "redis-b-2", "redis-c-1", "redis-c-2"} {
		node := client(t, units[name].Address, "admin", password["admin"])
		eventually.Nil(t, time.Minute, func() error {
			info, err := node.ClusterInfo(t.Context()).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384")) {
				err = fmt.Errorf("%s: %s", name, info)
			}
			return err
		})
	}
	t.Logf("every slot served again %v after zone a was lost", time.Since(killed).Round(100*time.Millisecond))
	// A client of its own: the one from before learns of the failover in its own
	// time.
	dify = redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{nodes[1].Address(), nodes[2].Address()}, Username: "dify", Password: password["dify"], MaxRedirects: 8,
	})
	defer dify.Close()
	eventually.Nil(t, time.Minute, func() error {
		return dify.Set(t.Context(), "key-0", "0", 0).Err()
	})
	for i := range 300 {
		key := fmt.Sprintf("key-%d", i)
		eventually.Nil(t, 30*time.Second, func() error {
			got, err := dify.Get(t.Context(), key).Int()
			if err == nil && got != i {
				err = fmt.Errorf("%s is %d", key, got)
			}
			return err
		})
	}
	t.Logf("all keys read %v after zone a was lost", time.Since(killed).Round(100*time.Millisecond))
	if _, err := rediscluster.Placement(t.Context(), form); err == nil || !strings.Contains(err.Error(), "zone b has 2 of 3 masters") {
		t.Errorf("placement after the failover: %v, want that zone b has two masters", err)
	}

	units["redis-a-1"].Relaunch()
	units["redis-a-2"].Relaunch()
	units["redis-a-1"].WaitReady()
	units["redis-a-2"].WaitReady()
	if err := rediscluster.Rebalance(t.Context(), form); err != nil {
		t.Fatal(err)
	}
	if _, err := rediscluster.Placement(t.Context(), form); err != nil {
		t.Errorf("placement after the zone came back: %v", err)
	}
	if role, err := units["redis-a-1"].Role(t.Context()); err != nil || role != "master" {
		t.Errorf("redis-a-1 is %q (%v), want master", role, err)
	}
	for _, u := range units {
		u.Stop()
	}
}

func client(t *testing.T, address, user, password string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: address, Username: user, Password: password, Protocol: 2, DisableIdentity: true, ReadTimeout: 40 * time.Second})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestUnitsRefuseBadConfig(t *testing.T) {
	_, err := rediscluster.Unit(rediscluster.Config{Node: rediscluster.Node{Name: "x", Host: "0.0.0.0", Port: 60000}})
	for _, want := range []string{"Host", "Port", "DataDir", "user dify"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	same := rediscluster.Place([]string{"a", "a", "a"}, func(int, bool) string { return "127.0.0.1" })
	if _, err := rediscluster.FormTask(rediscluster.FormConfig{Nodes: same, AdminPassword: "/x"}); err == nil || !strings.Contains(err.Error(), "dies with it") {
		t.Errorf("replicas in their masters' zone: %v", err)
	}
	if _, err := rediscluster.Placement(context.Background(), rediscluster.FormConfig{}); err == nil {
		t.Error("placement of nothing has no error")
	}
}
