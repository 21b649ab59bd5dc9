package backup_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"fournines/internal/cli"
	"fournines/internal/process"
)

// smallDisk is the environment variable with the path of a file system of half a
// megabyte, when there is one.
const smallDisk = "FOURNINES_TEST_SMALL_DISK"

// weedVariable is the environment variable with the path of the S3 server.
const weedVariable = "FOURNINES_TEST_WEED"

// weedPath is where setup puts it.
const weedPath = "../.tools/venv/bin/weed"

// fastDiskOptions are those of the one in memory that the targets and the
// restored directories lie on: pgBackRest syncs every file that it writes.
const fastDiskOptions = "size=2g,mode=0777"

// smallDiskOptions are those of the small file system: too small for a backup of
// an empty cluster, which takes more than 1 MB.
const smallDiskOptions = "size=512k,mode=0777"

// TestMain lets the test binary be the program fournines, which the servers of
// the tests call to archive. PostgreSQL refuses to run as root, so for root the
// tests run as the account of the servers, in a mount namespace of their own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "backup" {
		os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if os.Geteuid() == 0 {
		code, err := asOwner()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// asOwner runs the tests as the account fournines.
func asOwner() (code int, err error) {
	owner, err := process.LookupOwner("fournines")
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("/tmp", "fournines-test-backup-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := process.MkdirAll(dir, 0o755, process.Owner{}); err != nil {
		return 0, err
	}
	// The go command keeps the binary where only root gets to.
	binary := filepath.Join(dir, filepath.Base(os.Args[0]))
	if err := copyProgram(binary); err != nil {
		return 0, err
	}
	tmp := filepath.Join(dir, "tmp")
	small := filepath.Join(dir, "small")
	for _, d := range []string{tmp, small} {
		if err := process.MkdirAll(d, 0o700, owner); err != nil {
			return 0, err
		}
	}
	var args []string
	for _, a := range os.Args[1:] {
		// These name files that only root can write.
		if !strings.HasPrefix(a, "-test.testlogfile") && !strings.HasPrefix(a, "-test.coverprofile") {
			args = append(args, a)
		}
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
	if weed, err := filepath.Abs(weedPath); err == nil {
		here := filepath.Join(dir, "weed")
		if copyFile(weed, here) == nil {
			cmd.Env = append(cmd.Env, weedVariable+"="+here)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)},
		Pdeathsig:  syscall.SIGKILL,
	}
	// The thread goes with its namespace, and the small disk with both.
	runtime.LockOSThread()
	if err := mountDisks(tmp, small); err != nil {
		fmt.Fprintln(os.Stderr, "no disks in memory for the tests:", err)
	} else {
		cmd.Env = append(cmd.Env, smallDisk+"="+small)
	}
	err = cmd.Run()
	for _, d := range []string{tmp, small} {
		_ = syscall.Unmount(d, syscall.MNT_DETACH) // else they cannot be removed
	}
	if cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

func mountDisks(fast, small string) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for path, options := range map[string]string{fast: fastDiskOptions, small: smallDiskOptions} {
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	return nil
}

func copyProgram(to string) error { return copyFile(os.Args[0], to) }

func copyFile(path, to string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, from); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}
