// Package reactor waits for many connections on one goroutine. What is parked
// for a silent connection is an entry in a table, not a goroutine with its
// stack; and bytes that come on several connections at once cost one wake-up.
//
// A Loop has an epoll instance of its own, which the Go runtime's poller
// watches like any other file: no thread is blocked in it. Handlers run on the
// loop's goroutine, one after another; they must not block.
package reactor

import (
	"errors"
	"sync"
)

// ErrStopped is why nothing more is heard from a loop.
var ErrStopped = errors.New("the loop has stopped")

// Events are what to wait for. The other side's end, in either direction, and
// errors are always reported, as Hangup.
type Events uint32

const (
	// Readable means that there are bytes to read.
	Readable Events = 1 << iota
	// Hangup means that the other side has closed its sending side, or the connection is
	// gone. There may be bytes to read before that.
	Hangup
)

// Handler is what a loop calls.
type Handler interface {
	// Ready is told that something has happened since the last call; it is told
	// once, so it reads until nothing is left (a read that gives less than it
	// could has). It returns what becomes of the watch.
	Ready(e Events) Next
}

// Next is what a loop does with a watch after its handler has run.
type Next uint8

const (
	// Wait for the next event.
	Wait Next = iota
	// Again calls the handler again with the same events after the others have
	// had their turn.
	Again
	// Stop ends the watch.
	Stop
)

// Watch is one connection's entry. It is made to be a part of its handler: then
// an event finds both in one place of the memory. The zero Watch watches
// nothing. It must not be copied, and may be used again when it has been stopped:
// its handler may then be called although nothing has happened.
type Watch struct {
	mu    sync.Mutex // held while the handler runs
	on    bool
	index int32
	fd    int
	l     *Loop
	h     Handler
}

// Stop ends the watch. When it returns the handler does not run and will not
// run again. It must be called before the connection is closed, and not by the
// handler.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopLocked()
}

func (w *Watch) stopLocked() {
	if !w.on {
		return
	}
	w.on = false
	w.l.remove(w)
}

func (w *Watch) run(e Events) Next {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return Stop
	}
	next := w.h.Ready(e)
	if next == Stop {
		w.stopLocked()
	}
	return next
}
