package describe

import (
	"fmt"
	"strings"
)

// Reference returns the page that explains every field, in Markdown.
func Reference() ([]byte, error) {
	fields, err := Fields()
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(`# fournines.yaml

<!-- Generated from the doc comments in spec/. Change them there and run: go generate ./spec/... -->

The file that describes an installation. Every field has a default, so an empty file is a valid one.

- ` + "`fournines init`" + ` writes a file with every field and its explanation; [examples/fournines.yaml](examples/fournines.yaml) is that file.
- ` + "`fournines config validate`" + ` reports every mistake with file, line, column and field, and the name that was probably meant.
- ` + "`fournines config show`" + ` prints what is in effect, defaults included and secrets left out.
- ` + "`fournines config schema`" + ` prints a JSON Schema for editors.

## Notation

| kind | written as |
| --- | --- |
| duration | a number and a unit: ` + "`500ms`, `30s`, `5m`, `12h`, `7d`; joined: `1h30m`" + ` |
| size | a whole number and a unit: ` + "`512B`, `64KiB`, `20MiB`, `4GiB`, `1TiB`" + ` |
| secret | a text that is never printed |
| boolean | ` + "`true` or `false`" + ` |

A section that is present but empty keeps its defaults. A list replaces the default list; a map adds to the default map.
`)
	var top []Field
	for _, f := range fields {
		if f.Kind == Text {
			top = append(top, f)
		}
	}
	b.WriteString("\n## General\n\n")
	table(&b, "", top)
	for _, f := range fields {
		if f.Kind == Text {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s", f.Name, f.Doc)
		switch f.Kind {
		case List:
			text, err := flow(f.Default)
			if err != nil {
				return nil, fmt.Errorf("field %s: %w", f.Path, err)
			}
			fmt.Fprintf(&b, " A list of %s; default: `%s`. Each element:\n\n", f.Allowed(), text)
			table(&b, f.Elem.Path+".", f.Elem.Fields)
		default:
			b.WriteString("\n\n")
			table(&b, f.Path+".", f.Fields)
		}
	}
	return []byte(b.String()), nil
}

// table writes one row for each field and for what stands inside it. Paths are
// given without prefix, the heading above.
func table(b *strings.Builder, prefix string, fields []Field) {
	b.WriteString("| field | kind | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n")
	rows(b, prefix, fields)
}

func rows(b *strings.Builder, prefix string, fields []Field) {
	for i := range fields {
		f := &fields[i]
		def, allowed := "", f.Allowed()
		if f.Kind != Section && f.Default.IsValid() {
			if text, err := flow(f.Default); err == nil {
				def = "`" + text + "`"
			}
		}
		if len(f.Enum) > 0 {
			allowed = "`" + strings.Join(f.Enum, "`, `") + "`"
		}
		kind := string(f.Kind)
		if f.Kind == List || f.Kind == Map {
			kind += " of " + string(f.Elem.Kind) + "s"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", strings.TrimPrefix(f.Path, prefix), kind, def, cell(allowed), cell(f.Doc))
		rows(b, prefix, f.Fields)
		if f.Elem != nil {
			rows(b, prefix, f.Elem.Fields)
		}
	}
}

// cell keeps text from ending a table cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
