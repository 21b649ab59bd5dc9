package postgres

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"fournines/component/etcd"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestPythonOfPatroni(t *testing.T) {
	for _, tt := range []struct {
		script string
		want   []string
		err    string
	}{
		{"#!/usr/bin/python3\nimport sys\n", []string{"/usr/bin/python3"}, ""},
		{"#! /opt/patroni/bin/python3.11 -I\n", []string{"/opt/patroni/bin/python3.11", "-I"}, ""},
		{"#!/usr/bin/env python3\n", []string{"/usr/bin/env", "python3"}, ""},
		{"#!/usr/bin/python3", []string{"/usr/bin/python3"}, ""},
		{"#!/bin/sh\nexec python3 x\n", nil, `begins with "#!/bin/sh", want "#!" and the path of a Python`},
		{"#!/usr/bin/env sh\n", nil, "the path of a Python"},
		{"#!python3\n", nil, "the path of a Python"},
		{"/usr/bin/python3\n", nil, "the path of a Python"},
		{"\x7fELF", nil, "the path of a Python"},
		{"", nil, "the path of a Python"},
	} {
		script := filepath.Join(t.TempDir(), "patroni")
		if err := os.WriteFile(script, []byte(tt.script), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := pythonOf(script)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q, error %v; want %q, error %q", tt.script, got, err, tt.want, tt.err)
		}
	}
	if _, err := pythonOf("/nonexistent/patroni"); err == nil {
		t.Error("a missing script is no error")
	}
}

// agentTest plays nodes against one etcd with the Patroni that is installed.
type agentTest struct {
	*testing.T
	etcd  string
	scope string
	in    io.Writer
	out   *bufio.Scanner
	// replaced is what the agent has replaced.
	replaced []string
	// faulty tells that the renewal of the leader key in this Patroni is.
	faulty bool
}

// newAgentTest starts the nodes of a cluster of its own.
func newAgentTest(t *testing.T, etcd, state string) *agentTest {
	t.Helper()
	patroni, err := exec.LookPath("patroni")
	if err != nil {
		t.Fatal(err)
	}
	python, err := pythonOf(patroni)
	if err != nil {
		t.Fatal(err)
	}
	a := &agentTest{T: t, etcd: etcd, scope: strings.ReplaceAll(t.Name(), "/", "-")}
	python = append(python, "-B", filepath.Join("testdata", "agent_test.py"), "agent.py", a.scope, etcd, state)
	cmd := exec.CommandContext(t.Context(), python[0], python[1:]...)
	var stderr servertest.Output
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("nodes:\n%s", stderr.String())
		}
	})
	a.in, a.out = in, bufio.NewScanner(out)
	var hello struct {
		Version  [3]int   `json:"version"`
		Replaced []string `json:"replaced"`
	}
	a.answer("hello", &hello)
	a.replaced, a.faulty = hello.Replaced, slices.Compare(hello.Version[:], []int{3, 0, 3}) < 0
	return a
}

func (a *agentTest) answer(to string, v any) {
	a.Helper()
	if !a.out.Scan() {
		a.Fatalf("%s: the nodes have died: %v", to, a.out.Err())
	}
	if err := json.Unmarshal(a.out.Bytes(), v); err != nil {
		a.Fatalf("%s: %v: %s", to, err, a.out.Text())
	}
}

// step has a node take a step and returns the answer.
func (a *agentTest) step(command string) any {
	a.Helper()
	if _, err := fmt.Fprintln(a.in, command); err != nil {
		a.Fatal(err)
	}
	var v any
	a.answer(command, &v)
	return v
}

func (a *agentTest) etcdctl(args ...string) string {
	a.Helper()
	cmd := exec.Command("etcdctl", append([]string{"--endpoints", a.etcd}, args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	out, err := cmd.CombinedOutput()
	if err != nil {
		a.Fatalf("etcdctl %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// lease is a node's lease as a number.
func (a *agentTest) lease(node string) int64 {
	a.Helper()
	id, err := strconv.ParseInt(a.step(node+" lease").(string), 10, 64)
	if err != nil {
		a.Fatal(err)
	}
	return id
}

// leader is the leader key: the node's name, empty when there is none, and the lease.
func (a *agentTest) leader() (node string, lease int64) {
	a.Helper()
	found, value, _, err := readKey(a.Context(), []string{a.etcd}, []byte(dcsNamespace+a.scope+"/leader"))
	if err != nil {
		a.Fatal(err)
	}
	if !found {
		return "", 0
	}
	var answer struct {
		Kvs []struct {
			Lease int64 `json:"lease"`
		} `json:"kvs"`
	}
	if err := json.Unmarshal([]byte(a.etcdctl("get", dcsNamespace+a.scope+"/leader", "-w", "json")), &answer); err != nil || len(answer.Kvs) != 1 {
		a.Fatalf("leader key: %v", err)
	}
	return string(value), answer.Kvs[0].Lease
}

// TestAgentKeepsForeignLeader checks who has the leader key after a primary has
// renewed it whose lease had expired.
func TestAgentKeepsForeignLeader(t *testing.T) {
	client := startEtcd(t, "127.64.1.10")
	for _, tt := range []struct {
		name string
		// before is done by the cluster after node a's lease has expired; words
		// that no node begins are for etcdctl, with LEADER for the key.
		before []string
		// synchronous: node a had said in the key "sync" that it leads.
		synchronous bool
		renewed     bool
		leader      string
	}{
		{"a successor leads", []string{"b look", "b acquire"}, false, false, "b"},
		{"a successor leads a synchronous cluster", []string{"b look", "b acquire", "b sync b"}, true, false, "b"},
		{"a successor is seen", []string{"b look", "b acquire", "a look"}, false, false, "b"},
		{"nobody has led", nil, false, true, "a"},
		{"nobody has led a synchronous cluster", nil, true, true, "a"},
		{"the key is its own with another lease", []string{"put LEADER a"}, true, true, "a"},
		{"a successor has led and is gone", []string{"b look", "b acquire", "b sync b", "del LEADER"}, true, false, ""},
		{"a successor is seen to have led", []string{"b look", "b acquire", "b sync b", "del LEADER", "a look"}, true, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgentTest(t, client, "mended")
			if slices.Contains(a.replaced, "renewal of the leader key") != a.faulty {
				t.Fatalf("replaced %q in a Patroni that needs the renewal mended: %t", a.replaced, a.faulty)
			}
			if !a.faulty {
				t.Skip("this Patroni compares by itself")
			}
			a.lead(tt.synchronous)
			a.etcdctl("lease", "revoke", strconv.FormatInt(a.lease("a"), 16))
			a.do(tt.before)
			if got := a.step("a update"); got != tt.renewed {
				t.Errorf("the renewal answers %v, want %v", got, tt.renewed)
			}
			leader, lease := a.leader()
			if leader != tt.leader || leader != "" && lease != a.lease(leader) {
				t.Errorf("the leader key is %q with lease %d, want %q with its own lease", leader, lease, tt.leader)
			}
			if again := a.step("a update"); again != tt.renewed {
				t.Errorf("the next renewal answers %v, want %v", again, tt.renewed)
			}
		})
	}

	// Without the agent the fault is there, so the cases above can see it.
	t.Run("as installed", func(t *testing.T) {
		a := newAgentTest(t, client, "as-installed")
		if !a.faulty {
			t.Skip("this Patroni compares by itself")
		}
		a.lead(false)
		a.etcdctl("lease", "revoke", strconv.FormatInt(a.lease("a"), 16))
		if a.step("b look") != "" || a.step("b acquire") != true {
			t.Fatal("node b cannot take the key")
		}
		renewed := a.step("a update")
		if leader, _ := a.leader(); renewed != true || leader != "a" {
			t.Errorf("renewal %v, leader %q: this Patroni compares, so the agent is not needed", renewed, leader)
		}
	})
}

// TestAgentReleasesItsLeaderKey checks that a node gets rid of the key that it
// has just bound to a new lease, and never of another's.
func TestAgentReleasesItsLeaderKey(t *testing.T) {
	client := startEtcd(t, "127.64.2.10")
	for _, tt := range []struct {
		name, state string
		before      []string
		want        string // who leads afterwards
	}{
		{"its own", "mended", nil, ""},
		{"its own with a new lease", "mended", []string{"a update"}, ""},
		{"its own with a new lease, as installed", "as-installed", []string{"a update"}, "a"},
		{"a successor's", "mended", []string{"del LEADER", "b look", "b acquire"}, "b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAgentTest(t, client, tt.state)
			if !a.faulty {
				t.Skip("this Patroni is newer than what is mended")
			}
			// The key of the process before: the same name, another lease.
			a.etcdctl("put", dcsNamespace+a.scope+"/leader", "a")
			if a.step("a look") != "a" {
				t.Fatal("node a does not see that it leads")
			}
			a.do(tt.before)
			a.step("a release")
			if leader, _ := a.leader(); leader != tt.want {
				t.Errorf("the leader is %q, want %q", leader, tt.want)
			}
		})
	}
}

// do takes steps of nodes and calls of etcdctl, with LEADER for the leader key.
func (a *agentTest) do(commands []string) {
	a.Helper()
	for _, command := range commands {
		if args := strings.Fields(strings.ReplaceAll(command, "LEADER", dcsNamespace+a.scope+"/leader")); len(args[0]) > 1 {
			a.etcdctl(args...)
		} else if answer := a.step(command); answer == false {
			a.Fatalf("%s: refused", command)
		}
	}
}

// startEtcd starts one member on host and returns its client address.
func startEtcd(t *testing.T, host string) string {
	t.Helper()
	servertest.Need(t, "etcd", "etcdctl", "patroni")
	owner := servertest.Owner(t)
	unit, err := etcd.Unit(etcd.Config{
		Name: "etcd", Zone: "a", Members: []etcd.Member{{Name: "etcd", Host: host}}, Cluster: "agent-test",
		DataDir: filepath.Join(servertest.Dir(t, owner), "etcd"), Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	servertest.Launch(t, owner, unit)
	eventually.Nil(t, time.Minute, func() error { return unit.Ready(t.Context()) })
	return unit.Address
}

// lead makes node a the leader and has it look at that.
func (a *agentTest) lead(synchronous bool) {
	a.Helper()
	a.step("a look")
	if a.step("a acquire") != true {
		a.Fatal("node a cannot take the key")
	}
	if a.step("a look") != "a" {
		a.Fatal("node a does not see that it leads")
	}
	if synchronous {
		if a.step("a sync a") != true {
			a.Fatal("node a cannot write the key sync")
		}
		a.step("a look")
	}
}

// TestAgentRefusesAnUnknownPatroni checks that a Patroni which needs mending and
// is not as expected does not start, and that a later one is left alone.
func TestAgentRefusesAnUnknownPatroni(t *testing.T) {
	servertest.Need(t, "patroni")
	patroni, err := exec.LookPath("patroni")
	if err != nil {
		t.Fatal(err)
	}
	python, err := pythonOf(patroni)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, code, want string }{
		{"later versions", `print(agent.mend_leader_key('3.2.0'), agent.mend_leader_key('4.1.4'), Etcd3._update_leader is before, agent.mend_leader_key('3.1.2-1'), Etcd3._update_leader is before)`, "[] [] True ['release of the leader key'] True"},
		{"one demotion at a time", `
import threading
from patroni.ha import Ha
modes, stopped = [], threading.Event()
def demote(self, mode):
    modes.append(mode)
    if len(modes) == 1:
        stopped.wait(30)
Ha.demote = demote
print(agent.mend('4.1.4'))
first = threading.Thread(target=Ha.demote, args=(None, 'offline'))
first.start()
while not modes:
    pass
Ha.demote(None, 'offline')  # the next round, which still has no etcd
Ha.demote(None, 'immediate-nolock')  # the lock is lost: PostgreSQL has to stop at once
stopped.set()
first.join()
Ha.demote(None, 'offline')
print(modes)`, "['demotion without etcd']\n['offline', 'immediate-nolock', 'offline']"},
		{"another demotion", `
from patroni.ha import Ha
Ha.demote = lambda self, mode, why: None
print(agent.mend('4.9.0'))`, "[]"},
		{"versions", `print(agent.release('3.0.2-1'), agent.release('4.0'), agent.release('2.1.7+deb'))`, "(3, 0, 2) (4, 0) (2, 1, 7)"},
		{"another signature", `
Etcd3._do_refresh_lease = lambda self, now: None
agent.mend('3.0.2')`, "and cannot be mended: Etcd3._do_refresh_lease takes ['self', 'now']"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code := "import sys; sys.path.insert(0, '.'); import agent\nfrom patroni.dcs.etcd3 import Etcd3\nbefore = Etcd3._update_leader\n" + tt.code
			cmd := exec.CommandContext(t.Context(), python[0], append(python[1:], "-B", "-c", code)...)
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, want %q in:\n%s", err, tt.want, out)
			}
		})
	}
}
