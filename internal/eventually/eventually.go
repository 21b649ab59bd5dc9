// Package eventually lets a test or a drill wait for a condition instead of
// sleeping.
package eventually

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Poll is how often conditions are tried.
const Poll = 20 * time.Millisecond

// Nil calls check until it returns nil, and fails the test with its last error
// when that does not happen within the limit.
func Nil(tb testing.TB, limit time.Duration, check func() error) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("still failing after %v: %v", limit, err)
		}
		time.Sleep(Poll)
	}
}

// Within calls check every poll until it returns nil. The error is check's last when that
// does not happen within the limit, or before the context ends.
func Within(ctx context.Context, limit, poll time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still failing after %v: %w", limit, err)
		case <-time.After(poll):
		}
	}
}
