package fence

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// start runs an Asker until the test ends.
func start(t *testing.T, ask func(ctx context.Context) (Position, error)) *Asker {
	t.Helper()
	a := New(ask, 10*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestOneQuestionAnswersAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Uint64 // the primary's position
		a := start(t, func(context.Context) (Position, error) {
			time.Sleep(time.Second / 2)
			p := Position{LSN: now.Load(), Generation: 1}
			time.Sleep(time.Second / 2)
			return p, nil
		})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for range 5 {
					least := now.Add(1) // acknowledged before the question
					p, err := a.Position(t.Context())
					if err != nil || p.LSN < least || p.Generation != 1 {
						t.Errorf("%+v, %v: want at least %d", p, err, least)
					}
				}
			})
		}
		wg.Wait()
		// The first question may have one reader alone; from then on all share.
		if n := a.Questions(); n > 12 {
			t.Errorf("%d questions for 100 readers with 5 reads each", n)
		}
	})
}

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now uint64
		a := start(t, func(context.Context) (Position, error) {
			now++
			return Position{LSN: now}, nil
		})
		get := func(maxAge time.Duration) uint64 {
			p, err := a.Recent(t.Context(), maxAge)
			if err != nil {
				t.Fatal(err)
			}
			return p.LSN
		}
		if got := get(time.Second); got != 1 {
			t.Fatal(got)
		}
		time.Sleep(time.Second)
		if got := get(time.Second); got != 1 {
			t.Fatalf("position %d, although the last one is young enough", got)
		}
		time.Sleep(time.Millisecond)
		if got := get(time.Second); got != 2 {
			t.Fatalf("position %d is too old", got)
		}
	})
}

func TestErrorsReachEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("no primary")
		a := start(t, func(ctx context.Context) (Position, error) {
			<-ctx.Done()
			return Position{}, broken
		})
		if _, err := a.Position(t.Context()); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Position(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

func TestStopped(t *testing.T) {
	a := New(func(context.Context) (Position, error) { return Position{}, nil }, time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	waiting := make(chan error, 1)
	a.mu.Lock()
	a.next = &round{done: make(chan struct{})}
	r := a.next
	a.mu.Unlock()
	go func() { <-r.done; waiting <- r.err }()
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	if _, err := a.Position(t.Context()); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
}
