package servertest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestRedisClusterFailsOver(t *testing.T) {
	start := time.Now()
	c := servertest.NewRedisCluster(t)
	t.Logf("formed in %v", time.Since(start))
	killed := c.KillMaster(t, 1)
	eventually.Nil(t, time.Minute, func() error {
		if owner := c.Owner(t, servertest.RedisSlots/3+1); owner < 0 || owner == killed {
			return errors.New("no new master yet")
		}
		return nil
	})
	c.Restart(t, killed)
	c.WaitHealthy(t)
}

func TestPlainRedisAnswers(t *testing.T) {
	r := servertest.NewRedis(t)
	if err := r.Client(t, 3).Ping(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
}
