package limit

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// demandMemory is how far back the measure of demand looks, in nanoseconds.
	demandMemory = float64(10 * time.Second)
	// shareMemory is how long what the others' demand was stays of use.
	shareMemory = int64(10 * time.Second)
	// maxBlock bounds how long a refusal is repeated without asking again, so
	// that an operator who forgives a budget in Redis does not have to wait.
	maxBlock = int64(time.Second)
	// slack forgives the rounding of floating point, in units.
	slack = 1e-9
)

// entry is one tenant's budget under one limit, as this gateway knows it.
type entry struct {
	tag, key string // in Redis: the hash tag, and the whole key

	mu   sync.Mutex
	seen int64 // when it was last wanted; times are Limiter.now

	// What is left, in units, at a time. It is the whole budget as Redis told
	// it, or, while alone, this gateway's share.
	known bool
	left  float64
	at    int64

	// Until then the budget refuses whatever comes, while the limit is as it
	// was: nothing is spent on refusals, so there is no need to ask again.
	// retry is when it will admit.
	until, retry int64
	scale        int64

	// owed has been spent here and has not been told to Redis.
	owed owed

	alone bool
	share float64

	demand, demandAt float64 // requests per nanosecond, decaying
	agreed           float64 // share by the last exchange with the others
	agreedAt         int64   // 0 is never
}

// owed is spending that Redis does not know, in units: charges is what came
// after an answer or is taken back, alone what was admitted without Redis.
type owed struct{ charges, alone float64 }

// want notes the demand, and tells that the answer is known to be no.
func (e *entry) want(r *rule, now int64, c *claim) (blocked bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seen = now
	e.demand = e.decayed(now) + 1/demandMemory
	e.demandAt = float64(now)
	if e.until > now && e.scale == r.scale {
		c.wait, c.local = time.Duration(max(e.retry-now, 1)), e.alone
		return true
	}
	e.refill(r, now)
	c.left = e.left // for the headers, in case another limit refuses
	return false
}

func (e *entry) decayed(now int64) float64 {
	return e.demand * math.Exp(-(float64(now)-e.demandAt)/demandMemory)
}

// refill lets time pass. Called with the lock held.
func (e *entry) refill(r *rule, now int64) {
	part := 1.0
	if e.alone {
		part = e.share
	}
	capacity := r.capacity * part
	if !r.tokens {
		capacity = max(1, capacity) // or a small share would never admit one
	}
	if !e.known {
		e.known, e.left = true, r.capacity*part
	} else {
		e.left += float64(now-e.at) * r.perNano * part
	}
	e.left, e.at = min(e.left, capacity), now
}

// take decides here. shared says that there are other gateways, so that only a
// share may be given: the agreed one, or else equal.
func (e *entry) take(r *rule, now int64, shared bool, equal float64, c *claim) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refill(r, now)
	if shared && !e.alone {
		e.alone, e.share = true, equal
		if e.agreedAt != 0 && now-e.agreedAt < shareMemory {
			e.share = e.agreed
		}
		if e.left >= r.burst-slack {
			e.left = max(1, e.left*e.share) // nobody who comes seldom is refused
		} else {
			e.left *= e.share
		}
	}
	c.local = shared
	part := 1.0
	if e.alone {
		part = e.share
	}
	need := 1 - slack
	if r.tokens {
		need = slack
	}
	if e.left < need {
		wait := (need - e.left) / (r.perNano * max(part, 1e-6))
		c.left, c.wait = e.left, time.Duration(max(1, min(wait, float64(maxAhead))))
		return false
	}
	if !r.tokens {
		e.left--
		if e.alone {
			e.owed.alone++
		}
	}
	c.left, c.wait = e.left, 0
	return true
}

// giveBack undoes take.
func (e *entry) giveBack(r *rule, c *claim) {
	if r.tokens {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left++
	c.left = e.left
	if e.alone {
		e.owed.alone = max(0, e.owed.alone-1)
	}
}

// charge spends units after the fact, and tells whether Redis has to know.
func (e *entry) charge(r *rule, now int64, units float64, shared bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refill(r, now)
	e.left -= units
	switch {
	case !shared:
		return false
	case e.alone:
		e.owed.alone += units
		return false
	}
	e.owed.charges += units
	return true
}

// refund is a charge of Redis that turned out to be unfounded.
func (e *entry) refund(units float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.alone {
		e.left += units
	}
	e.owed.charges -= units
}

// bill takes what Redis is to be told along with a question. Of what was spent
// alone no more is told than what would be missing now: the rest has come back
// meanwhile, here as it would have there.
func (e *entry) bill(r *rule, now int64) (owed, int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.owed
	e.owed = owed{}
	if e.alone {
		e.refill(r, now)
		b.alone = max(0, min(b.alone, r.capacity*e.share-e.left))
	}
	return b, whole((b.charges + b.alone) * r.period)
}

// unpaid puts back what could not be told.
func (e *entry) unpaid(b owed) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.owed.charges += b.charges
	e.owed.alone += b.alone
}

// told takes over what Redis said: how much is left, and when one would be
// admitted; asked is when the question was sent, so that nobody waits for the
// time of the answer's way.
func (e *entry) told(r *rule, asked, now int64, left float64, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known, e.left, e.at, e.alone = true, left, now, false
	if wait > 0 {
		e.retry, e.scale = asked+int64(wait), r.scale
		e.until = asked + min(int64(wait), maxBlock)
	}
}

// exchange returns the demand that the others should know, when it is enough to
// matter, and agree takes theirs.
func (e *entry) exchange(r *rule, now int64, equal float64) (perSecond float64, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.decayed(now)
	return d * 1e9, !e.alone && d >= 0.1*r.perNano*equal
}

func (e *entry) agree(now int64, mine, others float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.alone && mine > 0 {
		e.agreed, e.agreedAt = mine/(mine+others), now
	}
}

// whole rounds a time in microseconds up or down by chance, so that on the
// average nothing is lost, however short one unit's time is.
func whole(us float64) int64 {
	floor := math.Floor(us)
	if f := us - floor; f > 0 && rand.Float64() < f { //nolint:gosec // not a secret
		floor++
	}
	return int64(floor)
}
