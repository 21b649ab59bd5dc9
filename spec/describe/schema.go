package describe

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// SchemaID names the schema, and lets `fournines init` recognise its own file.
const SchemaID = "urn:fournines:spec"

// The notations of durations and sizes.
const (
	durationPattern = `^([0-9]+d)?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))*$`
	sizePattern     = `^[0-9]+ ?(B|KiB|MiB|GiB|TiB)$`
)

// schema is a JSON Schema. Its fields are in the order in which people read it.
type schema struct {
	Dialect     string       `json:"$schema,omitempty"`
	ID          string       `json:"$id,omitempty"`
	Title       string       `json:"title,omitempty"`
	Description string       `json:"description,omitempty"`
	Type        any          `json:"type,omitempty"`
	Enum        []string     `json:"enum,omitempty"`
	Pattern     string       `json:"pattern,omitempty"`
	Minimum     *json.Number `json:"minimum,omitempty"`
	Maximum     *json.Number `json:"maximum,omitempty"`
	MinItems    *int         `json:"minItems,omitempty"`
	MaxItems    *int         `json:"maxItems,omitempty"`
	Default     any          `json:"default,omitempty"`
	Items       *schema      `json:"items,omitempty"`
	Properties  properties   `json:"properties,omitempty"`
	// Additional is false for sections and a schema for maps.
	Additional any `json:"additionalProperties,omitempty"`
}

// properties keeps the order of the file, in which editors offer them.
type properties []property

type property struct {
	name   string
	schema *schema
}

// MarshalJSON writes an object.
func (p properties) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, one := range p {
		if i > 0 {
			out = append(out, ',')
		}
		name, err := json.Marshal(one.name)
		if err != nil {
			return nil, err
		}
		body, err := json.Marshal(one.schema)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, name...), ':'), body...)
	}
	return append(out, '}'), nil
}

// Schema returns the JSON Schema (draft 2020-12) of a spec.
func Schema() ([]byte, error) {
	fields, err := Fields()
	if err != nil {
		return nil, err
	}
	root, err := section(fields)
	if err != nil {
		return nil, err
	}
	root.Dialect = "https://json-schema.org/draft/2020-12/schema"
	root.ID = SchemaID
	root.Title = "fournines.yaml"
	root.Description = "An installation of Dify as fournines runs it."
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	return append(out, '\n'), nil
}

// section allows null too: a section whose fields are all commented out.
func section(fields []Field) (*schema, error) {
	s := &schema{Type: []string{"object", "null"}, Additional: false}
	for i := range fields {
		one, err := schemaOf(&fields[i])
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", fields[i].Path, err)
		}
		s.Properties = append(s.Properties, property{fields[i].Name, one})
	}
	return s, nil
}

func schemaOf(f *Field) (*schema, error) {
	s := &schema{}
	var err error
	switch f.Kind {
	case Section:
		if s, err = section(f.Fields); err != nil {
			return nil, err
		}
	case List:
		s.Type = []string{"array", "null"}
		if s.Items, err = schemaOf(f.Elem); err != nil {
			return nil, err
		}
		if f.Elem.Kind == Section {
			s.Items.Type = "object"
		}
		if s.MinItems, err = count(f.Lowest); err != nil {
			return nil, err
		}
		if s.MaxItems, err = count(f.Highest); err != nil {
			return nil, err
		}
	case Map:
		s.Type = []string{"object", "null"}
		if s.Additional, err = schemaOf(f.Elem); err != nil {
			return nil, err
		}
	case Secret:
		// A text may look like a number; the loader takes it literally.
		s.Type = []string{"string", "number", "boolean"}
	case Integer, Number:
		s.Type = string(f.Kind)
		s.Minimum, s.Maximum = bound(f.Lowest), bound(f.Highest)
	case Boolean:
		s.Type = "boolean"
	case Duration:
		s.Type, s.Pattern = "string", durationPattern
	case Size:
		s.Type, s.Pattern = "string", sizePattern
	case Text:
		s.Type, s.Enum, s.Pattern = "string", f.Enum, f.Pattern
	}
	s.Description = f.Doc
	if allowed := f.Allowed(); allowed != "" {
		s.Description += " Allowed: " + allowed + "."
	}
	if f.Kind != Section && f.Default.IsValid() {
		if s.Default, err = plain(f.Default); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func bound(text string) *json.Number {
	if text == "" {
		return nil
	}
	n := json.Number(text)
	return &n
}

func count(text string) (*int, error) {
	if text == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	return &n, err
}

// plain returns a value as maps, lists and basic types, as the file has it.
func plain(v reflect.Value) (any, error) {
	text, err := yaml.Marshal(v.Interface())
	if err != nil {
		return nil, err
	}
	var out any
	if err := yaml.Unmarshal(text, &out); err != nil {
		return nil, err
	}
	return out, nil
}
