//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/bench/rig"
	"fournines/redisproxy/keyspace"
)

// cluster is three masters without replicas, tuned to wait for nothing but the
// processor: nothing is written to disk.
type cluster struct {
	nodes        []*rig.Process
	addresses    []netip.AddrPort
	password     string
	passwordFile string
}

// masters is how many nodes there are.
const masters = 3

// startCluster starts the nodes in dir and forms a cluster; close ends it.
func startCluster(ctx context.Context, dir string, free *rig.Addresses) (_ *cluster, err error) {
	program := rig.InPath("redis-server")
	if program == "" {
		return nil, errors.New("redis-server is not installed; see make setup")
	}
	secret := make([]byte, 12)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	c := &cluster{password: hex.EncodeToString(secret), passwordFile: filepath.Join(dir, "password")}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err := os.WriteFile(c.passwordFile, []byte(c.password), 0o600); err != nil {
		return nil, err
	}
	var buses []netip.AddrPort
	for i := range masters {
		at, err := free.Free()
		if err != nil {
			return nil, err
		}
		bus, err := free.Free()
		if err != nil {
			return nil, err
		}
		home := filepath.Join(dir, fmt.Sprint("node", i))
		if err := os.Mkdir(home, 0o700); err != nil {
			return nil, err
		}
		file := filepath.Join(home, "redis.conf")
		// The address is announced, because a node knows its own only from others.
		text := fmt.Sprintf("bind %[1]s\nport %[2]d\ncluster-enabled yes\ncluster-port %[3]d\ncluster-announce-ip %[1]s\ncluster-node-timeout 15000\nrequirepass %[4]s\nsave \"\"\nappendonly no\n",
			at.Addr(), at.Port(), bus.Port(), c.password)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
		p, err := rig.Start(rig.Command{Name: fmt.Sprint("redis", i), Dir: home, Argv: []string{program, file}})
		if err != nil {
			return nil, err
		}
		c.nodes, c.addresses, buses = append(c.nodes, p), append(c.addresses, at), append(buses, bus)
	}
	return c, c.form(ctx, buses)
}

// form gives each node its slots, and waits until all know them.
func (c *cluster) form(ctx context.Context, buses []netip.AddrPort) error {
	clients := make([]*redis.Client, len(c.nodes))
	for i := range clients {
		clients[i] = c.client(i)
		defer clients[i].Close()
	}
	for i, p := range c.nodes {
		if err := rig.AwaitService(ctx, p, 1, func(ctx context.Context) error { return clients[i].Ping(ctx).Err() }); err != nil {
			return err
		}
		if err := clients[i].ClusterAddSlotsRange(ctx, keyspace.Slots*i/masters, keyspace.Slots*(i+1)/masters-1).Err(); err != nil {
			return err
		}
		for j, other := range c.addresses[:i] {
			if err := clients[i].Do(ctx, "CLUSTER", "MEET", other.Addr().String(), other.Port(), buses[j].Port()).Err(); err != nil {
				return err
			}
		}
	}
	for i, p := range c.nodes {
		err := rig.AwaitService(ctx, p, 1, func(ctx context.Context) error {
			info, err := clients[i].ClusterInfo(ctx).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3")) {
				err = fmt.Errorf("the cluster is not formed: %s", info)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// owner is the node that has a key: node i has the slots from Slots*i/masters on.
func owner(key string) int {
	return (keyspace.Slot([]byte(key))*masters + masters - 1) / keyspace.Slots
}

// fill writes every key that redis-benchmark asks a proxy for.
func (c *cluster) fill(ctx context.Context) error {
	value := strings.Repeat("x", valueSize)
	of := make([][]string, masters)
	for i := range keys {
		key := fmt.Sprintf("key:%012d", i)
		of[owner(key)] = append(of[owner(key)], key)
	}
	for i := range masters {
		client := c.client(i)
		defer client.Close()
		for batch := range slices.Chunk(of[i], 1000) {
			_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, key := range batch {
					p.Set(ctx, key, value, 0)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("write the keys: %w", err)
			}
		}
	}
	return nil
}

func (c *cluster) client(node int) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: c.addresses[node].String(), Password: c.password, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialTimeout: time.Second,
	})
}

// pids are the processes of the nodes.
func (c *cluster) pids() []int {
	var pids []int
	for _, p := range c.nodes {
		pids = append(pids, p.PID())
	}
	return pids
}

func (c *cluster) close() {
	for _, p := range c.nodes {
		p.Stop()
	}
}
