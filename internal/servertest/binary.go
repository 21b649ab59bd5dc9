package servertest

import (
	"fmt"
	"os"
	"os/exec"
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
