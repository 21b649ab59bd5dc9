// Package describe explains the fields of a spec to people and to editors: the
// commented file, the JSON Schema and the reference page. All of it comes from
// the doc comments, struct tags and defaults of package spec, so none of it
// can say something else than the program does.
package describe

//go:generate go test -run ^TestGeneratedFiles$ . -update

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"reflect"
	"strings"

	"fournines/internal/strictyaml"
	"fournines/spec"
)

// Kind is the sort of value a field takes.
type Kind string

// The kinds of fields.
const (
	Section  Kind = "section"
	List     Kind = "list"
	Map      Kind = "map"
	Text     Kind = "text"
	Secret   Kind = "secret"
	Integer  Kind = "integer"
	Number   Kind = "number"
	Boolean  Kind = "boolean"
	Duration Kind = "duration"
	Size     Kind = "size"
)

// Field is one field of the spec.
type Field struct {
	// Name in the file, "interval"; empty for the elements of a list or map.
	Name string
	// Path from the top of the file, "gateway.health.interval"; the fields of
	// list elements stand under "zones[]".
	Path string
	Kind Kind
	// Doc is the explanation, one paragraph without line breaks.
	Doc string
	// Default is the value of an empty file; invalid for what stands inside
	// list elements.
	Default reflect.Value
	// Lowest and Highest bound the value, or the number of elements of a
	// list, in the notation of the file; empty when there is no bound.
	Lowest, Highest string
	// Enum lists the allowed words.
	Enum []string
	// Pattern is a regular expression for the text; Wants says it in words.
	Pattern, Wants string
	// Fields are those of a section.
	Fields []Field
	// Elem describes the elements of a list or map.
	Elem *Field
}

// Fields returns the sections of a spec in the order of the file.
func Fields() ([]Field, error) {
	docs, err := readDocs(spec.Sources)
	if err != nil {
		return nil, err
	}
	def := spec.Default()
	d := describer{docs: docs}
	fields := d.fields("", reflect.TypeFor[spec.Spec](), reflect.ValueOf(def))
	return fields, d.err
}

// docs maps "Type.Field" to the doc comment.
type docs map[string]string

func readDocs(files fs.FS) (docs, error) {
	names, err := fs.Glob(files, "*.go")
	if err != nil {
		return nil, fmt.Errorf("list the sources of spec: %w", err)
	}
	out := docs{}
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read the sources of spec: %w", err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments)
		if err != nil {
			return nil, fmt.Errorf("parse the sources of spec: %w", err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			typ, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			body, ok := typ.Type.(*ast.StructType)
			if !ok {
				return false
			}
			for _, field := range body.Fields.List {
				for _, ident := range field.Names {
					out[typ.Name.Name+"."+ident.Name] = forUsers(ident.Name, field.Doc.Text())
				}
			}
			return false
		})
	}
	return out, nil
}

// forUsers turns a Go doc comment into a sentence for readers who do not know
// the Go name: "CPUCost is the time …" becomes "The time …".
func forUsers(name, doc string) string {
	words := strings.Fields(doc)
	if len(words) > 2 && words[0] == name {
		switch words[1] {
		case "is", "are":
			words = words[2:]
		case "of", "in", "between", "that", "for", "at", "the", "over":
		default:
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return ""
	}
	words[0] = strings.ToUpper(words[0][:1]) + words[0][1:]
	return strings.Join(words, " ")
}

type describer struct {
	docs docs
	err  error
}

// fields describes the fields of a struct type. def holds the defaults and is
// invalid inside list elements.
func (d *describer) fields(path string, t reflect.Type, def reflect.Value) []Field {
	var out []Field
	for i := range t.NumField() {
		goField := t.Field(i)
		name, _, ok := strictyaml.FieldName(goField)
		if !ok {
			continue
		}
		f := Field{Name: name, Path: join(path, name)}
		f.Doc = d.docs[t.Name()+"."+goField.Name]
		if f.Doc == "" && d.err == nil {
			d.err = fmt.Errorf("field %s of %s has no doc comment in the embedded sources", goField.Name, t.Name())
		}
		if def.IsValid() {
			f.Default = def.Field(i)
		}
		f.Lowest, f.Highest, _ = spec.SplitRange(goField.Tag.Get("range"))
		if enum := goField.Tag.Get("enum"); enum != "" {
			f.Enum = strings.Split(enum, ",")
		}
		f.Pattern, f.Wants = goField.Tag.Get("pattern"), goField.Tag.Get("wants")
		d.kind(&f, goField.Type)
		out = append(out, f)
	}
	return out
}

// kind fills in what follows from the Go type.
func (d *describer) kind(f *Field, t reflect.Type) {
	switch t {
	case reflect.TypeFor[spec.Duration]():
		f.Kind = Duration
		return
	case reflect.TypeFor[spec.Bytes]():
		f.Kind = Size
		return
	case reflect.TypeFor[spec.Secret]():
		f.Kind = Secret
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		f.Kind = Section
		f.Fields = d.fields(f.Path, t, f.Default)
	case reflect.Slice:
		f.Kind = List
		f.Elem = &Field{Path: f.Path + "[]"}
		d.kind(f.Elem, t.Elem())
	case reflect.Map:
		f.Kind = Map
		f.Elem = &Field{Path: f.Path + ".NAME"}
		d.kind(f.Elem, t.Elem())
	case reflect.String:
		f.Kind = Text
	case reflect.Bool:
		f.Kind = Boolean
	case reflect.Float64:
		f.Kind = Number
	case reflect.Int:
		f.Kind = Integer
	default:
		if d.err == nil {
			d.err = fmt.Errorf("field %s: type %s has no description", f.Path, t)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// Allowed says in words which values the field takes; empty when any value of
// its kind will do.
func (f *Field) Allowed() string {
	switch {
	case len(f.Enum) == 1:
		return "only " + f.Enum[0]
	case len(f.Enum) > 0:
		return "one of " + strings.Join(f.Enum, ", ")
	case f.Wants != "":
		return f.Wants
	case f.Lowest == "":
		return ""
	case f.Kind == List && f.Lowest == f.Highest:
		return "exactly " + f.Lowest + " elements"
	case f.Kind == List && f.Lowest == "0":
		return "at most " + f.Highest + " elements"
	case f.Kind == List:
		return f.Lowest + " to " + f.Highest + " elements"
	case f.Lowest == f.Highest:
		return "exactly " + f.Lowest
	}
	return f.Lowest + " to " + f.Highest
}
