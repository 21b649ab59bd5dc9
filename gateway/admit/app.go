package admit

import (
	"sync"
	"sync/atomic"
)

// App is whom requests belong to: a configured app, a key that an instance has
// accepted, or one of the shared ones.
type App struct {
	// Label names it in metrics; "other" for those that nobody configured.
	Label string

	limits   atomic.Pointer[Limits]
	inFlight atomic.Int64
	parked   atomic.Bool  // requests of it wait for its own bulkhead
	served   atomic.Int64 // requests admitted
	touched  atomic.Bool  // since the registry looked last

	work atomic.Int64 // what they cost, in 1/workUnit of an ordinary request

	queues [priorities]appQueue // guarded by Controller.mu
	recent recent               // guarded by Controller.mu
}

// workUnit is how finely the cost of requests is counted.
const workUnit = 1000

func newApp(label string, l Limits) *App {
	a := &App{Label: label}
	a.limits.Store(&l)
	for p := range a.queues {
		a.queues[p].app, a.queues[p].at = a, -1
	}
	return a
}

// enter takes a place in the app's bulkhead.
func (a *App) enter() bool {
	limit := a.limits.Load().MaxInFlight
	if n := a.inFlight.Add(1); limit > 0 && n > limit {
		a.inFlight.Add(-1)
		return false
	}
	return true
}

// Priority is the best that the app's requests can have.
func (a *App) Priority() Priority { return a.limits.Load().Priority }

func (a *App) leave() { a.inFlight.Add(-1) }

// open tells whether the bulkhead has a free place.
func (a *App) open() bool {
	limit := a.limits.Load().MaxInFlight
	return limit <= 0 || a.inFlight.Load() < limit
}

// Shared names the apps of requests that have none of their own.
type Shared uint8

// The shared apps. Each has one queue of weight 1, however many clients or
// made-up keys stand behind it.
const (
	Unknown Shared = iota // keys that no instance has accepted yet, or none
	Web                   // users of web apps, who have no key of their own
	Console               // users of Dify's console
	shared  = 3
)

// other is the label of apps that nobody configured.
const other = "other"

// registry finds apps. Its memory is bounded: a key gets an App of its own only
// after an instance has accepted it, and at most Config.MaxApps do.
type registry struct {
	shared [shared]*App

	mu         sync.RWMutex
	configured map[string]*App
	learned    map[string]*App
}

func (r *registry) init() {
	for i := range r.shared {
		r.shared[i] = newApp(other, Limits{})
	}
	r.configured, r.learned = map[string]*App{}, map[string]*App{}
}

// configure replaces the configured apps. One that stays keeps its requests.
func (r *registry) configure(apps map[string]Limits) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[string]*App, len(apps))
	for name, l := range apps {
		a := r.configured[name]
		if a == nil {
			a = newApp(name, l)
		}
		a.limits.Store(&l)
		next[name] = a
	}
	r.configured = next
}

// App finds the app of a request by its configured name or the id of its key.
// known tells whether the app has a queue of its own; when not, Learn may give
// it one.
func (c *Controller) App(id string, named bool, s Shared) (a *App, known bool) {
	r := &c.apps
	if s != Unknown || id == "" {
		if !named {
			return r.shared[s%shared], true
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if named {
		a = r.configured[id]
	} else if a = r.learned[id]; a != nil && !a.touched.Load() {
		a.touched.Store(true)
	}
	if a == nil {
		return r.shared[s%shared], false
	}
	return a, true
}

// Learn notes that an instance has accepted the key with this id. Its next
// request has a queue of its own.
func (c *Controller) Learn(id string) {
	limit := c.cfg.Load().MaxApps
	r := &c.apps
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.learned[id] != nil || id == "" || limit <= 0 {
		return
	}
	if len(r.learned) >= limit && !r.forget() {
		return
	}
	r.learned[id] = newApp(other, Limits{})
}

// forget drops one app that has done nothing since it was last looked at; it
// looks at a few only. r.mu is held.
func (r *registry) forget() bool {
	const looks = 16
	n := 0
	for id, a := range r.learned { // in random order
		if !a.touched.Swap(false) && a.inFlight.Load() == 0 {
			delete(r.learned, id)
			r.shared[Unknown].served.Add(a.served.Load()) // a counter only grows
			return true
		}
		if n++; n == looks {
			break
		}
	}
	return false
}

// all returns every app, for metrics.
func (r *registry) all() []*App {
	r.mu.RLock()
	defer r.mu.RUnlock()
	apps := append([]*App(nil), r.shared[:]...)
	for _, a := range r.configured {
		apps = append(apps, a)
	}
	for _, a := range r.learned {
		apps = append(apps, a)
	}
	return apps
}
