package gateway

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// ackedBytes asks the kernel how many bytes the peer has acknowledged; -1 when
// it does not say.
func ackedBytes(c net.Conn) int64 {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return -1
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1
	}
	acked := int64(-1)
	err = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = int64(info.Bytes_acked)
		}
	})
	if err != nil {
		return -1
	}
	return acked
}

// setUserTimeout bounds how long the kernel resends to a host that is gone.
func setUserTimeout(_, _ string, raw syscall.RawConn) error {
	var opt error
	err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(upstreamUserTimeout.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return opt
}
