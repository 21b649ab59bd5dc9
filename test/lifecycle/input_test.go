package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// refused runs `up` and wants it to fail with all of want in its message, and
// to leave nothing behind.
func refused(t *testing.T, s *stack, want ...string) string {
	t.Helper()
	out, err := s.run("up", "--detach")
	if exitCode(err) <= 0 {
		t.Errorf("up: %v, want an exit status above 0", err)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("up does not say %q:\n%s", w, out)
		}
	}
	s.nothingLeft(t)
	return out
}

func TestWrongSpecification(t *testing.T) {
	for _, test := range []struct {
		name, text, position string
		field                string
	}{
		{"syntax", "name: x\nlocal: [unclosed\n", ":", "fournines.yaml"},
		{"wrong type", "name: x\nlocal:\n  ports:\n    portOffset: many\n", ":4:17", "local.ports.portOffset"},
		{"unknown field", "name: x\nredis:\n  nodeTimeot: 5s\n", ":3:3", `redis.nodeTimeot: unknown field "nodeTimeot"; did you mean "nodeTimeout"`},
		{"out of range", "name: x\ndify:\n  apiReplicasPerZone: 1000000\n", ":3:23", "dify.apiReplicasPerZone"},
		{"contradiction", "name: x\ndify:\n  source: command\n", "", "dify.command.api"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStack(t, "")
			if err := os.WriteFile(s.spec, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, s, s.spec+test.position, test.field)
		})
	}
}

func TestPortTaken(t *testing.T) {
	ln, err := net.Listen("tcp", strings.TrimPrefix(gatewayURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := newStack(t, "")
	out := refused(t, s, "port 9480", fmt.Sprintf("(pid %d)", os.Getpid()), "local.ports.gateway")
	if lines := strings.Count(strings.TrimSpace(out), "\n") + 1; lines != 1 {
		t.Errorf("%d lines, want one sentence:\n%s", lines, out)
	}
}

func TestWrongVersion(t *testing.T) {
	s := newStack(t, "")
	fake := filepath.Join(s.dir, "fake")
	if err := os.Mkdir(fake, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64'\n"
	if err := os.WriteFile(filepath.Join(fake, "redis-server"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", fake+":"+os.Getenv("PATH"))
	refused(t, s, "Redis", filepath.Join(fake, "redis-server"), "v=6.2.14", "want version 7 to 8", "make setup")
}

func TestMissingProgram(t *testing.T) {
	installed, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed, so it cannot be taken away")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("unshare is not installed")
	}
	// The program is hidden in a mount namespace of the test's own. Zones on
	// loopback addresses, so that no mount is made there that outlives it.
	s := newStack(t, "  network: loopback\n")
	var out bytes.Buffer
	cmd := s.command(t.Context(), &out, "up", "--detach")
	hide := `mount --bind /dev/null "$0" && exec "$@"`
	hidden := exec.Command(unshare, append([]string{"--mount", "sh", "-c", hide, installed}, cmd.Args...)...)
	hidden.Dir, hidden.Stdout, hidden.Stderr = s.dir, &out, &out
	if err := hidden.Run(); exitCode(err) <= 0 {
		t.Errorf("up: %v, want an exit status above 0", err)
	}
	for _, want := range []string{"redis-server", "not installed", "make setup"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("up does not say %q:\n%s", want, out.String())
		}
	}
	s.nothingLeft(t)
}

func TestMissingDifyProgram(t *testing.T) {
	s := newStack(t, "")
	s.write(t, "dify:\n  source: command\n  workers: 0\n  command: {workDir: "+s.dir+", api: [no-such-gunicorn]}\n")
	refused(t, s, "dify.command", `"no-such-gunicorn" is not installed`)
}

func TestDiskTooSmall(t *testing.T) {
	s := newStack(t, "")
	disk := filepath.Join(s.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512m,mode=0755"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	}()
	s.data = filepath.Join(disk, "data")
	refused(t, s, "the disk of "+s.data, "MiB free", "needs 2048 MiB", "choose another --data-dir")
}

func TestDataDirWithoutRights(t *testing.T) {
	t.Run("not ours", func(t *testing.T) {
		s := newStack(t, "  network: loopback\n")
		s.as = unprivileged(t)
		defer func() { s.as = nil }()
		refused(t, s, "may not create", s.dir, "give that account the permission")
	})
	t.Run("servers cannot enter", func(t *testing.T) {
		s := newStack(t, "")
		private := filepath.Join(s.dir, "private")
		if err := os.Mkdir(private, 0o700); err != nil {
			t.Fatal(err)
		}
		s.data = filepath.Join(private, "data")
		refused(t, s, "may not enter", private, "chmod o+x")
	})
	t.Run("somebody else's files", func(t *testing.T) {
		s := newStack(t, "")
		if err := os.MkdirAll(s.data, 0o755); err != nil {
			t.Fatal(err)
		}
		precious := filepath.Join(s.data, "thesis.txt")
		if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"up", "--detach"}, {"down", "--delete-data"}} {
			if out, err := s.run(args...); exitCode(err) <= 0 {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
		if _, err := os.Stat(precious); err != nil {
			t.Error(err)
		}
		entries, err := os.ReadDir(s.data)
		if err != nil || len(entries) != 1 {
			t.Errorf("the directory has %v (%v), want the one file that was there", entries, err)
		}
		if err := os.RemoveAll(s.data); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}
