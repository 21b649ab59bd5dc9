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
}

// Count is how many requests there were and how many of them failed.
type Count struct {
	Total  int `json:"total"`
	Failed int `json:"failed"`
}

// ClassCount is the Count of one class and the longest time in which no request
// of the class that fell due was served well, in milliseconds.
type ClassCount struct {
	Count
	LongestOutageMs int64 `json:"longestOutageMs"`
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
		switch {
		case s.Err != "":
			r.Failed++
			c.Failed++
			r.Reasons[s.Err]++
			continue
		case s.Latency > slow[s.Class]:
			r.Slow++
		}
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

// measureOutages fills in the longest outage of each class and returns the
// longest of all. A class has its own: when only one in two requests can be
// served, because chats fail while reads go on, its users have an outage.
func (r *Requests) measureOutages(samples []Sample, slow Limits, spacing time.Duration, end time.Time) time.Duration {
	var longest time.Duration
	for class, count := range r.ByClass {
		var of []Sample
		for _, s := range samples {
			if s.Class == class {
				of = append(of, s)
			}
		}
		d := longestOutage(of, slow, spacing*time.Duration(every(class)), end)
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
