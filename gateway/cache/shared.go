package cache

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// askTimeout bounds one question to Redis about a scope's last write; one
	// that needs longer counts as away.
	askTimeout = 100 * time.Millisecond
	// askPause is how long Redis is left alone after it failed, so that not
	// every request pays askTimeout.
	askPause = time.Second
	// tellTimeout is how long a write's answer waits until Redis has been told;
	// after it the telling goes on beside.
	tellTimeout = 500 * time.Millisecond
	// tellAgain is how often a write is told again that Redis did not take.
	tellAgain = 250 * time.Millisecond
	// tokenTime is how long Redis keeps a write: longer than any entry lives,
	// so that none is there when it is forgotten.
	tokenTime = 72 * time.Hour
	// channel is where gateways tell each other of writes, to know of them
	// before they would ask.
	channel = "fournines:gw:cache"
)

// The keys of a scope lie in one slot: the name of its last write, and a marker
// while it is not to be cached.
func tokenKey(name string) string  { return "fournines:gw:cache:{" + name + "}:write" }
func settleKey(name string) string { return "fournines:gw:cache:{" + name + "}:settling" }

// confirm asks Redis about those scopes that have not been confirmed since
// notBefore, and waits for the answers.
func (c *Cache) confirm(ctx context.Context, s *scopes, notBefore int64) {
	var wait [numScopes]*asking
	for i, sc := range s {
		if sc.confirmed.Load() < notBefore {
			wait[i] = c.ask(sc, notBefore)
		}
	}
	for _, a := range wait {
		if a == nil {
			continue
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return
		}
	}
}

// ask returns a question that is sent after notBefore, nil while Redis is left
// alone.
func (c *Cache) ask(s *scope, notBefore int64) *asking {
	now := c.now()
	if now < c.askAgain.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking; a != nil && a.sent >= notBefore {
		return a
	}
	a := &asking{sent: max(now, notBefore), done: make(chan struct{})}
	if !c.begin() {
		return nil
	}
	s.asking = a
	go func() {
		defer c.work.Done()
		ctx, cancel := context.WithTimeout(c.life, askTimeout)
		defer cancel()
		values, err := c.redis.MGet(ctx, tokenKey(s.name), settleKey(s.name)).Result()
		if err == nil && len(values) == 2 {
			token, _ := values[0].(string)
			c.learn(s, a.sent, token, values[1] != nil)
		} else if c.life.Err() == nil {
			c.askAgain.Store(c.now() + int64(askPause))
			c.m.failures.Inc()
		}
		s.mu.Lock()
		if s.asking == a {
			s.asking = nil
		}
		s.mu.Unlock()
		close(a.done)
	}()
	return a
}

// learn takes in what Redis knows.
func (c *Cache) learn(s *scope, sent int64, token string, settling bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known && s.token != token {
		s.gen.Add(1)
		c.m.invalidations.WithLabelValues("remote").Inc()
	}
	s.token, s.known = token, true
	s.settling.Store(settling)
	for old := s.confirmed.Load(); old < sent && !s.confirmed.CompareAndSwap(old, sent); old = s.confirmed.Load() {
	}
}

// tell makes a write known to the other gateways. The error is Redis's.
func (c *Cache) tell(ctx context.Context, name, token string, settle time.Duration) error {
	_, err := c.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, tokenKey(name), token, tokenTime)
		if settle >= time.Millisecond {
			p.Set(ctx, settleKey(name), 1, settle)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Who misses it asks within MaxStaleness.
	_ = c.redis.Publish(ctx, channel, name+" "+token).Err()
	return nil
}

// invalidate makes all entries of the scope void, here at once and everywhere
// within MaxStaleness of its return, or of the time Redis can be told.
func (c *Cache) invalidate(ctx context.Context, name, source string, settle time.Duration) {
	s := c.book.find(name, c.now())
	token := rand.Text()
	s.gen.Add(1)
	c.m.invalidations.WithLabelValues(source).Inc()
	s.settles.Store(max(s.settles.Load(), c.now()+int64(settle)))
	if c.redis == nil {
		return
	}
	s.mu.Lock()
	s.token, s.known = token, true
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := c.tell(ctx, name, token, settle); err != nil {
		c.m.failures.Inc()
		c.pend(name, settle)
	}
}

// pend keeps a write that Redis did not take, to tell it again.
func (c *Cache) pend(name string, settle time.Duration) {
	c.pendMu.Lock()
	defer c.pendMu.Unlock()
	if len(c.pending) < maxScopes {
		c.pending[name] = max(settle, c.pending[name])
	}
}

// unsaid returns how many writes Redis has not been told of.
func (c *Cache) unsaid() int {
	c.pendMu.Lock()
	defer c.pendMu.Unlock()
	return len(c.pending)
}

// tellPending tries once to tell what is pending.
func (c *Cache) tellPending(ctx context.Context) {
	c.pendMu.Lock()
	all := c.pending
	c.pending = map[string]time.Duration{}
	c.pendMu.Unlock()
	failed := false
	for name, settle := range all {
		if !failed {
			ctx, cancel := context.WithTimeout(ctx, tellTimeout)
			failed = c.tell(ctx, name, rand.Text(), settle) != nil
			cancel()
		}
		if failed {
			c.pend(name, settle)
		}
	}
}

// listen hears of the writes of other gateways until ctx ends.
func (c *Cache) listen(ctx context.Context) {
	ps := c.redis.Subscribe(ctx, channel)
	defer ps.Close()
	messages := ps.Channel()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			name, token, _ := strings.Cut(m.Payload, " ")
			if s := c.book.look(name); s != nil {
				c.hear(s, token)
			}
		}
	}
}

// hear takes in a message about a write.
func (c *Cache) hear(s *scope, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == token {
		return // one's own, or known
	}
	s.gen.Add(1)
	s.token, s.known = token, true
	s.confirmed.Store(0) // whether it is settling is asked at the next use
	c.m.invalidations.WithLabelValues("remote").Inc()
}
