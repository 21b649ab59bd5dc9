package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hold serves the path until ctx ends or a successor has taken over.
func (s *Set) hold(ctx context.Context) error {
	ln, mine, err := s.publish()
	if err != nil {
		return fmt.Errorf("hand-over at %s: %w", s.path, err)
	}
	over := make(chan struct{}, 1)
	var conns sync.WaitGroup
	connCtx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(connCtx, func() { _ = ln.Close() })
	defer func() {
		stop()
		cancel()
		_ = ln.Close()
		conns.Wait()
	}()
	var busy sync.Mutex
	conns.Go(func() {
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				if connCtx.Err() == nil && !errors.Is(err, net.ErrClosed) {
					s.log.Error("hand-over: accept failed", "err", err)
					if sleep(connCtx, time.Second) {
						continue
					}
				}
				return
			}
			conns.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(connCtx, func() { _ = conn.Close() })
				defer stop()
				if s.serveOne(conn, &busy) {
					select {
					case over <- struct{}{}:
					default:
					}
				}
			})
		}
	})
	select {
	case <-over:
		close(s.takenOver)
		return ErrTakenOver
	case <-ctx.Done():
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, mine) {
			_ = os.Remove(s.path)
		}
		return nil
	}
}

// sleep reports false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// publish listens at the path, in the place of a process that is gone or has
// handed over. The file appears in one step and is never open to others.
func (s *Set) publish() (*net.UnixListener, os.FileInfo, error) {
	if st, err := os.Lstat(s.path); err == nil && st.Mode()&os.ModeSocket == 0 {
		return nil, nil, errors.New("is a file and not a socket; move it away")
	}
	own := fmt.Sprintf("%s.%d", s.path, os.Getpid())
	_ = os.Remove(own) // of a process that had this id and died here
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var modeErr error
		// The mode set before the bind is the mode of the file.
		err := c.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, modeErr)
	}}
	var ln *net.UnixListener
	err := shortPath(own, func(short string) error {
		l, err := listen.Listen(context.Background(), "unixpacket", short)
		if err != nil {
			return err
		}
		ln = l.(*net.UnixListener) // what net makes for "unixpacket"
		ln.SetUnlinkOnClose(false)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	st, err := os.Lstat(own)
	if err == nil {
		err = os.Rename(own, s.path)
	}
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(own)
		return nil, nil, err
	}
	return ln, st, nil
}

// serveOne serves one successor and reports whether it has taken over.
func (s *Set) serveOne(conn *net.UnixConn, busy *sync.Mutex) bool {
	cred, err := peer(conn)
	if err == nil {
		err = samePeer(cred)
	}
	if err != nil {
		if cred.Uid != 0 { // root looks who is here, see Holder
			s.log.Warn("hand-over refused", "peer", cred.Pid, "err", err)
		}
		return false
	}
	m, fds, err := receive(conn, askTimeout)
	closeAll(fds)
	if errors.Is(err, io.EOF) {
		return false // somebody looked who is here
	}
	if err == nil {
		err = s.acceptable(m)
	}
	if err == nil && !busy.TryLock() {
		err = errors.New("another hand-over is under way")
	} else if err == nil {
		defer busy.Unlock()
	}
	if err != nil {
		s.log.Warn("hand-over refused", "peer", cred.Pid, "err", err)
		_ = send(conn, message{Op: opRefused, Error: err.Error()})
		return false
	}
	s.log.Info("a successor gets ready", "peer", cred.Pid)
	if err := s.give(conn); err != nil {
		s.log.Warn("hand-over failed, going on", "peer", cred.Pid, "err", err)
		return false
	}
	// It ends when it gives up; the limit is for one that hangs.
	m, fds, err = receive(conn, 2*s.limit)
	closeAll(fds)
	if err == nil && m.Op != opTakeOver {
		err = fmt.Errorf("unexpected message %q", m.Op)
	}
	if err != nil {
		s.log.Warn("the successor did not get ready, going on", "peer", cred.Pid, "err", err)
		return false
	}
	// It accepts already, so nothing depends on whether it hears this.
	_ = send(conn, message{Op: opReleased})
	s.log.Info("a successor has taken over", "peer", cred.Pid)
	return true
}

// acceptable tells whether this process can give what m asks for.
func (s *Set) acceptable(m message) error {
	if m.Op != opHello {
		return fmt.Errorf("unexpected message %q", m.Op)
	}
	for i, w := range m.Sockets {
		if i >= len(s.sockets) || s.sockets[i].Name != w.Name {
			return fmt.Errorf("the %s listener at %q is new; an address cannot change in a hand-over: stop the running process first", w.Name, w.Address)
		}
		if have := s.sockets[i]; have.Address != w.Address {
			return fmt.Errorf("the %s address is %q here and %q there; an address cannot change in a hand-over: stop the running process first", w.Name, have.Address, w.Address)
		}
	}
	if len(m.Sockets) != len(s.sockets) {
		return fmt.Errorf("%d listeners are wanted, this process has %d; stop it first", len(m.Sockets), len(s.sockets))
	}
	return nil
}

// give sends the listening sockets.
func (s *Set) give(conn *net.UnixConn) error {
	fds := make([]int, 0, len(s.listeners))
	var next func(rest []*listener) error
	// A descriptor is only safe to use within Control, so the calls nest.
	next = func(rest []*listener) error {
		if len(rest) == 0 {
			return send(conn, message{Op: opSockets, Sockets: s.sockets}, fds...)
		}
		raw, err := rest[0].SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = raw.Control(func(fd uintptr) {
			fds = append(fds, int(fd))
			inner = next(rest[1:])
		})
		return errors.Join(err, inner)
	}
	return next(s.listeners)
}
