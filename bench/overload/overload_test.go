package main

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOverloadInShort runs real gateways, instances and clients for some seconds.
// What it asks holds however busy the machine is; gateway/admit has the figures,
// in virtual time.
func TestOverloadInShort(t *testing.T) {
	x := experiment{instances: 1, gateways: 1, settle: 2 * time.Second, progress: t.Logf}
	levels, err := x.ramp(t.Context(), protected, []float64{8}, 4*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	l := levels[0]
	t.Logf("offered %d: %d in time, %d refused, %d late", l.offered, l.good, l.refused, l.late)
	if l.offered == 0 || l.good+l.refused+l.late != l.offered {
		t.Errorf("%d good, %d refused and %d late are not the %d offered", l.good, l.refused, l.late, l.offered)
	}
	if l.refused == 0 {
		t.Error("nothing was refused at 8 times the capacity")
	}
	if admitted := l.good + l.late; admitted == 0 || admitted != len(l.content) {
		t.Errorf("%d were admitted, of which %d are measured", admitted, len(l.content))
	}
	x.neighbour = 0.5
	b, err := x.beside(t.Context(), protected, 0, 0, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if b.offered == 0 || b.refused > 0 {
		t.Errorf("alone, at half of the capacity: %d of %d refused", b.refused, b.offered)
	}
}

// TestGoals: each goal is in the results and can be missed.
func TestGoals(t *testing.T) {
	at := func(load float64, good int, content, end float64) level {
		return level{load: load, seconds: 1, offered: 100, good: good, content: quantiles{content}, end: quantiles{end}}
	}
	x := experiment{lag: quantiles{.001}}
	good := noise{alone: at(0, 8, 1, 2), flooded: at(0, 8, 1.1, 2.3), bare: level{offered: 8, late: 8, seconds: 1, content: quantiles{10}}}
	bare := []level{at(1, 40, 2, 3), {load: 10, seconds: 1, content: quantiles{10}}}
	if s := x.suite([]level{at(1, 36, 1.5, 2), at(3, 35, 2, 3), at(10, 35, 2.5, 3)}, bare, good); len(s.Missed()) > 0 || s.Validate() != nil {
		t.Errorf("missed %v: %v", s.Missed(), s.Validate())
	}
	x.lag = quantiles{.02}
	bad := noise{alone: at(0, 8, 1, 2), flooded: at(0, 8, 1.3, 2.5)}
	want := []string{
		"goodput_share_of_peak_at_10x", "first_content_p99_ms_at_10x",
		"neighbour_first_content_p95_ratio", "neighbour_last_event_p95_ratio", "timers_late_p99_ms",
	}
	if got := x.suite([]level{at(1, 36, 1.5, 2), at(10, 33, 3.5, 4)}, bare, bad).Missed(); !slices.Equal(got, want) {
		t.Errorf("missed %v, want %v", got, want)
	}
}

func TestPlotIsXML(t *testing.T) {
	l := []level{{load: 1, seconds: 1, good: 10, content: quantiles{1}}, {load: 10, seconds: 1}}
	for d := xml.NewDecoder(strings.NewReader(drawRamps(40, l, l))); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestQuantiles(t *testing.T) {
	if got := (quantiles{.3, .1, .2}).ms(.5); got != 200 {
		t.Errorf("the median is %v ms", got)
	}
	if got := (quantiles)(nil).ms(.5); got != 0 {
		t.Errorf("of nothing it is %v ms", got)
	}
}
