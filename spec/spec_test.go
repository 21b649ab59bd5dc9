package spec

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fournines/internal/strictyaml"
)

var update = flag.Bool("update", false, "rewrite the expected errors in testdata/*.bad.yaml")

func TestDefaultIsValid(t *testing.T) {
	s := Default()
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestGoodFiles(t *testing.T) {
	for _, path := range files(t, "testdata/*.good.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			if _, err := Load(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBadFiles reads files that begin with the errors they must cause, in
// lines like "# error: message". -update rewrites these lines.
func TestBadFiles(t *testing.T) {
	for _, path := range files(t, "testdata/*.bad.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			body := string(text)
			for {
				line, rest, _ := strings.Cut(body, "\n")
				message, ok := strings.CutPrefix(line, "# error: ")
				if !ok {
					break
				}
				want, body = append(want, message), rest
			}
			if *update {
				// The lines themselves move the positions in the file.
				lines := len(messages(t, filepath.Base(path), body))
				want = messages(t, filepath.Base(path), strings.Repeat("#\n", lines)+body)
				var head strings.Builder
				for _, message := range want {
					head.WriteString("# error: " + message + "\n")
				}
				if err := os.WriteFile(path, []byte(head.String()+body), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(want) == 0 {
				t.Fatal("the file does not begin with the errors it must cause")
			}
			if diff := cmp.Diff(want, messages(t, filepath.Base(path), string(text))); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return paths
}

// messages returns the mistakes that Parse finds, one by one.
func messages(t *testing.T, name, text string) []string {
	t.Helper()
	_, err := Parse(name, []byte(text))
	var all *strictyaml.Errors
	if !errors.As(err, &all) {
		t.Fatalf("got %v, want mistakes", err)
	}
	var out []string
	for _, e := range all.List {
		out = append(out, e.Error())
	}
	return out
}

func TestLoadExplainsWhatIsNotAFile(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "x.yaml"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "write one with `fournines init -o ") {
		t.Errorf("missing file: %v", err)
	}
	if _, err = Load(dir); err == nil || !strings.Contains(err.Error(), "is a directory; name the file") {
		t.Errorf("directory: %v", err)
	}
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, MaxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(large); err == nil || !strings.Contains(err.Error(), "is it the right file?") {
		t.Errorf("large file: %v", err)
	}
}

func TestDefaultsAreNotShared(t *testing.T) {
	one, two := Default(), Default()
	one.Zones[0].Name = "changed"
	one.Dify.Command.Env["K"] = "v"
	if two.Zones[0].Name != "a" || len(two.Dify.Command.Env) != 0 {
		t.Error("a change of one default shows in another")
	}
}

func TestZonesOfASpec(t *testing.T) {
	s := Default()
	if diff := cmp.Diff([]string{"a", "b"}, s.FullZones()); diff != "" {
		t.Error(diff)
	}
	if got := s.VectorsZone(); got != "a" {
		t.Errorf("vectors run in %q, want the first full zone", got)
	}
	s.Vectors.Zone = "b"
	if got := s.VectorsZone(); got != "b" {
		t.Errorf("vectors run in %q, want b", got)
	}
	if got := (&Spec{}).VectorsZone(); got != "" {
		t.Errorf("without zones: %q", got)
	}
}

func TestPortOffset(t *testing.T) {
	p := Default().Local.Ports
	p.PortOffset = 100
	got := p.Effective()
	want := Ports{Gateway: 8580, Postgres: 15532, Redis: 16479, Milvus: 29630, Prometheus: 9590, Alertmanager: 9593, Console: 8590}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestEveryFieldHasAName guards what the generated documentation relies on:
// names in camelCase, and patterns that are also said in words.
func TestEveryFieldHasAName(t *testing.T) {
	var walk func(t reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, inline, ok := strictyaml.FieldName(f)
			if !ok || inline || name == strings.ToLower(f.Name) && f.Tag.Get("yaml") == "" {
				t.Errorf("%s.%s has no yaml name", typ.Name(), f.Name)
			}
			if name != "" && (name[0] < 'a' || name[0] > 'z' || strings.ContainsAny(name, "_-")) {
				t.Errorf("%s.%s: %q is not camelCase", typ.Name(), f.Name, name)
			}
			if f.Tag.Get("pattern") != "" && f.Tag.Get("wants") == "" {
				t.Errorf("%s.%s has a pattern but does not say in words what it wants", typ.Name(), f.Name)
			}
			inner := f.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				walk(inner)
			}
		}
	}
	walk(reflect.TypeFor[Spec]())
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/*.good.yaml", "testdata/*.bad.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f", data)
		if err == nil && s.Validate() != nil {
			t.Error("accepted, but not valid")
		}
	})
}
