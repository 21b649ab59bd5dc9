package drill

import (
	"testing"
	"time"
)

// series makes idempotent samples due every spacing; bad tells which failed.
func series(n int, spacing time.Duration, bad func(i int) bool) ([]Sample, time.Time) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	samples := make([]Sample, n)
	for i := range samples {
		samples[i] = Sample{Class: Idempotent, Due: start.Add(time.Duration(i) * spacing), Latency: time.Millisecond}
		if bad(i) {
			samples[i].Err = "status 502"
		}
	}
	return samples, start.Add(time.Duration(n) * spacing)
}

func within(d time.Duration) Limits { return Limits{Idempotent: d, Post: d, Stream: d} }

func TestLimitsAllowWhatWasNormal(t *testing.T) {
	var before []Sample
	for _, ms := range []time.Duration{1900, 2000, 2100, 9000, 2050} {
		before = append(before, Sample{Class: Post, Latency: ms * time.Millisecond})
	}
	before = append(before, Sample{Class: Post, Latency: time.Hour, Err: "timeout"})
	got := limits(before, time.Second)
	if got[Post] != 3050*time.Millisecond || got[Stream] != time.Second {
		t.Errorf("limits = %v, want 3.05s for posts (median 2.05s) and 1s for streams, of which none was seen", got)
	}
}

func TestLongestOutage(t *testing.T) {
	const spacing = 10 * time.Millisecond
	between := func(from, to int) func(int) bool {
		return func(i int) bool { return i >= from && i < to }
	}
	tests := []struct {
		name string
		bad  func(int) bool
		want time.Duration
	}{
		{"nothing failed", func(int) bool { return false }, 0},
		{"seventy in a row", between(100, 170), 700 * time.Millisecond},
		{"one", between(50, 51), spacing},
		{"every other one is no outage longer than a spacing", func(i int) bool { return i%2 == 1 }, spacing},
		{"from the start", between(0, 30), 300 * time.Millisecond},
		{"to the end", between(970, 1000), 300 * time.Millisecond},
		{"all", func(int) bool { return true }, 10 * time.Second},
		{"the longer of two", func(i int) bool { return between(10, 20)(i) || between(30, 60)(i) }, 300 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			samples, end := series(1000, spacing, tt.bad)
			if got := longestOutage(samples, within(time.Second), spacing, end); got != tt.want {
				t.Errorf("longestOutage = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSlowAnswersAreAnOutage(t *testing.T) {
	samples, end := series(100, 100*time.Millisecond, func(int) bool { return false })
	for i := 40; i < 60; i++ {
		samples[i].Latency = 3 * time.Second
	}
	if got, want := longestOutage(samples, within(time.Second), 100*time.Millisecond, end), 2*time.Second; got != want {
		t.Errorf("longestOutage = %v, want %v", got, want)
	}
	sum := summarise(samples, within(time.Second))
	if sum.Slow != 20 || sum.Failed != 0 || sum.Total != 100 {
		t.Errorf("summarise = %+v, want 20 slow and 0 failed of 100", sum)
	}
}

func TestRecovery(t *testing.T) {
	samples, _ := series(100, 100*time.Millisecond, func(i int) bool { return i == 30 || i == 45 })
	fault := samples[25].Due
	if got, want := recovery(samples, within(time.Second), fault), 2*time.Second; got != want {
		t.Errorf("recovery = %v, want %v", got, want)
	}
	if got := recovery(samples, within(time.Second), samples[50].Due); got != 0 {
		t.Errorf("recovery after the last failure = %v, want 0", got)
	}
}

func TestSummariseCountsByClassAndReason(t *testing.T) {
	samples := []Sample{
		{Class: Stream, Err: "stream cut"}, {Class: Stream}, {Class: Post, Err: "timeout"}, {Class: Idempotent},
	}
	got := summarise(samples, within(time.Second))
	if got.ByClass[Stream].Count != (Count{Total: 2, Failed: 1}) || got.ByClass[Post].Count != (Count{Total: 1, Failed: 1}) || got.ByClass[Idempotent].Count != (Count{Total: 1}) {
		t.Errorf("by class = %v %v %v", got.ByClass[Stream], got.ByClass[Post], got.ByClass[Idempotent])
	}
	if got.Reasons["stream cut"] != 1 || got.Reasons["timeout"] != 1 {
		t.Errorf("reasons = %v", got.Reasons)
	}
}

func TestOutageOfOneClassIsNotHiddenByAnother(t *testing.T) {
	const spacing = 25 * time.Millisecond
	samples, end := series(400, spacing, func(int) bool { return false })
	for i := range samples {
		samples[i].Class = Load{}.classOf(i)
		if samples[i].Class == Post && i >= 100 && i < 300 {
			samples[i].Err = "status 500"
		}
	}
	r := summarise(samples, within(time.Second))
	if got, want := r.measureOutages(samples, within(time.Second), Load{Rate: float64(time.Second / spacing)}, end), 5*time.Second; got != want {
		t.Errorf("longest outage = %v, want %v", got, want)
	}
	if r.ByClass[Idempotent].LongestOutageMs != 0 || r.ByClass[Post].LongestOutageMs != 5000 {
		t.Errorf("by class: %+v %+v", r.ByClass[Idempotent], r.ByClass[Post])
	}
}
