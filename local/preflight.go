package local

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/internal/process"
)

// MinFreeBytes is the disk space that a start needs at least.
const MinFreeBytes = 2 << 30

// Requirement is a program that must be installed.
type Requirement struct {
	// What the program is, "etcd".
	What string
	// Path of the executable.
	Path string
	// VersionArgs make the program print its version; empty skips the check.
	VersionArgs []string
	// Accept judges the printed version. Its error says which version is
	// wanted.
	Accept func(output string) error
	// Fix says how to get it; empty means `make setup`.
	Fix string
}

// Port is a public address of the stack.
type Port struct {
	// Address is host:port.
	Address string
	// Field of fournines.yaml that sets the port.
	Field string
}

// PreflightError lists everything that keeps a stack from starting, each
// problem in one sentence that says what to do.
type PreflightError struct{ Problems []string }

func (e *PreflightError) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0]
	}
	return fmt.Sprintf("%d problems keep the stack from starting:\n  - %s", len(e.Problems), strings.Join(e.Problems, "\n  - "))
}

// Preflight checks what can be checked before anything starts: programs and
// their versions, public ports, disk space and rights. Nothing of the stack
// may run yet. The error is a PreflightError.
func Preflight(ctx context.Context, p *Plan, dir string, owner process.Owner) error {
	var problems []string
	add := func(err error) {
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	checked := map[string]bool{}
	for _, r := range p.Requirements {
		checked[r.Path] = true
		add(r.check(ctx))
	}
	for i := range p.Units {
		u := &p.Units[i]
		if u.Process == nil || checked[u.Process.Path] || strings.HasPrefix(u.Process.Path, dir+"/") {
			continue // what lies in the data directory is put there by Setup or Prepare
		}
		checked[u.Process.Path] = true
		as := owner
		if u.Process.Root {
			as = process.Owner{}
		}
		add(checkExecutable(u.Process.Path, "", as))
	}
	for _, port := range p.Ports {
		add(port.check(ctx))
	}
	add(checkSpace(dir, MinFreeBytes))
	add(checkWritable(dir))
	add(process.CheckReach(dir, owner))
	if len(problems) > 0 {
		return &PreflightError{Problems: problems}
	}
	return nil
}

func checkExecutable(path, fix string, owner process.Owner) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && fix != "":
		return fmt.Errorf("executable %s is missing; %s", path, fix)
	case errors.Is(err, fs.ErrNotExist):
		return &process.MissingExecutableError{Path: path}
	case err != nil:
		return fmt.Errorf("executable %s: %w", path, err)
	case st.IsDir():
		return fmt.Errorf("executable %s is a directory; correct its path in fournines.yaml", path)
	case st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable; run `chmod a+x %s`", path, path)
	}
	return process.CheckReach(filepath.Dir(path), owner)
}

// versionTimeout is how long a program may take to tell its version: an
// interpreter on a machine that is busy with a start takes many seconds.
const versionTimeout = time.Minute

func (r *Requirement) check(ctx context.Context) error {
	fix := r.Fix
	if fix == "" {
		fix = "run `make setup` to install it"
	}
	if err := checkExecutable(r.Path, fix, process.Owner{}); err != nil {
		return fmt.Errorf("%s: %w", r.What, err)
	}
	if len(r.VersionArgs) == 0 || r.Accept == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Path, r.VersionArgs...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%s: %s did not tell its version within %v: the machine is too busy, or the program hangs; run `%s %s` by hand", r.What, r.Path, versionTimeout, r.Path, strings.Join(r.VersionArgs, " "))
	case err != nil:
		return fmt.Errorf("%s: %s does not tell its version (%w: %s); %s", r.What, r.Path, err, firstLine(out), fix)
	}
	if err := r.Accept(string(out)); err != nil {
		return fmt.Errorf("%s: %s has the wrong version (%q): %w; %s", r.What, r.Path, firstLine(out), err, fix)
	}
	return nil
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line[:min(len(line), 200)]
}

func (p *Port) check(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", p.Address)
	if err == nil {
		return ln.Close()
	}
	_, port, _ := net.SplitHostPort(p.Address)
	set := "set " + p.Field + " in fournines.yaml to another port"
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		who := "another process"
		if holder := portHolder(p.Address); holder != "" {
			who = holder
		}
		return fmt.Errorf("port %s on %s is in use by %s; stop it or %s", port, strings.TrimSuffix(p.Address, ":"+port), who, set)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("port %s needs root; %s above 1023", port, set)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this machine; correct local.address in fournines.yaml", p.Address)
	}
	return fmt.Errorf("port %s (%s): %w", port, p.Field, err)
}

func checkSpace(dir string, want uint64) error {
	free, err := process.FreeBytes(dir)
	if err != nil {
		return err
	}
	if free < want {
		return fmt.Errorf("the disk of %s has %d MiB free and the stack needs %d MiB; free space or choose another --data-dir", dir, free>>20, want>>20)
	}
	return nil
}

func checkWritable(dir string) error {
	probe := filepath.Join(dir, ".write-test")
	if err := process.ReplaceFile(probe, nil, 0o600, process.Owner{}); err != nil {
		return err
	}
	return os.Remove(probe)
}

// portHolder names the process that listens on the address, as far as the
// caller may know, or returns "".
func portHolder(address string) string {
	want, err := netip.ParseAddrPort(address)
	if err != nil {
		return ""
	}
	inodes := listeners(want)
	if len(inodes) == 0 {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !slices.Contains(inodes, target) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		return strings.TrimSpace(string(comm)) + " (pid " + pid + ")"
	}
	return ""
}

// listeners returns the sockets ("socket:[123]") that listen where want is or
// on all addresses of its port.
func listeners(want netip.AddrPort) []string {
	var out []string
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" { // 0A: listening
				continue
			}
			addr, ok := parseProcAddr(f[1])
			if ok && addr.Port() == want.Port() && (addr.Addr().IsUnspecified() || want.Addr().IsUnspecified() || addr.Addr() == want.Addr()) {
				out = append(out, "socket:["+f[9]+"]")
			}
		}
	}
	return out
}

// parseProcAddr reads "0100007F:1F90": 32-bit words in the machine's order
// (little-endian on all we run on), then the port in hexadecimal.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), true
}
