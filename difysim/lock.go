package difysim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// errLocked says that somebody else holds the lock.
var errLocked = errors.New("lock is held by another process")

// The scripts are those of redis-py's Lock: one key, the holder's token.
const (
	releaseScript = `local token = redis.call('get', KEYS[1])
if not token or token ~= ARGV[1] then
    return 0
end
redis.call('del', KEYS[1])
return 1`
	extendScript = `local token = redis.call('get', KEYS[1])
if not token or token ~= ARGV[1] then
    return 0
end
redis.call('pexpire', KEYS[1], ARGV[2])
return 1`
)

// lock is a lock of redis-py's form: SET NX PX with a token, released by script.
type lock struct {
	rdb   *redis.Client
	key   string
	token string
	ttl   time.Duration
}

// acquire takes a lock, waiting up to wait for it (0: one try), and returns
// errLocked when it stays taken.
func acquire(ctx context.Context, rdb *redis.Client, key string, ttl, wait time.Duration) (*lock, error) {
	l := &lock{rdb: rdb, key: key, token: uuid.NewString(), ttl: ttl}
	deadline := time.Now().Add(wait)
	for {
		ok, err := rdb.SetNX(ctx, key, l.token, ttl).Result()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", key, err)
		}
		if ok {
			return l, nil
		}
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("lock %s: %w", key, errLocked)
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// extend gives the lock its full time again; false means it was lost.
func (l *lock) extend(ctx context.Context) (bool, error) {
	n, err := redis.NewScript(extendScript).Run(ctx, l.rdb, []string{l.key}, l.token, l.ttl.Milliseconds()).Int()
	return n == 1, err
}

func (l *lock) release(ctx context.Context) error {
	if err := redis.NewScript(releaseScript).Run(ctx, l.rdb, []string{l.key}, l.token).Err(); err != nil {
		return fmt.Errorf("release lock %s: %w", l.key, err)
	}
	return nil
}
