package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/topology"
)

// portOffset keeps the public ports away from those of other stacks of this
// machine.
// It keeps them below 32768, where the kernel takes ports for outgoing connections.
const portOffset = 1000

// gatewayURL is where the gateways of a stack of this package answer.
const gatewayURL = "http://127.0.0.1:9480" // 8480 and the offset

// limit bounds every wait for a stack; it is generous, since the machine may
// be busy.
const limit = 3 * time.Minute

// binary is the program under test.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "skipped: these tests make network namespaces and need root")
		if os.Getenv(servertest.RequireServers) == "1" {
			return 1
		}
		return 0
	}
	return servertest.WithBinary(func(path string) int {
		binary = path
		return m.Run()
	})
}

// makeDir makes a directory that the accounts of the servers can reach, which
// those of the testing package are not.
func makeDir() (string, error) {
	dir, err := os.MkdirTemp("/tmp", "fournines-test-lifecycle-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// stack is a data directory, its specification, and who works with it.
type stack struct {
	dir, data, spec string
	// as is the account that runs the binary; nil is root.
	as *syscall.Credential
}

// newStack makes the directory of a stack that has the lines of extra in its
// specification, and sees to it that nothing is left of it in the end.
func newStack(t *testing.T, extra string) *stack {
	t.Helper()
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{dir: dir, data: filepath.Join(dir, "data"), spec: filepath.Join(dir, "fournines.yaml")}
	s.write(t, extra)
	t.Cleanup(func() {
		if t.Failed() {
			s.showLogs(t)
		}
		if out, err := s.run("down", "--now", "--delete-data", "--delete-backups"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		s.killAll(t)
		s.nothingLeft(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// write makes the specification, which must not name local itself.
func (s *stack) write(t *testing.T, extra string) {
	t.Helper()
	text := fmt.Sprintf("name: lifecycle-test\nlocal:\n  ports:\n    portOffset: %d\n%s", portOffset, extra)
	if err := os.WriteFile(s.spec, []byte(text), 0o644); err != nil { //nolint:gosec // another account reads it
		t.Fatal(err)
	}
}

// command prepares a call of the binary for this stack. It has no terminal and
// writes into out.
func (s *stack) command(ctx context.Context, out *bytes.Buffer, args ...string) *exec.Cmd {
	if args[0] == "up" {
		args = append(args, "-f", s.spec)
	}
	cmd := exec.CommandContext(ctx, binary, append(args, "--data-dir", s.data)...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = out, out
	// A supervisor keeps no descriptor of ours, but a killed `up` may not be
	// the last to write.
	cmd.WaitDelay = 10 * time.Second
	if s.as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
		cmd.Env = []string{"HOME=" + s.dir, "PATH=/usr/local/bin:/usr/bin:/bin"}
	}
	return cmd
}

// run calls the binary and returns what it printed.
func (s *stack) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out bytes.Buffer
	err := s.command(ctx, &out, args...).Run()
	return out.String(), err
}

// must calls the binary and fails the test when it fails.
func (s *stack) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.run(args...)
	if err != nil {
		t.Fatalf("fournines %v: %v\n%s", args, err, out)
	}
	return out
}

// call is a call of the binary that runs beside the test.
type call struct {
	out  bytes.Buffer
	done chan struct{}
	err  error // valid after done
	kill context.CancelFunc
}

func (s *stack) begin(t *testing.T, args ...string) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	c := &call{done: make(chan struct{}), kill: cancel}
	cmd := s.command(ctx, &c.out, args...)
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		c.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		cancel()
		<-c.done
	})
	return c
}

// wait returns what the call has printed and how it ended.
func (c *call) wait() (string, error) {
	<-c.done
	return c.out.String(), c.err
}

// exitCode is the exit status behind an error of run.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func (s *stack) status() (topology.Status, error) {
	var st topology.Status
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := s.command(ctx, &out, "status", "-o", "json")
	var problem bytes.Buffer
	cmd.Stderr = &problem
	err := cmd.Run()
	if out.Len() == 0 {
		return st, fmt.Errorf("status: %w: %s", err, problem.String())
	}
	if err := json.Unmarshal(out.Bytes(), &st); err != nil {
		return st, fmt.Errorf("status: %w in %q", err, out.String())
	}
	return st, nil
}

// ready fails the test unless everything is ready.
func (s *stack) ready(t *testing.T) topology.Status {
	t.Helper()
	st, err := s.status()
	if err != nil {
		t.Fatal(err)
	}
	if st.State != topology.Ready {
		t.Fatalf("the stack is %s: %+v", st.State, st)
	}
	return st
}

// proc is one running process of a stack.
type proc struct {
	pid  int
	unit string // "supervisor" for that
	args []string
}

// processes finds the processes of the stack by the mark in their environment,
// and its supervisor, without asking anybody.
func (s *stack) processes(t *testing.T) []proc {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []proc
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		if len(args) > 3 && args[1] == "supervise" && args[3] == s.data {
			out = append(out, proc{pid, "supervisor", args})
			continue
		}
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			continue
		}
		for entry := range strings.SplitSeq(string(env), "\x00") {
			if unit, ok := strings.CutPrefix(entry, "FOURNINES_UNIT="+s.data+":"); ok {
				out = append(out, proc{pid, unit, args})
				break
			}
		}
	}
	return out
}

// of finds the processes of a unit.
func of(all []proc, unit string) []proc {
	return slices.DeleteFunc(slices.Clone(all), func(p proc) bool { return p.unit != unit })
}

// killAll ends the supervisor and all processes of the stack, as a power
// failure would.
func (s *stack) killAll(t *testing.T) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		all := s.processes(t)
		// The supervisor first, so that it starts nothing again.
		slices.SortStableFunc(all, func(a, b proc) int {
			return strings.Compare(strconv.FormatBool(a.unit != "supervisor"), strconv.FormatBool(b.unit != "supervisor"))
		})
		for _, p := range all {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
		if len(all) > 0 {
			return fmt.Errorf("%d processes were left", len(all))
		}
		return nil
	})
}

// id is what the names of the stack's network begin with, after "fn".
func (s *stack) id() string {
	sum := sha256.Sum256([]byte(s.data))
	return hex.EncodeToString(sum[:4])
}

// outside lists what exists of the stack outside its data directory.
func (s *stack) outside(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, p := range s.processes(t) {
		found = append(found, fmt.Sprintf("process %d (%s): %v", p.pid, p.unit, p.args))
	}
	milvus := sha256.Sum256([]byte(filepath.Join(s.data, "milvus-a")))
	lock := "standalone-milvus-a-" + hex.EncodeToString(milvus[:4]) + ".pid"
	for _, pattern := range []string{
		"/run/netns/fn" + s.id() + "*", "/sys/class/net/fn" + s.id() + "*", "/tmp/fournines-" + s.id() + "*",
		"/run/milvus/" + lock, "/tmp/milvus/" + lock,
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, files...)
	}
	return found
}

// nothingLeft fails the test when anything of the stack still exists, its data
// directory included.
func (s *stack) nothingLeft(t *testing.T) {
	t.Helper()
	found := s.outside(t)
	if _, err := os.Lstat(s.data); !errors.Is(err, fs.ErrNotExist) {
		found = append(found, s.data)
	}
	if len(found) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(found, "\n"))
	}
}

// showLogs prints the end of each log.
func (s *stack) showLogs(t *testing.T) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(s.data, "logs", "*.log"))
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		t.Logf("%s:\n%s", filepath.Base(log), strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

// unprivileged is the account that runs servers, or another ordinary one.
func unprivileged(t *testing.T) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"fournines", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Fatal("neither the account fournines nor nobody exists")
	return nil
}

// chown gives the directory of the stack to the account that works with it.
func chown(s *stack) error {
	return errors.Join(
		os.Chown(s.dir, int(s.as.Uid), int(s.as.Gid)),
		os.Chown(s.spec, int(s.as.Uid), int(s.as.Gid)))
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
