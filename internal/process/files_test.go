package process

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestWriteFileModeAndOwner(t *testing.T) {
	dir := openDir(t)
	owner := Owner{}
	if os.Geteuid() == 0 {
		if o, err := LookupOwner("nobody"); err == nil {
			owner = o
		}
	}
	path := filepath.Join(dir, "a", "b", "secret")
	if err := MkdirAll(filepath.Dir(path), 0o700, owner); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(content), 0o600, owner); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != content {
			t.Errorf("got %q", b)
		}
	}
	for p, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700, filepath.Join(dir, "a"): 0o755} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, want %v", p, st.Mode().Perm(), mode)
		}
		if uid := int(st.Sys().(*syscall.Stat_t).Uid); owner != (Owner{}) && uid != owner.UID {
			t.Errorf("%s: owner %d, want %d", p, uid, owner.UID)
		}
	}
}

func TestMkdirAllRefusesALink(t *testing.T) {
	dir := openDir(t)
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(filepath.Join(dir, "link"), 0o700, Owner{}); err == nil {
		t.Error("followed a symbolic link")
	}
}

// numberedLines writes the lines from..to-1.
func numberedLines(from, to int) []byte {
	var b bytes.Buffer
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "line %06d of a log that gets rotated\n", i)
	}
	return b.Bytes()
}

// Whatever the file system, a writer that pauses during the rotation loses nothing.
func TestRotateLog(t *testing.T) {
	places := map[string]string{"disk": openDir(t)}
	if os.Geteuid() == 0 {
		dir := openDir(t)
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err == nil {
			t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
			places["tmpfs"] = dir // has no block-wise cut
		}
	}
	for name, dir := range places {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "log")
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const perRound, rounds, max = 1000, 3, 8 << 10
			for i := range rounds {
				if _, err := f.Write(numberedLines(i*perRound, (i+1)*perRound)); err != nil {
					t.Fatal(err)
				}
				if rotated, err := RotateLog(path, max, rounds); err != nil || !rotated {
					t.Fatalf("rotated %v, %v", rotated, err)
				}
			}
			if st, _ := f.Stat(); st.Size() > 64<<10 {
				t.Errorf("the log still has %d bytes", st.Size())
			}
			if rotated, err := RotateLog(path, 1<<20, rounds); err != nil || rotated {
				t.Errorf("rotated a small log: %v, %v", rotated, err)
			}
			var all []byte
			for i := rounds; i > 0; i-- {
				b, err := os.ReadFile(numbered(path, i))
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, b...)
			}
			rest, _ := os.ReadFile(path)
			all = append(all, rest...)
			if want := numberedLines(0, rounds*perRound); !bytes.Equal(all, want) {
				t.Errorf("%d bytes of %d, or in the wrong order", len(all), len(want))
			}
			if _, err := f.Write(numberedLines(0, 1000)); err != nil {
				t.Fatal(err)
			}
			if _, err := RotateLog(path, max, 1); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// On a file system that can cut blocks, nothing is lost under a busy writer.
func TestRotateLogUnderABusyWriter(t *testing.T) {
	dir := openDir(t)
	path := filepath.Join(dir, "log")
	const lines = 20000
	p := start(t, sh(fmt.Sprintf("seq -f 'line %%06.0f' 1 %d | while read l; do echo \"$l\"; done", lines)), StartOptions{LogFile: path})
	rotations := 0
	for done := false; !done; {
		select {
		case <-p.Done():
			done = true
		default:
		}
		rotated, err := RotateLog(path, 16<<10, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if rotated {
			rotations++
		}
	}
	var all strings.Builder
	for i := rotations; i >= 0; i-- {
		name := path
		if i > 0 {
			name = numbered(path, i)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	got := strings.Count(all.String(), "\n")
	if got != lines && !cutsBlocks(t, dir) {
		t.Skipf("%d of %d lines: this file system has the copy-and-truncate window", got, lines)
	}
	if got != lines || rotations == 0 {
		t.Errorf("%d lines of %d after %d rotations", got, lines, rotations)
	}
}

func cutsBlocks(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return syscall.Fallocate(int(f.Fd()), 0x08, 0, 512<<10) == nil
}
