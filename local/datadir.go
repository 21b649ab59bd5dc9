package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/internal/process"
)

// PrepareDir makes the data directory, its log directory and the marker that
// allows `down --delete-data` to delete it. A directory that holds something
// else is refused.
func PrepareDir(dir string) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 && !IsDataDir(dir) {
		if !onlyLostAndFound(entries) {
			return fmt.Errorf("%s is not empty and was not made by fournines; choose an empty directory with --data-dir", dir)
		}
	}
	// The units' own accounts must be able to pass through.
	if err := process.MkdirAll(dir, 0o755, process.Owner{}); err != nil {
		return err
	}
	if !IsDataDir(dir) {
		if err := process.WriteFile(filepath.Join(dir, markerFile), []byte("This directory belongs to fournines; `fournines down --delete-data` deletes it.\n"), 0o644, process.Owner{}); err != nil {
			return err
		}
	}
	return process.MkdirAll(filepath.Join(dir, logDir), 0o750, process.Owner{})
}

func onlyLostAndFound(entries []fs.DirEntry) bool {
	return len(entries) == 1 && entries[0].Name() == "lost+found"
}

// IsDataDir reports if dir was made by PrepareDir.
func IsDataDir(dir string) bool {
	st, err := os.Lstat(filepath.Join(dir, markerFile))
	return err == nil && st.Mode().IsRegular()
}

// HasBackups reports if the data directory dir holds backups of PostgreSQL.
func HasBackups(dir string) bool {
	sets, err := filepath.Glob(filepath.Join(dir, BackupFolder, "backup", "*", "backup.info*"))
	return err == nil && len(sets) > 0
}

// DeleteDir deletes a data directory and everything in it but the entries named
// keep. It refuses a directory without the marker of PrepareDir, and one that is
// in use.
func DeleteDir(dir string, keep ...string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete data: %w", err)
	}
	if !IsDataDir(real) {
		return fmt.Errorf("%s was not made by fournines (it has no file %s), so it is not deleted", dir, markerFile)
	}
	lock, err := Acquire(real)
	if err != nil {
		return err
	}
	defer lock.Release()
	entries, err := os.ReadDir(real)
	if err != nil {
		return fmt.Errorf("delete data: %w", err)
	}
	// The marker goes last, so that an interrupted deletion can be repeated.
	kept := false
	for _, e := range entries {
		if e.Name() == markerFile || e.Name() == lockFile {
			continue
		}
		if slices.Contains(keep, e.Name()) {
			kept = true
			continue
		}
		if err := os.RemoveAll(filepath.Join(real, e.Name())); err != nil {
			return fmt.Errorf("delete data: %w", err)
		}
	}
	if kept {
		// The marker stays: it is still our directory.
		return nil
	}
	for _, name := range []string{lockFile, markerFile} {
		if err := os.Remove(filepath.Join(real, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete data: %w", err)
		}
	}
	// A mount point or a directory of somebody else's parent stays, empty.
	if err := os.Remove(real); err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("delete data: %w", err)
	}
	if real != filepath.Clean(dir) {
		if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			_ = os.Remove(dir)
		}
	}
	return nil
}

// LockedError says that another supervisor works on the data directory.
type LockedError struct {
	Dir string
	// PID is the other supervisor's, 0 when it has not written it yet.
	PID int
}

func (e *LockedError) Error() string {
	who := "another supervisor"
	if e.PID > 0 {
		who = fmt.Sprintf("a supervisor (pid %d)", e.PID)
	}
	return fmt.Sprintf("%s already runs the stack in %s; see `fournines status`, or stop it with `fournines down`", who, e.Dir)
}

// Lock is the right to supervise one data directory. The kernel gives it back
// when its holder dies, however it dies.
type Lock struct{ f *os.File }

const (
	// lockGrace is how long the kernel may take to give back the lock of a
	// supervisor that was killed: a process counts as dead when its first
	// thread is, and holds its files until the last one is.
	lockGrace = 10 * time.Second
	lockPoll  = 10 * time.Millisecond
)

// runs tells whether there is a process of that id; 0 is nobody that is known.
func runs(pid int) bool {
	if pid <= 0 {
		return true
	}
	id, err := process.Identify(pid)
	return err == nil && id.Alive()
}

// Acquire takes the lock of a data directory that exists, or returns a
// LockedError.
func Acquire(dir string) (*Lock, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("lock %s: permission denied; run as the user who owns that directory, or choose another --data-dir: %w", dir, err)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	for deadline := time.Now().Add(lockGrace); ; time.Sleep(lockPoll) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
		if runs(pid) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, &LockedError{Dir: dir, PID: pid}
		}
	}
	// The pid is information for people; the lock itself is what counts.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &Lock{f: f}, nil
}

// AwaitTurn takes the lock that a command holds while it decides whether a
// stack is to be started or stopped and until its supervisor serves, so that
// two commands at once act one after the other.
func AwaitTurn(ctx context.Context, dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, turnFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("lock %s: permission denied; run as the user who owns that directory, or choose another --data-dir: %w", dir, err)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return &Lock{f: f}, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}

// Release gives the lock back.
func (l *Lock) Release() { _ = l.f.Close() }

// awaitUnlocked returns when no supervisor holds the directory.
func awaitUnlocked(ctx context.Context, dir string) error {
	for {
		lock, err := Acquire(dir)
		var locked *LockedError
		if !errors.As(err, &locked) {
			if err == nil {
				lock.Release()
			} else if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// maxSocketPath is the longest path that fits into a socket address.
const maxSocketPath = 107

// socketPath returns a path of the socket called name in dir that is short
// enough for the kernel. It is valid until release is called.
func socketPath(dir, name string) (path string, release func(), err error) {
	path = filepath.Join(dir, name)
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	// A long path is reached through a descriptor of its directory.
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), name), func() { _ = d.Close() }, nil
}

// ListenControl opens the control socket of a data directory, readable for
// its owner alone. The caller holds the lock, so a socket that is there
// already was left by a dead supervisor and is replaced.
func ListenControl(_ *Lock, dir string) (net.Listener, error) {
	return listenSocket(dir, socketFile)
}

// ListenStatus opens the socket of a data directory that tells the state of the
// stack and takes no orders (Options.StatusListener), readable for the account of
// the servers alone. The caller holds the lock.
func ListenStatus(_ *Lock, dir string, owner process.Owner) (net.Listener, error) {
	ln, err := listenSocket(dir, statusFile)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 && owner != (process.Owner{}) {
		if err := os.Lchown(filepath.Join(dir, statusFile), owner.UID, owner.GID); err != nil {
			_ = ln.Close()
			return nil, fmt.Errorf("status socket: %w", err)
		}
	}
	return ln, nil
}

// listenSocket opens the socket called name, which only its owner can reach.
func listenSocket(dir, name string) (net.Listener, error) {
	real := filepath.Join(dir, name)
	if st, err := os.Lstat(real); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("listen: %s is not a socket; move it away", real)
		}
		if err := os.Remove(real); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", real, err)
		}
	}
	path, release, err := socketPath(dir, name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", real, err)
	}
	defer release()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		// The mode set before the bind is the mode of the file, so that it is
		// never open to others, not even for a moment.
		err := c.Control(func(fd uintptr) { chmodErr = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", real, err)
	}
	ul := ln.(*net.UnixListener)
	ul.SetUnlinkOnClose(false) // Run removes it by its real path
	return ul, nil
}

func removeSockets(dir string) {
	for _, name := range []string{socketFile, statusFile} {
		_ = os.Remove(filepath.Join(dir, name))
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// AbsDir makes the data directory's path absolute, which is what identifies a
// stack and its processes.
func AbsDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("the data directory is empty; name one with --data-dir")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}
