package balance

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ewmaTau is the time after which an old latency counts 1/e.
	ewmaTau = 10 * time.Second
	// minLatency stands in for "not measured yet", so that work in hand decides.
	minLatency = float64(time.Millisecond)
	// slowStartFloor is the share a recovered endpoint begins with.
	slowStartFloor = 0.1
)

// Endpoint is a target with what is known about it. Its exported methods are
// safe for concurrent use.
type Endpoint struct {
	Target

	inFlight atomic.Int64
	working  atomic.Int64  // those of them that have shown no content yet
	adaptive adaptive      // bounds working
	kick     chan struct{} // asks for a probe now

	probeTook    atomic.Int64 // how long the last probe took, 0 before the first
	healthy      atomic.Bool
	drained      atomic.Bool // by an operator, see maintenance.go
	down         atomic.Pointer[downSignal]
	born         time.Time    // origin of the two times below: a clock that is set does not matter
	ejectedUntil atomic.Int64 // 0 is not ejected
	recovered    atomic.Int64 // the last return to service; 0 is long ago

	// Guarded by the pool's lock.
	probed    bool
	good, bad int // probe answers in a row

	mu         sync.Mutex
	ewma       float64 // nanoseconds
	ewmaAt     time.Time
	errors     int       // passive, in a row
	serverErrs int       // passive, in a row
	recent     window    // outcomes of late
	ejections  int       // sets how long the next ejection lasts
	forgiveAt  time.Time // when ejections goes down by one
}

// downSignal ends when probes find the endpoint unhealthy.
type downSignal struct {
	ctx    context.Context // the signal itself, not a call's context
	cancel context.CancelFunc
}

func newDownSignal() *downSignal {
	ctx, cancel := context.WithCancel(context.Background())
	return &downSignal{ctx, cancel}
}

func newEndpoint(t Target) *Endpoint {
	e := &Endpoint{Target: t, kick: make(chan struct{}, 1), born: time.Now()}
	e.down.Store(newDownSignal())
	return e
}

// Down returns a context that ends when probes find the endpoint unhealthy the
// next time.
func (e *Endpoint) Down() context.Context { return e.down.Load().ctx }

// age is now as the endpoint's own time, in nanoseconds and never 0.
func (e *Endpoint) age(now time.Time) int64 { return int64(now.Sub(e.born)) + 1 }

// InFlight returns how many requests are in work at the endpoint.
func (e *Endpoint) InFlight() int64 { return e.inFlight.Load() }

// Working returns how many of them have shown no content yet.
func (e *Endpoint) Working() int64 { return e.working.Load() }

// Limit returns how many may be without content at a time; 0 is no bound.
func (e *Endpoint) Limit() int64 {
	if n := e.adaptive.limit.Load(); n < noLimit {
		return n
	}
	return 0
}

// ObserveProbe records how long a probe took: it waits for the endpoint's core
// and for nothing else.
func (e *Endpoint) ObserveProbe(d time.Duration) { e.probeTook.Store(int64(d)) }

// Healthy returns what the last probes said.
func (e *Endpoint) Healthy() bool { return e.healthy.Load() }

// Ejected tells whether the endpoint is out because of what requests met.
func (e *Endpoint) Ejected(now time.Time) bool { return e.ejectedUntil.Load() > e.age(now) }

func (e *Endpoint) usable(now time.Time) bool {
	return e.healthy.Load() && !e.Ejected(now) && !e.drained.Load()
}

// Observe records how long the endpoint took until its answer began. A slower
// answer counts at once and in full, faster ones win slowly: the endpoint that
// begins to hang is noticed by its first slow answer.
func (e *Endpoint) Observe(d time.Duration) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.decayed(now)
	sample := float64(d)
	if sample > v {
		v = sample
	} else {
		w := math.Exp(-float64(now.Sub(e.ewmaAt)) / float64(ewmaTau))
		v = e.ewma*w + sample*(1-w)
	}
	e.ewma, e.ewmaAt = v, now
}

func (e *Endpoint) decayed(now time.Time) float64 {
	if e.ewma == 0 {
		return 0
	}
	return e.ewma * math.Exp(-float64(now.Sub(e.ewmaAt))/float64(ewmaTau))
}

// cost is what one more request would have to expect here.
func (e *Endpoint) cost(now time.Time, slowStart time.Duration) float64 {
	e.mu.Lock()
	latency := e.decayed(now)
	e.mu.Unlock()
	c := max(latency, minLatency) * float64(e.inFlight.Load()+1)
	if at := e.recovered.Load(); at != 0 {
		age := e.age(now) - at
		if share := float64(age) / float64(slowStart); share < 1 {
			c /= max(share, slowStartFloor)
		} else {
			e.recovered.CompareAndSwap(at, 0)
		}
	}
	return c
}
