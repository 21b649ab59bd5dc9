package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"fournines/internal/eventually"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 30 * time.Second

// openDir is a directory that every account can reach, unlike t.TempDir.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func sh(script string) Spec {
	return Spec{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func start(t *testing.T, spec Spec, opts StartOptions) *Process {
	t.Helper()
	if opts.LogFile == "" {
		opts.LogFile = filepath.Join(openDir(t), "log")
	}
	if opts.Mark == "" {
		opts.Mark = t.Name() + strconv.Itoa(os.Getpid())
	}
	p, err := Start(spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.KillTree(limit); err != nil {
			t.Error(err)
		}
		<-p.Done()
	})
	return p
}

func wait(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(limit):
		t.Fatal("process did not end")
	}
}

func waitLog(t *testing.T, path, want string) string {
	t.Helper()
	var b []byte
	eventually.Nil(t, limit, func() error {
		b, _ = os.ReadFile(path)
		if !strings.Contains(string(b), want) {
			return fmt.Errorf("log %q has no %q", b, want)
		}
		return nil
	})
	return string(b)
}

func TestStartAppendsToLogInOwnSession(t *testing.T) {
	log := filepath.Join(openDir(t), "log")
	if err := os.WriteFile(log, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := sh(`echo "$A $HOME"; echo err >&2; cut -d' ' -f1,6 /proc/$$/stat; exit 3`)
	spec.Env = append(spec.Env, "A=1")
	p := start(t, spec, StartOptions{LogFile: log})
	wait(t, p)
	if got := p.Exit(); got != "ended with exit status 3" || p.Succeeded() {
		t.Errorf("exit: %q", got)
	}
	pid := strconv.Itoa(p.Identity().PID)
	want := "before\n1 \nerr\n" + pid + " " + pid + "\n"
	if got, _ := os.ReadFile(log); string(got) != want {
		t.Errorf("log: got %q, want %q", got, want)
	}
}

func TestStartAsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing the account needs root")
	}
	nobody, err := LookupOwner("nobody")
	if err != nil {
		t.Skip(err)
	}
	for _, tc := range []struct {
		name string
		root bool
		want string
	}{{"owner", false, strconv.Itoa(nobody.UID)}, {"root", true, "0"}} {
		t.Run(tc.name, func(t *testing.T) {
			log := filepath.Join(openDir(t), "log")
			spec := sh("id -u; id -G")
			spec.Root = tc.root
			wait(t, start(t, spec, StartOptions{LogFile: log, Owner: nobody}))
			b, _ := os.ReadFile(log)
			if got, _, _ := strings.Cut(string(b), "\n"); got != tc.want {
				t.Errorf("uid: got %q, want %q", b, tc.want)
			}
		})
	}
}

func TestStartInNetworkNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	name := "fntest" + strconv.Itoa(os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("ip netns add: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{name, "/run/netns/" + name} {
		log := filepath.Join(openDir(t), "log")
		spec := sh("readlink /proc/self/ns/net")
		spec.NetNS = ns
		wait(t, start(t, spec, StartOptions{LogFile: log}))
		if b, _ := os.ReadFile(log); strings.TrimSpace(string(b)) == own || len(b) == 0 {
			t.Errorf("%s: process ran in %q, the test's own is %q", ns, b, own)
		}
	}
	spec := sh("true")
	spec.NetNS = name + "-missing"
	_, err = Start(spec, StartOptions{LogFile: filepath.Join(openDir(t), "log")})
	var ns *NetNSError
	if !errors.As(err, &ns) || !strings.Contains(err.Error(), spec.NetNS) {
		t.Errorf("missing namespace: %v", err)
	}
}

func TestStartErrorsSayWhatToDo(t *testing.T) {
	dir := openDir(t)
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path, dir string
		is              error
		want            string
	}{
		{"missing", dir + "/none", "", fs.ErrNotExist, "run `make setup`"},
		{"not executable", plain, "", fs.ErrPermission, "run `chmod a+rx " + plain + "`"},
		{"interpreter", script, "", nil, "interpreter or loader"},
		{"directory", "/bin/sh", dir + "/none", fs.ErrNotExist, "working directory " + dir + "/none does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Start(Spec{Path: tc.path, Dir: tc.dir}, StartOptions{LogFile: filepath.Join(dir, "log")})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to contain %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one sentence: %q", err)
			}
		})
	}
}

func TestClosedDirectoryIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another account")
	}
	nobody, err := LookupOwner("nobody")
	if err != nil {
		t.Skip(err)
	}
	dir := openDir(t)
	closed := filepath.Join(dir, "closed")
	if err := os.MkdirAll(closed+"/work", 0o700); err != nil {
		t.Fatal(err)
	}
	spec := sh("true")
	spec.Dir = closed + "/work"
	_, err = Start(spec, StartOptions{LogFile: dir + "/log", Owner: nobody})
	want := "user nobody may not enter " + closed + "; open the directory with `chmod o+x " + closed + "`, or choose another --data-dir"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	if err := CheckReach(spec.Dir, nobody); err == nil || err.Error() != want {
		t.Errorf("CheckReach: got %v", err)
	}
}

func TestFullDiskIsOneSentence(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := openDir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0755"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	path := filepath.Join(dir, "file")
	if err := WriteFile(path, []byte("old"), 0o600, Owner{}); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600, Owner{})
	var full *DiskFullError
	if !errors.As(err, &full) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	want := "write " + path + ": the disk that holds it is full (0 MiB free); free space or choose another --data-dir"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("the old content is gone: %q", b)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("temporary file left: %v", entries)
	}
}

func TestIdentityGuardsAgainstReuse(t *testing.T) {
	p := start(t, sh("exec sleep 1000"), StartOptions{})
	id := p.Identity()
	if !id.Alive() {
		t.Fatal("not alive")
	}
	earlier := Identity{PID: id.PID, StartTicks: id.StartTicks - 1}
	if earlier.Alive() {
		t.Error("a process with the same id but another start time counts as alive")
	}
	if _, err := Adopt(earlier, ""); !errors.Is(err, ErrGone) {
		t.Errorf("adopted another process: %v", err)
	}
	if err := signalOne(earlier, syscall.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("signalled another process: %v", err)
	}
	if err := KillTree(earlier, "", limit); err != nil {
		t.Error(err)
	}
	if !id.Alive() {
		t.Fatal("killed another process")
	}
}

// A process of another parent is adopted, and its end is noticed.
func TestAdopt(t *testing.T) {
	out, err := exec.Command("/bin/sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Adopt(id, "")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
		t.Fatal("ended at once")
	default:
	}
	if err := p.Terminate(&Spec{}); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	if id.Alive() {
		t.Error("alive after its end")
	}
	if _, err := Adopt(id, ""); !errors.Is(err, ErrGone) {
		t.Errorf("adopted a dead process: %v", err)
	}
}

func TestReleaseLeavesTheProcess(t *testing.T) {
	p := start(t, sh("exec sleep 1000"), StartOptions{})
	p.Release()
	wait(t, p)
	if !p.Identity().Alive() {
		t.Error("dead after release")
	}
}

// forest starts a child in the leader's session, one in a session of its own,
// and one that has lost its parent and is only known by the mark.
const forest = `sleep 1001 &
setsid sleep 1002 &
(setsid sh -c 'sleep 1003 & exec sleep 1004' &)
echo up; wait`

func members(t *testing.T, p *Process) []Identity {
	t.Helper()
	table, err := Scan()
	if err != nil {
		t.Fatal(err)
	}
	return p.Members(table)
}

func TestTreeReachesEveryDescendant(t *testing.T) {
	log := filepath.Join(openDir(t), "log")
	p := start(t, sh(forest), StartOptions{LogFile: log})
	waitLog(t, log, "up")
	const want = 5
	var all []Identity
	eventually.Nil(t, limit, func() error {
		if all = members(t, p); len(all) != want {
			return fmt.Errorf("%d members, want %d: %v", len(all), want, all)
		}
		return nil
	})
	if got := Memory(all); got < 100<<10 || got > 1<<30 {
		t.Errorf("memory: %d bytes", got)
	}

	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	inState := func(stopped bool) func() error {
		return func() error {
			for _, id := range all {
				st, err := readStat(id.PID)
				if err != nil {
					return err
				}
				if st.stopped() != stopped {
					return fmt.Errorf("process %d: state %c", id.PID, st.state)
				}
			}
			return nil
		}
	}
	eventually.Nil(t, limit, inState(true))
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, limit, inState(false))

	if err := p.KillTree(limit); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	if got := p.Exit(); got != "killed by SIGKILL" {
		t.Errorf("exit: %q", got)
	}
	for _, id := range all {
		if id.Alive() {
			t.Errorf("process %d survived", id.PID)
		}
	}
}

// What a dead leader leaves behind is still found.
func TestTreeWithoutLeader(t *testing.T) {
	log := filepath.Join(openDir(t), "log")
	p := start(t, sh(forest), StartOptions{LogFile: log})
	waitLog(t, log, "up")
	eventually.Nil(t, limit, func() error {
		if n := len(members(t, p)); n != 5 {
			return fmt.Errorf("%d members", n)
		}
		return nil
	})
	if err := signalOne(p.Identity(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	if n := len(members(t, p)); n != 4 {
		t.Errorf("%d members after the leader's death, want 4", n)
	}
	if err := p.KillTree(limit); err != nil {
		t.Fatal(err)
	}
	if n := len(members(t, p)); n != 0 {
		t.Errorf("%d members left", n)
	}
}

func TestTerminateGroup(t *testing.T) {
	log := filepath.Join(openDir(t), "log")
	spec := sh(`trap 'echo leader; exit 0' TERM
sh -c 'trap "echo child; exit 0" TERM; echo up; while :; do sleep 0.05; done' &
wait; wait`)
	spec.KillGroup = true
	p := start(t, spec, StartOptions{LogFile: log})
	waitLog(t, log, "up")
	if err := p.Terminate(&spec); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	waitLog(t, log, "leader")
	waitLog(t, log, "child")
}

func TestParseStat(t *testing.T) {
	line := "42 (a b) c) S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1 1"
	st, err := parseStat(42, []byte(line))
	if err != nil {
		t.Fatal(err)
	}
	if want := (stat{pid: 42, ppid: 7, group: 8, session: 9, state: 'S', start: 12345}); st != want {
		t.Errorf("got %+v, want %+v", st, want)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1 2", strings.Replace(line, "12345", "x", 1)} {
		if _, err := parseStat(42, []byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

// A subreaper collects the orphans of its units, and nobody else's children.
func TestReapOrphans(t *testing.T) {
	if err := BecomeSubreaper(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
	own := exec.Command("/bin/true")
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(openDir(t), "log")
	// The second orphan leads its own session, as PostgreSQL under Patroni does.
	p := start(t, sh(`(sleep 0.1 & echo $! >&2); (setsid sleep 0.1 & echo $! >&2; echo end >&2)`), StartOptions{LogFile: log})
	wait(t, p)
	orphans := strings.Fields(waitLog(t, log, "end"))[:2]
	// A child of Start that has ended keeps its exit status for its waiter.
	child := start(t, sh(`exit 0`), StartOptions{LogFile: log})
	var reaper Reaper
	eventually.Nil(t, limit, func() error {
		if _, err := reaper.Look(); err != nil {
			return err
		}
		for _, text := range orphans {
			pid, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readStat(pid); err == nil {
				return fmt.Errorf("orphan %d is still there", pid)
			}
		}
		return nil
	})
	wait(t, child)
	if !child.Succeeded() {
		t.Errorf("the exit status of a child of Start was lost: %s", child.Exit())
	}
	if err := own.Wait(); err != nil {
		t.Errorf("a child of os/exec was collected too: %v", err)
	}
}
