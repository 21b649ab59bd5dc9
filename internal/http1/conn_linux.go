package http1

import (
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fournines/internal/reactor"
)

// direct says that this system's sockets are read and written without net.
const direct = true

// ackedBytes asks the kernel how many bytes the peer has acknowledged; -1 when
// it does not say.
func (c *countingConn) ackedBytes() int64 {
	acked := int64(-1)
	ask := func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = int64(info.Bytes_acked)
		}
	}
	if c.bare {
		ask(uintptr(c.fd))
	} else if err := c.raw.Control(ask); err != nil {
		return -1
	}
	return acked
}

// leave takes the connection out of the runtime's poller: fd becomes a descriptor
// of our own. Only the owner may call it, when nobody reads or writes.
func (c *countingConn) leave() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bare {
		return nil
	}
	if c.Conn == nil {
		return net.ErrClosed
	}
	var own int
	var failed error
	// Within Control the descriptor is open and still this connection's, whoever
	// closes it meanwhile.
	err := c.raw.Control(func(fd uintptr) { own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = os.NewSyscallError("fcntl", failed)
	}
	if err != nil {
		return err
	}
	_ = c.Conn.Close() // the other descriptor keeps the connection open
	c.Conn, c.raw, c.fd, c.bare = nil, nil, own, true
	return nil
}

// join gives the connection back to the runtime's poller; when that fails it is
// closed. Only the owner may call it.
func (c *countingConn) join() error {
	if !c.bare {
		if c.Conn == nil {
			return net.ErrClosed
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// net.FileConn would set the options for keep-alive anew, and others.
	file := os.NewFile(uintptr(c.fd), "connection")
	c.bare, c.fd = false, -1
	if err := file.SetDeadline(c.deadline); err != nil {
		_ = file.Close()
		return err // the poller did not take it
	}
	c.use(rejoined{file})
	return nil
}

// rejoined is a connection that the runtime's poller has got back.
type rejoined struct{ *os.File }

// LocalAddr implements net.Conn. The address is not known.
func (rejoined) LocalAddr() net.Addr { return nil }

// RemoteAddr implements net.Conn. The address is not known.
func (rejoined) RemoteAddr() net.Addr { return nil }

// closeBare closes what the runtime's poller does not have. c.mu is held.
func (c *countingConn) closeBare() error {
	fd := c.fd
	c.bare, c.fd = false, -1
	return os.NewSyscallError("close", unix.Close(fd))
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
