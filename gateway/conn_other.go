//go:build !linux

package gateway

import (
	"net"
	"syscall"
)

func ackedBytes(net.Conn) int64 { return -1 }

func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
