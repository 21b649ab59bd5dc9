package http1

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fournines/internal/reactor"
)

// direct says that this system's sockets are read and written without net.
const direct = true

// ackedBytes asks the kernel how many bytes the peer has acknowledged; -1 when
// it does not say.
func ackedBytes(raw syscall.RawConn) int64 {
	acked := int64(-1)
	err := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = int64(info.Bytes_acked)
		}
	})
	if err != nil {
		return -1
	}
	return acked
}

// userTimeout bounds how long the kernel resends to a host that is gone.
func userTimeout(d time.Duration) func(network, address string, raw syscall.RawConn) error {
	if d <= 0 {
		return nil
	}
	return func(_, _ string, raw syscall.RawConn) error {
		var opt error
		err := raw.Control(func(fd uintptr) {
			opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		})
		if err != nil {
			return err
		}
		return opt
	}
}

// readPooled waits without a buffer.
func (c *countingConn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	werr := c.raw.Read(func(fd uintptr) bool {
		buf = pieces.Get().(*[pieceBytes]byte)
		n, err = reactor.ReadNow(int(fd), buf[:])
		if err == reactor.ErrAgain { //nolint:errorlint // never wrapped
			pieces.Put(buf)
			buf, n, err = nil, 0, nil
			return false
		}
		return true
	})
	if werr != nil {
		err = werr
	}
	if err != nil {
		c.met(err)
	}
	return buf, n, err
}
