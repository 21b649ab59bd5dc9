//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The backend and the load client share one core. So that they are not what is
// measured, they are single loops over epoll: no goroutine per connection, no
// buffer per connection, one system call to read and one to write.

const (
	readBytes = 128 << 10
	// maxPending is what may wait for a socket that takes nothing.
	maxPending = 4 << 20
)

// handler is what happens on a connection. The loop calls it from one goroutine.
type handler interface {
	// opened: the connection is there.
	opened(c *conn)
	// data takes what has come and returns how much of it it used. The rest
	// comes again when there is more behind it. An error closes the connection.
	data(c *conn, b []byte) (used int, err error)
	// closed: the other side closed the connection (io.EOF), or it broke.
	closed(c *conn, err error)
}

type conn struct {
	fd         int
	h          handler
	in         []byte // came and was not used yet
	out        []byte // waits until the socket takes more
	listening  bool
	connecting bool
	state      any // the handler's
}

type loop struct {
	epoll int
	conns []*conn // by descriptor
	buf   []byte
	// tick runs between events and returns when to run next, at the latest;
	// less than zero is whenever something comes.
	tick    func(now time.Time) time.Duration
	stopped bool
}

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	return &loop{epoll: fd, buf: make([]byte, readBytes), tick: func(time.Time) time.Duration { return -1 }}, nil
}

func (l *loop) add(c *conn, events uint32) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd)}); err != nil {
		_ = unix.Close(c.fd)
		return fmt.Errorf("watch a socket: %w", err)
	}
	for len(l.conns) <= c.fd {
		l.conns = append(l.conns, nil)
	}
	l.conns[c.fd] = c
	return nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func (l *loop) listen(a netip.AddrPort, h handler) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, sockaddr(a)),
		unix.Listen(fd, 4096),
	)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("listen on %s: %w", a, err)
	}
	return l.add(&conn{fd: fd, h: h, listening: true}, unix.EPOLLIN)
}

// watch takes over a descriptor that is open already, such as a pipe.
func (l *loop) watch(fd int, h handler) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("watch a pipe: %w", err)
	}
	return l.add(&conn{fd: fd, h: h}, unix.EPOLLIN)
}

// dial opens a connection to an address; from is the address to come from, or
// the zero value.
func (l *loop) dial(to netip.AddrPort, from netip.Addr, h handler, state any) (*conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if from.IsValid() {
		// The port is chosen when the destination is known; otherwise all
		// destinations would share one set of ports.
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
			unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))),
		)
	}
	c := &conn{fd: fd, h: h, state: state}
	events := uint32(unix.EPOLLIN)
	if err == nil {
		if err = unix.Connect(fd, sockaddr(to)); errors.Is(err, unix.EINPROGRESS) {
			c.connecting, events, err = true, unix.EPOLLOUT, nil
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	if err := l.add(c, events); err != nil {
		return nil, err
	}
	if !c.connecting {
		h.opened(c)
	}
	return c, nil
}

func (l *loop) events(c *conn, events uint32) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: events, Fd: int32(c.fd)})
}

// send writes b or, when the socket takes no more, keeps a copy of the rest. A
// connection that breaks is reported to its handler by the next read.
func (l *loop) send(c *conn, b []byte) {
	if c.fd < 0 {
		return
	}
	if len(c.out) == 0 {
		n, err := unix.Write(c.fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return
		}
		if b = b[max(n, 0):]; len(b) == 0 {
			return
		}
		l.events(c, unix.EPOLLIN|unix.EPOLLOUT)
	}
	if len(c.out)+len(b) > maxPending {
		l.fail(c, errors.New("the other side takes nothing"))
		return
	}
	c.out = append(c.out, b...)
}

func (l *loop) flush(c *conn) {
	n, err := unix.Write(c.fd, c.out)
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		l.events(c, unix.EPOLLIN)
		return
	}
	if c.out = c.out[max(n, 0):]; len(c.out) == 0 {
		c.out = nil
		l.events(c, unix.EPOLLIN)
	}
}

// close closes without telling the handler, which is who calls it.
func (l *loop) close(c *conn) {
	if c.fd < 0 {
		return
	}
	l.conns[c.fd] = nil
	_ = unix.Close(c.fd)
	c.fd, c.in, c.out = -1, nil, nil
}

func (l *loop) fail(c *conn, err error) {
	l.close(c)
	c.h.closed(c, err)
}

func (l *loop) stop() { l.stopped = true }

// run handles events until stop. It stays on one thread.
func (l *loop) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Wake up when asked to, not up to 50 µs later.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0)
	events := make([]unix.EpollEvent, 512)
	for !l.stopped {
		n, err := l.wait(events, l.tick(time.Now()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for events: %w", err)
		}
		for i := range max(n, 0) {
			// A connection that was closed in this round may have events left,
			// and its descriptor a new owner. Reading finds nothing then.
			if c := l.conns[events[i].Fd]; c != nil {
				l.handle(c, events[i].Events)
			}
		}
	}
	return nil
}

// wait is epoll_pwait2, whose timeout is finer than a millisecond.
func (l *loop) wait(events []unix.EpollEvent, timeout time.Duration) (int, error) {
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(timeout.Nanoseconds())
		ts = &t
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(ts)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (l *loop) handle(c *conn, events uint32) {
	switch {
	case c.listening:
		l.accept(c)
		return
	case c.connecting:
		n, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = unix.Errno(n)
		}
		if err != nil {
			l.fail(c, fmt.Errorf("connect: %w", err))
			return
		}
		c.connecting = false
		l.events(c, unix.EPOLLIN)
		c.h.opened(c)
		return
	}
	if events&unix.EPOLLOUT != 0 && len(c.out) > 0 {
		l.flush(c)
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		l.read(c)
	}
}

func (l *loop) read(c *conn) {
	n, err := unix.Read(c.fd, l.buf)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return
	case err != nil:
		l.fail(c, fmt.Errorf("read: %w", err))
		return
	case n == 0:
		l.fail(c, io.EOF)
		return
	}
	b := l.buf[:n]
	if len(c.in) > 0 {
		c.in = append(c.in, b...)
		b = c.in
	}
	used, err := c.h.data(c, b)
	switch {
	case c.fd < 0: // closed by the handler
	case err != nil:
		l.fail(c, err)
	case used == len(b):
		c.in = nil
	default:
		c.in = append([]byte(nil), b[used:]...)
	}
}

func (l *loop) accept(c *conn) {
	for {
		fd, _, err := unix.Accept4(c.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // none left; when descriptors are short, the client's checks say so
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		in := &conn{fd: fd, h: c.h}
		if l.add(in, unix.EPOLLIN) == nil {
			c.h.opened(in)
		}
	}
}
