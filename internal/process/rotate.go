package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// RotateLog moves the content of the log at path to path.1, path.1 to path.2
// and so on, once it is larger than limit bytes, and keeps the newest keep of
// these files. The writers go on with the file they have open; they must
// write in append mode.
//
// On ext4 and xfs nothing is lost: whole blocks are cut from the front of the
// file in one step, and a line that spans the cut is continued in the current
// file. Elsewhere the file is copied and then truncated; what a process writes
// in the moment between the end of the copy and the truncation is lost.
//
// Readers that hold a shared flock on the file never see a half-done rotation.
func RotateLog(path string, limit int64, keep int) (rotated bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, explain("rotate", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= limit {
		return false, err
	}
	if err := lockFile(f); err != nil {
		return false, explain("lock", path, err)
	}
	if keep < 1 {
		return true, explain("rotate", path, f.Truncate(0))
	}
	tmp := path + ".tmp"
	block := int64(st.Sys().(*syscall.Stat_t).Blksize) //nolint:unconvert // an int32 on arm64
	// At least one byte must stay behind a collapsed range.
	whole := (st.Size() - 1) / block * block
	if err := copyPrefix(f, tmp, whole); err != nil {
		_ = os.Remove(tmp)
		return false, explain("write", tmp, err)
	}
	switch err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, whole); {
	case err == nil:
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		if err := copyAndTruncate(f, tmp); err != nil {
			_ = os.Remove(tmp)
			return false, explain("write", tmp, err)
		}
	default:
		_ = os.Remove(tmp)
		return false, explain("rotate", path, err)
	}
	for i := keep; i > 1; i-- {
		err := os.Rename(numbered(path, i-1), numbered(path, i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return true, explain("rotate", path, err)
		}
	}
	return true, explain("rotate", path, os.Rename(tmp, numbered(path, 1)))
}

func numbered(path string, n int) string { return path + "." + strconv.Itoa(n) }

func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func copyPrefix(f *os.File, name string, n int64) error {
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, 0, n))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}

// copyAndTruncate copies until the reader has caught up with the writers, so
// that the moment before the truncation is as short as it can be.
func copyAndTruncate(f *os.File, name string) error {
	out, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	at, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const rounds = 100 // a writer faster than the copy must not hold it for ever
	for range rounds {
		n, err := io.Copy(out, io.NewSectionReader(f, at, 1<<62))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		at += n
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	return nil
}
