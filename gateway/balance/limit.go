package balance

import (
	"cmp"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Limit bounds how many requests an endpoint may have that have shown no
// content yet, and lets that bound follow what the endpoint can do.
type Limit struct {
	// Adaptive turns it on.
	Adaptive bool
	// Min, Max and Initial bound the limit and say where it begins:
	// 1 <= Min <= Initial <= Max.
	Min, Max, Initial int
}

const (
	// noLimit is the published limit of an endpoint without one.
	noLimit = math.MaxInt64
	// A window is windowSamples requests in a row, and judged when all of them
	// have shown their content: to count those that happen to finish in a time
	// would prefer the short ones. After windowMax it does without the last
	// windowLeft, after windowStale it says nothing about now. While
	// its standard error is above windowError it is extended, to windowSizes
	// times the samples.
	windowSamples = 30
	windowSizes   = 4
	windowError   = 0.1
	windowLeft    = windowSamples / 10
	windowMax     = 20 * time.Second
	windowStale   = time.Minute
	// abandonLeast is how long a request must have waited in vain to count when
	// its group has no base yet.
	abandonLeast = 2 * time.Second
	// settled is how far the limit may move without waiting until it shows.
	settled = 0.15
	// sigmas is how many standard errors a queue must be away from chance.
	sigmas = 1
	// firstSpread is the squared coefficient of variation that a group is
	// taken to have at first.
	firstSpread = 0.25
	// probeShare is how far the limit goes down to see whether fewer requests
	// at a time are faster; when their time falls by less than probeNoise, there
	// was no queue to get rid of.
	probeShare = 0.6
	probeNoise = 0.9
	// probeStill tells a probe that has not got under the queue: time went down
	// about as much as the number of requests.
	probeStill = 0.85
	// probeFall is how far the limit may go down without being verified.
	probeFall = 0.75
	// verifyFirst and verifyMax are for how many windows in which the limit is
	// reached a verified base holds; each confirmation doubles it.
	verifyFirst = 6
	verifyMax   = 48
	// aimFactor times the square root of the limit is how many requests are
	// wanted in the endpoint's own queue: so many that it does not run dry by
	// chance, not more. dropShare of failed attempts in a window is a sign of
	// overload by itself.
	aimFactor = 0.1
	aimError  = 0.3
	aimLow    = 0.7
	aimHigh   = 1.4
	dropShare = 0.1
	dropCut   = 0.8
	// Nothing for stallLeast, and for stallPaces times what usually lies between
	// two first contents, is a stall when a probe was answered within stallProbe
	// (a full core answers late); the limit grows by stallGrowth each time,
	// and goes back when the stall is over.
	stallLeast  = 1500 * time.Millisecond
	stallProbe  = 100 * time.Millisecond
	stallPaces  = 4
	stallGrowth = 2
	// yieldShare of the limit is what requests that yield may fill. After
	// yieldWindows windows in which they were held there is one in which they
	// are not: only then can the limit be judged.
	yieldShare   = 0.75
	yieldWindows = 8
)

// adaptive is TCP Vegas for one endpoint: queue = limit × (1 − base ÷ time),
// where time is what requests now take until their first content and base what
// they take without a queue. DESIGN.md says why it is not a library's.
//
// base is kept per group of requests, and a window is judged by the sum of times
// over the sum of bases, so a change of the mix is no sign of overload. It is a
// mean, not a minimum, because a model's time varies by itself, and it is
// verified while the limit is being reached: the limit goes down for one window,
// and if fewer requests at a time are not faster, the time is the new base.
type adaptive struct {
	limit  atomic.Int64  // published; noLimit is none
	lower  atomic.Int64  // the same for requests that yield
	full   atomic.Bool   // the limit has been reached in this window
	held   atomic.Bool   // a request that yields was kept from a free place in it
	cohort atomic.Uint64 // the window's number, and in the lower half how many began in it
	skip   atomic.Uint32 // how many begin before the first that counts
	since  atomic.Int64  // its begin
	latest atomic.Int64  // when a request showed its content or ended, or a stall was looked at

	mu     sync.Mutex
	cfg    Limit
	now    float64 // the limit itself
	base   [Kinds]float64
	sure   [Kinds]bool    // base has been verified
	spread [Kinds]float64 // squared coefficient of variation; 0 is unknown
	window struct {
		begin        time.Time
		count        [Kinds]int
		sum, squares [Kinds]float64 // seconds
		total, drops int
		gone         int // left without an outcome
		size         int // how many it takes
	}
	probing bool
	before  struct{ requests, ratio, error float64 } // the probe
	holds   int                                      // for how many windows a verified base does
	due     int                                      // how many of them are left
	slow    bool                                     // slow start: no queue has been seen yet
	calm    float64                                  // the limit before a stall, 0 without one
	lifted  bool                                     // nobody yields in this window
	yields  int                                      // windows in which somebody did, until nobody does for one
	time    time.Duration                            // until the first content, in the last window
}

// configure applies cfg. What has been learnt stays, within the new bounds.
func (a *adaptive) configure(cfg Limit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !cfg.Adaptive:
		a.cfg = cfg
		a.limit.Store(noLimit)
		a.lower.Store(noLimit)
		return
	case !a.cfg.Adaptive:
		a.now, a.slow, a.probing = float64(cfg.Initial), true, false
		a.reset(time.Now())
	}
	a.cfg = cfg
	a.set(a.now)
}

// enter notes that a request is the working-th of limit, and returns the number
// of the window it belongs to, or 0.
func (a *adaptive) enter(working, limit int64) (window uint32) {
	if limit == noLimit {
		return 0
	}
	if working >= limit && !a.full.Load() {
		a.full.Store(true)
	}
	skip := uint64(a.skip.Load())
	if c := a.cohort.Load(); c&math.MaxUint32 >= skip+windowSamples {
		return 0
	}
	c := a.cohort.Add(1)
	if n := c & math.MaxUint32; n <= skip || n > skip+windowSamples {
		return 0
	}
	return uint32(c>>32) + 1
}

// sample takes note of a first content after took.
func (a *adaptive) sample(group uint8, window uint32, took time.Duration, now time.Time) {
	if a.limit.Load() == noLimit {
		return
	}
	a.latest.Store(now.UnixNano())
	if window == 0 && now.UnixNano()-a.since.Load() < int64(windowMax) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current(window) {
		w := &a.window
		w.count[group]++
		w.sum[group] += took.Seconds()
		w.squares[group] += took.Seconds() * took.Seconds()
		w.total++
	}
	if a.cfg.Adaptive {
		a.judge(now) // also when what the window waits for takes too long
	}
}

// abandon takes note of a request that was given up after took. One that was
// given up later than it would have had its content without a queue shows one:
// else clients who lose patience would hide an overload.
func (a *adaptive) abandon(group uint8, window uint32, took time.Duration, now time.Time) {
	if a.limit.Load() == noLimit {
		return
	}
	a.mu.Lock()
	base := a.base[group]
	a.mu.Unlock()
	if base > 0 && took.Seconds() > base || took > abandonLeast {
		a.sample(group, window, took, now)
	} else {
		a.leave(window, now)
	}
}

// leave takes note of a request that says nothing.
func (a *adaptive) leave(window uint32, now time.Time) {
	a.latest.Store(now.UnixNano())
	if window == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current(window) {
		a.window.gone++
		a.judge(now)
	}
}

// drop takes note of an attempt that failed or took too long.
func (a *adaptive) drop() {
	if a.limit.Load() == noLimit {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.window.drops++
}

// stalled raises the limit while it is reached and nothing comes to its first
// content. An overloaded endpoint goes on serving, at its own pace; one whose
// requests all wait for the same model, say, does not, and could take more. It
// tells whether it did.
func (a *adaptive) stalled(working int64, now time.Time) bool {
	limit := a.limit.Load()
	if limit == noLimit || working < limit && (!a.held.Load() || working < a.lower.Load()) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	pace := stallPaces * a.time / time.Duration(max(1, working))
	if now.UnixNano()-a.latest.Load() < int64(max(stallLeast, pace)) || limit >= int64(a.cfg.Max) {
		return false
	}
	a.latest.Store(now.UnixNano())
	if a.calm == 0 {
		a.calm = a.now
	}
	a.set(a.now * stallGrowth)
	return true
}

func (a *adaptive) current(window uint32) bool {
	return a.cfg.Adaptive && window == uint32(a.cohort.Load()>>32)+1
}

// reset begins a window: with the requests that begin from now on.
func (a *adaptive) reset(now time.Time) {
	w := &a.window
	w.begin, w.total, w.drops, w.gone = now, 0, 0, 0
	w.count, w.sum, w.squares = [Kinds]int{}, [Kinds]float64{}, [Kinds]float64{}
	a.full.Store(false)
	if a.held.Swap(false) { // the next requests still share it with fewer
		a.skip.Store(uint32(a.now))
	}
	a.publish()
	a.since.Store(now.UnixNano())
	w.size = windowSamples
	a.open()
}

// open lets the next windowSamples requests into the window.
func (a *adaptive) open() { a.cohort.Store((a.cohort.Load()>>32 + 1) << 32) }

// set publishes the limit n.
func (a *adaptive) set(n float64) {
	n = min(max(n, float64(a.cfg.Min)), float64(a.cfg.Max))
	// After a large change, what shares the endpoint with the next requests is
	// still what the old limit let in: they do not count.
	a.skip.Store(0)
	if change := n / a.now; change < 1-settled || change > 1+settled {
		a.skip.Store(uint32(n))
	}
	a.now = n
	a.publish()
}

// publish makes the limit known. Nobody yields while it is being looked for or
// verified.
func (a *adaptive) publish() {
	limit := int64(a.now)
	lower := max(1, int64(yieldShare*a.now))
	if a.slow || a.probing || a.lifted || a.holds == 0 {
		lower = limit
	}
	a.limit.Store(limit)
	a.lower.Store(lower)
}

// room tells whether one more request has a place beside working others.
func (a *adaptive) room(working int64, yields bool) bool {
	if working >= a.limit.Load() {
		return false
	}
	if !yields || working < a.lower.Load() {
		return true
	}
	if !a.held.Load() {
		a.held.Store(true)
	}
	return false
}

// ratio is time ÷ base over the window, sigma its standard error and actual the
// time itself. Groups without a base get what they show.
func (a *adaptive) ratio() (ratio, sigma, actual float64) {
	var expect, variance float64
	for k, n := range a.window.count {
		if n == 0 {
			continue
		}
		if a.base[k] == 0 {
			a.base[k] = a.window.sum[k] / float64(n)
		}
		actual += a.window.sum[k]
		expect += float64(n) * a.base[k]
		// A few samples tell little about how much they vary.
		mean := a.window.sum[k] / float64(n)
		if n > 1 {
			v := max(0, a.window.squares[k]/float64(n)-mean*mean) / (mean * mean)
			if a.spread[k] == 0 {
				a.spread[k] = firstSpread
			}
			a.spread[k] += float64(n) / (2 * windowSamples) * (v - a.spread[k])
		}
		variance += float64(n) * mean * mean * cmp.Or(a.spread[k], firstSpread)
	}
	if expect == 0 {
		return 1, 0, 0
	}
	return actual / expect, math.Sqrt(variance) / expect, actual
}

// learn moves the bases towards the window's means; verified says that these
// are known to be without a queue, as far as can be known.
func (a *adaptive) learn(weight float64, verified bool) {
	const enough = 10 // samples for full weight
	for k, n := range a.window.count {
		if n == 0 {
			continue
		}
		w := weight
		if verified && !a.sure[k] {
			a.sure[k], w = true, 1
		}
		w *= min(1, float64(n)/enough)
		a.base[k] += w * (a.window.sum[k]/float64(n) - a.base[k])
	}
}

// aim is how many of n requests are wanted in the endpoint's own queue, when the
// ratio is known to sigma.
func aim(n, sigma float64) float64 { return aimFactor*math.Sqrt(n) + aimError*sigma*n }

// judge ends the window when it is complete, and moves the limit.
func (a *adaptive) judge(now time.Time) {
	w := &a.window
	age := now.Sub(w.begin)
	if ended := w.total + w.gone; ended < w.size && (age < windowMax || ended < w.size-windowLeft) {
		if age > windowStale {
			a.reset(now)
		}
		return
	}
	if a.calm > 0 { // a stall is over, and its times say nothing
		a.set(a.calm)
		a.calm, a.probing = 0, false
		a.reset(now)
		return
	}
	full := a.full.Load()
	if w.total > 0 {
		var sum float64
		for _, s := range w.sum {
			sum += s
		}
		a.time = time.Duration(sum / float64(w.total) * float64(time.Second))
	}
	ratio, sigma, actual := a.ratio()
	if sigma > windowError*ratio && w.size < windowSizes*windowSamples && age < windowMax {
		w.size += windowSamples
		a.skip.Store(0)
		a.open()
		return
	}
	requests := a.now // at a time, on average
	if !full {
		requests = min(requests, actual/age.Seconds())
	}
	held := a.held.Load()
	a.lifted = false
	switch {
	case float64(w.drops) >= dropShare*float64(w.size):
		a.probing = false
		a.set(a.now * dropCut)
	case w.total < w.size/2: // most of them left or are not measured
	case held: // it was not full because others yielded, which says nothing about it
		a.yields--
		a.due--
		// What looks like a queue even so is looked at without yielding.
		if atLeast := ratio - sigmas*sigma; a.yields <= 0 || requests*(1-1/atLeast) > aimHigh*aim(requests, sigma) {
			a.lifted, a.yields = true, yieldWindows
		}
	case a.probing:
		a.probed(ratio, sigma)
	default:
		a.follow(requests, ratio, sigma, full)
	}
	a.reset(now)
}

// follow moves the limit by the queue that the window shows.
func (a *adaptive) follow(requests, ratio, sigma float64, full bool) {
	atLeast := ratio - sigmas*sigma
	if full {
		a.due--
	}
	switch {
	case requests*(1-1/atLeast) > aimHigh*aim(requests, sigma):
		a.slow = false
		if next := requests/atLeast + aim(requests, sigma); next < a.now*probeFall {
			a.probe(requests, ratio, sigma)
		} else {
			a.set(next)
		}
	case !full:
		// The limit keeps nobody waiting, so this is about the endpoint's own
		// time, though perhaps not without any queue.
		if ratio < 1 {
			a.learn(0.3, false)
		} else if requests < a.now/2 {
			a.learn(0.1, false)
		}
	case !a.slow && a.due <= 0:
		a.probe(requests, ratio, sigma)
	case requests*(1-1/atLeast) < aimLow*aim(requests, sigma):
		switch {
		case a.slow:
			a.set(a.now * 1.5)
		case ratio <= 1:
			a.set(a.now + max(1, a.now/4))
		default:
			a.set(a.now + max(1, a.now/10))
		}
	}
}

// probe lowers the limit for one window.
func (a *adaptive) probe(requests, ratio, sigma float64) {
	a.probing = true
	a.before.requests, a.before.ratio, a.before.error = requests, ratio, sigma/ratio
	a.set(requests * probeShare)
}

// probed judges the window of a probe.
func (a *adaptive) probed(ratio, sigma float64) {
	a.probing = false
	relief := ratio / a.before.ratio
	atMost := relief * (1 + sigmas*math.Hypot(sigma/ratio, a.before.error))
	wrong := ratio+sigma < 1 || ratio-sigma > 1.2 || a.holds == 0 // the base, perhaps
	if atMost < probeStill && wrong && a.now > float64(a.cfg.Min) {
		// There is a queue even here.
		a.learn(1, false)
		a.probe(a.now, 1, sigma/ratio)
		return
	}
	weight := 0.3
	if wrong {
		weight, a.holds = 1, 0
	}
	a.holds = min(max(2*a.holds, verifyFirst), verifyMax)
	a.due = a.holds + rand.IntN(a.holds/2+1) // not all endpoints at once
	if atMost > probeNoise {
		a.learn(weight, true)
		a.set(a.before.requests)
		return
	}
	a.learn(0.5, true)
	alone := a.before.requests * relief
	a.set(alone + aim(alone, sigma))
}
