//go:build !linux

package http1

import (
	"syscall"
	"time"
)

const direct = false

func ackedBytes(syscall.RawConn) int64 { return -1 }

func userTimeout(time.Duration) func(network, address string, raw syscall.RawConn) error { return nil }

func (c *countingConn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	buf = pieces.Get().(*[pieceBytes]byte)
	n, err = c.Read(buf[:])
	return buf, n, err
}
