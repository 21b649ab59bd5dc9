package audit

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Edit changes one place of a file and leaves the rest, comments included, as
// it is.
type Edit struct {
	// File that is changed.
	File string
	// Line where Old stands, or before which New is inserted; starts at 1.
	Line int
	// Column of Old, in bytes from 1.
	Column int
	// Old is what must stand there; empty for whole lines that are inserted or
	// removed.
	Old string
	// New replaces it.
	New string
	// Remove takes the whole line away.
	Remove bool
}

// replace puts value in the place of a plain or quoted scalar. It returns no
// edit for a value that came from an alias of elsewhere or is spread over lines.
func (n node) replace(value string) []Edit {
	if n.y == nil || n.y.Kind != yaml.ScalarNode || n.file == nil {
		return nil
	}
	line, ok := n.file.line(n.y.Line)
	if !ok || n.y.Column < 1 || n.y.Column > len(line) {
		return nil
	}
	rest := line[n.y.Column-1:]
	for _, old := range []string{n.y.Value, `"` + n.y.Value + `"`, "'" + n.y.Value + "'"} {
		if n.y.Value != "" && strings.HasPrefix(rest, old) {
			return []Edit{{File: n.file.name, Line: n.y.Line, Column: n.y.Column, Old: old, New: value}}
		}
	}
	return nil
}

// rename puts another key in the place of n's.
func (n node) rename(key string) []Edit {
	if n.key == nil {
		return nil
	}
	return node{n.key, nil, n.file}.replace(key)
}

// insert adds lines as the first fields of a mapping in block style.
func (n node) insert(lines ...string) []Edit {
	if !n.isMap() || n.y.Style&yaml.FlowStyle != 0 || len(n.y.Content) == 0 || n.file == nil {
		return nil
	}
	first := n.y.Content[0]
	line, ok := n.file.line(first.Line)
	if !ok || first.Column < 1 || first.Column > len(line) {
		return nil
	}
	indent := strings.Repeat(" ", first.Column-1)
	// In "- name: x" the first field stands behind the dash, so new ones come
	// after it; a value of one line is needed for that.
	at := first.Line
	if strings.TrimSpace(line[:first.Column-1]) != "" {
		if v := n.y.Content[1]; v.Kind != yaml.ScalarNode || v.Line != first.Line || v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			return nil
		}
		at++
	}
	var text strings.Builder
	for _, l := range lines {
		text.WriteString(indent + l + "\n")
	}
	return []Edit{{File: n.file.name, Line: at, New: text.String()}}
}

// remove takes away a field whose value stands in the same line, without a
// comment behind it.
func (n node) remove() []Edit {
	if n.key == nil || !n.scalar() || n.key.Line != n.y.Line {
		return nil
	}
	line, ok := n.file.line(n.key.Line)
	if !ok || strings.TrimSpace(line[:n.key.Column-1]) != "" || n.y.LineComment != "" || n.key.LineComment != "" {
		return nil
	}
	return []Edit{{File: n.file.name, Line: n.key.Line, Remove: true}}
}

// Apply makes the edits in text and returns the result. Edits of one place that
// are equal are made once; it is an error when the text is not what they expect
// or when two of them want different things.
func Apply(text []byte, edits []Edit) ([]byte, error) {
	lines := bytes.SplitAfter(text, []byte("\n"))
	edits = slices.Clone(edits)
	// From the end, so that line numbers stay true.
	slices.SortStableFunc(edits, func(a, b Edit) int {
		if a.Line != b.Line {
			return b.Line - a.Line
		}
		if a.Column != b.Column {
			return b.Column - a.Column
		}
		return strings.Compare(a.New, b.New)
	})
	edits = slices.Compact(edits)
	for i, e := range edits {
		if e.Line < 1 || e.Line > len(lines)+1 {
			return nil, fmt.Errorf("%s:%d: the file has %d lines", e.File, e.Line, len(lines))
		}
		if e.Old == "" && !e.Remove {
			lines = slices.Insert(lines, e.Line-1, []byte(e.New))
			continue
		}
		if i > 0 && edits[i-1].Line == e.Line && edits[i-1].Column == e.Column {
			return nil, fmt.Errorf("%s:%d: two fixes want different things of the same place", e.File, e.Line)
		}
		if e.Remove {
			lines = slices.Delete(lines, e.Line-1, e.Line)
			continue
		}
		line := string(lines[e.Line-1])
		if e.Column-1 > len(line) || !strings.HasPrefix(line[e.Column-1:], e.Old) {
			return nil, fmt.Errorf("%s:%d:%d: %q does not stand there", e.File, e.Line, e.Column, e.Old)
		}
		lines[e.Line-1] = []byte(line[:e.Column-1] + e.New + line[e.Column-1+len(e.Old):])
	}
	return bytes.Join(lines, nil), nil
}
