package reactor

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls in this file never wait, so the scheduler need not hear of them:
// telling it costs more than a tenth of an event, most of it for a thread that
// it wakes to watch over calls that hang.

// ErrAgain says that there is nothing to read now.
var ErrAgain = errors.New("nothing to read now")

// ReadNow reads from a socket without waiting; the end of the stream is io.EOF.
func ReadNow(fd int, p []byte) (int, error) {
	for {
		n, errno := readCall(fd, p)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return 0, ErrAgain
		case errno != 0:
			return 0, os.NewSyscallError("read", errno)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// WriteNow writes what a socket takes without waiting; n < len(p) without an
// error means that it takes no more for now.
func WriteNow(fd int, p []byte) (n int, err error) {
	for n < len(p) {
		rest := p[n:]
		k, errno := writeCall(fd, rest)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return n, nil
		case errno != 0:
			return n, os.NewSyscallError("write", errno)
		default:
			n += k
		}
	}
	return n, nil
}

// Quiet tells whether fd's connection is open and has nothing to read.
func Quiet(fd int) bool {
	var one [1]byte
	for {
		_, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&one)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return errno == unix.EAGAIN
		}
	}
}

// epollNow takes the events that are here.
func epollNow(fd int, events []unix.EpollEvent) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
