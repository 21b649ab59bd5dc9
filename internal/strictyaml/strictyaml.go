// Package strictyaml decodes configuration files. Every mistake is an error
// that names file, line, column and field, and proposes the nearest valid name;
// all mistakes of a file are reported at once.
//
// Names come from `yaml:"name"` tags, as in go.yaml.in/yaml/v3; types may
// implement yaml.Unmarshaler or encoding.TextUnmarshaler. Values that are
// already in the output are defaults: a key that is absent, and a section or
// list that is present but empty, keep them. A list in the file replaces the
// default list, a mapping adds to the default mapping. Elements of lists and
// mappings that implement Defaulter start from their own defaults.
package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"sort"
)

// Defaulter is implemented by types that appear in lists and mappings and do
// not start from their zero value.
type Defaulter interface{ SetDefaults() }

// Validator is implemented by types that check what their fields cannot say.
// Problems in the error (see Problem) get a position in the file.
type Validator interface{ Validate() error }

// Unmarshal decodes data, read from the file called name, into out, which must
// be a pointer that is not nil. On error out holds what could be decoded.
func Unmarshal(name string, data []byte, out any) error {
	_, err := Decode(name, data, out)
	return err
}

// UnmarshalValid decodes like Unmarshal and calls out.Validate. Mistakes of
// both kinds are reported together, except problems with a field whose value
// could not be decoded in the first place.
func UnmarshalValid(name string, data []byte, out Validator) error {
	pos, err := Decode(name, data, out)
	if pos == nil {
		return err
	}
	invalid := out.Validate()
	if invalid == nil {
		return err
	}
	var wrong *Errors
	if !errors.As(err, &wrong) {
		return pos.Locate(invalid)
	}
	all := wrong.List
	for _, e := range pos.locate(invalid) {
		if !wrong.touches(e.Path) {
			all = append(all, e)
		}
	}
	return joined(all)
}

// Decode decodes like Unmarshal and also tells where in the file each field
// stands, so that a validator can report positions (see Positions.Locate).
// The Positions are nil when the text is not YAML at all.
func Decode(name string, data []byte, out any) (*Positions, error) {
	v := reflect.ValueOf(out)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, fmt.Errorf("%s: cannot decode into %T: not a pointer to a value", name, out)
	}
	root, syntax := parse(name, data)
	if syntax != nil {
		return nil, joined([]*Error{syntax})
	}
	d := &decoder{pos: &Positions{file: name, at: map[string]Position{"": {Line: 1, Column: 1}}}}
	if root != nil {
		d.value("", root, v.Elem(), 0)
	}
	return d.pos, joined(d.errs)
}

// Position is a place in a file; both numbers start at 1.
type Position struct{ Line, Column int }

// Positions knows where the fields of a decoded file stand.
type Positions struct {
	file string
	at   map[string]Position
}

// Lookup returns the position of the field with the given path, such as
// "zones[1].name", or of the nearest section around it that the file has.
func (p *Positions) Lookup(path string) Position {
	for {
		if at, ok := p.at[path]; ok {
			return at
		}
		if path == "" {
			return Position{Line: 1, Column: 1}
		}
		path = parent(path)
	}
}

// Locate turns every Problem in err, which may be joined or wrapped, into an
// Error with its position. Other errors keep their text and get the file.
func (p *Positions) Locate(err error) error { return joined(p.locate(err)) }

func (p *Positions) locate(err error) []*Error {
	var out []*Error
	for _, one := range flatten(err) {
		var problem Problem
		if !errors.As(one, &problem) {
			out = append(out, &Error{File: p.file, Message: one.Error(), cause: one})
			continue
		}
		at := p.Lookup(problem.Path)
		out = append(out, &Error{
			File: p.file, Line: at.Line, Column: at.Column,
			Path: problem.Path, Message: problem.Message, Hint: problem.Hint, cause: one,
		})
	}
	return out
}

// parent cuts the last element off a path: "a.b[2]" → "a.b" → "a" → "".
func parent(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' || path[i] == '[' {
			return path[:i]
		}
	}
	return ""
}

// flatten returns the errors that errors.Join put together.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, one := range many.Unwrap() {
		out = append(out, flatten(one)...)
	}
	return out
}

// joined sorts errs by position and returns them as one error, or nil.
func joined(errs []*Error) error {
	if len(errs) == 0 {
		return nil
	}
	sort.SliceStable(errs, func(i, j int) bool {
		if errs[i].Line != errs[j].Line {
			return errs[i].Line < errs[j].Line
		}
		return errs[i].Column < errs[j].Column
	})
	return &Errors{List: errs}
}
