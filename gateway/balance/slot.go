package balance

import "time"

// Kinds is how many kinds of requests an endpoint tells apart by their latency.
const Kinds = 256

// Kind is what a place is wanted for.
type Kind struct {
	// Group is of requests that take about equally long
	// until their first content: one app's, of one class. Groups that share a
	// number by chance are taken for one.
	Group uint8
	// Streams says that the answer may go on for long after its first content.
	Streams bool
	// Unmeasured keeps the time out of the endpoint's adaptive limit, because
	// it says more about the client, as with an upload.
	Unmeasured bool
	// Yields leaves the last quarter of each endpoint's adaptive limit to requests
	// that do not.
	Yields bool
}

// Slot is a place at an endpoint. Its zero value is free; Pool.Take fills it. It
// belongs to one goroutine at a time.
type Slot struct {
	// Endpoint is where the place is; it stays after Release.
	*Endpoint

	pool    *Pool
	kind    Kind
	began   time.Time
	window  uint32 // of the endpoint's adaptive limit
	working bool   // no content yet
}

// Content notes the first content of the answer: what an instance does before
// it is work that others wait for, what comes after it is mostly waiting.
// measured says that the time it took tells how fast the endpoint is. Calls
// after the first do nothing.
func (s *Slot) Content(measured bool) {
	if !s.working {
		return
	}
	s.working = false
	s.Endpoint.working.Add(-1)
	now := time.Now()
	if measured && !s.kind.Unmeasured {
		s.adaptive.sample(s.kind.Group, s.window, now.Sub(s.began), now)
	} else {
		s.adaptive.leave(s.window, now)
	}
	s.pool.freed()
}

// Release gives the place back. A slot that is free stays so.
func (s *Slot) Release() {
	if s.pool == nil {
		return
	}
	pool := s.pool
	s.pool = nil
	if s.working {
		s.working = false
		s.Endpoint.working.Add(-1)
		now := time.Now()
		if s.kind.Unmeasured {
			s.adaptive.leave(s.window, now)
		} else {
			s.adaptive.abandon(s.kind.Group, s.window, now.Sub(s.began), now)
		}
	}
	s.inFlight.Add(-1)
	pool.freed()
}

// Held tells whether the slot holds a place.
func (s *Slot) Held() bool { return s.pool != nil }
