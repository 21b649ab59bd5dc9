package conversation

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// prefix of the keys in Redis.
const prefix = "fournines:gw:conversation:"

var (
	// renew and give touch the lock only while the caller has it: its lease
	// may have ended, and it may be another's by now.
	renew = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("PEXPIRE", KEYS[1], ARGV[2]) end return 0`)
	give  = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)
)

// Redis is a Lock in a Redis or a Redis Cluster.
type Redis struct{ Client redis.UniversalClient }

var _ Lock = Redis{}

// Take implements Lock.
func (r Redis) Take(ctx context.Context, key, token string, lease time.Duration) (bool, error) {
	err := r.Client.SetArgs(ctx, prefix+key, token, redis.SetArgs{Mode: "NX", TTL: lease}).Err()
	if err == redis.Nil { //nolint:errorlint // go-redis returns it as it is
		return false, nil
	}
	return err == nil, err
}

// Renew implements Lock.
func (r Redis) Renew(ctx context.Context, key, token string, lease time.Duration) (bool, error) {
	n, err := renew.Run(ctx, r.Client, []string{prefix + key}, token, lease.Milliseconds()).Int()
	return n == 1, err
}

// Give implements Lock.
func (r Redis) Give(ctx context.Context, key, token string) error {
	return give.Run(ctx, r.Client, []string{prefix + key}, token).Err()
}
