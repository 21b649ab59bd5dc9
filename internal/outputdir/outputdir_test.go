package outputdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, dir string, files map[string]string, force bool) (Result, error) {
	t.Helper()
	content := map[string][]byte{}
	for name, text := range files {
		content[name] = []byte(text)
	}
	return Write(dir, content, force)
}

// tree reads what is in a folder, and fails the test when something was left
// beside it.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == recordFile {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		got[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	beside, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(beside) != 1 {
		t.Errorf("left beside the folder: %v", beside)
	}
	return got
}

func TestWriteReplacesWhatItWrote(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	first := map[string]string{"a.yaml": "1", "layer/b.yaml": "2", "gone/c.yaml": "3"}
	r, err := write(t, dir, first, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Result{Written: []string{"a.yaml", "gone/c.yaml", "layer/b.yaml"}}, r); diff != "" {
		t.Error(diff)
	}
	second := map[string]string{"a.yaml": "1", "layer/b.yaml": "new"}
	if r, err = write(t, dir, second, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Result{Written: []string{"layer/b.yaml"}, Removed: []string{"gone/c.yaml"}, Unchanged: 1}, r); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(second, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(dir, "gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the folder of a file that is gone stays")
	}
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = write(t, dir, second, false); err != nil || r.Unchanged != 2 || len(r.Written) != 0 {
		t.Errorf("the same again: %+v, %v", r, err)
	}
	if after, err := os.Stat(dir); err != nil || !os.SameFile(before, after) {
		t.Error("the same again replaces the folder")
	}
}

func TestWriteKeepsWhatIsNotItsOwn(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(dir string) error
		force   bool
		want    string
	}{
		"a foreign file in a folder of its own": {func(dir string) error { return put(dir, "layer/mine.yaml") }, true, "holds layer/mine.yaml, which fournines did not write"},
		"an edited file":                        {func(dir string) error { return put(dir, "a.yaml") }, false, "changed by hand in a.yaml"},
		"a link": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "a.yaml")), os.Symlink("layer/b.yaml", filepath.Join(dir, "a.yaml")))
		}, true, "holds a.yaml, which fournines did not write"},
		"many": {func(dir string) error {
			var errs []error
			for _, n := range []string{"m1", "m2", "m3", "m4", "m5"} {
				errs = append(errs, put(dir, n))
			}
			return errors.Join(errs...)
		}, false, "holds m1, m2, m3 and 2 more files"},
		"a damaged record": {func(dir string) error { return put(dir, recordFile) }, true, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			if _, err := write(t, dir, map[string]string{"a.yaml": "1", "layer/b.yaml": "2"}, false); err != nil {
				t.Fatal(err)
			}
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir)
			_, err := write(t, dir, map[string]string{"a.yaml": "3"}, test.force)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("the folder was changed: %s", diff)
			}
		})
	}
}

// put writes a file as somebody else would.
func put(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte("by hand"), 0o644)
}

func TestWriteForcesEdits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	want := map[string]string{"a.yaml": "1"}
	if _, err := write(t, dir, want, false); err != nil {
		t.Fatal(err)
	}
	if err := put(dir, "a.yaml"); err != nil {
		t.Fatal(err)
	}
	if _, err := write(t, dir, want, true); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteWhereItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ dir, path, want string }{
		"a file":           {file, "a.yaml", "is a file, not a folder"},
		"below a file":     {filepath.Join(file, "out"), "a.yaml", "not a directory"},
		"out of the tree":  {t.TempDir(), "../a.yaml", "is not the path of a file"},
		"the record":       {t.TempDir(), recordFile, "is not the path of a file"},
		"the folder alone": {t.TempDir(), ".", "is not the path of a file"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := write(t, test.dir, map[string]string{test.path: ""}, true); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestWriteThroughALink(t *testing.T) {
	parent := t.TempDir()
	real, link := filepath.Join(parent, "real"), filepath.Join(parent, "link")
	if err := errors.Join(os.Mkdir(real, 0o755), os.Symlink(real, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := write(t, link, map[string]string{"a.yaml": "1"}, false); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(real, "a.yaml")); err != nil || string(text) != "1" {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
}
