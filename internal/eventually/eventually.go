// Package eventually lets a test wait for a condition instead of sleeping.
package eventually

import (
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
