package reactor

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// batch is how many events are taken from the kernel at once.
const batch = 128

// Loop waits for connections. Its methods are safe for concurrent use.
type Loop struct {
	file *os.File // the epoll instance
	fd   int
	raw  syscall.RawConn
	done chan struct{}

	mu    sync.Mutex
	slots []slot
	free  []int32
}

// slot is where events find their watch. An event that the kernel reported
// before the watch ended carries an older generation.
type slot struct {
	w   *Watch
	gen int32
}

// New makes a loop; Run must run for it to report anything.
func New() (*Loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set the epoll instance non-blocking: %w", err)
	}
	l := &Loop{file: os.NewFile(uintptr(fd), "epoll"), fd: fd, done: make(chan struct{})}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		_ = l.file.Close()
		return nil, fmt.Errorf("watch the epoll instance: %w", err)
	}
	return l, nil
}

// Done is closed when the loop has stopped.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Add makes w watch fd, which must stay open until the watch has been stopped,
// and calls h. What has happened before is reported, too.
func (l *Loop) Add(w *Watch, fd int, e Events, h Handler) error {
	w.mu.Lock() // before the loop's lock, as in Stop
	defer w.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return ErrStopped
	default:
	}
	w.l, w.fd, w.h, w.on = l, fd, h, true
	if n := len(l.free); n > 0 {
		w.index, l.free = l.free[n-1], l.free[:n-1]
	} else {
		w.index = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[w.index]
	s.w = w
	ev := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: w.index, Pad: s.gen}
	if e&Readable != 0 {
		ev.Events |= unix.EPOLLIN
	}
	if err := unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.forget(w)
		w.on = false
		return fmt.Errorf("watch a connection: %w", err)
	}
	return nil
}

// forget frees w's slot. l.mu is held.
func (l *Loop) forget(w *Watch) {
	s := &l.slots[w.index]
	s.w = nil
	s.gen++
	l.free = append(l.free, w.index)
}

func (l *Loop) remove(w *Watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return // the epoll instance is closed
	default:
	}
	_ = unix.EpollCtl(l.fd, unix.EPOLL_CTL_DEL, w.fd, nil)
	l.forget(w)
}

// pending is a watch whose handler has not done everything.
type pending struct {
	w *Watch
	e Events
}

// find appends the watches that events are for.
func (l *Loop) find(to []pending, events []unix.EpollEvent) []pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		ev := &events[i]
		if s := &l.slots[ev.Fd]; s.gen == ev.Pad && s.w != nil {
			to = append(to, pending{s.w, translate(ev.Events)})
		}
	}
	return to
}

// Run reports events until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		close(l.done)
		_ = l.file.Close()
	}()
	var events [batch]unix.EpollEvent
	var turn, again []pending
	var failed error
	err := l.raw.Read(func(fd uintptr) bool {
		for {
			n, errno := epollNow(int(fd), events[:])
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				failed = fmt.Errorf("wait for connections: %w", errno)
				return true
			}
			turn = l.find(turn[:0], events[:n])
			turn = append(turn, again...)
			again = again[:0]
			for _, p := range turn {
				if p.w.run(p.e) == Again {
					again = append(again, p)
				}
			}
			clear(turn)
			if len(again) == 0 && n < batch {
				return false // what comes from now on wakes us
			}
			if ctx.Err() != nil {
				return true
			}
		}
	})
	if failed != nil {
		return failed
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func translate(kernel uint32) (e Events) {
	if kernel&unix.EPOLLIN != 0 {
		e |= Readable
	}
	if kernel&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e |= Hangup
	}
	return e
}
