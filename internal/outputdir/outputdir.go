// Package outputdir replaces a folder of generated files as a whole. A reader
// sees the old folder or the new one, and nothing that somebody else wrote or
// changed is lost.
package outputdir

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// recordFile says in a folder what was written there.
const recordFile = ".fournines-rendered.json"

// record is the content of recordFile.
type record struct {
	// Files are the SHA-256 of each file's content by its path.
	Files map[string]string `json:"files"`
}

// Result says what a Write did.
type Result struct {
	// Written are the files whose content is new; Removed are those of an earlier
	// rendering that are gone. Both are sorted.
	Written, Removed []string
	// Unchanged is how many files are as they were.
	Unchanged int
}

// A ForeignError says that a folder holds what was not written by Write, or was
// changed since.
type ForeignError struct {
	// Dir is the folder.
	Dir string
	// Files are paths in it that are somebody else's, Changed those that were
	// edited. Sorted.
	Files, Changed []string
}

func (e *ForeignError) Error() string {
	if len(e.Files) > 0 {
		return fmt.Sprintf("%s holds %s, which fournines did not write; give a folder of its own, or an empty one", e.Dir, some(e.Files))
	}
	return fmt.Sprintf("%s was changed by hand in %s; keep changes in an overlay of their own, or use --force to lose them", e.Dir, some(e.Changed))
}

// some names the first of a list and how many there are besides.
func some(list []string) string {
	const shown = 3
	if len(list) <= shown {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more files", strings.Join(list[:shown], ", "), len(list)-shown)
}

// Write makes dir hold exactly files, by their paths with slashes. A dir that is
// missing is made; one that holds anything that Write did not put there, or that
// was edited since, is left as it is and a *ForeignError returned. force loses
// edits, never foreign files.
func Write(dir string, files map[string][]byte, force bool) (Result, error) {
	for name := range files {
		if !fs.ValidPath(name) || name == "." || name == recordFile {
			return Result{}, fmt.Errorf("%q is not the path of a file in a folder", name)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Result{}, err
	}
	// A link stays; what it leads to is replaced.
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	old, err := inspect(dir, force)
	if err != nil {
		return Result{}, err
	}
	now := record{Files: map[string]string{}}
	for name, content := range files {
		now.Files[name] = digest(content)
	}
	r := compare(old, now.Files)
	if old != nil && len(r.Written)+len(r.Removed) == 0 {
		return r, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return Result{}, err
	}
	next, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-")
	if err != nil {
		return Result{}, err
	}
	// After the swap it is the old folder.
	defer func() { _ = os.RemoveAll(next) }()
	if err := fill(next, files, now); err != nil {
		return Result{}, err
	}
	return r, swap(next, dir)
}

// inspect returns the digests of the files that an earlier Write left in dir, nil
// when there is no dir.
func inspect(dir string, force bool) (map[string]string, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is a file, not a folder", dir)
	}
	var rec record
	if text, err := os.ReadFile(filepath.Join(dir, recordFile)); err == nil {
		if err := json.Unmarshal(text, &rec); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, recordFile), err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	found := map[string]string{}
	foreign := &ForeignError{Dir: dir}
	err = fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == recordFile {
			return err
		}
		want, ours := rec.Files[name]
		if !ours || !d.Type().IsRegular() {
			foreign.Files = append(foreign.Files, name)
			return nil
		}
		text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		found[name] = digest(text)
		if found[name] != want {
			foreign.Changed = append(foreign.Changed, name)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case len(foreign.Files) > 0:
		foreign.Changed = nil
		return nil, foreign
	case len(foreign.Changed) > 0 && !force:
		return nil, foreign
	}
	return found, nil
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func compare(old, now map[string]string) Result {
	var r Result
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if old[name] == now[name] {
			r.Unchanged++
		} else {
			r.Written = append(r.Written, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if _, kept := now[name]; !kept {
			r.Removed = append(r.Removed, name)
		}
	}
	return r
}

// fill writes the new folder.
func fill(dir string, files map[string][]byte, rec record) error {
	if err := os.Chmod(dir, 0o755); err != nil { // MkdirTemp's is the owner's alone
		return err
	}
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	all := maps.Clone(files)
	all[recordFile] = append(text, '\n')
	for name, content := range all {
		if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(path.Dir(name))), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// swap puts next in the place of dir, and what was there in the place of next.
func swap(next, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(next, dir)
	}
	if err := exchange(next, dir); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	aside := next + ".old"
	if err := os.Rename(dir, aside); err != nil {
		return err
	}
	if err := os.Rename(next, dir); err != nil {
		return errors.Join(err, os.Rename(aside, dir))
	}
	return os.RemoveAll(aside)
}
