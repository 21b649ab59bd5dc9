package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inherit asks the process that holds the path for its listeners. It returns
// false when there is no such process. One that ends while it is asked is asked
// again: then it is gone, or another one is there.
func (s *Set) inherit(ctx context.Context) (bool, error) {
	for try := 1; ; try++ {
		ok, err := s.ask(ctx)
		ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
		if !ended || try == maxAsks || ctx.Err() != nil {
			return ok, err
		}
		sleep(ctx, pollEvery)
	}
}

func (s *Set) ask(ctx context.Context) (bool, error) {
	conn, err := dial(s.path)
	if nobody(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	done := false
	defer func() {
		if !done {
			_ = conn.Close()
		}
	}()
	cred, err := peer(conn)
	if err != nil {
		return false, err
	}
	if err := samePeer(cred); err != nil {
		return false, err
	}
	if err := send(conn, message{Op: opHello, Sockets: s.sockets}); err != nil {
		return false, err
	}
	m, fds, err := receive(conn, askTimeout)
	defer closeAll(fds) // net works with duplicates
	switch {
	case err != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return false, fmt.Errorf("process %d does not answer; it hangs: stop it first", cred.Pid)
	case err != nil:
		return false, err
	case m.Op == opRefused:
		return false, fmt.Errorf("process %d refuses: %s", cred.Pid, m.Error)
	case m.Op != opSockets || len(fds) != len(s.sockets):
		return false, fmt.Errorf("process %d answers %q with %d sockets, want %d", cred.Pid, m.Op, len(fds), len(s.sockets))
	}
	for i, fd := range fds {
		ln, err := listenerOf(fd)
		if err != nil {
			for _, l := range s.listeners {
				_ = l.Close()
			}
			return false, fmt.Errorf("socket %s: %w", s.sockets[i].Name, err)
		}
		s.add(ln)
	}
	s.holder, s.holderPID, done = conn, int(cred.Pid), true
	return true, nil
}

// listenerOf makes a listener of a duplicate of fd.
func listenerOf(fd int) (*net.TCPListener, error) {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 1 {
		return nil, errors.New("not a listening socket")
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate: %w", err)
	}
	f := os.NewFile(uintptr(dup), "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil, errors.New("not a TCP socket")
	}
	return tcp, nil
}

// takeOver waits until this process is ready, lets it accept, and tells the
// holder to stop. When the holder dies meanwhile, this process accepts at once:
// nobody else does.
func (s *Set) takeOver(ctx context.Context, ready func() error) error {
	conn := s.holder
	defer conn.Close()
	gone := make(chan struct{})
	var answer message
	var answerErr error
	go func() { // ends with conn
		defer close(gone)
		answer, answerErr = s.await(conn)
	}()
	defer func() {
		_ = conn.Close()
		<-gone
	}()
	limit := time.NewTimer(s.limit)
	defer limit.Stop()
	look := time.NewTicker(pollEvery)
	defer look.Stop()
	for {
		err := ready()
		if err == nil {
			break
		}
		select {
		case <-look.C:
		case <-gone:
			s.log.Warn("the process that ran has ended before the hand-over; accepting alone", "holder", s.holderPID)
			close(s.accept)
			return nil
		case <-limit.C:
			return fmt.Errorf("not ready after %v, process %d goes on: %w", s.limit, s.holderPID, err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	close(s.accept)
	if err := send(conn, message{Op: opTakeOver}); err != nil {
		// It is gone, or hangs and accepts nothing either.
		s.log.Warn("the process that ran does not hear; accepting beside it", "holder", s.holderPID, "err", err)
		return nil
	}
	select {
	case <-gone:
	case <-ctx.Done():
		return nil // stopped at once; the holder may have released already
	case <-time.After(askTimeout):
		s.log.Warn("the process that ran does not answer; accepting beside it", "holder", s.holderPID)
		return nil
	}
	if answerErr == nil && answer.Op == opReleased {
		s.log.Info("took over", "holder", s.holderPID)
	} else {
		s.log.Warn("the process that ran has ended during the hand-over", "holder", s.holderPID, "err", answerErr)
	}
	return nil
}

// await reads the holder's last word.
func (s *Set) await(conn *net.UnixConn) (message, error) {
	m, fds, err := receive(conn, s.limit+2*askTimeout)
	closeAll(fds)
	return m, err
}
