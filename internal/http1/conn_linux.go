package http1

import (
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

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

// quiet tells whether an unused connection is open and has nothing to read.
func (c *countingConn) quiet() bool {
	if c.raw == nil {
		return true
	}
	alive := false
	err := c.raw.Control(func(fd uintptr) {
		var one [1]byte
		for {
			_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err == unix.EINTR {
				continue
			}
			alive = err == unix.EAGAIN
			return
		}
	})
	return err == nil && alive
}

// readPooled waits without a buffer.
func (c *countingConn) readPooled() (buf *[pieceBytes]byte, n int, err error) {
	werr := c.raw.Read(func(fd uintptr) bool {
		buf = pieces.Get().(*[pieceBytes]byte)
		for {
			n, err = unix.Read(int(fd), buf[:])
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			pieces.Put(buf)
			buf, n, err = nil, 0, nil
			return false
		}
		return true
	})
	switch {
	case werr != nil:
		err = werr
	case err != nil:
		n, err = 0, os.NewSyscallError("read", err)
	case n == 0:
		err = io.EOF
	}
	if err != nil {
		c.met(err)
	}
	return buf, max(n, 0), err
}

// fd returns the socket, or -1. It is valid until the connection is closed.
func (c *countingConn) fd() int {
	if c.raw == nil {
		return -1
	}
	fd := -1
	_ = c.raw.Control(func(u uintptr) { fd = int(u) })
	return fd
}

// errAgain says that there is nothing to read now.
const errAgain = unix.EAGAIN

// readNow reads without waiting; the end is io.EOF.
func readNow(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, errAgain
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
