// Package clock is what drills need of time: waiting that can be ended, and
// knowing when they themselves stood still.
package clock

import (
	"context"
	"time"
)

// Wait waits, or less when ctx ends.
func Wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// LongestStall returns, when ctx ends, how late the timers of this process were
// at worst: clients that stood still measure themselves.
func LongestStall(ctx context.Context) time.Duration {
	const step = 10 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	longest, last := time.Duration(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return longest
		case <-tick.C:
			now := time.Now()
			longest, last = max(longest, now.Sub(last)-step), now
		}
	}
}
