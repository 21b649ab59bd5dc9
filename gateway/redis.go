package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// redisDialTimeout bounds one connection to a node; what waits for Redis
	// has a deadline of its own.
	redisDialTimeout = time.Second
	// redisIOTimeout bounds one command without a deadline of its own.
	redisIOTimeout = 3 * time.Second
	// redisReloadEvery bounds how old the map of slots may get without a hint
	// (MOVED) that it is.
	redisReloadEvery = 15 * time.Second
	maxSecretBytes   = 4 << 10
)

// Redis is the Redis Cluster that the gateways of one Dify share for limits and
// jobs. Without nodes every gateway is alone: limits are local, and there are
// no jobs.
type Redis struct {
	// Nodes are host:port of some nodes of the cluster; the rest is found.
	Nodes []string `yaml:"nodes"`
	// User of Redis's access list; empty is "default". It needs the keys
	// fournines:gw:* and asynq:* and the channels of the same names.
	User string `yaml:"user"`
	// PasswordFile holds the user's password; one newline at its end is
	// ignored. It is read again for each new connection, so that a password
	// can be changed without a restart. Empty is no password.
	PasswordFile string `yaml:"passwordFile"`
}

func (r *Redis) equal(o *Redis) bool {
	return slices.Equal(r.Nodes, o.Nodes) && r.User == o.User && r.PasswordFile == o.PasswordFile
}

func (r *Redis) validate(bad func(field, format string, args ...any)) {
	seen := map[string]bool{}
	for i, n := range r.Nodes {
		field := fmt.Sprintf("redis.nodes[%d]", i)
		if host, port, err := net.SplitHostPort(n); err != nil || host == "" || port == "" {
			bad(field, "%q is not host:port", n)
		}
		if seen[n] {
			bad(field, "%s is listed twice", n)
		}
		seen[n] = true
	}
	if r.User != "" && r.PasswordFile == "" {
		bad("redis.passwordFile", "user %s needs one", r.User)
	}
	if len(r.Nodes) == 0 && (r.User != "" || r.PasswordFile != "") {
		bad("redis.nodes", "at least one is needed when a user or a password is given")
	}
}

// newRedis makes the client of cfg's cluster, nil when there is none. It opens
// no connection. Commands obey the deadline of their context, and a command
// whose fate is unknown is not repeated on the same node by its client.
func newRedis(cfg Redis) (*redis.ClusterClient, error) {
	if len(cfg.Nodes) == 0 {
		return nil, nil
	}
	if _, err := cfg.credentials(); err != nil {
		return nil, fmt.Errorf("redis.passwordFile: %w", err)
	}
	return redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cfg.Nodes,
		CredentialsProvider: func() (string, string) {
			// A file that has become unreadable gives a refused login, which
			// is an error of Redis like others.
			password, _ := cfg.credentials()
			return cfg.User, password
		},
		DialTimeout: redisDialTimeout, DialerRetries: 1,
		ReadTimeout: redisIOTimeout, WriteTimeout: redisIOTimeout,
		ContextTimeoutEnabled:      true,
		Protocol:                   2,
		DisableIdentity:            true,
		DisableRoutingPolicies:     true, // keys alone say where a command goes
		ClusterStateReloadInterval: redisReloadEvery,
		ReadBufferSize:             8 << 10, WriteBufferSize: 8 << 10, // short commands
	}), nil
}

func (r *Redis) credentials() (string, error) {
	if r.PasswordFile == "" {
		return "", nil
	}
	f, err := os.Open(r.PasswordFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxSecretBytes)
	n, err := f.Read(b)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", r.PasswordFile, err)
	}
	secret := strings.TrimRight(string(b[:n]), "\r\n")
	if secret == "" {
		return "", errors.New("the file is empty")
	}
	return secret, nil
}
