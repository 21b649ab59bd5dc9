package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOverloadInShort is the experiment in short, with bounds that a busy
// machine keeps: gateway/admit has the exact ones, in virtual time.
func TestOverloadInShort(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	x := experiment{
		instances: 2, gateways: 1, loads: []float64{1, 5},
		warm: 45 * time.Second, settle: 4 * time.Second, measure: 10 * time.Second,
		neighbour: 0.2, flood: 3, neighbourFor: 15 * time.Second,
	}
	var problem string
	for range 2 { // what a busy machine spoils once it may not spoil twice
		if problem = x.shortly(t); problem == "" {
			return
		}
		t.Log(problem)
	}
	t.Error(problem)
}

func (x *experiment) shortly(t *testing.T) string {
	t.Helper()
	lag := watchLag(t.Context())
	var levels []level
	var alone, flooded level
	errs := make([]error, 3)
	var wg sync.WaitGroup
	wg.Go(func() { levels, errs[0] = x.ramp(t.Context(), protected) })
	wg.Go(func() { alone, errs[1] = x.beside(t.Context(), protected, 0) })
	wg.Go(func() { flooded, errs[2] = x.beside(t.Context(), protected, x.flood) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	late := lag()
	for _, l := range levels {
		t.Logf("offered %gx: %.1f in time per second, %d refused, %d late, content p99 %.0f ms", l.load, l.goodput(), l.refused, l.late, l.content.ms(.99))
	}
	ratio := flooded.content.ms(.95) / alone.content.ms(.95)
	t.Logf("neighbour: p95 %.2f times as late, %d of %d refused or late; timers %.0f ms late (99%%)", ratio, flooded.refused+flooded.late, flooded.offered, late.ms(.99))
	if late.ms(.99) > 50 {
		t.Skipf("the machine is too busy to measure: timers are %.0f ms late", late.ms(.99))
	}
	switch share := leastShare(levels); {
	case share < 0.8:
		return "goodput under overload is less than 80% of its peak"
	case levels[len(levels)-1].goodput() < x.capacity()/2:
		return "goodput under overload is less than half of the capacity"
	case ratio > 2:
		return "the neighbour's p95 has more than doubled"
	}
	return ""
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
	levels := []level{{seconds: 1, good: 10}, {seconds: 1, good: 8}}
	if got := leastShare(levels); got != .8 {
		t.Errorf("the least share is %v", got)
	}
}
