package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"fournines/internal/process"
)

func TestPreflight(t *testing.T) {
	dir := newDir(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	version := func(want string) func(string) error {
		return func(out string) error {
			if !strings.Contains(out, want) {
				return fmt.Errorf("want %s", want)
			}
			return nil
		}
	}
	for _, tc := range []struct {
		name string
		plan Plan
		want []string
	}{
		{"all well", Plan{
			Units:        []process.Unit{{Name: "u", Process: shell("")}},
			Requirements: []Requirement{{What: "echo", Path: "/bin/echo", VersionArgs: []string{"v3.4.1"}, Accept: version("3.4")}},
			Ports:        []Port{{Address: "127.0.0.1:0", Field: "local.ports.redis"}},
		}, nil},
		{"port in use", Plan{Ports: []Port{{Address: ln.Addr().String(), Field: "local.ports.redis"}}},
			[]string{"port " + port + " on 127.0.0.1 is in use by ", fmt.Sprintf("(pid %d); stop it or set local.ports.redis in fournines.yaml to another port", os.Getpid())}},
		{"missing program", Plan{Units: []process.Unit{{Name: "u", Process: &process.Spec{Path: "/no/etcd"}}}},
			[]string{"executable /no/etcd is missing; run `make setup`"}},
		{"wrong version", Plan{Requirements: []Requirement{{What: "etcd", Path: "/bin/echo", VersionArgs: []string{"etcd 2.0"}, Accept: version("3.4"), Fix: "install etcd 3.4"}}},
			[]string{`etcd: /bin/echo has the wrong version ("etcd 2.0"): want 3.4; install etcd 3.4`}},
		{"broken program", Plan{Requirements: []Requirement{{What: "etcd", Path: "/bin/false", VersionArgs: []string{"x"}, Accept: version("")}}},
			[]string{"/bin/false does not tell its version"}},
		{"foreign address", Plan{Ports: []Port{{Address: "192.0.2.1:80", Field: "local.ports.redis"}}}, []string{"192.0.2.1:80 is not an address of this machine"}},
		{"two problems", Plan{Units: []process.Unit{{Name: "u", Process: &process.Spec{Path: "/no/etcd"}}, {Name: "v", Process: &process.Spec{Path: "/no/redis"}}}},
			[]string{"2 problems keep the stack from starting:", "\n  - executable /no/etcd", "\n  - executable /no/redis"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Preflight(t.Context(), &tc.plan, dir, process.Owner{})
			if len(tc.want) == 0 {
				ok(t, err)
				return
			}
			wantError(t, err, tc.want...)
			var pe *PreflightError
			if !errors.As(err, &pe) {
				t.Errorf("type %T", err)
			}
		})
	}
}

func TestPreflightDiskAndRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting and changing accounts need root")
	}
	dir := newDir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	nobody, err := process.LookupOwner("nobody")
	if err != nil {
		t.Skip(err)
	}
	wantError(t, Preflight(t.Context(), &Plan{}, dir, nobody), "the disk of "+dir+" has 1 MiB free and the stack needs 2048 MiB",
		"user nobody may not enter "+dir)
}

// A stack on a full disk says so, goes on, and recovers when there is space.
func TestFullDiskWhileRunning(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := newDir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0755"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	ok(t, PrepareDir(dir))
	full := dir + "/full"
	_ = os.WriteFile(full, make([]byte, 1<<20), 0o600) // as far as it goes
	s := run(t, dir, &Plan{Units: []process.Unit{{Name: "u", Process: shell("echo hello || exit 1; exec sleep 1000")}}})
	c := s.await(t, "u", "failed")
	if !strings.Contains(c.Reason, "the disk") || !strings.Contains(c.Reason, "full (0 MiB free)") {
		t.Errorf("reason %q", c.Reason)
	}
	ok(t, os.Remove(full))
	s.await(t, "u", "ready")
}
