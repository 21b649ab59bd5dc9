package strictyaml

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Bounds on what a file may make the decoder do. Aliases can multiply a small
// file into a huge one, or make it contain itself.
const (
	maxDepth = 100
	maxNodes = 200_000
	// maxErrors keeps the answer to a wrong kind of file readable.
	maxErrors = 50
)

type decoder struct {
	pos   *Positions
	errs  []*Error
	nodes int
	over  bool
}

func (d *decoder) fail(path string, n *yaml.Node, cause error, hint, format string, args ...any) {
	if d.over {
		return
	}
	message := fmt.Sprintf(format, args...)
	if len(d.errs) >= maxErrors {
		d.over = true
		message, hint, cause, path = "too many mistakes; the rest of the file was not read", "", nil, ""
	}
	d.errs = append(d.errs, &Error{
		File: d.pos.file, Line: n.Line, Column: n.Column,
		Path: path, Message: message, Hint: hint, cause: cause,
	})
}

// value decodes n into out, which is settable. path is where it stands.
func (d *decoder) value(path string, n *yaml.Node, out reflect.Value, depth int) {
	d.nodes++
	switch {
	case d.over:
		return
	case d.nodes > maxNodes || depth > maxDepth:
		d.fail(path, n, nil, "write it without anchors and aliases", "nested too deeply or too large")
		d.over = true
		return
	case n.Kind == yaml.AliasNode:
		if n.Alias == nil {
			d.fail(path, n, nil, "", "alias without an anchor")
			return
		}
		d.value(path, n.Alias, out, depth+1)
		return
	}
	if !d.tagOK(path, n) {
		return
	}
	if isNull(n) && d.null(path, n, out) {
		return
	}
	if d.custom(path, n, out) {
		return
	}
	switch out.Kind() {
	case reflect.Pointer:
		if out.IsNil() {
			fresh := newValue(out.Type().Elem())
			d.value(path, n, fresh.Elem(), depth+1)
			out.Set(fresh)
			return
		}
		d.value(path, n, out.Elem(), depth+1)
	case reflect.Struct:
		d.structure(path, n, out, depth)
	case reflect.Map:
		d.mapping(path, n, out, depth)
	case reflect.Slice, reflect.Array:
		d.sequence(path, n, out, depth)
	case reflect.Interface:
		d.plain(path, n, out)
	default:
		d.scalar(path, n, out)
	}
}

// tagOK refuses explicit types other than YAML's own.
func (d *decoder) tagOK(path string, n *yaml.Node) bool {
	if n.Style&yaml.TaggedStyle == 0 {
		return true
	}
	switch n.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!map", "!!seq":
		return true
	}
	d.fail(path, n, nil, "remove it", "the tag %q is not supported", shorten(n.Tag))
	return false
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// null handles a value that is absent or null. It reports false when the type
// of out decides by itself.
func (d *decoder) null(path string, n *yaml.Node, out reflect.Value) bool {
	switch out.Kind() {
	case reflect.Pointer, reflect.Struct, reflect.Map, reflect.Slice, reflect.Interface:
		// An empty section: everything in it is commented out.
		return true
	case reflect.String:
		if n.Value != "" {
			// A name such as "null" or "~" is a text where a text is wanted.
			return false
		}
	}
	d.fail(path, n, nil, "write one, or remove the field to get its default", "the value is missing")
	return true
}

// custom lets the type decode itself and reports whether it can.
func (d *decoder) custom(path string, n *yaml.Node, out reflect.Value) bool {
	if !out.CanAddr() {
		return false
	}
	switch t := out.Addr().Interface().(type) {
	case yaml.Unmarshaler:
		if err := guard(func() error { return t.UnmarshalYAML(n) }); err != nil {
			d.fail(path, n, err, "", "%s", oneLine(err))
		}
		return true
	case encoding.TextUnmarshaler:
		if n.Kind != yaml.ScalarNode {
			d.fail(path, n, nil, "", "want a single value, got %s", kindName(n))
			return true
		}
		if err := guard(func() error { return t.UnmarshalText([]byte(n.Value)) }); err != nil {
			d.fail(path, n, err, "", "%s", oneLine(err))
		}
		return true
	}
	return false
}

// guard turns a panic of f into an error: a type's own decoder is handed
// whatever a file contains.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot be decoded: %v", p)
		}
	}()
	return f()
}

func oneLine(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	return strings.Join(strings.Fields(text), " ")
}

// plain decodes into an interface without methods.
func (d *decoder) plain(path string, n *yaml.Node, out reflect.Value) {
	if out.NumMethod() > 0 {
		d.fail(path, n, nil, "", "cannot be decoded into %s", out.Type())
		return
	}
	var v any
	if err := guard(func() error { return n.Decode(&v) }); err != nil {
		d.fail(path, n, err, "", "%s", oneLine(err))
		return
	}
	if v != nil {
		out.Set(reflect.ValueOf(v))
	}
}

func (d *decoder) sequence(path string, n *yaml.Node, out reflect.Value, depth int) {
	if n.Kind != yaml.SequenceNode {
		d.fail(path, n, nil, `write its elements in lines that start with "- "`, "want a list, got %s", kindName(n))
		return
	}
	list := out
	if out.Kind() == reflect.Slice {
		list = reflect.MakeSlice(out.Type(), len(n.Content), len(n.Content))
	} else if len(n.Content) != out.Len() {
		d.fail(path, n, nil, "", "want %d elements, got %d", out.Len(), len(n.Content))
		return
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.pos.at[at] = Position{Line: item.Line, Column: item.Column}
		if isNull(item) && item.Value == "" {
			d.fail(at, item, nil, `remove the "-" or write a value after it`, "the element is empty")
			continue
		}
		setDefaults(list.Index(i))
		d.value(at, item, list.Index(i), depth+1)
	}
	if out.Kind() == reflect.Slice {
		out.Set(list)
	}
}

func (d *decoder) mapping(path string, n *yaml.Node, out reflect.Value, depth int) {
	if n.Kind != yaml.MappingNode {
		d.fail(path, n, nil, "", "want a mapping of names to values, got %s", kindName(n))
		return
	}
	if out.IsNil() {
		out.Set(reflect.MakeMap(out.Type()))
	}
	for _, p := range d.pairs(path, n, depth) {
		key := reflect.New(out.Type().Key()).Elem()
		before := len(d.errs)
		d.value(p.path, p.key, key, depth+1)
		if len(d.errs) > before {
			continue
		}
		elem := newValue(out.Type().Elem()).Elem()
		d.value(p.path, p.value, elem, depth+1)
		if !key.Comparable() {
			d.fail(p.path, p.key, nil, "", "cannot be a key")
			continue
		}
		out.SetMapIndex(key, elem)
	}
}

func (d *decoder) structure(path string, n *yaml.Node, out reflect.Value, depth int) {
	if n.Kind != yaml.MappingNode {
		d.fail(path, n, nil, "", "want fields, got %s", kindName(n))
		return
	}
	fields := map[string]reflect.Value{}
	collect(out, fields)
	for _, p := range d.pairs(path, n, depth) {
		field, ok := fields[p.key.Value]
		if !ok {
			d.fail(p.path, p.key, nil, suggestField(p.key.Value, fields), "unknown field %q", p.key.Value)
			continue
		}
		d.value(p.path, p.value, field, depth+1)
	}
}

// suggestField says which field was meant: one of this section, one with that
// very name further down, or any.
func suggestField(name string, fields map[string]reflect.Value) string {
	names := slices.Sorted(maps.Keys(fields))
	if Nearest(name, names) == "" {
		for _, section := range names {
			inner := map[string]reflect.Value{}
			if fields[section].Kind() == reflect.Struct {
				collect(fields[section], inner)
			}
			if _, ok := inner[name]; ok {
				return suggest(section+"."+name, []string{section + "." + name})
			}
		}
	}
	return suggest(name, names)
}

// collect finds the fields of a struct by their names in the file.
func collect(v reflect.Value, into map[string]reflect.Value) {
	for i := range v.NumField() {
		name, inline, ok := FieldName(v.Type().Field(i))
		switch {
		case !ok:
		case inline:
			field := v.Field(i)
			if field.Kind() == reflect.Pointer {
				if field.IsNil() {
					field.Set(newValue(field.Type().Elem()))
				}
				field = field.Elem()
			}
			if field.Kind() == reflect.Struct {
				collect(field, into)
			}
		default:
			into[name] = v.Field(i)
		}
	}
}

// FieldName returns the name that a struct field has in a file, and whether
// its own fields stand in its place. It reports false for fields that a file
// cannot set.
func FieldName(f reflect.StructField) (name string, inline, ok bool) {
	tag := f.Tag.Get("yaml")
	name, options, _ := strings.Cut(tag, ",")
	inline = slices.Contains(strings.Split(options, ","), "inline")
	// The exported fields of an unexported embedded struct can be set.
	promoted := inline && f.Anonymous && f.Type.Kind() == reflect.Struct
	switch {
	case tag == "-", !f.IsExported() && !promoted:
		return "", false, false
	case inline:
		return "", true, true
	}
	if name == "" {
		name = strings.ToLower(f.Name)
	}
	return name, false, true
}

type pair struct {
	path       string
	key, value *yaml.Node
}

// pairs returns the fields of a mapping, reports keys that are no names or
// appear twice, and adds what "<<" merges in.
func (d *decoder) pairs(path string, n *yaml.Node, depth int) []pair {
	// Aliases may bring the same long mapping in many times.
	d.nodes += len(n.Content) / 2
	seen := map[string]*yaml.Node{}
	var out []pair
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode && key.Alias != nil {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			d.fail(path, key, nil, "", "want a name before the colon, got %s", kindName(key))
			continue
		}
		if key.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		at := join(path, key.Value)
		if first, twice := seen[key.Value]; twice {
			d.fail(at, key, nil, "keep one of them", "already set in line %d", first.Line)
			continue
		}
		seen[key.Value] = key
		d.note(at, key, value)
		out = append(out, pair{path: at, key: key, value: value})
	}
	for _, m := range merges {
		for _, p := range d.merged(path, m, depth+1) {
			if _, twice := seen[p.key.Value]; !twice {
				seen[p.key.Value] = p.key
				d.note(p.path, p.key, p.value)
				out = append(out, p)
			}
		}
	}
	return out
}

// merged returns the fields that the value of "<<" adds.
func (d *decoder) merged(path string, n *yaml.Node, depth int) []pair {
	d.nodes++
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	switch {
	case d.over:
		return nil
	case d.nodes > maxNodes || depth > maxDepth:
		d.fail(path, n, nil, "write it without anchors and aliases", "nested too deeply or too large")
		d.over = true
		return nil
	case n.Kind == yaml.MappingNode:
		return d.pairs(path, n, depth)
	case n.Kind == yaml.SequenceNode:
		var out []pair
		for _, item := range n.Content {
			out = append(out, d.merged(path, item, depth+1)...)
		}
		return out
	}
	d.fail(path, n, nil, "", `"<<" merges a mapping, got %s`, kindName(n))
	return nil
}

// note remembers where a field stands: a single value at the value, a section
// at its name.
func (d *decoder) note(path string, key, value *yaml.Node) {
	at := key
	if value.Kind == yaml.ScalarNode && value.Line > 0 && value.Value != "" {
		at = value
	}
	d.pos.at[path] = Position{Line: at.Line, Column: at.Column}
}

// join appends a field to a path. A name that would blur the message, such as
// one with spaces or line breaks, is quoted.
func join(path, name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return r == '"' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		name = strconv.Quote(shorten(name))
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// scalar decodes a single value into one of Go's basic types.
func (d *decoder) scalar(path string, n *yaml.Node, out reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.fail(path, n, nil, "", "want %s, got %s", wanted(out), kindName(n))
		return
	}
	tag, text := n.ShortTag(), n.Value
	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0
	wrong := func() {
		hint := ""
		if quoted {
			hint = "remove the quotes"
		} else if out.Kind() == reflect.Bool && slices.Contains([]string{"yes", "no", "on", "off", "y", "n"}, strings.ToLower(text)) {
			hint = "write true or false"
		}
		d.fail(path, n, nil, hint, "want %s, got %q", wanted(out), shorten(text))
	}
	if out.Type() == reflect.TypeFor[time.Duration]() {
		v, err := time.ParseDuration(text)
		if err != nil {
			d.fail(path, n, err, "write it like 500ms, 30s, 5m or 12h", "want %s, got %q", wanted(out), shorten(text))
			return
		}
		out.SetInt(int64(v))
		return
	}
	digits := strings.ReplaceAll(text, "_", "")
	switch kind := out.Kind(); {
	case kind == reflect.String:
		out.SetString(text)
	case kind == reflect.Bool:
		if tag != "!!bool" {
			wrong()
			return
		}
		out.SetBool(strings.EqualFold(text, "true"))
	case tag == "!!str" && quoted:
		wrong()
	case out.CanInt() || out.CanUint():
		if trimmed := strings.TrimLeft(digits, "+-"); len(trimmed) > 1 && trimmed[0] == '0' && trimmed[1] >= '0' && trimmed[1] <= '9' {
			d.fail(path, n, nil, "a number does not start with 0", "want %s, got %q", wanted(out), shorten(text))
			return
		}
		d.integer(path, n, digits, out, wrong)
	case out.CanFloat():
		v, err := strconv.ParseFloat(digits, out.Type().Bits())
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			wrong()
			return
		}
		out.SetFloat(v)
	default:
		d.fail(path, n, nil, "", "cannot be decoded into %s", out.Type())
	}
}

func (d *decoder) integer(path string, n *yaml.Node, digits string, out reflect.Value, wrong func()) {
	var err error
	if out.CanInt() {
		var v int64
		if v, err = strconv.ParseInt(digits, 0, out.Type().Bits()); err == nil {
			out.SetInt(v)
			return
		}
	} else {
		var v uint64
		if v, err = strconv.ParseUint(digits, 0, out.Type().Bits()); err == nil {
			out.SetUint(v)
			return
		}
	}
	if strings.HasSuffix(err.Error(), strconv.ErrRange.Error()) {
		d.fail(path, n, nil, "", "%q is too large", shorten(n.Value))
		return
	}
	wrong()
}

// wanted names in words what fits into out.
func wanted(out reflect.Value) string {
	switch {
	case out.Type() == reflect.TypeFor[time.Duration]():
		return "a duration"
	case out.Kind() == reflect.String:
		return "a text"
	case out.Kind() == reflect.Bool:
		return "true or false"
	case out.CanUint():
		return "a whole number that is not negative"
	case out.CanInt():
		return "a whole number"
	case out.CanFloat():
		return "a number"
	}
	return "a single value"
}

// kindName names in words what stands in the file.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if isNull(n) {
			return "nothing"
		}
		return fmt.Sprintf("%q", shorten(n.Value))
	case yaml.AliasNode:
		return "an alias"
	}
	return "nothing"
}

func shorten(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// newValue returns a pointer to a new value that starts from its defaults.
func newValue(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	setDefaults(v.Elem())
	return v
}

func setDefaults(v reflect.Value) {
	if !v.CanAddr() {
		return
	}
	if d, ok := v.Addr().Interface().(Defaulter); ok {
		d.SetDefaults()
	}
}
