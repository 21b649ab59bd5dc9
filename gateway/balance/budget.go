package balance

import (
	"sync/atomic"
	"time"
)

const (
	budgetSlots = 10 // one per second
)

// Budget bounds retries to a share of the requests of the last ten seconds, so
// that retries cannot multiply an outage. It is safe for concurrent use.
type Budget struct {
	slots [budgetSlots]struct {
		second            atomic.Int64
		requests, retries atomic.Int64
	}
}

func (b *Budget) slot(now time.Time) (requests, retries *atomic.Int64) {
	sec := now.Unix()
	s := &b.slots[sec%budgetSlots]
	if old := s.second.Load(); old != sec && s.second.CompareAndSwap(old, sec) {
		s.requests.Store(0)
		s.retries.Store(0)
	}
	return &s.requests, &s.retries
}

// Request counts a request.
func (b *Budget) Request() {
	requests, _ := b.slot(time.Now())
	requests.Add(1)
}

// Retry takes one retry out of the budget: share of the window's requests, or
// atLeast when that is more. It returns false when there is none left.
func (b *Budget) Retry(share float64, atLeast int) bool {
	now := time.Now()
	_, mine := b.slot(now)
	var requests, retries int64
	for i := range b.slots {
		s := &b.slots[i]
		if now.Unix()-s.second.Load() < budgetSlots {
			requests += s.requests.Load()
			retries += s.retries.Load()
		}
	}
	if retries >= max(int64(share*float64(requests)), int64(atLeast)) {
		return false
	}
	mine.Add(1)
	return true
}
