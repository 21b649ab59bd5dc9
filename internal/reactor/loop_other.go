//go:build !linux

package reactor

import (
	"context"
	"errors"
)

// Loop needs Linux.
type Loop struct{ done chan struct{} }

// New returns an error: only Linux has what a loop is made of.
func New() (*Loop, error) { return nil, errors.ErrUnsupported }

// Done is never closed.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Add returns an error.
func (l *Loop) Add(*Watch, int, Events, Handler) error { return errors.ErrUnsupported }

func (l *Loop) remove(*Watch) {}

// Run returns an error.
func (l *Loop) Run(context.Context) error { return errors.ErrUnsupported }

// ErrAgain says that there is nothing to read now.
var ErrAgain = errors.New("nothing to read now")

// ReadNow returns an error.
func ReadNow(int, []byte) (int, error) { return 0, errors.ErrUnsupported }

// WriteNow returns an error.
func WriteNow(int, []byte) (int, error) { return 0, errors.ErrUnsupported }

// Quiet cannot tell.
func Quiet(int) bool { return true }
