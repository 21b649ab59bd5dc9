package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// followPoll is how often a followed log is looked at.
const followPoll = 200 * time.Millisecond

// LogNames lists the logs of a data directory.
func LogNames(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, logDir, "*.log"))
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".log"))
	}
	slices.Sort(names)
	return names, nil
}

// TailLog returns the last n lines of a unit's log, reaching back into
// rotated files.
func TailLog(dir, name string, n int) ([]byte, error) {
	return tailLog(LogPath(dir, name), n, 1<<62)
}

// tailLog takes only the first size bytes of the current file into account.
func tailLog(path string, n int, size int64) ([]byte, error) {
	var out []byte
	for i, file := 0, path; ; i, file = i+1, fmt.Sprintf("%s.%d", path, i+1) {
		b, err := lastBytes(file, size)
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read log: %w", err)
		}
		size = 1 << 62
		out = append(b, out...)
		if bytes.Count(out, []byte{'\n'}) > n || len(out) >= maxTail {
			break
		}
	}
	return lastLines(out, n), nil
}

const maxTail = 4 << 20

// lastBytes returns the end of the first size bytes of a file, at most maxTail.
func lastBytes(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size = min(size, st.Size())
	from := max(0, size-maxTail)
	return io.ReadAll(io.NewSectionReader(f, from, size-from))
}

func lastLines(b []byte, n int) []byte {
	if n <= 0 {
		return nil
	}
	end := len(b)
	if end > 0 && b[end-1] == '\n' {
		end--
	}
	for ; n > 0; n-- {
		i := bytes.LastIndexByte(b[:end], '\n')
		if i < 0 {
			return b
		}
		end = i
	}
	return b[end+1:]
}

// FollowLog writes the last n lines of a unit's log to w, then what is added,
// until ctx ends. It goes on over rotations without losing or repeating lines.
func FollowLog(ctx context.Context, dir, name string, n int, w io.Writer) error {
	path := LogPath(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	var (
		at   int64
		tail []byte
	)
	var rotated os.FileInfo
	// Taken under the lock, so that no rotation comes between.
	err = shared(f, func() error {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		at = st.Size()
		rotated, _ = os.Stat(path + ".1")
		// What is added after the size was taken is followed, not part of the tail.
		tail, err = tailLog(path, n, at)
		return err
	})
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if _, err := w.Write(tail); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	for {
		if err := sleep(ctx, followPoll); err != nil {
			return nil //nolint:nilerr // the end of ctx is how following ends
		}
		err := shared(f, func() error {
			now, _ := os.Stat(path + ".1")
			if now != nil && (rotated == nil || !os.SameFile(now, rotated)) {
				// The first now.Size() bytes have moved to the rotated file.
				if at < now.Size() {
					if err := copyFrom(path+".1", at, w); err != nil {
						return err
					}
				}
				at = max(0, at-now.Size())
				rotated = now
			}
			if st, err := f.Stat(); err == nil && st.Size() < at {
				at = 0 // emptied by hand, or rotated without keeping anything
			}
			written, err := io.Copy(w, io.NewSectionReader(f, at, 1<<62))
			at += written
			return err
		})
		if err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
	}
}

// shared calls f while no rotation of the file can happen.
func shared(file *os.File, f func() error) error {
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH); err != nil && !errors.Is(err, syscall.EINTR) {
		return err
	}
	defer func() { _ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN) }()
	return f()
}

func copyFrom(path string, at int64, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, io.NewSectionReader(f, at, 1<<62))
	return err
}
