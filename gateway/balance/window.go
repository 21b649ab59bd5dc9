package balance

import (
	"slices"
	"time"
)

// windowSlots is how finely the window of recent outcomes slides.
const windowSlots = 10

// counts are outcomes of requests.
type counts struct {
	total int // requests that ended, or were slow
	bad   int // failed, cut or answered with 5xx
	slow  int // given up, or late, because the answer did not begin in time
}

// share is the part of the requests that went wrong. Slow ones count only when
// that is the endpoint's own fault.
func (c counts) share(slow bool) (share float64, requests int) {
	bad := c.bad + c.slow
	requests = c.total
	if !slow {
		bad, requests = c.bad, c.total-c.slow
	}
	if requests <= 0 {
		return 0, 0
	}
	// The good beginning of a cut answer may have left the window before the cut.
	return min(1, float64(bad)/float64(requests)), requests
}

// window holds the outcomes of the last while at one endpoint. It is guarded by
// the endpoint's lock.
type window struct {
	slots [windowSlots]struct {
		number int64 // of the slot since the endpoint's birth
		counts
	}
}

// add records o at age, a time of the endpoint's own.
func (w *window) add(o Outcome, age int64, length time.Duration) {
	number := age * windowSlots / int64(length)
	s := &w.slots[number%windowSlots]
	if s.number != number {
		s.number, s.counts = number, counts{}
	}
	switch o {
	case Success:
		s.total++
	case ServerError, Failure:
		s.total++
		s.bad++
	case Cut:
		s.bad++ // its good beginning was a Success
	case Slow:
		s.total++
		s.slow++
	}
}

// sum adds up what lies within length before age.
func (w *window) sum(age int64, length time.Duration) counts {
	var sum counts
	number := age * windowSlots / int64(length)
	for i := range w.slots {
		s := &w.slots[i]
		if ago := number - s.number; ago >= 0 && ago < windowSlots {
			sum.total += s.total
			sum.bad += s.bad
			sum.slow += s.slow
		}
	}
	return sum
}

// counts returns what e met within length.
func (e *Endpoint) counts(now time.Time, length time.Duration) counts {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.recent.sum(e.age(now), length)
}

// outlier tells whether e fails far more often than the others. A fault that
// hits most of them alike is not e's: the database that all wait for, an app
// that fails wherever it runs.
//
// It errs for its own part only on the cautious side: others without enough
// requests to judge by are left out, and when that leaves nobody, e's own share
// decides, because to try another is worth it then.
func (s *snapshot) outlier(e *Endpoint, now time.Time) bool {
	cfg := &s.cfg
	if cfg.ErrorShare <= 0 || !e.usable(now) {
		return false
	}
	mine := e.counts(now, cfg.ErrorWindow)
	if share, n := mine.share(true); n < cfg.MinRequests || share <= cfg.ErrorShare {
		return false // the usual case needs no look at the others
	}
	var others []counts
	available, slow := 0, 0
	for other := range s.candidates {
		available++
		c := mine
		if other != e {
			c = other.counts(now, cfg.ErrorWindow)
			others = append(others, c)
		}
		if c.slow > 0 {
			slow++
		}
	}
	own := 2*slow <= available // slow answers are the fault of those that give them
	if share, n := mine.share(own); n < cfg.MinRequests || share <= cfg.ErrorShare {
		return false
	}
	var shares []float64
	for _, c := range others {
		if share, n := c.share(own); n >= max(1, cfg.MinRequests/4) {
			shares = append(shares, share)
		}
	}
	if len(shares) == 0 {
		return true
	}
	slices.Sort(shares)
	return shares[(len(shares)-1)/2] < cfg.OthersErrorShare
}
