package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process of an Identity does not run any more.
var ErrGone = errors.New("process is gone")

// MissingExecutableError says that there is nothing to execute at Path.
type MissingExecutableError struct{ Path string }

func (e *MissingExecutableError) Error() string {
	return fmt.Sprintf("executable %s is missing; run `make setup` to install it, or correct its path in fournines.yaml", e.Path)
}

// Is makes the error match fs.ErrNotExist.
func (e *MissingExecutableError) Is(target error) bool { return target == fs.ErrNotExist }

// PermissionError says which path refuses which user.
type PermissionError struct {
	// Op is what was tried: "execute", "enter", "write", "read".
	Op string
	// Path is the file or directory that refuses.
	Path string
	// User is the account that was refused.
	User string
}

func (e *PermissionError) Error() string {
	fix := "give that account the permission (chown or chmod), or run as the user who owns it"
	switch e.Op {
	case "enter":
		fix = "open the directory with `chmod o+x " + e.Path + "`, or choose another --data-dir"
	case "execute":
		fix = "run `chmod a+rx " + e.Path + "`"
	}
	return fmt.Sprintf("user %s may not %s %s; %s", e.User, e.Op, e.Path, fix)
}

// Is makes the error match fs.ErrPermission.
func (e *PermissionError) Is(target error) bool { return target == fs.ErrPermission }

// DiskFullError says that the file system that holds Path has no room left.
type DiskFullError struct {
	Path string
	// FreeBytes is what was free when the error was made.
	FreeBytes uint64
	// Quota is set when not the disk but the account's quota is used up.
	Quota bool
}

func (e *DiskFullError) Error() string {
	if e.Quota {
		return fmt.Sprintf("write %s: the disk quota of this account is used up; free space or choose another --data-dir", e.Path)
	}
	return fmt.Sprintf("write %s: the disk that holds it is full (%d MiB free); free space or choose another --data-dir", e.Path, e.FreeBytes>>20)
}

// Unwrap makes the error match syscall.ENOSPC or syscall.EDQUOT.
func (e *DiskFullError) Unwrap() error {
	if e.Quota {
		return syscall.EDQUOT
	}
	return syscall.ENOSPC
}

// DirectoryError says that a working directory is not there.
type DirectoryError struct{ Path string }

func (e *DirectoryError) Error() string {
	return fmt.Sprintf("working directory %s does not exist; run `fournines up` again to create it", e.Path)
}

// Is makes the error match fs.ErrNotExist.
func (e *DirectoryError) Is(target error) bool { return target == fs.ErrNotExist }

// NetNSError says that a network namespace cannot be entered.
type NetNSError struct {
	Name string
	Err  error
}

func (e *NetNSError) Error() string {
	return fmt.Sprintf("enter network namespace %s: %v; as root, run `fournines down` and `fournines up` to make it again", e.Name, e.Err)
}

// Unwrap returns the kernel's error.
func (e *NetNSError) Unwrap() error { return e.Err }

// FreeBytes is the space that an unprivileged user can still use on the file
// system that holds path. Missing directories are looked for upwards.
func FreeBytes(path string) (uint64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return 0, fmt.Errorf("free space of %s: %w", path, err)
		}
		path = parent
	}
}

// explain turns an error of a file operation into the typed error that says
// what to do, where there is one.
func explain(op, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC):
		free, _ := FreeBytes(path)
		return &DiskFullError{Path: path, FreeBytes: free}
	case errors.Is(err, syscall.EDQUOT):
		return &DiskFullError{Path: path, Quota: true}
	case errors.Is(err, fs.ErrPermission):
		return &PermissionError{Op: op, Path: path, User: currentUser()}
	}
	return fmt.Errorf("%s %s: %w", op, path, err)
}

func currentUser() string { return userName(os.Geteuid()) }

// explainStart says why the kernel refused to start spec as owner.
func explainStart(spec *Spec, owner Owner, err error) error {
	var ns *NetNSError
	switch {
	case errors.As(err, &ns):
		return err
	case errors.Is(err, fs.ErrNotExist):
		if _, statErr := os.Stat(spec.Path); statErr == nil {
			if spec.Dir != "" {
				if _, dirErr := os.Stat(spec.Dir); dirErr != nil {
					return &DirectoryError{Path: spec.Dir}
				}
			}
			return fmt.Errorf("start %s: the interpreter or loader it names is missing; install it again with `make setup`", spec.Path)
		}
		return &MissingExecutableError{Path: spec.Path}
	case errors.Is(err, fs.ErrPermission):
		user := owner.Name
		if user == "" {
			user = userName(owner.UID)
		}
		for _, p := range []string{spec.Dir, spec.Path} {
			if p == "" {
				continue
			}
			if dir := deniedDirectory(p, owner); dir != "" {
				return &PermissionError{Op: "enter", Path: dir, User: user}
			}
		}
		return &PermissionError{Op: "execute", Path: spec.Path, User: user}
	case errors.Is(err, syscall.ENOEXEC):
		return fmt.Errorf("start %s: not a program for this machine (%s); install the package for its architecture", spec.Path, machine())
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("start %s: the machine has no process or memory left for it; stop something, or raise `ulimit -u`: %w", spec.Path, err)
	}
	return fmt.Errorf("start %s: %w", spec.Path, err)
}

// CheckReach reports if owner may enter path and every directory above it, as
// far as mode bits tell. The zero Owner means the caller, who is not checked.
func CheckReach(path string, owner Owner) error {
	if !chowns(owner) {
		return nil
	}
	if dir := deniedDirectory(path, owner); dir != "" {
		user := owner.Name
		if user == "" {
			user = userName(owner.UID)
		}
		return &PermissionError{Op: "enter", Path: dir, User: user}
	}
	return nil
}

// deniedDirectory finds the topmost directory on the way to path that owner
// may not enter, judged by mode bits alone (no ACLs, no other groups).
func deniedDirectory(path string, owner Owner) string {
	if owner.UID == 0 {
		return ""
	}
	var chain []string
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		chain = append(chain, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	for i := len(chain) - 1; i >= 0; i-- {
		var st syscall.Stat_t
		if syscall.Stat(chain[i], &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return ""
		}
		bit := uint32(0o001)
		switch {
		case int(st.Uid) == owner.UID:
			bit = 0o100
		case int(st.Gid) == owner.GID:
			bit = 0o010
		}
		if st.Mode&bit == 0 {
			return chain[i]
		}
	}
	return ""
}

func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown architecture"
	}
	return unix.ByteSliceToString(u.Machine[:])
}
