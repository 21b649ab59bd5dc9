package drill

import (
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Class groups requests by what a retry of them would mean.
type Class string

// The classes of requests a drill sends.
const (
	// Idempotent requests may be repeated by any proxy.
	Idempotent Class = "idempotent"
	// Post requests create something and wait for the whole answer.
	Post Class = "post"
	// Stream requests create something and read the answer as server-sent events.
	Stream Class = "stream"
)

// Sample is the outcome of one request of the load.
type Sample struct {
	Class Class
	// Due is when the request had to be sent by the schedule. Latency counts
	// from here and not from the actual send, so that a stalled client or
	// server cannot hide the requests that waited behind it (coordinated omission).
	Due time.Time
	// Latency is the time from Due to the end of the answer; for streams, to
	// the first event that carries content.
	Latency time.Duration
	// Err is empty for a good answer, else a short stable reason.
	Err string
	// FirstErr is why an idempotent request had to be repeated by the client,
	// which is once at most; empty when its first attempt was answered.
	FirstErr string
	// End says how a stream ended; empty for the other classes.
	End StreamEnd
	// Done is when the outcome was known.
	Done time.Time
	// Code is the code of Dify's error, in the body or in the error event.
	Code string
	// Instance and Gateway are who answered: the name that a simulator gives,
	// and the gateway's zone.
	Instance, Gateway string
}

// Count is how many requests there were and how many of them failed.
type Count struct {
	Total  int `json:"total"`
	Failed int `json:"failed"`
	// FailedFirst counts the requests whose first attempt found its connection
	// broken and that the client repeated by itself, as HTTP allows it to; those
	// whose repetition failed as well are in Failed too.
	FailedFirst int `json:"failedFirst,omitempty"`
}

// ClassCount is the Count of one class and the longest time in which no request
// of the class that fell due was served well, in milliseconds.
type ClassCount struct {
	Count
	LongestOutageMs int64 `json:"longestOutageMs"`
	// MaxMs is the longest that a good answer took, in milliseconds.
	MaxMs float64 `json:"maxMs"`
	// Ends counts streams by how they ended.
	Ends map[StreamEnd]int `json:"ends,omitempty"`
}

// Requests sums up what the users of a drill's load got.
type Requests struct {
	Count
	// Slow counts good answers that took longer than the drill's threshold.
	Slow    int                   `json:"slow"`
	ByClass map[Class]*ClassCount `json:"byClass"`
	// P50Ms and P99Ms are quantiles of good answers' latency in milliseconds.
	P50Ms float64 `json:"p50Ms"`
	P99Ms float64 `json:"p99Ms"`
	// Reasons counts failures by reason.
	Reasons map[string]int `json:"reasons,omitempty"`
}

// Limits say from which latency on an answer of a class counts as slow.
type Limits map[Class]time.Duration

// limits allows each class slow on top of the median latency that it had
// before the fault: a blocking chat takes as long as its answer is, and only
// what the fault adds is the fault's doing.
func limits(before []Sample, slow time.Duration) Limits {
	l := Limits{}
	for _, class := range []Class{Idempotent, Post, Stream} {
		var all []time.Duration
		for _, s := range before {
			if s.Class == class && s.Err == "" {
				all = append(all, s.Latency)
			}
		}
		l[class] = slow
		if len(all) > 0 {
			slices.Sort(all)
			l[class] += all[len(all)/2]
		}
	}
	return l
}

// summarise counts samples; an answer later than its limit is counted as slow.
func summarise(samples []Sample, slow Limits) Requests {
	r := Requests{
		ByClass: map[Class]*ClassCount{Idempotent: {}, Post: {}, Stream: {}},
		Reasons: map[string]int{},
	}
	hist := hdrhistogram.New(1, int64(10*time.Minute/time.Microsecond), 3)
	for _, s := range samples {
		c := r.ByClass[s.Class]
		r.Total++
		c.Total++
		if s.FirstErr != "" {
			r.FailedFirst++
			c.FailedFirst++
		}
		if s.End != "" {
			if c.Ends == nil {
				c.Ends = map[StreamEnd]int{}
			}
			c.Ends[s.End]++
		}
		switch {
		case s.Err != "":
			r.Failed++
			c.Failed++
			r.Reasons[s.Err]++
			continue
		case s.Latency > slow[s.Class]:
			r.Slow++
		}
		c.MaxMs = max(c.MaxMs, float64(s.Latency.Microseconds())/1000)
		// A latency over the histogram's ten minutes cannot happen: every
		// request has a shorter deadline.
		_ = hist.RecordValue(max(1, s.Latency.Microseconds()))
	}
	r.P50Ms = float64(hist.ValueAtQuantile(50)) / 1000
	r.P99Ms = float64(hist.ValueAtQuantile(99)) / 1000
	return r
}

// good tells whether a user would call the request served: answered without
// an error and within its limit.
func (s Sample) good(slow Limits) bool { return s.Err == "" && s.Latency <= slow[s.Class] }

// longestOutage is the longest time in which no request that fell due was
// served well: the widest gap between the due times of good requests with a bad
// one between them, less the spacing that the schedule itself leaves. end is
// when the schedule ended; requests that were bad until then count up to it.
func longestOutage(samples []Sample, slow Limits, spacing time.Duration, end time.Time) time.Duration {
	byDue := slices.Clone(samples)
	slices.SortFunc(byDue, func(a, b Sample) int { return a.Due.Compare(b.Due) })
	var (
		longest  time.Duration
		from     time.Time
		lastGood time.Time
		bad      bool
	)
	closeGap := func(at time.Time) {
		if !bad {
			return
		}
		gap := at.Sub(from)
		if !lastGood.IsZero() {
			gap = at.Sub(lastGood) - spacing
		}
		longest = max(longest, gap)
		bad = false
	}
	for _, s := range byDue {
		if s.good(slow) {
			closeGap(s.Due)
			lastGood = s.Due
			continue
		}
		if !bad {
			bad, from = true, s.Due
		}
	}
	closeGap(end)
	return longest
}

// startOutage is the longest time in which no stream that was opened got its
// first content in time. Streams that are kept open have no schedule, so it
// counts from the first that did not.
func startOutage(samples []Sample, slow Limits, end time.Time) time.Duration {
	byDue := slices.Clone(samples)
	slices.SortFunc(byDue, func(a, b Sample) int { return a.Due.Compare(b.Due) })
	var longest time.Duration
	var from time.Time
	for _, s := range byDue {
		// One that was lost later had begun well.
		began := s.End != StreamRefused && s.Latency <= slow[s.Class]
		switch {
		case began && !from.IsZero():
			longest = max(longest, s.Due.Sub(from))
			from = time.Time{}
		case !began && from.IsZero():
			from = s.Due
		}
	}
	if !from.IsZero() {
		longest = max(longest, end.Sub(from))
	}
	return longest
}

// measureOutages fills in the longest outage of each class and returns the
// longest of all. A class has its own: when only one in two requests can be
// served, because chats fail while reads go on, its users have an outage.
func (r *Requests) measureOutages(samples []Sample, slow Limits, load Load, end time.Time) time.Duration {
	var longest time.Duration
	for class, count := range r.ByClass {
		var of []Sample
		for _, s := range samples {
			if s.Class == class {
				of = append(of, s)
			}
		}
		var d time.Duration
		if n := load.every(class); n > 0 {
			d = longestOutage(of, slow, load.spacing()*time.Duration(n), end)
		} else {
			d = startOutage(of, slow, end)
		}
		count.LongestOutageMs = d.Milliseconds()
		longest = max(longest, d)
	}
	return longest
}

// recovery is the time from the fault until the last request that was not
// served well had fallen due; zero when all were.
func recovery(samples []Sample, slow Limits, fault time.Time) time.Duration {
	var last time.Time
	for _, s := range samples {
		if !s.good(slow) && s.Due.After(last) {
			last = s.Due
		}
	}
	if last.Before(fault) {
		return 0
	}
	return last.Sub(fault)
}

// Measure sums up what a load got: the median of the samples before the fault
// and slow say how long a good answer of each class may take. end is when the
// load ended.
func (l Load) Measure(samples []Sample, slow time.Duration, fault, end time.Time) (r Requests, longest, recovered time.Duration) {
	var before []Sample
	for _, s := range samples {
		if !s.Done.IsZero() && s.Done.Before(fault) || s.Class == Stream && s.Due.Add(s.Latency).Before(fault) {
			before = append(before, s)
		}
	}
	limits := limits(before, slow)
	r = summarise(samples, limits)
	longest = r.measureOutages(samples, limits, l, end)
	return r, longest, recovery(samples, limits, fault)
}

// WorstSecond is the least share of the requests falling due within a second
// that were served well, between from and end; streams do not count, which have
// no schedule. It tells a fault that everybody feels a little from one that
// nobody feels, where both have the same longest outage.
func (l Load) WorstSecond(samples []Sample, slow time.Duration, from, end time.Time) float64 {
	const step = 100 * time.Millisecond
	var before []Sample
	for _, s := range samples {
		if s.Done.Before(from) {
			before = append(before, s)
		}
	}
	limits := limits(before, slow)
	n := int(end.Sub(from)/step) + 1
	total, good := make([]int, n), make([]int, n)
	for _, s := range samples {
		at := s.Due.Sub(from)
		if i := int(at / step); s.Class != Stream && at >= 0 && i < n {
			total[i]++
			if s.good(limits) {
				good[i]++
			}
		}
	}
	worst := 1.0
	for i := range n {
		all, well := 0, 0
		for k := i; k < min(n, i+int(time.Second/step)); k++ {
			all, well = all+total[k], well+good[k]
		}
		// The last steps may hold a request or two, which are no share.
		if float64(all) >= l.Rate/2 {
			worst = min(worst, float64(well)/float64(all))
		}
	}
	return worst
}
