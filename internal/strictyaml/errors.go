package strictyaml

import (
	"fmt"
	"strings"
)

// Problem is what a validator finds wrong with a field. It does not know the
// file; Positions.Locate adds that.
type Problem struct {
	// Path of the field, such as "zones[1].name"; empty for the whole file.
	Path string
	// Message says what is wrong with it.
	Message string
	// Hint says what to do about it; may be empty.
	Hint string
}

func (p Problem) Error() string { return describe(p.Path, p.Message, p.Hint) }

// Error is one mistake in a file.
type Error struct {
	// File is the name the caller gave.
	File string
	// Line and Column start at 1; both are 0 when the mistake has no place.
	Line, Column int
	// Path of the field; empty when the text is not YAML.
	Path string
	// Message says what is wrong.
	Message string
	// Hint says what to do about it; may be empty.
	Hint string

	cause error
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column)
	}
	return where + ": " + describe(e.Path, e.Message, e.Hint)
}

// Unwrap returns the error of the type or validator that refused the value.
func (e *Error) Unwrap() error { return e.cause }

func describe(path, message, hint string) string {
	s := message
	if path != "" {
		s = path + ": " + s
	}
	if hint != "" {
		s += "; " + hint
	}
	return s
}

// Errors are all mistakes of a file, in the order of their places.
type Errors struct{ List []*Error }

// Error returns one line for each mistake, after a heading when there are
// several.
func (e *Errors) Error() string {
	var lines []string
	if len(e.List) > 1 {
		lines = append(lines, fmt.Sprintf("%s has %d mistakes:", e.List[0].File, len(e.List)))
	}
	for _, one := range e.List {
		lines = append(lines, one.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As look at each mistake.
func (e *Errors) Unwrap() []error {
	out := make([]error, len(e.List))
	for i, one := range e.List {
		out[i] = one
	}
	return out
}

// touches reports whether one of the mistakes is about the field at path, a
// part of it, or a section around it.
func (e *Errors) touches(path string) bool {
	for _, one := range e.List {
		if within(path, one.Path) || within(one.Path, path) {
			return true
		}
	}
	return false
}

// within reports whether inner is outer or a part of it. The whole file is not
// counted as a section: one mistake there does not excuse the others.
func within(inner, outer string) bool {
	if outer == "" {
		return inner == ""
	}
	rest, ok := strings.CutPrefix(inner, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}
