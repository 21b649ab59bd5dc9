//go:build !linux

package reactor

import "net"

// Direct returns conn: only on Linux there is a shorter way.
func Direct(conn net.Conn) net.Conn { return conn }

// Descriptor is for connections that Direct has made.
func Descriptor(net.Conn) (fd int, ok bool) { return 0, false }

// OnReadable is for connections that Direct has made.
func OnReadable(net.Conn, func(fd uintptr) bool) (ok bool, err error) { return false, nil }
