package admit

import (
	"math"
	"time"
)

const (
	// surveyEvery is how often it is looked at what apps do, while some wait.
	surveyEvery = time.Second
	// surveySpan is the time after which an old count counts 1/e.
	surveySpan = 5 * time.Second
	// An app floods when more than floodShare of its requests were refused of
	// late, and at least floodLeast. Yielding itself costs an app less than that
	// share when there would be room for all it asks, so it does not feed itself.
	floodShare = 0.2
	floodLeast = 4
	// present is how long after its last request an app counts as being there.
	present = 10 * time.Second
)

// recent is what an app did of late; guarded by Controller.mu.
type recent struct {
	shedNow      int64 // refused since the last survey
	served, work int64 // App.served and App.work at the last survey

	requests, cost, shed float64 // admitted, what they cost, refused; old ones count less
	seen                 time.Time
	yields               bool
}

func (r *recent) floods() bool {
	return r.shed >= floodLeast && r.shed > floodShare*(r.requests+r.shed)
}

// survey decides which apps yield: an app that floods and has had more than its
// share, as long as one that does not flood is there. To be next in line is not
// enough for that one: it would run on cores that are as busy as can be. c.mu is
// held.
func (c *Controller) survey(now time.Time) {
	age := now.Sub(c.surveyed)
	if age < surveyEvery {
		return
	}
	c.surveyed = now
	keep := math.Exp(-age.Seconds() / surveySpan.Seconds())
	apps := c.apps.all()
	var quiet bool
	var weight, cost float64
	for _, a := range apps {
		r := &a.recent
		served, work := a.served.Load(), a.work.Load()
		if served != r.served || r.shedNow > 0 {
			r.seen = now
		}
		r.requests = r.requests*keep + float64(served-r.served)
		r.cost = r.cost*keep + float64(work-r.work)/workUnit
		r.shed = r.shed*keep + float64(r.shedNow)
		r.served, r.work, r.shedNow = served, work, 0
		if now.Sub(r.seen) < present {
			weight += a.limits.Load().weight()
			cost += r.cost
			quiet = quiet || !r.floods()
		}
	}
	for _, a := range apps {
		r := &a.recent
		r.yields = quiet && r.floods() && r.cost*weight > cost*a.limits.Load().weight()
	}
}
