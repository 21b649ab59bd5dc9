package limit

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// beat is how often gateways say that they are there and exchange their
	// demand.
	beat = time.Second
	// sweepEvery is how often budgets that nobody wants are forgotten.
	sweepEvery = 15 * time.Second
	// batch bounds the commands that are sent at once, batchTimeout how long
	// their answers may take: nobody waits for them.
	batch        = 256
	batchTimeout = 500 * time.Millisecond
	// lateTimeout bounds a question for which nobody waits any more.
	lateTimeout = time.Second
	// A shard that is away is probed at once, then after pauses from minPause
	// to maxPause.
	minPause     = 20 * time.Millisecond
	maxPause     = 100 * time.Millisecond
	probeTimeout = 100 * time.Millisecond
	mapTimeout   = 2 * time.Second
	// maxExchanged bounds the budgets whose demand is exchanged in one beat.
	maxExchanged = 8192
)

// Run keeps in touch with Redis and the other gateways until ctx ends.
func (l *Limiter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.sweepLoop(ctx) })
	if l.client != nil {
		wg.Go(func() { l.probeLoop(ctx) })
		wg.Go(func() { l.beatLoop(ctx) })
		wg.Go(func() { l.chargeLoop(ctx) })
	}
	wg.Wait()
	l.asking.Wait()
	if l.client != nil && len(*l.rules.Load()) > 0 {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), batchTimeout)
		defer cancel()
		l.settle(last, l.debts())
		l.callAlive(last, "0")
	}
	return nil
}

func (l *Limiter) sweepLoop(ctx context.Context) {
	for pause(ctx, sweepEvery) {
		l.keys.sweep(l.now(), l.rulesByName())
	}
}

func (l *Limiter) rulesByName() map[string]*rule {
	m := map[string]*rule{}
	for _, r := range *l.rules.Load() {
		m[r.Name] = r
	}
	return m
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// probeLoop brings back what was left alone.
func (l *Limiter) probeLoop(ctx context.Context) {
	wait := minPause
	for {
		away := l.shards.away()
		if len(away) == 0 {
			wait = minPause
			select {
			case <-ctx.Done():
				return
			case <-l.shards.signal:
			}
			continue
		}
		var wg sync.WaitGroup
		for _, s := range away {
			wg.Go(func() { l.probe(ctx, s) })
		}
		wg.Wait()
		if len(l.shards.away()) < len(away) {
			// What was admitted meanwhile is owed to the others.
			for e, r := range l.debts() {
				l.charges.add(r, e)
			}
			l.charges.kick()
			continue
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, maxPause)
	}
}

// debts are all entries that owe something to Redis.
func (l *Limiter) debts() map[*entry]*rule {
	rules, out := l.rulesByName(), map[*entry]*rule{}
	l.keys.each(func(name string, e *entry) {
		r := rules[name]
		e.mu.Lock()
		defer e.mu.Unlock()
		if r != nil && e.owed != (owed{}) {
			out[e] = r
		}
	})
	return out
}

// beatLoop tells the others that this gateway is there and what its demand is.
func (l *Limiter) beatLoop(ctx context.Context) {
	for {
		if len(*l.rules.Load()) > 0 {
			l.callAlive(ctx, "1")
			l.exchangeDemand(ctx)
		}
		if !pause(ctx, beat) {
			return
		}
	}
}

func (l *Limiter) callAlive(ctx context.Context, here string) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	node, _, ok := l.find(ctx, "gateways")
	if !ok {
		return
	}
	v, err := l.run(ctx, node, aliveScript, []string{aliveKey}, []any{l.id, here})
	if n, isInt := v.(int64); err == nil && isInt && here == "1" {
		l.gateways.Store(max(1, n))
	}
}

// told is one command to Redis about one entry.
type told struct {
	e    *entry
	r    *rule
	owed owed
	mine float64
	cmd  *redis.Cmd
}

// exchangeDemand learns how the demand for each budget is spread.
func (l *Limiter) exchangeDemand(ctx context.Context) {
	rules, now, equal := l.rulesByName(), l.now(), l.equalShare()
	byNode := map[*redis.Client][]*told{}
	n := 0
	l.keys.each(func(name string, e *entry) {
		r := rules[name]
		if r == nil || n == maxExchanged {
			return
		}
		mine, ok := e.exchange(r, now, equal)
		if !ok {
			return
		}
		if node, _, ok := l.find(ctx, e.tag); ok {
			n++
			byNode[node] = append(byNode[node], &told{e: e, r: r, mine: mine})
		}
	})
	l.inBatches(ctx, byNode, exchangeScript, func(p redis.Scripter, t *told) *redis.Cmd {
		return p.EvalSha(ctx, exchangeScript.Hash(), []string{t.e.key + demandSuffix}, l.id, strconv.FormatFloat(t.mine, 'f', 6, 64))
	}, func(t *told, err error) {
		if err != nil {
			return
		}
		if text, err := t.cmd.Text(); err == nil {
			if others, err := strconv.ParseFloat(text, 64); err == nil {
				t.e.agree(l.now(), t.mine, others)
			}
		}
	})
}

// chargeLoop tells Redis what was spent after the fact, or taken back.
func (l *Limiter) chargeLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.charges.signal:
		}
		l.settle(ctx, l.charges.takeAll())
	}
}

func (l *Limiter) settle(ctx context.Context, due map[*entry]*rule) {
	byNode := map[*redis.Client][]*told{}
	for e, r := range due {
		// What cannot be told now stays owed: the next question about the
		// budget, or the return of its shard, brings it along.
		if node, _, ok := l.find(ctx, e.tag); ok {
			byNode[node] = append(byNode[node], &told{e: e, r: r})
		}
	}
	l.inBatches(ctx, byNode, admitScript, func(p redis.Scripter, t *told) *redis.Cmd {
		var carry int64
		t.owed, carry = t.e.bill(t.r, l.now())
		return p.EvalSha(ctx, admitScript.Hash(), []string{t.e.key}, t.r.scale, -1, 0, carry)
	}, func(t *told, err error) {
		if err == nil {
			numbers, ok := integers(t.cmd.Val(), 2)
			if ok {
				now := l.now()
				t.e.told(t.r, now, now, t.r.capacity-float64(numbers[0])/t.r.period, 0)
				return
			}
		}
		t.e.unpaid(t.owed)
	})
}

// inBatches sends one command per item, many at once to each node. make is
// called just before an item is sent, done with its outcome.
func (l *Limiter) inBatches(ctx context.Context, byNode map[*redis.Client][]*told, s *redis.Script, build func(redis.Scripter, *told) *redis.Cmd, done func(*told, error)) {
	var wg sync.WaitGroup
	for node, items := range byNode {
		wg.Go(func() {
			for len(items) > 0 && ctx.Err() == nil {
				part := items[:min(batch, len(items))]
				items = items[len(part):]
				l.oneBatch(ctx, node, s, part, build, done)
			}
		})
	}
	wg.Wait()
}

func (l *Limiter) oneBatch(ctx context.Context, node *redis.Client, s *redis.Script, items []*told, build func(redis.Scripter, *told) *redis.Cmd, done func(*told, error)) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	send := func(items []*told) {
		pipe := node.Pipeline()
		for _, t := range items {
			t.cmd = build(pipe, t)
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
	}
	send(items)
	var again []*told
	for _, t := range items {
		err := t.cmd.Err()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			again = append(again, t)
			t.e.unpaid(t.owed)
			continue
		}
		done(t, err)
		if elsewhere(err) {
			l.client.ReloadState(ctx)
		}
	}
	if len(again) == 0 {
		return
	}
	if err := s.Load(ctx, node).Err(); err != nil {
		for _, t := range again {
			t.owed = owed{}
			done(t, err)
		}
		return
	}
	send(again)
	for _, t := range again {
		done(t, t.cmd.Err())
	}
}
