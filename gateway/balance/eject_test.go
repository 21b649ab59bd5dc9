package balance

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func report(p *Pool, e *Endpoint, o Outcome, n int) {
	for range n {
		p.Report(e, o)
	}
}

// ill lets probes find the endpoints unhealthy.
func ill(p *Pool, which ...int) {
	for _, i := range which {
		for range p.cfg.Fall {
			p.probed(p.Endpoints()[i], errors.New("ill"))
		}
	}
}

func four() []Target {
	return []Target{target("a1", "a"), target("a2", "a"), target("b1", "b"), target("b2", "b")}
}

func TestEjectionNeverTakesWhatIsLeft(t *testing.T) {
	cases := map[string]struct {
		share   float64
		targets []Target
		ill     []int
		fail    []int
		ejected int // of those that fail
	}{
		"half is ill":                {0.5, four(), []int{2, 3}, []int{0, 1}, 0},
		"one of four is ill":         {0.5, four(), []int{3}, []int{0, 1, 2}, 1},
		"nobody is ill":              {0.5, four(), nil, []int{0, 1, 2, 3}, 2},
		"one of several always may":  {0.1, four(), nil, []int{0, 1}, 1},
		"no share, and one is ill":   {0.1, four(), []int{3}, []int{0, 1}, 0},
		"the other of two is ill":    {0.5, four()[:2], []int{1}, []int{0}, 0},
		"the last one never":         {1, four(), nil, []int{0, 1, 2, 3}, 3},
		"the last one, others ill":   {1, four(), []int{1, 2, 3}, []int{0}, 0},
		"a share that is not binary": {0.29, make100(), nil, first(40), 29},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxEjectedShare = tc.share
			rec := &recorder{}
			p := pool(cfg, rec, tc.targets...)
			ill(p, tc.ill...)
			for _, o := range []Outcome{Failure, ServerError, Slow} {
				for _, i := range tc.fail {
					report(p, p.Endpoints()[i], o, 30)
				}
			}
			if len(rec.ejected) != tc.ejected {
				t.Fatalf("ejected %v, want %d", rec.ejected, tc.ejected)
			}
			if usable, _ := p.Healthy(); usable == 0 {
				t.Fatal("nobody is left")
			}
		})
	}
}

func make100() []Target {
	var all []Target
	for i := range 100 {
		all = append(all, target(fmt.Sprint("x", i), "a"))
	}
	return all
}

func first(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func TestPanicPrefersThoseThatAnswerProbes(t *testing.T) {
	p := pool(testConfig(), &recorder{}, four()...)
	es := p.Endpoints()
	report(p, es[0], Failure, 3)
	report(p, es[2], Failure, 3)
	ill(p, 1, 3)
	if usable, _ := p.Healthy(); usable != 0 {
		t.Fatalf("%d usable", usable)
	}
	if got := share(t, p, 200); got["a1"]+got["b1"] != 200 || got["a1"] == 0 || got["b1"] == 0 {
		t.Fatalf("some pass their probes: %v", got)
	}
	for i, want := range map[int]*Endpoint{0: es[2], 2: es[0]} {
		for range 20 {
			var slot Slot
			if took := p.Take([]*Endpoint{es[i]}, Kind{}, &slot); took != Took || slot.Endpoint != want {
				t.Fatalf("after %s: %v, %v", es[i].Name, took, slot.Endpoint)
			}
			slot.Release()
		}
	}
	if took := p.Take([]*Endpoint{es[2], es[0]}, Kind{}, new(Slot)); took != Exhausted {
		t.Fatalf("all candidates tried: %v", took)
	}
	ill(p, 0, 2)
	if got := share(t, p, 400); len(got) != 4 {
		t.Fatalf("none passes: %v", got)
	}
}

func TestSlowAnswersAreNoConsecutiveErrors(t *testing.T) {
	rec := &recorder{}
	p := pool(testConfig(), rec, four()...)
	report(p, p.Endpoints()[0], Slow, 19)
	if len(rec.ejected) != 0 {
		t.Fatalf("ejected %v", rec.ejected)
	}
}

func TestErrorShare(t *testing.T) {
	type mix struct {
		good, bad int
		how       Outcome
	}
	good := mix{good: 40}
	cases := map[string]struct {
		share float64
		mixes [4]mix
		want  []string
	}{
		"half are 5xx":                {0.4, [4]mix{{20, 20, ServerError}, good, good, good}, []string{"a1 share"}},
		"half are resets":             {0.4, [4]mix{{20, 20, Failure}, good, good, good}, []string{"a1 share"}},
		"half are slow":               {0.4, [4]mix{{20, 20, Slow}, good, good, good}, []string{"a1 share"}},
		"half of the answers are cut": {0.4, [4]mix{{40, 20, Cut}, good, good, good}, []string{"a1 share"}},
		"two of them":                 {0.4, [4]mix{good, {20, 20, Failure}, good, {20, 20, ServerError}}, []string{"a2 share", "b2 share"}},
		"others have no requests":     {0.4, [4]mix{{20, 20, ServerError}}, []string{"a1 share"}},
		"few requests":                {0.4, [4]mix{{9, 10, ServerError}, good, good, good}, nil},
		"not often enough":            {0.4, [4]mix{{24, 16, ServerError}, good, good, good}, nil},
		"all alike":                   {0.4, [4]mix{{20, 20, ServerError}, {20, 20, ServerError}, {20, 20, ServerError}, {20, 20, ServerError}}, nil},
		"others fail, too":            {0.4, [4]mix{{20, 20, Failure}, {34, 6, Failure}, {34, 6, Failure}, good}, nil},
		"idle ones prove nothing":     {0.4, [4]mix{{20, 20, ServerError}, {20, 20, ServerError}}, nil},
		"turned off":                  {0, [4]mix{{20, 20, ServerError}, good, good, good}, nil},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.ErrorShare, cfg.ConsecutiveErrors, cfg.Consecutive5xx = tc.share, 1000, 1000
			rec := &recorder{}
			p := pool(cfg, rec, four()...)
			for i, m := range tc.mixes {
				report(p, p.Endpoints()[i], Success, m.good)
			}
			// In turns, as they come when all work at the same time.
			for k := range 20 {
				for i, m := range tc.mixes {
					if k < m.bad {
						p.Report(p.Endpoints()[i], m.how)
					}
				}
			}
			slices.Sort(rec.ejected)
			if !slices.Equal(rec.ejected, tc.want) {
				t.Fatalf("ejected %q, want %q", rec.ejected, tc.want)
			}
		})
	}
}

func TestErrorShareForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.ConsecutiveErrors = 1000
		rec := &recorder{}
		p := pool(cfg, rec, four()...)
		e := p.Endpoints()[0]
		report(p, e, Failure, 19)
		time.Sleep(cfg.ErrorWindow)
		report(p, e, Failure, 19)
		if len(rec.ejected) != 0 {
			t.Fatal("what lies outside of the window counted")
		}
		report(p, e, Failure, 1)
		if len(rec.ejected) != 1 {
			t.Fatal("not ejected")
		}
		report(p, e, Failure, 30) // what was in work when it was ejected
		time.Sleep(cfg.EjectionBase + time.Millisecond)
		p.readmit(time.Now())
		report(p, e, Failure, 1)
		if e.Ejected(time.Now()) {
			t.Fatal("ejected again for what had been before")
		}
	})
}

func TestAnother(t *testing.T) {
	cfg := testConfig()
	cfg.MaxInFlight = 1
	p := pool(cfg, &recorder{}, four()[:2]...)
	a1, a2 := p.Endpoints()[0], p.Endpoints()[1]
	check := func(want bool, why string, tried ...*Endpoint) {
		t.Helper()
		if p.Another(a1, tried) != want {
			t.Fatalf("%s: %v", why, !want)
		}
	}
	check(true, "a2 is free")
	check(false, "a2 has been tried", a2)
	a2.inFlight.Add(1)
	check(false, "a2 is full")
	a2.inFlight.Add(-1)
	ill(p, 0)
	check(true, "a1 is ill, a2 has been tried", a2)
	ill(p, 1)
	check(true, "all are ill and a2 is free")
	p.probed(a1, nil)
	p.probed(a1, nil)
	check(false, "a2 is ill")
}

func TestSlowHitsAllAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		p := pool(testConfig(), rec, four()...)
		for range 30 {
			for _, e := range p.Endpoints()[:3] {
				p.Report(e, Slow)
			}
			p.Report(p.Endpoints()[3], Success)
		}
		if len(rec.ejected) != 0 {
			t.Fatalf("three of four are slow: ejected %v", rec.ejected)
		}
		// When that is over, one that stays slow is on its own.
		time.Sleep(11 * time.Second)
		for range 30 {
			p.Report(p.Endpoints()[0], Slow)
			for _, e := range p.Endpoints()[1:] {
				p.Report(e, Success)
			}
		}
		if len(rec.ejected) != 1 || rec.ejected[0] != "a1 share" {
			t.Fatalf("one of four is slow: ejected %v", rec.ejected)
		}
	})
}
