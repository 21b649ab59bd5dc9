package strictyaml

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// level decodes itself from a text.
type level int

func (l *level) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(strings.TrimPrefix(string(text), "L"))
	if err != nil {
		return fmt.Errorf("%q is not a level; write it like L3", text)
	}
	*l = level(n)
	return nil
}

// pairOfInts decodes itself from a node.
type pairOfInts struct{ A, B int }

func (p *pairOfInts) UnmarshalYAML(n *yaml.Node) error {
	var list []int
	if err := n.Decode(&list); err != nil {
		return err
	}
	if len(list) != 2 {
		return errors.New("want two numbers")
	}
	p.A, p.B = list[0], list[1]
	return nil
}

type panicky struct{ X int }

func (*panicky) UnmarshalYAML(*yaml.Node) error { panic("boom") }

type item struct {
	Name string `yaml:"name"`
	Size int    `yaml:"size"`
}

func (i *item) SetDefaults() { i.Size = 7 }

type common struct {
	Debug bool `yaml:"debug"`
}

type Extra struct {
	Extra uint8 `yaml:"extra"`
}

type inner struct {
	Timeout time.Duration `yaml:"timeout"`
	Deep    struct {
		PoolSize int `yaml:"poolSize"`
	} `yaml:"deep"`
}

type config struct {
	common   `yaml:",inline"`
	*Extra   `yaml:",inline"`
	Name     string            `yaml:"name"`
	Port     uint16            `yaml:"port"`
	Count    int8              `yaml:"count"`
	Share    float64           `yaml:"share"`
	MaxBody  int               `yaml:"maxBody"`
	Inner    inner             `yaml:"inner"`
	Ptr      *inner            `yaml:"ptr"`
	Items    []item            `yaml:"items"`
	Words    []string          `yaml:"words"`
	Two      [2]int            `yaml:"two"`
	Env      map[string]string `yaml:"env"`
	Weights  map[int]float64   `yaml:"weights"`
	ItemMap  map[string]*item  `yaml:"itemMap"`
	Level    level             `yaml:"level"`
	Pair     pairOfInts        `yaml:"pair"`
	Panicky  panicky           `yaml:"panicky"`
	Anything any               `yaml:"anything"`
	Untagged string
	Skipped  string `yaml:"-"`
	hidden   string //nolint:unused // the decoder must leave unexported fields alone
}

func TestDecodesEveryKind(t *testing.T) {
	c := config{Words: []string{"default"}, Env: map[string]string{"A": "1"}, Inner: inner{Timeout: time.Second}}
	c.Inner.Deep.PoolSize = 4
	err := Unmarshal("f", []byte(`
name: 1.20
port: 8080
count: -3
share: 1e-2
maxBody: 1_000
inner:
  timeout: 1m30s
  deep:
ptr: {timeout: 2s}
items:
  - {name: x}
  - {name: y, size: 2}
words: [a, "b c", 3, null]
two: [1, 2]
env: {B: "2"}
weights: {1: 0.5}
itemMap: {k: {name: m}}
level: L4
pair: [5, 6]
anything: {a: [1, true]}
untagged: u
debug: true
extra: 0x10
`), &c)
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		common: common{Debug: true}, Extra: &Extra{16},
		Name: "1.20", Port: 8080, Count: -3, Share: 0.01, MaxBody: 1000,
		Inner: inner{Timeout: 90 * time.Second}, Ptr: &inner{Timeout: 2 * time.Second},
		Items: []item{{"x", 7}, {"y", 2}}, Words: []string{"a", "b c", "3", "null"}, Two: [2]int{1, 2},
		Env: map[string]string{"A": "1", "B": "2"}, Weights: map[int]float64{1: 0.5},
		ItemMap: map[string]*item{"k": {"m", 7}}, Level: 4, Pair: pairOfInts{5, 6},
		Anything: map[string]any{"a": []any{1, true}}, Untagged: "u",
	}
	want.Inner.Deep.PoolSize = 4
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(config{})); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestEmptyKeepsDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "null\n", "name: x\ninner:\nitems:\nenv:\nptr:\nanything:\n"} {
		c := config{Name: "x", Items: []item{{Name: "d"}}}
		if err := Unmarshal("f", []byte(text), &c); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if c.Name != "x" || len(c.Items) != 1 || c.Ptr != nil {
			t.Errorf("%q: defaults are gone: %+v", text, c)
		}
	}
}

func TestMistakes(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"unknown field", "prot: 1\n", []string{`f:1:1: prot: unknown field "prot"; did you mean "port"?`}},
		{"other spelling", "max_body: 1\n", []string{`f:1:1: max_body: unknown field "max_body"; did you mean "maxBody"?`}},
		{"stands deeper", "inner:\n  poolSize: 3\n", []string{`f:2:3: inner.poolSize: unknown field "poolSize"; did you mean "deep.poolSize"?`}},
		{"far from all", "inner: {xyz: 1}\n", []string{`f:1:9: inner.xyz: unknown field "xyz"; valid here: deep, timeout`}},
		{"in a list", "items:\n- nam: x\n- {name: y, sise: 2}\n", []string{
			`f:2:3: items[0].nam: unknown field "nam"; did you mean "name"?`,
			`f:3:13: items[1].sise: unknown field "sise"; did you mean "size"?`}},
		{"skipped and hidden fields", "skipped: 1\nhidden: 1\n", []string{
			`f:1:1: skipped: unknown field "skipped"`, `f:2:1: hidden: unknown field "hidden"`}},
		{"twice", "port: 1\nname: x\nport: 2\n", []string{`f:3:1: port: already set in line 1; keep one of them`}},
		{"twice in a map", "env: {A: a, A: b}\n", []string{`f:1:13: env.A: already set in line 1; keep one of them`}},
		{"quoted number", "port: \"80\"\n", []string{`f:1:7: port: want a whole number that is not negative, got "80"; remove the quotes`}},
		{"text for a number", "count: many\n", []string{`f:1:8: count: want a whole number, got "many"`}},
		{"fraction", "count: 1.5\n", []string{`f:1:8: count: want a whole number, got "1.5"`}},
		{"negative", "port: -1\n", []string{`f:1:7: port: want a whole number that is not negative, got "-1"`}},
		{"too large", "port: 65536\ncount: 128\n", []string{`f:1:7: port: "65536" is too large`, `f:2:8: count: "128" is too large`}},
		{"octal", "maxBody: 010\n", []string{`f:1:10: maxBody: want a whole number, got "010"; a number does not start with 0`}},
		{"not finite", "share: .nan\n", []string{`f:1:8: share: want a number, got ".nan"`}},
		{"infinite", "share: .inf\n", []string{`f:1:8: share: want a number, got ".inf"`}},
		{"duration", "inner: {timeout: 30}\n", []string{`f:1:18: inner.timeout: want a duration, got "30"; write it like 500ms, 30s, 5m or 12h`}},
		{"value missing", "port:\nname: \"\"\n", []string{`f:1:6: port: the value is missing; write one, or remove the field to get its default`}},
		{"section is a text", "inner: fast\n", []string{`f:1:8: inner: want fields, got "fast"`}},
		{"section is a list", "inner:\n  - timeout: 1s\n", []string{`f:2:3: inner: want fields, got a list`}},
		{"list is a text", "words: a\n", []string{`f:1:8: words: want a list, got "a"; write its elements in lines that start with "- "`}},
		{"map is a list", "env: [a]\n", []string{`f:1:6: env: want a mapping of names to values, got a list`}},
		{"text is a mapping", "name: {a: 1}\n", []string{`f:1:7: name: want a text, got a mapping`}},
		{"empty element", "items:\n  -\n  - name: x\n", []string{`f:2:4: items[0]: the element is empty; remove the "-" or write a value after it`}},
		{"array length", "two: [1]\n", []string{`f:1:6: two: want 2 elements, got 1`}},
		{"own text", "level: high\n", []string{`f:1:8: level: "high" is not a level; write it like L3`}},
		{"own text gets a list", "level: [1]\n", []string{`f:1:8: level: want a single value, got a list`}},
		{"own node", "pair: [1]\n", []string{`f:1:7: pair: want two numbers`}},
		{"own node panics", "panicky: {x: 1}\n", []string{`f:1:10: panicky: cannot be decoded: boom`}},
		{"key is a list", "? [a]\n: b\n", []string{`f:1:3: want a name before the colon, got a list`}},
		{"map key", "weights: {a: 1}\n", []string{`f:1:11: weights.a: want a whole number, got "a"`}},
		{"strange name", "\"a\\nb\": 1\n", []string{`f:1:1: "a\nb": unknown field "a\nb"`}},
		{"foreign tag", "name: !env HOME\n", []string{`f:1:7: name: the tag "!env" is not supported; remove it`}},
		{"whole file is a list", "- a\n", []string{`f:1:1: want fields, got a list`}},
		{"several documents", "name: a\n---\nname: b\n", []string{`f:2:1: a second document starts here; remove the "---" before it: a file holds one document`}},
		{"tab", "inner:\n\ttimeout: 1s\n", []string{`f:2:1: not valid YAML: a tab in the indentation; use spaces`}},
		{"bracket", "name: x\nwords: [a,\ncount: 1\n", []string{`f:2:1: not valid YAML: did not find expected ',' or ']'; check brackets, braces and commas`}},
		{"quote", "port: 1\nname: \"x\ncount: 1\n", []string{`f:2:1: not valid YAML: found unexpected end of stream; a quote, bracket or brace is not closed`}},
		{"indentation", "inner:\n  timeout: 1s\n deep: {}\n", []string{`f:3:2: not valid YAML: did not find expected key; its indentation fits nothing above it`}},
		{"colon missing", "port: 1\n\n# note\nname\ncount: 1\n", []string{`f:4:1: not valid YAML: could not find expected ':'; a field is written "name: value"`}},
		{"colon in a text", "name: a: b\n", []string{`f:1:1: not valid YAML: mapping values are not allowed in this context; check the indentation, and put a text that contains ": " in quotes`}},
		{"at sign", "name: @home\n", []string{`f:1:7: not valid YAML: found character that cannot start any token; put a text that starts with '@' in quotes`}},
		{"unknown anchor", "name: *x\n", []string{`f:1:1: not valid YAML: unknown anchor 'x' referenced`}},
		{"not UTF-8", "name: x\nb: \xff\n", []string{`f:2:4: byte 0xff is not UTF-8 text; save the file as UTF-8`}},
		{"control character", "name: \x00\n", []string{`f:1:7: control character 0x00 in the text; remove it`}},
		{"all at once", "nme: x\nport: high\ninner:\n  timeout: soon\n", []string{
			`f:1:1: nme: unknown field "nme"; did you mean "name"?`,
			`f:2:7: port: want a whole number that is not negative, got "high"`,
			`f:4:12: inner.timeout: want a duration, got "soon"; write it like 500ms, 30s, 5m or 12h`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c config
			err := Unmarshal("f", []byte(tc.text), &c)
			var all *Errors
			if !errors.As(err, &all) {
				t.Fatalf("got %v, want mistakes", err)
			}
			var got []string
			for _, e := range all.List {
				got = append(got, e.Error())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBooleans(t *testing.T) {
	type flags struct {
		On bool `yaml:"on"`
	}
	for text, want := range map[string]bool{"true": true, "True": true, "TRUE": true, "false": false} {
		f := flags{On: !want}
		if err := Unmarshal("f", []byte("on: "+text), &f); err != nil || f.On != want {
			t.Errorf("%s: got %v, %v", text, f.On, err)
		}
	}
	for _, text := range []string{"yes", "off", "Y"} {
		var f flags
		err := Unmarshal("f", []byte("on: "+text), &f)
		if want := `f:1:5: on: want true or false, got "` + text + `"; write true or false`; err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}

func TestAnchorsAndMerges(t *testing.T) {
	var c config
	err := Unmarshal("f", []byte(`
inner: &base
  timeout: 3s
  deep: &deep {poolSize: 9}
ptr:
  <<: *base
  timeout: 5s
itemMap:
  a: &a {name: x, size: 1}
  b: {<<: [*a], size: 2}
`), &c)
	if err != nil {
		t.Fatal(err)
	}
	if c.Ptr.Timeout != 5*time.Second || c.Ptr.Deep.PoolSize != 9 {
		t.Errorf("merged section: %+v", c.Ptr)
	}
	if b := c.ItemMap["b"]; b.Name != "x" || b.Size != 2 {
		t.Errorf("merged element: %+v", b)
	}
	err = Unmarshal("f", []byte("inner: {<<: 3}"), &c)
	if err == nil || !strings.Contains(err.Error(), `inner: "<<" merges a mapping, got "3"`) {
		t.Errorf("merge of a number: %v", err)
	}
}

func TestHostileFilesEnd(t *testing.T) {
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	merge := "m0: &m0 {k: 1}\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
		merge += fmt.Sprintf("m%d: &m%d {<<: [%s]}\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*m%d, ", i-1), 10), ", "))
	}
	type tree []tree
	for name, text := range map[string]string{
		"alias bomb":      bomb,
		"merge bomb":      merge,
		"contains itself": "a: &a [*a]\n",
		"merges itself":   "a: &a\n  <<: *a\n",
		"deep":            "a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			out := map[string]tree{}
			if err := Unmarshal("f", []byte(text), &out); err == nil {
				t.Error("no error")
			}
			out2 := map[string]map[string]int{}
			if err := Unmarshal("f", []byte(text), &out2); err == nil {
				t.Error("no error")
			}
			// The library's own guard serves values without a type.
			var c struct {
				A any `yaml:"a"`
			}
			_ = Unmarshal("f", []byte(text), &c)
		})
	}
}

func TestManyMistakesAreCutShort(t *testing.T) {
	var c config
	err := Unmarshal("f", []byte(strings.Repeat("- x\n", 3)+""), &c)
	if err == nil {
		t.Fatal("no error")
	}
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "bad%d: 1\n", i)
	}
	err = Unmarshal("f", []byte(text.String()), &c)
	var all *Errors
	if !errors.As(err, &all) || len(all.List) != maxErrors+1 {
		t.Fatalf("got %d mistakes, want %d", len(all.List), maxErrors+1)
	}
	if last := all.List[maxErrors].Error(); !strings.Contains(last, "too many mistakes") {
		t.Errorf("the last one is %q", last)
	}
}

func TestOutMustBeAPointer(t *testing.T) {
	for _, out := range []any{nil, config{}, (*config)(nil)} {
		if err := Unmarshal("f", []byte("name: x"), out); err == nil {
			t.Errorf("%T: no error", out)
		}
	}
}

type checked struct {
	Name  string `yaml:"name"`
	Items []item `yaml:"items"`
	Port  int    `yaml:"port"`
	err   error
}

func (c *checked) Validate() error { return c.err }

func TestValidatorsGetPositions(t *testing.T) {
	cause := fmt.Errorf("look: %w", fs.ErrNotExist)
	c := checked{err: errors.Join(
		Problem{Path: "items[1].name", Message: "taken", Hint: "choose another"},
		Problem{Path: "items[0].size", Message: "not in the file"},
		errors.Join(Problem{Path: "absent.field", Message: "nowhere"}),
		fmt.Errorf("wrapped: %w", Problem{Path: "name", Message: "too short"}),
		cause,
	)}
	err := UnmarshalValid("f", []byte("name: x\nitems:\n- name: a\n- {name: a}\n"), &c)
	want := `f has 5 mistakes:
f: look: file does not exist
f:1:1: absent.field: nowhere
f:1:7: name: too short
f:3:3: items[0].size: not in the file
f:4:10: items[1].name: taken; choose another`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if err := UnmarshalValid("f", []byte("name: x"), &checked{}); err != nil {
		t.Error(err)
	}
}

func TestValidatorsAreSilentWhereDecodingFailed(t *testing.T) {
	c := checked{err: errors.Join(
		Problem{Path: "port", Message: "must be set"},
		Problem{Path: "items", Message: "want two"},
		Problem{Path: "name", Message: "bad"},
	)}
	err := UnmarshalValid("f", []byte("name: x\nport: high\nitems: [{size: s}]\n"), &c)
	want := `f has 3 mistakes:
f:1:7: name: bad
f:2:7: port: want a whole number, got "high"
f:3:16: items[0].size: want a whole number, got "s"`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if err := UnmarshalValid("f", []byte("{"), &c); err == nil || strings.Contains(err.Error(), "bad") {
		t.Errorf("no YAML at all, yet validated: %v", err)
	}
}

func TestNearest(t *testing.T) {
	valid := []string{"gateway", "postgres", "redis", "maxBody", "min", "max"}
	for name, want := range map[string]string{
		"gatway": "gateway", "getaway": "gateway", "Gateway": "gateway", "postgresql": "postgres", "pg": "",
		"rdeis": "redis", "max_body": "maxBody", "maxbodysize": "maxBody", "mix": "max", "milvus": "", "": "",
		strings.Repeat("x", 1000): "",
	} {
		if got := Nearest(name, valid); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, seed := range []string{
		"", "name: x\nport: 1\n", "a: &a [*a]", "a: {<<: *a}", "? [a]\n: b", "\t", "---\n---\n", "items: [{name: x}, null]",
		"level: L1\npair: [1, 2]\nanything: {1: 2}\nenv: {A: b}\nweights: {1: 2}\ntwo: [1, 2]\n",
		"x: !!binary aa\n", "name: !!int x\n", "{", "a: |\n  b\n c", "inner: {timeout: 1h, deep: {poolSize: 0b1}}", "\"\\ud800\": 1",
		"<<: [<<, {<<: {name: x}}]", "%TAG ! !!\n---\na: b\n", "anything: !!float x\n", "anything: {[]: 1}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c config
		err := Unmarshal("f", data, &c)
		var all *Errors
		if err == nil || !errors.As(err, &all) {
			return
		}
		for _, e := range all.List {
			if e.Line < 1 || e.Column < 1 || e.Message == "" || strings.Contains(e.Error(), "\n") {
				t.Errorf("mistake without a place or with a wrong text: %#v", e)
			}
		}
		pos, _ := Decode("f", data, &config{})
		if pos != nil && pos.Lookup("items[0].name").Line < 1 {
			t.Error("no position")
		}
	})
}
