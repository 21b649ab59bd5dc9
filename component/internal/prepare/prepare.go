// Package prepare has what every component needs before its server can start:
// directories and files owned by the account the server runs as, the server's
// executable, and secrets read from their files.
package prepare

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"fournines/internal/process"
)

// Env is the environment every server starts with. Servers inherit nothing
// from the caller, so a stack behaves the same in every shell.
func Env(home string, extra ...string) []string {
	return append([]string{
		"PATH=/usr/local/bin:/usr/bin:/bin",
		"HOME=" + home,
		"LANG=C.UTF-8",
		"LC_ALL=C.UTF-8",
		"TZ=UTC",
	}, extra...)
}

// Dirs creates each directory with mode 0700 for owner, and hands an existing
// one to owner. Missing parents are created with mode 0755.
func Dirs(owner process.Owner, dirs ...string) error {
	for _, dir := range dirs {
		if err := process.MkdirAll(dir, 0o700, owner); err != nil {
			return err
		}
	}
	return nil
}

// File replaces path atomically with data, mode 0600, owned by owner.
func File(path string, data []byte, owner process.Owner) error {
	return process.WriteFile(path, data, 0o600, owner)
}

// Secret reads the secret in path, without the newline editors add.
func Secret(path string) (string, error) {
	if path == "" {
		return "", errors.New("secret file: no path given")
	}
	data, err := os.ReadFile(path) //nolint:gosec // the path comes from the component's own configuration
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("read secret: %s is empty; remove it and start again to have it generated", path)
	}
	return secret, nil
}

// Executable returns given when it is an executable file, else looks name up
// in PATH and in the directories Debian installs servers into. The error says
// how to install what is missing.
func Executable(given, name string) (string, error) {
	if given != "" {
		info, err := os.Stat(given)
		if err != nil {
			return "", fmt.Errorf("%s: %w; run `make setup` to install it", name, err)
		}
		if info.IsDir() || info.Mode()&0o111 == 0 {
			return "", fmt.Errorf("%s: %s is not an executable file", name, given)
		}
		return given, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed; run `make setup` to install it", name)
}
