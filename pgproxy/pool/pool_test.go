package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type conn struct{ n int }

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New[*conn](1, 3)
		if _, dial, err := p.Get(t.Context(), time.Second, nil); !dial || err != nil {
			t.Fatal("first taker must dial", dial, err)
		}
		c := &conn{1}
		p.Add(c)
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				got, _, err := p.Get(t.Context(), time.Minute, nil)
				if err != nil {
					t.Error(err)
				}
				order <- i
				p.Put(got)
			}()
			synctest.Wait()
		}
		if _, _, err := p.Get(t.Context(), time.Second, nil); !errors.Is(err, ErrFull) {
			t.Fatalf("fourth waiter: %v", err)
		}
		if p.Waiting() != 3 {
			t.Fatal("waiting", p.Waiting())
		}
		p.Put(c)
		for want := range 3 {
			if got := <-order; got != want {
				t.Fatalf("got %d want %d", got, want)
			}
		}
	})
}

func TestTimeoutCancelAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New[*conn](1, 3)
		p.Get(t.Context(), time.Second, nil)
		if _, _, err := p.Get(t.Context(), time.Second, nil); !errors.Is(err, ErrTimeout) {
			t.Fatalf("got %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		if _, _, err := p.Get(ctx, time.Second, nil); !errors.Is(err, gone) {
			t.Fatalf("got %v", err)
		}
		p.Cancel()
		if _, dial, err := p.Get(t.Context(), time.Second, nil); !dial || err != nil {
			t.Fatal("slot was lost", err)
		}
		c := &conn{2}
		p.Add(c)
		p.Put(c)
		p.Remove(c)
		p.Remove(c)
		if p.Put(c) {
			t.Fatal("a removed connection came back")
		}
		if s := p.Stats(); s.Idle != 0 || s.Used != 0 || s.Waiting != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestNeverMoreThanSize(t *testing.T) {
	p := New[*conn](3, 1000)
	var inUse, most atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for i := range 200 {
				c, dial, err := p.Get(t.Context(), time.Minute, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inUse.Add(1); n > 3 {
					most.Store(n)
				}
				if dial {
					c = &conn{}
					p.Add(c)
				}
				inUse.Add(-1)
				if i%7 == 0 {
					p.Remove(c)
				} else if !p.Put(c) {
					t.Error("refused")
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 0 {
		t.Fatalf("%d in use at once", most.Load())
	}
}
