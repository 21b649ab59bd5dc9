package local

import (
	"sync"

	"fournines/topology"
)

// Event is one line of the event stream: the new state of a unit, or of the
// stack as a whole.
type Event struct {
	// Stack is the state of the whole stack after the change.
	Stack topology.State `json:"stack"`
	// StartSeconds is set from when every unit has been ready.
	StartSeconds float64 `json:"startSeconds,omitempty"`
	// Zone of the unit; empty for units outside all zones.
	Zone string `json:"zone,omitempty"`
	// Component is the unit that changed; nil when only the stack did.
	Component *topology.Component `json:"component,omitempty"`
	// Synced marks the end of the first round, in which every unit is
	// reported as it is.
	Synced bool `json:"synced,omitempty"`
}

// hub tells subscribers which units changed. A subscriber that is slow misses
// states in between, never the newest one, and costs bounded memory.
type hub struct {
	mu   sync.Mutex
	subs map[*subscription]struct{}
}

type subscription struct {
	mu      sync.Mutex
	pending map[string]struct{}
	wake    chan struct{}
}

func (h *hub) subscribe() *subscription {
	s := &subscription{pending: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.subs == nil {
		h.subs = map[*subscription]struct{}{}
	}
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) unsubscribe(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
}

// touch reports a change of the unit, or of the stack when name is empty.
func (h *hub) touch(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.mu.Lock()
		s.pending[name] = struct{}{}
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// take returns the names that changed since the last call.
func (s *subscription) take() map[string]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.pending
	s.pending = map[string]struct{}{}
	return out
}
