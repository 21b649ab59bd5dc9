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

// far is a primary half a trip away in each direction. It answers in order.
type far struct {
	trip    time.Duration
	now     *atomic.Uint64 // its position
	deposed atomic.Bool

	asked  chan time.Time // when each question was sent
	closed chan struct{}
	once   sync.Once
}

func newFar(trip time.Duration, now *atomic.Uint64) *far {
	return &far{trip: trip, now: now, asked: make(chan time.Time, 1000), closed: make(chan struct{})}
}

func (f *far) Current() bool { return !f.deposed.Load() }
func (f *far) Close()        { f.once.Do(func() { close(f.closed) }) }

func (f *far) Ask(time.Time) error {
	f.asked <- time.Now()
	return nil
}

var errGone = errors.New("the line is gone")

func (f *far) wait(until, deadline time.Time) error {
	if deadline.Before(until) {
		until = deadline
		defer f.Close()
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-f.closed:
		return errGone
	case <-timer.C:
	}
	if until.Equal(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

func (f *far) Answer(deadline time.Time) (Position, error) {
	asked := <-f.asked
	if err := f.wait(asked.Add(f.trip/2), deadline); err != nil {
		return Position{}, err
	}
	p := Position{LSN: f.now.Load(), Generation: 1}
	return p, f.wait(asked.Add(f.trip), deadline)
}

// start runs an Asker until the test ends.
func start(t *testing.T, dial func(ctx context.Context) (Line, error)) *Asker {
	t.Helper()
	a := New(dial, 10*time.Second)
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

// TestReaders lets many read again and again: nobody gets a position from before
// he asked, nobody waits much longer than a round trip, and the primary is asked
// no more often than there is a reason to.
func TestReaders(t *testing.T) {
	const readers, each = 100, 5
	for _, tt := range []struct {
		name    string
		trip    time.Duration
		longest time.Duration
		most    uint64 // questions
	}{
		{"near", 100 * time.Microsecond, 200 * time.Microsecond, 2 + 2*each},
		{"far", 30 * time.Millisecond, 31 * time.Millisecond, 2 + 10*each},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Uint64
				line := newFar(tt.trip, &now)
				a := start(t, func(context.Context) (Line, error) { return line, nil })
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() {
						for range each {
							least, began := now.Add(1), time.Now() // acknowledged before the question
							p, err := a.Position(t.Context())
							if err != nil || p.LSN < least || p.Generation != 1 {
								t.Errorf("%+v, %v: want at least %d", p, err, least)
							}
							if took := time.Since(began); took > tt.longest {
								t.Errorf("a reader has waited for %v", took)
							}
						}
					})
				}
				wg.Wait()
				if n := a.Questions(); n > tt.most {
					t.Errorf("%d questions for %d readers with %d reads each", n, readers, each)
				}
			})
		})
	}
}

// TestQuestionsOverlap reads at odd moments: each reader waits for one round
// trip and at most for the gap besides.
func TestQuestionsOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = 30 * time.Millisecond
		var now atomic.Uint64
		line := newFar(trip, &now)
		a := start(t, func(context.Context) (Line, error) { return line, nil })
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				least, began := now.Add(1), time.Now()
				p, err := a.Position(t.Context())
				if took := time.Since(began); err != nil || p.LSN < least || took > trip+gap {
					t.Errorf("%+v, %v after %v: want at least %d", p, err, took, least)
				}
			})
			time.Sleep(130 * time.Microsecond)
		}
		wg.Wait()
		if n := a.Questions(); n > 132 {
			t.Errorf("%d questions in 130 ms", n)
		}
	})
}

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Uint64
		a := start(t, func(context.Context) (Line, error) { return newFar(0, &now), nil })
		get := func(maxAge time.Duration) uint64 {
			now.Add(1)
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
		if got := get(time.Second); got != 3 {
			t.Fatalf("position %d is too old", got)
		}
	})
}

// TestErrorsReachEverybody loses lines in all ways; the next reader gets a new one.
func TestErrorsReachEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Uint64
		broken := errors.New("no primary")
		lines := 0
		var line *far
		trip := time.Hour
		a := start(t, func(context.Context) (Line, error) {
			lines++
			if trip == 0 {
				return nil, broken
			}
			line = newFar(trip, &now)
			return line, nil
		})
		ask := func(want error) {
			t.Helper()
			if _, err := a.Position(t.Context()); !errors.Is(err, want) {
				t.Fatalf("%v, want %v", err, want)
			}
		}
		ask(context.DeadlineExceeded)
		trip = 0
		ask(broken)
		trip = time.Second
		ask(nil)
		if lines != 3 {
			t.Fatalf("%d lines were opened", lines)
		}
		// Another primary: no question goes to the old one.
		line.deposed.Store(true)
		ask(nil)
		if lines != 4 {
			t.Fatalf("%d lines were opened", lines)
		}
		// A line that breaks fails all questions on it, each once.
		errs := make(chan error, 5)
		for range cap(errs) {
			go func() {
				_, err := a.Position(t.Context())
				errs <- err
			}()
			time.Sleep(2 * gap)
		}
		line.Close()
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, errGone) {
				t.Fatal(err)
			}
		}
		ask(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := a.Position(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	})
}

// TestManyUnderWay asks more often than answers may be due.
func TestManyUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Uint64
		line := newFar(time.Second, &now)
		a := start(t, func(context.Context) (Line, error) { return line, nil })
		var wg sync.WaitGroup
		for range 3 * maxUnderWay {
			wg.Go(func() {
				least := now.Add(1)
				if p, err := a.Position(t.Context()); err != nil || p.LSN < least {
					t.Errorf("%+v, %v: want at least %d", p, err, least)
				}
			})
			time.Sleep(2 * gap)
		}
		wg.Wait()
		if n := a.Questions(); n > maxUnderWay+2 {
			t.Errorf("%d questions, although only %d answers may be due", n, maxUnderWay)
		}
	})
}

func TestStopped(t *testing.T) {
	a := New(func(context.Context) (Line, error) { return nil, errGone }, time.Second)
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
