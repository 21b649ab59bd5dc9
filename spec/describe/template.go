package describe

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// lineWidth is where comments are wrapped.
const lineWidth = 79

// Template returns a file with every field, its explanation, its default and
// its range. schema is the path or URL of the JSON Schema that editors use to
// complete and check the file; empty leaves that line out.
func Template(schema string) ([]byte, error) {
	fields, err := Fields()
	if err != nil {
		return nil, err
	}
	var w writer
	if schema != "" {
		w.line(0, "# yaml-language-server: $schema="+schema)
	}
	w.comment(0, "An installation of Dify as fournines runs it. Every field is here with its default; "+
		"a field or section that you remove gets its default again. "+
		"Check the file with `fournines config validate`, and see what is in effect with `fournines config show`.")
	for _, f := range fields {
		w.line(0, "")
		if err := w.field(0, &f); err != nil {
			return nil, err
		}
	}
	return []byte(w.String()), nil
}

type writer struct{ strings.Builder }

func (w *writer) line(indent int, text string) {
	if text != "" {
		w.WriteString(strings.Repeat(" ", indent))
	}
	w.WriteString(text)
	w.WriteByte('\n')
}

// comment writes text as a comment, wrapped.
func (w *writer) comment(indent int, text string) { w.hanging(indent, "", text) }

// hanging writes a comment whose lines after the first start with hang.
func (w *writer) hanging(indent int, hang, text string) {
	width := lineWidth - indent - len("# ")
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) > width:
			w.line(indent, "# "+line)
			line = hang + word
		default:
			line += " " + word
		}
	}
	if line != "" {
		w.line(indent, "# "+line)
	}
}

// field writes a field below its explanation.
func (w *writer) field(indent int, f *Field) error {
	w.comment(indent, f.Doc)
	w.comment(indent, facts(f))
	switch {
	case f.Kind == Section:
		w.line(indent, f.Name+":")
		for i := range f.Fields {
			if err := w.field(indent+2, &f.Fields[i]); err != nil {
				return err
			}
		}
	case f.Kind == List && f.Elem.Kind == Section:
		return w.sections(indent, f)
	default:
		text, err := flow(f.Default)
		if err != nil {
			return fmt.Errorf("field %s: %w", f.Path, err)
		}
		w.line(indent, f.Name+": "+text)
	}
	return nil
}

// sections writes a list of sections: the fields of an element once as a
// comment, then one line for each element of the default.
func (w *writer) sections(indent int, f *Field) error {
	w.comment(indent, "Each element has these fields:")
	w.elements(indent, "", f.Elem.Fields)
	if f.Default.Len() == 0 {
		w.line(indent, f.Name+": []")
		return nil
	}
	w.line(indent, f.Name+":")
	for i := range f.Default.Len() {
		text, err := flow(f.Default.Index(i))
		if err != nil {
			return fmt.Errorf("field %s: %w", f.Path, err)
		}
		w.line(indent+2, "- "+text)
	}
	return nil
}

// elements explains the fields of an element; those of a section in it have
// its name in front.
func (w *writer) elements(indent int, prefix string, fields []Field) {
	for i := range fields {
		f := &fields[i]
		w.hanging(indent, "  ", "- "+prefix+f.Name+": "+f.Doc+" "+facts(f))
		if f.Kind == Section {
			w.elements(indent, prefix+f.Name+".", f.Fields)
		}
	}
}

// facts says default and range in one line; empty for sections.
func facts(f *Field) string {
	var parts []string
	if f.Kind != Section && f.Kind != List && f.Default.IsValid() {
		if text, err := flow(f.Default); err == nil {
			parts = append(parts, "Default "+text+".")
		}
	}
	if allowed := f.Allowed(); allowed != "" {
		parts = append(parts, strings.ToUpper(allowed[:1])+allowed[1:]+".")
	}
	return strings.Join(parts, " ")
}

// flow writes a value in one line.
func flow(v reflect.Value) (string, error) {
	var n yaml.Node
	if err := n.Encode(v.Interface()); err != nil {
		return "", err
	}
	quote(&n)
	n.Style |= yaml.FlowStyle
	out, err := yaml.Marshal(&n)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}

// quote puts texts that are empty or have spaces in quotes, for the eye.
func quote(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && (n.Value == "" || strings.Contains(n.Value, " ")) {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, child := range n.Content {
		quote(child)
	}
}
