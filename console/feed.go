package console

import (
	"sync"
	"sync/atomic"
)

// maxViewers is how many pages may be open at once.
const maxViewers = 500

// feed gives the newest snapshot, as bytes that are made once, to everybody who
// watches. A reader that is slow misses snapshots in between and costs nothing.
type feed struct {
	frame atomic.Pointer[frame]

	mu      sync.Mutex
	viewers map[*viewer]struct{}
}

// frame is one snapshot in the two forms in which it is sent.
type frame struct {
	json []byte
	// event is json as a server-sent event.
	event []byte
}

// viewer is one open page.
type viewer struct{ wake chan struct{} }

// join adds a viewer, or returns nil when there are too many. first tells that
// nobody watched before.
func (f *feed) join() (v *viewer, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.viewers) >= maxViewers {
		return nil, false
	}
	v = &viewer{wake: make(chan struct{}, 1)}
	if f.viewers == nil {
		f.viewers = map[*viewer]struct{}{}
	}
	f.viewers[v] = struct{}{}
	return v, len(f.viewers) == 1
}

func (f *feed) leave(v *viewer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.viewers, v)
}

func (f *feed) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.viewers)
}

// publish makes fr the newest and wakes all.
func (f *feed) publish(fr *frame) {
	f.frame.Store(fr)
	f.mu.Lock()
	defer f.mu.Unlock()
	for v := range f.viewers {
		select {
		case v.wake <- struct{}{}:
		default:
		}
	}
}
