package describe

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"fournines/spec"
)

var update = flag.Bool("update", false, "rewrite the generated files in docs")

// generated are the files that users read, with what makes them.
func generated() map[string]func() ([]byte, error) {
	return map[string]func() ([]byte, error){
		"../../docs/spec.md":                 Reference,
		"../../docs/examples/fournines.yaml": func() ([]byte, error) { return Template("") },
	}
}

func TestGeneratedFiles(t *testing.T) {
	for path, generate := range generated() {
		want, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale (%v); run: go generate ./spec/...", filepath.Clean(path), err)
		}
	}
}

// leaf is a field as the Go types have it, found without package describe.
type leaf struct{ path, name string }

func leaves(t *testing.T, path string, typ reflect.Type) []leaf {
	t.Helper()
	var out []leaf
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		at := strings.TrimPrefix(path+"."+name, ".")
		out = append(out, leaf{at, name})
		switch {
		case f.Type.Kind() == reflect.Struct:
			out = append(out, leaves(t, at, f.Type)...)
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			out = append(out, leaves(t, at+"[]", f.Type.Elem())...)
		}
	}
	return out
}

func flatten(fields []Field) map[string]Field {
	out := map[string]Field{}
	for _, f := range fields {
		out[f.Path] = f
		for path, inner := range flatten(f.Fields) {
			out[path] = inner
		}
		if f.Elem != nil {
			for path, inner := range flatten(f.Elem.Fields) {
				out[path] = inner
			}
		}
	}
	return out
}

// TestEveryFieldIsExplainedEverywhere takes the fields from the types and looks
// for each in every form of the documentation.
func TestEveryFieldIsExplainedEverywhere(t *testing.T) {
	fields, err := Fields()
	if err != nil {
		t.Fatal(err)
	}
	known := flatten(fields)
	template, err := Template("")
	if err != nil {
		t.Fatal(err)
	}
	reference, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	schemaText, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema any
	if err := json.Unmarshal(schemaText, &schema); err != nil {
		t.Fatal(err)
	}
	all := leaves(t, "", reflect.TypeFor[spec.Spec]())
	if len(all) != len(known) {
		t.Errorf("%d fields described, the types have %d", len(known), len(all))
	}
	// Comments are wrapped; compare without line breaks.
	comments := strings.Join(strings.Fields(regexp.MustCompile(`(?m)^\s*#`).ReplaceAllString(string(template), " ")), " ")
	for _, l := range all {
		f, ok := known[l.path]
		switch {
		case !ok:
			t.Errorf("%s is not described", l.path)
			continue
		case len(f.Doc) < 10 || !strings.HasSuffix(f.Doc, "."):
			t.Errorf("%s: %q is not a sentence", l.path, f.Doc)
		case !strings.Contains(l.path, "[]") && !f.Default.IsValid():
			t.Errorf("%s has no default", l.path)
		}
		if !strings.Contains(string(template), l.name+":") || !strings.Contains(comments, f.Doc) {
			t.Errorf("%s is not in the file of fournines init", l.path)
		}
		if !strings.Contains(string(reference), cell(f.Doc)) {
			t.Errorf("%s is not on the reference page", l.path)
		}
		s := lookup(schema, l.path)
		if s == nil || !strings.HasPrefix(fmt.Sprint(s["description"]), f.Doc) {
			t.Errorf("%s is not in the schema", l.path)
		}
	}
}

// lookup finds the schema of a field by its path.
func lookup(schema any, path string) map[string]any {
	node, _ := schema.(map[string]any)
	for part := range strings.SplitSeq(path, ".") {
		name, list := strings.CutSuffix(part, "[]")
		properties, _ := node["properties"].(map[string]any)
		node, _ = properties[name].(map[string]any)
		if list {
			node, _ = node["items"].(map[string]any)
		}
	}
	return node
}

func TestTemplateIsTheDefault(t *testing.T) {
	for _, schema := range []string{"", "./schema.json"} {
		text, err := Template(schema)
		if err != nil {
			t.Fatal(err)
		}
		got, err := spec.Parse("template", text)
		if err != nil {
			t.Fatal(err)
		}
		want := spec.Default()
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("the file means something else than the defaults (-default +file):\n%s", diff)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if len([]rune(line)) > lineWidth {
				t.Errorf("line %d is %d wide: %s", i+1, len(line), line)
			}
		}
	}
}

func TestDocsForUsers(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"CPUCost", "CPUCost is the time.\n", "The time."},
		{"Zones", "Zones are the failure\ndomains.", "The failure domains."},
		{"Source", "Source of Dify: one.", "Source of Dify: one."},
		{"Max", "Max bounds its growth.", "Bounds its growth."},
		{"Port", "The port.", "The port."},
		{"Port", "", ""},
	} {
		if got := forUsers(tc.name, tc.doc); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.doc, got, tc.want)
		}
	}
}

// compile checks the schema against its own dialect.
func compile(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("spec.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("spec.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON reads YAML the way an editor hands it to a validator.
func asJSON(t *testing.T, text []byte) (any, error) {
	t.Helper()
	var plain any
	if err := yaml.Unmarshal(text, &plain); err != nil {
		return nil, err
	}
	out, err := json.Marshal(plain)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(out))
}

func TestSchemaAcceptsWhatTheProgramAccepts(t *testing.T) {
	s := compile(t)
	template, err := Template("")
	if err != nil {
		t.Fatal(err)
	}
	inputs := map[string][]byte{"template": template}
	for _, path := range glob(t, "../testdata/*.good.yaml") {
		if inputs[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range inputs {
		v, err := asJSON(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSchemaRefuses(t *testing.T) {
	s := compile(t)
	for _, text := range []string{
		"gatway: {}", "gateway: {prot: 1}", "gateway: {port: 0}", "gateway: {port: '80'}", "gateway: {maxBody: 10MB}",
		"gateway: {heartbeat: 30}", "gateway: {heartbeat: soon}", "gateway: {spillThreshold: 1.5}", "dify: {source: compose}",
		"dify: {version: latest}", "dify: {external: {}}", "dify: {external: [{host: x}]}", "zones: [{name: a}, {name: b}]",
		"name: My Stack", "vectors: {metric: ip}", "postgres: {synchronous: 1}", "[]", "dify: {command: {env: {A: []}}}",
	} {
		v, err := asJSON(t, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if s.Validate(v) == nil {
			t.Errorf("%s: accepted", text)
		}
		if _, err := spec.Parse("f", []byte(text)); err == nil {
			t.Errorf("%s: the program accepts it", text)
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return paths
}
