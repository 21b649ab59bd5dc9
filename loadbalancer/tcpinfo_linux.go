package loadbalancer

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// retransmitting tells whether the kernel sends something to the peer again
// because there was no answer: data, or the probe of a closed window. A peer
// that lives answers a probe even when it does not read, and the count of
// probes starts over; so more than one of them has no answer. quiet is for how
// long nothing at all has come from the peer.
func retransmitting(c *net.TCPConn) (again bool, quiet time.Duration) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, 0
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		again = info.Retransmits > 0 && info.Unacked > 0 || info.Probes > 1
		quiet = time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond
	})
	return again, quiet
}
