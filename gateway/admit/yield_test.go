package admit

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestWhoYields: who floods and has more than its share, while somebody is there
// who does not flood.
func TestWhoYields(t *testing.T) {
	type did struct{ served, shed int } // in each of ten seconds
	for _, tt := range []struct {
		name string
		a, b did
		want bool // that a yields
	}{
		{"a flood beside a quiet app", did{30, 30}, did{5, 0}, true},
		{"a flood alone", did{30, 30}, did{}, false},
		{"two floods", did{30, 30}, did{20, 20}, false},
		{"many requests, few refused", did{30, 5}, did{5, 0}, false},
		{"refused, with less than its share", did{10, 10}, did{20, 0}, false},
		{"too few to tell", did{0, 1}, did{0, 0}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := controlled(testConfig(), map[string]Limits{"a": {}, "b": {}}, 1, 1)
				act := func(name string, d did) {
					a := app(c, name)
					for range d.served {
						c.m.admitted(a, 1)
					}
					for range d.shed {
						c.refuse(&a.queues[Interactive], Interactive, ReasonStanding, time.Now())
					}
				}
				second := func(a, b did) {
					time.Sleep(surveyEvery)
					c.mu.Lock()
					defer c.mu.Unlock()
					act("a", a)
					act("b", b)
					c.survey(time.Now())
				}
				for range 10 {
					second(tt.a, tt.b)
				}
				if got := app(c, "a").recent.yields; got != tt.want {
					t.Errorf("a yields: %v", got)
				}
				for range 1 + int(present/surveyEvery) {
					second(tt.a, did{})
				}
				if app(c, "a").recent.yields {
					t.Error("a yields to nobody")
				}
			})
		})
	}
}

// TestWeightIsAShare: an app with a large weight may have more before it yields.
func TestWeightIsAShare(t *testing.T) {
	for weight, want := range map[float64]bool{1: true, 9: false} {
		synctest.Test(t, func(t *testing.T) {
			c := controlled(testConfig(), map[string]Limits{"a": {Weight: weight}, "b": {}}, 1, 1)
			c.mu.Lock()
			defer c.mu.Unlock()
			a, b := app(c, "a"), app(c, "b")
			for range 80 {
				c.m.admitted(a, 1)
				c.refuse(&a.queues[Interactive], Interactive, ReasonStanding, time.Now())
			}
			for range 20 {
				c.m.admitted(b, 1)
			}
			time.Sleep(surveyEvery)
			c.survey(time.Now())
			if a.recent.yields != want {
				t.Errorf("with weight %v it yields: %v", weight, a.recent.yields)
			}
		})
	}
}
