package web

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"fournines/internal/servertest"
)

// maxScript is what the page may make a browser load and compile.
const maxScript = 300 << 10

func files(t *testing.T, page fs.FS) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := fs.WalkDir(page, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(page, name)
		out[name] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPageIsSmallAndComplete(t *testing.T) {
	all := files(t, Page())
	script := 0
	for name, text := range all {
		if strings.HasSuffix(name, ".js") {
			script += len(text)
		}
		// XML namespaces are names, not places.
		for _, url := range regexp.MustCompile(`(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^"'\s)]*`).FindAllString(string(text), -1) {
			if !strings.Contains(url, "//www.w3.org/") {
				t.Errorf("%s names %s: the page has to work without the internet", name, url)
			}
		}
	}
	if script == 0 || script > maxScript {
		t.Errorf("%d bytes of script, want at most %d", script, maxScript)
	}
	t.Logf("%d bytes of script", script)
	index := string(all["index.html"])
	if strings.Contains(index, "<style") || regexp.MustCompile(`<script(?:\s[^>]*)?>[^<]`).MatchString(index) || strings.Contains(index, " style=") {
		t.Error("index.html has a script or style of its own, which the page's policy forbids")
	}
	for _, m := range regexp.MustCompile(`(?:src|href)="/([^"]+)"`).FindAllStringSubmatch(index, -1) {
		if all[m[1]] == nil {
			t.Errorf("index.html loads %s, which is not there", m[1])
		}
	}
}

// TestBuildIsCurrent builds the page again: dist has to be what the sources make.
func TestBuildIsCurrent(t *testing.T) {
	bin, err := filepath.Abs("node_modules/.bin")
	if err != nil {
		t.Fatal(err)
	}
	servertest.Need(t, "node", filepath.Join(bin, "vite"), filepath.Join(bin, "tsc"))
	if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "tsc"), "--noEmit").CombinedOutput(); err != nil {
		t.Fatalf("types: %v\n%s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "vite"), "build", "--outDir", dir, "--logLevel", "warn").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	want, got := files(t, os.DirFS(dir)), files(t, Page())
	var names []string
	for name, text := range want {
		if !bytes.Equal(text, got[name]) {
			names = append(names, name)
		}
	}
	for name := range got {
		if want[name] == nil {
			names = append(names, name+" (left over)")
		}
	}
	slices.Sort(names)
	if len(names) > 0 {
		t.Errorf("dist is not what the sources make; run `npm run build` in web and commit dist: %s", strings.Join(names, ", "))
	}
}
