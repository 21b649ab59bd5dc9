package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// WriteFile replaces the file at path atomically: a reader sees the old or
// the new content, never a part, also after a power cut. The file gets exactly
// the mode, and belongs to owner when the caller is root.
func WriteFile(path string, data []byte, mode fs.FileMode, owner Owner) error {
	return writeFile(path, data, mode, owner, true)
}

// ReplaceFile is WriteFile without waiting for the disk: enough for content
// that is worthless after a reboot.
func ReplaceFile(path string, data []byte, mode fs.FileMode, owner Owner) error {
	return writeFile(path, data, mode, owner, false)
}

func writeFile(path string, data []byte, mode fs.FileMode, owner Owner, durable bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return explain("write", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && chowns(owner) {
		err = f.Chown(owner.UID, owner.GID)
	}
	if err == nil && durable {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil && durable {
		err = syncDir(filepath.Dir(path))
	}
	return explain("write", path, err)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	// Some file systems refuse to sync a directory; they order renames by themselves.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		_ = d.Close()
		return err
	}
	return d.Close()
}

// MkdirAll makes the directory path with exactly the mode and owner. Missing
// parents are made with mode 0755 and the same owner; parents that exist stay
// as they are. The last element must not be a symbolic link.
func MkdirAll(path string, mode fs.FileMode, owner Owner) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if parent := filepath.Dir(path); parent != path {
			if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
				if err := MkdirAll(parent, 0o755, owner); err != nil {
					return err
				}
			}
		}
		if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return explain("create", path, err)
		}
	}
	// Through the descriptor, so that a link put there meanwhile is not followed.
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			return fmt.Errorf("create directory %s: there is already something else with this name; move it away", path)
		}
		return explain("open", path, err)
	}
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	st, err := d.Stat()
	if err != nil {
		return explain("open", path, err)
	}
	if st.Mode().Perm() != mode.Perm() {
		if err := d.Chmod(mode.Perm()); err != nil {
			return explain("change the mode of", path, err)
		}
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && chowns(owner) && (int(sys.Uid) != owner.UID || int(sys.Gid) != owner.GID) {
		if err := d.Chown(owner.UID, owner.GID); err != nil {
			return explain("change the owner of", path, err)
		}
	}
	return nil
}

// chowns reports if files must be given to owner: only root can, and the zero
// Owner means the caller itself.
func chowns(owner Owner) bool { return os.Geteuid() == 0 && owner != (Owner{}) }

// LookupOwner finds the account called name.
func LookupOwner(name string) (Owner, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Owner{}, fmt.Errorf("account %s: %w; create it with `make setup`", name, err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return Owner{}, fmt.Errorf("account %s: user id %q: %w", name, u.Uid, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return Owner{}, fmt.Errorf("account %s: group id %q: %w", name, u.Gid, err)
	}
	return Owner{UID: uid, GID: gid, Name: name}, nil
}

func userName(uid int) string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return strconv.Itoa(uid)
	}
	return u.Username
}
