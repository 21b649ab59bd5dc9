//go:build !linux

package http1

import (
	"errors"
	"syscall"
	"time"
)

func ackedBytes(syscall.RawConn) int64 { return -1 }

func userTimeout(time.Duration) func(network, address string, raw syscall.RawConn) error { return nil }

func (c *countingConn) quiet() bool { return true }

func (c *countingConn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	buf = pieces.Get().(*[pieceBytes]byte)
	n, err = c.Read(buf[:])
	return buf, n, err
}

func (c *countingConn) fd() int { return -1 }

var errAgain = errors.New("nothing to read")

func readNow(int, []byte) (int, error) { return 0, errors.ErrUnsupported }
