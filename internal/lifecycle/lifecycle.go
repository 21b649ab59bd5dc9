// Package lifecycle runs the actors of one process together and stops them in
// the reverse of the order in which they were added.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
)

// Actor is anything long-running. It returns nil when ctx ended and it has
// finished cleanly, and an error when it failed.
type Actor func(ctx context.Context) error

// Group holds actors in start order. The zero Group is ready to use.
type Group struct {
	names  []string
	actors []Actor
}

// Add appends an actor. Actors added later depend on earlier ones, so they
// are stopped before them.
func (g *Group) Add(name string, a Actor) {
	g.names = append(g.names, name)
	g.actors = append(g.actors, a)
}

// Run starts every actor and waits until ctx ends or one of them returns.
// Then it stops the rest, last added first, each only after the one before it
// has ended. It returns the joined errors, each with its actor's name.
func (g *Group) Run(ctx context.Context) error {
	type running struct {
		cancel context.CancelFunc
		done   chan struct{}
		err    error
	}
	base := context.WithoutCancel(ctx)
	all := make([]*running, len(g.actors))
	first := make(chan struct{}, len(g.actors))
	for i, a := range g.actors {
		actx, cancel := context.WithCancel(base)
		r := &running{cancel: cancel, done: make(chan struct{})}
		all[i] = r
		go func() {
			defer close(r.done)
			r.err = a(actx)
			first <- struct{}{}
		}()
	}
	select {
	case <-ctx.Done():
	case <-first:
	}
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		all[i].cancel()
		<-all[i].done
		if err := all[i].err; err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", g.names[i], err))
		}
	}
	return errors.Join(errs...)
}
