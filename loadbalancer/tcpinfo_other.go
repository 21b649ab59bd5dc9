//go:build !linux

package loadbalancer

import (
	"net"
	"time"
)

// retransmitting is unknown on this system; keep-alive and the system's own
// limits apply.
func retransmitting(*net.TCPConn) (bool, time.Duration) { return false, 0 }
