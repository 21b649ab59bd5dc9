// Package conversation gives each conversation one request at a time: Dify does
// not survive two runs in one conversation (both read the same history, and one
// of the answers is lost). Who comes second waits, first come first served,
// bounded in number and time. A Lock that the gateways share makes it hold
// across them; without one, or while it is away, each gateway is right for
// itself.
package conversation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrFull says that too many requests wait for the conversation already.
	ErrFull = errors.New("too many requests wait for this conversation")
	// ErrTimeout says that the conversation was busy for too long.
	ErrTimeout = errors.New("the conversation was busy for too long")
)

const (
	// lockTimeout bounds one question to the lock; a Redis that needs longer
	// counts as away.
	lockTimeout = 100 * time.Millisecond
	// lockPause is how long the lock is left alone after it failed, so that
	// not every request pays lockTimeout.
	lockPause = time.Second
	// pollFirst and pollMost are how often a lock that another gateway holds
	// is asked for: the pause doubles from one to the other.
	pollFirst = 20 * time.Millisecond
	pollMost  = 250 * time.Millisecond
)

// Lock is a lock that several gateways see.
type Lock interface {
	// Take takes key for lease unless somebody has it, and tells which.
	Take(ctx context.Context, key, token string, lease time.Duration) (bool, error)
	// Renew prolongs it, and tells whether token still has it.
	Renew(ctx context.Context, key, token string, lease time.Duration) (bool, error)
	// Give gives it back if token has it.
	Give(ctx context.Context, key, token string) error
}

// Observer is told what goes wrong. Its methods must not block.
type Observer interface {
	// LockFailed reports a question that the lock did not answer: from here on
	// the conversation is serialised by this gateway alone.
	LockFailed(err error)
	// LockLost reports a lock whose lease ended while it was held.
	LockLost()
}

// Limits bound the waiting.
type Limits struct {
	// MaxWaiting requests may wait for one conversation.
	MaxWaiting int
	// Wait is how long one waits.
	Wait time.Duration
}

// Key names a conversation; it has the same size whatever a client sends.
type Key [16]byte

// KeyOf names the conversation id of an app.
func KeyOf(app, id string) Key {
	h := sha256.New()
	h.Write([]byte(app))
	h.Write([]byte{0})
	h.Write([]byte(id))
	return Key(h.Sum(nil)[:16])
}

// Turns hands out turns. Memory is in proportion to the requests that have or
// want one.
type Turns struct {
	lock  Lock // nil for none
	obs   Observer
	lease time.Duration

	mu    sync.Mutex
	lines map[Key]*line

	waiting   atomic.Int64
	pauseTill atomic.Int64 // in nanoseconds since start; the lock failed
	start     time.Time
	wg        sync.WaitGroup // of locks being given back
}

// line is who wants one conversation; it exists while somebody has it.
type line struct {
	waiters []chan struct{}
}

// New returns Turns; lock may be nil. A lock that is not given back, because its
// gateway died, is free after lease.
func New(lock Lock, lease time.Duration, obs Observer) *Turns {
	return &Turns{lock: lock, obs: obs, lease: lease, lines: map[Key]*line{}, start: time.Now()}
}

// Waiting returns how many requests wait.
func (t *Turns) Waiting() int64 { return t.waiting.Load() }

// Turn is one request's time with a conversation.
type Turn struct {
	turns *Turns
	key   Key
	once  sync.Once

	token string // of the lock, "" without
	mu    sync.Mutex
	renew *time.Timer
	ended bool
}

// Take waits for the conversation. The caller ends the turn.
func (t *Turns) Take(ctx context.Context, key Key, limits Limits) (*Turn, error) {
	deadline := time.NewTimer(limits.Wait)
	defer deadline.Stop()
	if err := t.queue(ctx, key, limits.MaxWaiting, deadline.C); err != nil {
		return nil, err
	}
	turn := &Turn{turns: t, key: key}
	if err := turn.takeLock(ctx, deadline.C); err != nil {
		t.next(key)
		return nil, err
	}
	return turn, nil
}

// queue waits for the turn among the requests of this gateway.
func (t *Turns) queue(ctx context.Context, key Key, most int, deadline <-chan time.Time) error {
	t.mu.Lock()
	l := t.lines[key]
	if l == nil {
		t.lines[key] = &line{}
		t.mu.Unlock()
		return nil
	}
	if len(l.waiters) >= most {
		t.mu.Unlock()
		return ErrFull
	}
	mine := make(chan struct{})
	l.waiters = append(l.waiters, mine)
	t.mu.Unlock()

	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	var err error
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-deadline:
		err = ErrTimeout
	}
	t.mu.Lock()
	for i, w := range l.waiters {
		if w == mine {
			l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
			t.mu.Unlock()
			return err
		}
	}
	t.mu.Unlock()
	t.next(key) // the turn came at the same moment
	return err
}

// next gives the conversation to who has waited longest.
func (t *Turns) next(key Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lines[key]
	if len(l.waiters) == 0 {
		delete(t.lines, key)
		return
	}
	close(l.waiters[0])
	l.waiters = l.waiters[1:]
}

// Close waits until all locks have been given back. Turns must have ended.
func (t *Turns) Close() { t.wg.Wait() }

// takeLock waits for the lock that other gateways see. When it does not answer,
// the turn does without.
func (turn *Turn) takeLock(ctx context.Context, deadline <-chan time.Time) error {
	t := turn.turns
	if t.lock == nil || time.Since(t.start) < time.Duration(t.pauseTill.Load()) {
		return nil
	}
	token := rand.Text()
	for pause := pollFirst; ; pause = min(2*pause, pollMost) {
		ok, err := ask(ctx, func(ctx context.Context) (bool, error) {
			return t.lock.Take(ctx, turn.name(), token, t.lease)
		})
		switch {
		case ctx.Err() != nil:
			turn.giveLate(token) // the answer may have been yes
			return context.Cause(ctx)
		case err != nil:
			t.pauseTill.Store(int64(time.Since(t.start) + lockPause))
			t.obs.LockFailed(err)
			turn.giveLate(token)
			return nil
		case ok:
			turn.token = token
			turn.mu.Lock()
			turn.renew = time.AfterFunc(t.lease/3, turn.prolong)
			turn.mu.Unlock()
			return nil
		}
		timer := time.NewTimer(pause)
		t.waiting.Add(1)
		err = nil
		select {
		case <-timer.C:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-deadline:
			err = ErrTimeout
		}
		t.waiting.Add(-1)
		timer.Stop()
		if err != nil {
			return err
		}
	}
}

// ask gives one question to the lock its time.
func ask[T any](ctx context.Context, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return question(ctx)
}

func (turn *Turn) name() string { return hex.EncodeToString(turn.key[:]) }

// prolong keeps the lock for as long as the turn lasts.
func (turn *Turn) prolong() {
	turn.mu.Lock()
	defer turn.mu.Unlock()
	if turn.ended {
		return
	}
	t := turn.turns
	held, err := ask(context.Background(), func(ctx context.Context) (bool, error) {
		return t.lock.Renew(ctx, turn.name(), turn.token, t.lease)
	})
	switch {
	case err != nil:
		t.obs.LockFailed(err) // two more chances before the lease ends
	case !held:
		t.obs.LockLost()
		return
	}
	turn.renew.Reset(t.lease / 3)
}

// giveLate gives back, in the background, a lock that may or may not be held.
func (turn *Turn) giveLate(token string) {
	turn.turns.wg.Go(func() { turn.give(token) })
}

func (turn *Turn) give(token string) {
	_, err := ask(context.Background(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, turn.turns.lock.Give(ctx, turn.name(), token)
	})
	if err != nil {
		turn.turns.obs.LockFailed(err) // it ends with its lease
	}
}

// End gives the conversation to the next one. It does not block, and may be
// called more than once; a nil turn has no end.
func (turn *Turn) End() {
	if turn == nil {
		return
	}
	turn.once.Do(func() {
		t := turn.turns
		if turn.token == "" {
			t.next(turn.key)
			return
		}
		t.wg.Go(func() {
			turn.mu.Lock()
			turn.ended = true
			turn.renew.Stop()
			turn.mu.Unlock()
			turn.give(turn.token)
			t.next(turn.key)
		})
	})
}
