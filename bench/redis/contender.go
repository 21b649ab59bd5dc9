//go:build linux

package main

import (
	"context"
	"embed"
	"fmt"
	"net/netip"

	"github.com/redis/go-redis/v9"

	"fournines/bench/rig"
)

//go:embed peers
var peerFiles embed.FS

// settings fill the templates in peers/.
type settings struct {
	Listen       netip.AddrPort // for clients
	Admin        netip.AddrPort // for metrics and the like
	Nodes        []netip.AddrPort
	PasswordFile string
	Password     string
}

// direct is the name of the contender that is no proxy: the client knows the
// cluster.
const direct = "direct"

// peers are the others.
var peers = []rig.Peer{{
	Name: "envoy", Version: []string{"--version"},
	Places: []string{"venv-bench/lib/python*/site-packages/envoy/_bin/envoy"},
	Files:  map[string]string{"envoy.yaml.tmpl": "envoy.yaml"},
	// A thread for each processor, as ours has.
	Argv: []string{"-c", "{dir}/envoy.yaml", "--disable-hot-restart", "--log-level", "warning"},
}}

// ours is the proxy of this repository.
func ours(program string) *rig.Contender {
	return &rig.Contender{
		Name: "ours", Title: "ours", Program: program,
		Files: map[string]string{"fournines.yaml.tmpl": "redisproxy.yaml"},
		Argv:  []string{"redisproxy", "--config", "{dir}/redisproxy.yaml"},
	}
}

// ask writes and reads keys of every node.
func ask(at netip.AddrPort, password string) func(context.Context) error {
	return func(ctx context.Context) error {
		c := redis.NewClient(&redis.Options{Addr: at.String(), Password: password, Protocol: 2, DisableIdentity: true, MaxRetries: -1})
		defer c.Close()
		for i := range 10 {
			key, want := fmt.Sprint("asked:", i), fmt.Sprint(i)
			if err := c.Set(ctx, key, want, 0).Err(); err != nil {
				return err
			}
			if got, err := c.Get(ctx, key).Result(); err != nil || got != want {
				return fmt.Errorf("GET %s is %q: %w", key, got, err)
			}
		}
		got, err := c.MGet(ctx, "asked:1", "asked:2", "asked:3").Result()
		if err != nil || len(got) != 3 || got[2] != "3" {
			return fmt.Errorf("MGET is %v: %w", got, err)
		}
		return nil
	}
}
