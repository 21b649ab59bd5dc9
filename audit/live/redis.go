package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"fournines/audit"
)

// Redis asks one node at rawURL (redis://user@host:port or rediss://). password
// may be empty: then REDISCLI_AUTH counts. Settings are left out where CONFIG is
// not allowed.
func Redis(ctx context.Context, rawURL, password string) (audit.Redis, error) {
	u, err := checkURL(rawURL, "redis", "rediss")
	if err != nil {
		return audit.Redis{}, fmt.Errorf("redis: %w", err)
	}
	opts, err := redis.ParseURL(rawURL)
	if err != nil {
		return audit.Redis{}, fmt.Errorf("redis %s: %w", u.Host, err)
	}
	if opts.Password = password; password == "" {
		opts.Password = os.Getenv("REDISCLI_AUTH")
	}
	opts.MaxRetries, opts.PoolSize = -1, 1
	opts.DialTimeout, opts.ReadTimeout = askLimit, askLimit
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	c := redis.NewClient(opts)
	defer c.Close()
	out, err := askRedis(ctx, c)
	if err != nil {
		return audit.Redis{}, fmt.Errorf("redis %s: %w", u.Host, err)
	}
	out.Name = u.Host
	return out, nil
}

func askRedis(ctx context.Context, c *redis.Client) (audit.Redis, error) {
	var out audit.Redis
	text, err := c.Info(ctx).Result()
	if err != nil {
		return out, err
	}
	out.Info = fields(text)
	settings := map[string]string{}
	for _, name := range []string{"appendonly", "maxmemory-policy", "cluster-enabled", "cluster-require-full-coverage", "cluster-node-timeout", "min-replicas-to-write"} {
		got, err := c.ConfigGet(ctx, name).Result()
		if err != nil {
			// Managed servers do not have CONFIG, and accounts may lack it.
			var refused redis.Error
			if errors.As(err, &refused) {
				settings = nil
				break
			}
			return out, err
		}
		for k, v := range got {
			settings[k] = v
		}
	}
	out.Settings = settings
	if out.Info["cluster_enabled"] != "1" {
		return out, nil
	}
	if text, err = c.ClusterInfo(ctx).Result(); err != nil {
		return out, err
	}
	out.ClusterInfo = fields(text)
	if text, err = c.ClusterNodes(ctx).Result(); err != nil {
		return out, err
	}
	out.Nodes, err = clusterNodes(text)
	return out, err
}

// fields reads lines of "name:value".
func fields(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			out[name] = value
		}
	}
	return out
}

// clusterNodes reads CLUSTER NODES: id, address@bus,hostname, flags, master,
// ping, pong, epoch, link, slots.
func clusterNodes(text string) ([]audit.RedisNode, error) {
	var out []audit.RedisNode
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 8 {
			return nil, fmt.Errorf("CLUSTER NODES: %q has %d words, want at least 8", strings.TrimSpace(line), len(w))
		}
		address, _, _ := strings.Cut(w[1], "@")
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address // a node whose address is not known yet
		}
		n := audit.RedisNode{ID: w[0], Host: host, Address: address, Failed: strings.Contains(w[2], "fail")}
		if w[3] != "-" {
			n.MasterID = w[3]
		}
		for _, slots := range w[8:] {
			if strings.HasPrefix(slots, "[") {
				continue // on the way to another node
			}
			first, last, ok := strings.Cut(slots, "-")
			if !ok {
				last = first
			}
			a, err1 := strconv.Atoi(first)
			b, err2 := strconv.Atoi(last)
			if err := errors.Join(err1, err2); err != nil {
				return nil, fmt.Errorf("CLUSTER NODES: slots %q: %w", slots, err)
			}
			n.Slots += b - a + 1
		}
		out = append(out, n)
	}
	return out, nil
}
