package conversation

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type counts struct{ failed, lost atomic.Int64 }

func (c *counts) LockFailed(error) { c.failed.Add(1) }
func (c *counts) LockLost()        { c.lost.Add(1) }

var limits = Limits{MaxWaiting: 3, Wait: 10 * time.Second}

func mustTake(t *testing.T, turns *Turns, key Key) *Turn {
	t.Helper()
	turn, err := turns.Take(t.Context(), key, limits)
	if err != nil {
		t.Fatal(err)
	}
	return turn
}

func TestOneAtATimeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(nil, time.Second, &counts{})
		key := KeyOf("app", "c1")
		first := mustTake(t, turns, key)
		other := mustTake(t, turns, KeyOf("app", "c2")) // nobody else's business
		other.End()
		var order []int
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				turn, err := turns.Take(t.Context(), key, limits)
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				order = append(order, i) // the turn is the lock
				time.Sleep(time.Second)
				turn.End()
			})
			synctest.Wait()
		}
		if _, err := turns.Take(t.Context(), key, limits); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth one: %v", err)
		}
		if n := turns.Waiting(); n != 3 {
			t.Errorf("%d wait", n)
		}
		first.End()
		first.End() // once is enough
		wg.Wait()
		if len(order) != 3 || order[0] != 0 || order[1] != 1 || order[2] != 2 {
			t.Errorf("order %v", order)
		}
		if len(turns.lines) != 0 || turns.Waiting() != 0 {
			t.Errorf("%d lines, %d waiting are left", len(turns.lines), turns.Waiting())
		}
	})
}

func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := New(nil, time.Second, &counts{})
		key := KeyOf("app", "c1")
		first := mustTake(t, turns, key)
		if _, err := turns.Take(t.Context(), key, limits); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		gone := errors.New("the client left")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if _, err := turns.Take(ctx, key, limits); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
		first.End()
		mustTake(t, turns, key).End()
		if len(turns.lines) != 0 {
			t.Error("a line is left")
		}
	})
}

// memory is a Lock that several Turns share, with its own idea of time.
type memory struct {
	mu     sync.Mutex
	owner  map[string]string
	ends   map[string]time.Time
	broken atomic.Bool
}

func newMemory() *memory { return &memory{owner: map[string]string{}, ends: map[string]time.Time{}} }

var errAway = errors.New("the lock is away")

func (m *memory) do(ctx context.Context, f func() bool) (bool, error) {
	if m.broken.Load() {
		<-ctx.Done()
		return false, errAway
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, end := range m.ends {
		if time.Now().After(end) {
			delete(m.owner, k)
			delete(m.ends, k)
		}
	}
	return f(), nil
}

func (m *memory) Take(ctx context.Context, key, token string, lease time.Duration) (bool, error) {
	return m.do(ctx, func() bool {
		if _, taken := m.owner[key]; taken {
			return false
		}
		m.owner[key], m.ends[key] = token, time.Now().Add(lease)
		return true
	})
}

func (m *memory) Renew(ctx context.Context, key, token string, lease time.Duration) (bool, error) {
	return m.do(ctx, func() bool {
		if m.owner[key] != token {
			return false
		}
		m.ends[key] = time.Now().Add(lease)
		return true
	})
}

func (m *memory) Give(ctx context.Context, key, token string) error {
	_, err := m.do(ctx, func() bool {
		if m.owner[key] == token {
			delete(m.owner, key)
			delete(m.ends, key)
		}
		return true
	})
	return err
}

func TestTwoGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newMemory()
		var c counts
		a, b := New(shared, 3*time.Second, &c), New(shared, 3*time.Second, &c)
		key := KeyOf("app", "c1")
		first := mustTake(t, a, key)
		if _, err := b.Take(t.Context(), key, Limits{MaxWaiting: 1, Wait: 8 * time.Second}); !errors.Is(err, ErrTimeout) {
			t.Errorf("the other gateway, after more than a lease: %v", err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustTake(t, b, key).End()
		}()
		synctest.Wait()
		first.End()
		<-done
		a.Close()
		b.Close()
		if len(shared.owner) != 0 || c.failed.Load() != 0 || c.lost.Load() != 0 {
			t.Errorf("left %v, failed %d, lost %d", shared.owner, c.failed.Load(), c.lost.Load())
		}
	})
}

func TestDeadGatewaysLockEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newMemory()
		key := KeyOf("app", "c1")
		turn := Turn{key: key}
		if ok, _ := shared.Take(t.Context(), turn.name(), "of a dead gateway", 3*time.Second); !ok {
			t.Fatal("not taken")
		}
		b := New(shared, 3*time.Second, &counts{})
		begin := time.Now()
		mustTake(t, b, key).End()
		b.Close()
		if took := time.Since(begin); took < 2*time.Second || took > 4*time.Second {
			t.Errorf("waited %v for a lease of 3s", took)
		}
	})
}

// A lock that does not answer costs one request its timeout, and none an error.
func TestLockAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := newMemory()
		var c counts
		a := New(shared, 3*time.Second, &c)
		key := KeyOf("app", "c1")
		shared.broken.Store(true)
		begin := time.Now()
		first := mustTake(t, a, key)
		for i := range 100 {
			mustTake(t, a, KeyOf("app", string(rune('a'+i)))).End()
		}
		if took := time.Since(begin); took != lockTimeout {
			t.Errorf("101 turns took %v", took)
		}
		// It still holds within this gateway.
		if _, err := a.Take(t.Context(), key, Limits{MaxWaiting: 1, Wait: time.Second / 2}); !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		first.End()
		a.Close()
		shared.broken.Store(false)
		time.Sleep(lockPause)
		turn := mustTake(t, a, key)
		if turn.token == "" {
			t.Error("the lock is back and was not asked")
		}
		shared.broken.Store(true)
		time.Sleep(4 * time.Second) // longer than the lease
		shared.broken.Store(false)
		time.Sleep(3 * time.Second)
		if c.lost.Load() != 1 {
			t.Errorf("lost %d", c.lost.Load())
		}
		turn.End()
		a.Close()
	})
}
