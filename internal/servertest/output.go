package servertest

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// Output collects what a program or a logger writes while a test reads it. The
// zero value is empty.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String returns all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Await waits until want has been written, and fails the test when it is not
// within the limit.
func (o *Output) Await(tb testing.TB, limit time.Duration, want string) {
	tb.Helper()
	eventually.Nil(tb, limit, func() error {
		if text := o.String(); !strings.Contains(text, want) {
			return fmt.Errorf("no %q in:\n%s", want, text)
		}
		return nil
	})
}
