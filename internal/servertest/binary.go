package servertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildBinary builds fournines into the file path, for tests that run the real
// program. It is for TestMain, which has no testing.TB.
func BuildBinary(path string) error {
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", path, "fournines/cmd/fournines")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build fournines: %w", err)
	}
	return nil
}

// WithBinary builds fournines in a directory of its own, which every account can
// enter, calls run with the program's path and returns the exit code. It is for
// TestMain.
func WithBinary(run func(path string) int) int {
	dir, err := os.MkdirTemp("/tmp", "fournines-test-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "fournines")
	if err := errors.Join(os.Chmod(dir, 0o755), BuildBinary(path)); err != nil { //nolint:gosec // servers run as another account
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return run(path)
}
