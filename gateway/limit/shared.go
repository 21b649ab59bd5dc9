package limit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

var errAnswer = errors.New("redis: the script's answer has another form")

// group is a request's limits of one tenant: they lie in one slot, and one
// script decides about all of them.
type group struct {
	tag    string
	claims []*claim
	node   *redis.Client
	shard  *shard
	err    error
}

// takeShared asks Redis, and decides here what it cannot be asked about.
func (l *Limiter) takeShared(ctx context.Context, claims []claim) {
	groups := l.group(claims)
	var local []*claim
	asked := groups[:0]
	for _, g := range groups {
		var ok bool
		if g.node, g.shard, ok = l.find(ctx, g.tag); ok {
			asked = append(asked, g)
		} else {
			local = append(local, g.claims...)
		}
	}
	// First what costs nothing to undo.
	refused := !l.takeEach(local)
	if !refused && len(asked) > 0 {
		l.askAll(asked)
		for i := range asked {
			g := &asked[i]
			if g.err != nil {
				refused = !l.takeEach(g.claims) || refused
				local = append(local, g.claims...)
				continue
			}
			for _, c := range g.claims {
				refused = refused || c.wait > 0
			}
		}
	}
	if refused {
		l.undo(local, asked)
	}
}

// undo takes back what was charged for a request that some other limit refuses.
func (l *Limiter) undo(local []*claim, asked []group) {
	for _, c := range local {
		if c.local && c.wait == 0 {
			c.e.giveBack(c.r, c)
		}
	}
	for i := range asked {
		g := &asked[i]
		if g.err != nil || g.node == nil {
			continue
		}
		admitted := true
		for _, c := range g.claims {
			admitted = admitted && c.wait == 0
		}
		for _, c := range g.claims {
			if admitted && c.cost > 0 {
				c.e.refund(float64(c.cost) / c.r.period)
				l.charges.add(c.r, c.e)
			}
		}
	}
}

// takeEach is takeLocal over some of the claims; what it charged is undone by
// undo.
func (l *Limiter) takeEach(claims []*claim) bool {
	now, share := l.now(), l.equalShare()
	for _, c := range claims {
		if !c.e.take(c.r, now, true, share, c) {
			return false
		}
	}
	return true
}

func (l *Limiter) group(claims []claim) []group {
	groups := make([]group, 0, len(claims))
next:
	for i := range claims {
		c := &claims[i]
		for j := range groups {
			if groups[j].tag == c.e.tag {
				groups[j].claims = append(groups[j].claims, c)
				continue next
			}
		}
		groups = append(groups, group{tag: c.e.tag, claims: []*claim{c}})
	}
	return groups
}

// question is one call to Redis about a group. Whoever waits for it gives up
// after the sharing timeout, and the call goes on: an answer that comes late has
// been charged there and must be taken back.
type question struct {
	state atomic.Int32 // 0, then answered or givenUp
	done  chan struct{}

	asked, got int64 // times
	numbers    []int64
	err        error
}

const (
	answered = iota + 1
	givenUp
)

// askAll asks about all groups at the same time and waits for the answers, at
// most for the sharing timeout. A client that leaves does not make Redis look
// ill.
func (l *Limiter) askAll(groups []group) {
	questions := make([]*question, len(groups))
	for i := range groups {
		questions[i] = l.ask(&groups[i])
	}
	timeout := time.NewTimer(l.sharing.Load().Timeout)
	defer timeout.Stop()
	late := false
	for i, q := range questions {
		if !late {
			select {
			case <-q.done:
			case <-timeout.C:
				late = true
			}
		}
		g := &groups[i]
		if q.state.CompareAndSwap(0, givenUp) {
			g.err = context.DeadlineExceeded
			l.trip(g.shard, g.tag, g.err)
			continue
		}
		<-q.done // it was answered after all, this very moment
		if g.err = q.err; g.err != nil {
			l.trip(g.shard, g.tag, g.err)
			continue
		}
		for j, c := range g.claims {
			c.left = c.r.capacity - float64(q.numbers[2*j])/c.r.period
			c.wait = time.Duration(q.numbers[2*j+1]) * time.Microsecond
			c.e.told(c.r, q.asked, q.got, c.left, c.wait)
		}
	}
}

// ask begins a question about g.
func (l *Limiter) ask(g *group) *question {
	q := &question{done: make(chan struct{}), asked: l.now()}
	// The claims are the request's; what outlives it works on copies.
	claims := make([]claim, len(g.claims))
	keys, args := make([]string, 0, len(claims)), make([]any, 0, 4*len(claims))
	for i, c := range g.claims {
		c.cost = 0
		if !c.r.tokens {
			c.cost = max(1, whole(c.r.period))
		}
		c.owed, c.carry = c.e.bill(c.r, q.asked)
		keys, args = append(keys, c.e.key), append(args, c.r.scale, c.r.tolerance, c.cost, c.carry)
		claims[i] = *c
	}
	node, limit := g.node, max(lateTimeout, l.sharing.Load().Timeout)
	l.asking.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		defer close(q.done)
		answer, err := l.run(ctx, node, admitScript, keys, args)
		q.got = l.now()
		l.m.redisSeconds.Observe(float64(q.got-q.asked) / 1e9)
		numbers, ok := integers(answer, 2*len(keys))
		if err == nil && !ok {
			err = errAnswer
		}
		if err != nil {
			for i := range claims {
				claims[i].e.unpaid(claims[i].owed)
			}
		}
		q.numbers, q.err = numbers, err
		if !q.state.CompareAndSwap(0, answered) && err == nil {
			l.late(claims, numbers)
		}
	})
	return q
}

// late takes back what an answer that nobody waited for has charged: the
// decision was made without it.
func (l *Limiter) late(claims []claim, numbers []int64) {
	for i := range claims {
		if numbers[2*i+1] > 0 {
			return // refused: nothing was charged
		}
	}
	for i := range claims {
		if c := &claims[i]; c.cost > 0 {
			c.e.refund(float64(c.cost) / c.r.period)
			l.charges.add(c.r, c.e)
		}
	}
}

// run runs a script on a node that should have its keys' slot.
func (l *Limiter) run(ctx context.Context, node *redis.Client, s *redis.Script, keys []string, args []any) (any, error) {
	v, err := node.EvalSha(ctx, s.Hash(), keys, args...).Result()
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		v, err = s.Eval(ctx, node, keys, args...).Result()
	}
	if elsewhere(err) {
		// The slot has moved: nothing was done here. The cluster's client
		// follows, and learns.
		l.client.ReloadState(ctx)
		v, err = s.Run(ctx, l.client, keys, args...).Result()
	}
	return v, err
}

func elsewhere(err error) bool {
	if err == nil {
		return false
	}
	_, moved := redis.IsMovedError(err)
	_, ask := redis.IsAskError(err)
	return moved || ask || redis.IsReadOnlyError(err)
}

func integers(v any, n int) ([]int64, bool) {
	list, ok := v.([]any)
	if !ok || len(list) != n {
		return nil, false
	}
	out := make([]int64, n)
	for i, x := range list {
		if out[i], ok = x.(int64); !ok {
			return nil, false
		}
	}
	return out, true
}

// shard is one Redis master as far as limits are concerned: asked, or, after
// one question without an answer, left alone until it answers a probe.
type shard struct {
	addr string
	mu   sync.Mutex
	out  bool
	tag  string // of a slot that it could not be asked about
	told bool   // the log knows that it is away
}

func (s *shard) away() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out
}

// shards are the masters by address. The one without an address stands for the
// map of the cluster, which is not known at first.
type shards struct {
	mu     sync.RWMutex
	known  map[string]*shard
	signal chan struct{}
}

const noMap = ""

func (s *shards) init() {
	s.known = map[string]*shard{noMap: {out: true, tag: "gateways"}}
	s.signal = make(chan struct{}, 1)
}

func (s *shards) get(addr string) *shard {
	s.mu.RLock()
	x := s.known[addr]
	s.mu.RUnlock()
	if x != nil {
		return x
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if x = s.known[addr]; x == nil {
		x = &shard{addr: addr}
		s.known[addr] = x
	}
	return x
}

func (s *shards) away() []*shard {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*shard
	for _, x := range s.known {
		if x.away() {
			out = append(out, x)
		}
	}
	return out
}

// find returns the master that has a tenant's budgets, if it can be asked.
func (l *Limiter) find(ctx context.Context, tag string) (*redis.Client, *shard, bool) {
	if l.shards.get(noMap).away() {
		return nil, nil, false
	}
	node, err := l.client.MasterForKey(ctx, slotKey(tag))
	if err != nil {
		l.trip(l.shards.get(noMap), tag, err)
		return nil, nil, false
	}
	s := l.shards.get(node.Options().Addr)
	return node, s, !s.away()
}

func slotKey(tag string) string { return keyPrefix + "{" + tag + "}:probe" }

// trip leaves a shard alone from now on.
func (l *Limiter) trip(s *shard, tag string, err error) {
	l.m.redisError(err)
	s.mu.Lock()
	s.out, s.tag = true, tag
	s.mu.Unlock()
	select {
	case l.shards.signal <- struct{}{}:
	default:
	}
}

// probe asks a shard that is away whether it has come back.
func (l *Limiter) probe(ctx context.Context, s *shard) {
	s.mu.Lock()
	tag := s.tag
	s.mu.Unlock()
	limit := max(l.sharing.Load().Timeout, probeTimeout)
	if s.addr == noMap {
		limit = mapTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := l.tryProbe(ctx, s, tag)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		l.client.ReloadState(ctx) // perhaps a replica has taken over
		if !s.told && len(*l.rules.Load()) > 0 {
			s.told = true
			l.log.Warn("rate limits: Redis is out of reach, enforcing this gateway's share by itself", "node", s.addr, "err", err)
		}
		return
	}
	s.out = false
	if s.told {
		s.told = false
		l.log.Info("rate limits: shared through Redis again", "node", s.addr)
	}
}

func (l *Limiter) tryProbe(ctx context.Context, s *shard, tag string) error {
	key := slotKey(tag)
	node, err := l.client.MasterForKey(ctx, key)
	if err != nil {
		return err
	}
	if node.Options().Addr != s.addr {
		// The map is there, or somebody else has the slot now: each master
		// speaks for itself.
		return nil
	}
	if err := probeScript.Run(ctx, node, []string{key}).Err(); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}
