//go:build !linux

package http1

import (
	"errors"
	"net"
	"syscall"
	"time"
)

const direct = false

func (c *countingConn) ackedBytes() int64 { return -1 }

// leave never succeeds: no loop waits here.
func (c *countingConn) leave() error { return errors.ErrUnsupported }

func (c *countingConn) join() error {
	if c.Conn == nil {
		return net.ErrClosed
	}
	return nil
}

func (c *countingConn) closeBare() error { return nil }

func userTimeout(time.Duration) func(network, address string, raw syscall.RawConn) error { return nil }

func (c *countingConn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	buf = pieces.Get().(*[pieceBytes]byte)
	n, err = c.Read(buf[:])
	return buf, n, err
}
