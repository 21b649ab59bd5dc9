//go:build linux && race

package reactor

import (
	"errors"
	"syscall"
)

// The race detector takes what is written and then read for an order between
// the two, but only where package syscall does it.

func readCall(fd int, p []byte) (int, syscall.Errno) { return result(syscall.Read(fd, p)) }

func writeCall(fd int, p []byte) (int, syscall.Errno) { return result(syscall.Write(fd, p)) }

func result(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	errors.As(err, &errno)
	return max(n, 0), errno
}
