package loadbalancer

import (
	"net"

	"golang.org/x/sys/unix"
)

// retransmitting tells whether the kernel sends something to the peer again
// because there was no answer: data, or the probe of a closed window. A peer
// that lives answers a probe even when it does not read, and the count of
// probes starts over; so more than one of them has no answer.
func retransmitting(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	again := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		again = err == nil && (info.Retransmits > 0 && info.Unacked > 0 || info.Probes > 1)
	})
	return again
}
