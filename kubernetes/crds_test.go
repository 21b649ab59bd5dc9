package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

var crdSource = flag.String("crds", "", "directory of CustomResourceDefinitions to trim into testdata/crds")

const crdDirectory = "testdata/crds"

// definition is one CustomResourceDefinition, reduced to what a validation needs.
type definition struct {
	Group   string         `json:"group"`
	Kind    string         `json:"kind"`
	Version string         `json:"version"`
	Schema  map[string]any `json:"schema"`
}

// TestTrimDefinitions writes testdata/crds anew from the operators' own files, of
// the kinds that are there already:
//
//	go test ./kubernetes -run TestTrimDefinitions -crds DIRECTORY
//
// testdata/crds/README.md says where those come from.
func TestTrimDefinitions(t *testing.T) {
	if *crdSource == "" {
		t.Skip("no -crds: nothing to trim")
	}
	files, err := filepath.Glob(filepath.Join(*crdSource, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", *crdSource, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd struct {
			Spec struct {
				Group string `yaml:"group"`
				Names struct {
					Kind string `yaml:"kind"`
				} `yaml:"names"`
				Versions []struct {
					Name    string `yaml:"name"`
					Storage bool   `yaml:"storage"`
					Schema  struct {
						OpenAPI map[string]any `yaml:"openAPIV3Schema"`
					} `yaml:"schema"`
				} `yaml:"versions"`
			} `yaml:"spec"`
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out := filepath.Join(crdDirectory, strings.ToLower(crd.Spec.Names.Kind)+"."+crd.Spec.Group+".json")
		if _, err := os.Stat(out); errors.Is(err, fs.ErrNotExist) {
			t.Logf("%s: not used", file)
			continue
		}
		for _, v := range crd.Spec.Versions {
			if !v.Storage {
				continue
			}
			trimmed, err := json.Marshal(definition{Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind, Version: v.Name, Schema: trim(v.Schema.OpenAPI)})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(out, append(trimmed, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// trim drops texts for people, defaults, rules in CEL, which only an API server
// evaluates, and the state.
func trim(schema map[string]any) map[string]any {
	if p, ok := schema["properties"].(map[string]any); ok {
		if _, root := p["apiVersion"]; root {
			delete(p, "status")
		}
	}
	trimmed, _ := trimValue(schema, false).(map[string]any)
	return trimmed
}

func trimValue(v any, names bool) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, value := range v {
			if !names {
				switch key {
				case "description", "default", "example", "format", "title", "x-kubernetes-validations", "x-kubernetes-map-type",
					"x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-embedded-resource":
					continue
				}
			}
			// Below properties the keys are names of fields.
			out[key] = trimValue(value, !names && key == "properties")
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = trimValue(value, false)
		}
		return out
	}
	return v
}

// jsonSchema is an OpenAPI schema of Kubernetes in the words of JSON Schema:
// fields that it does not name are refused, as a strict API server does.
func jsonSchema(schema map[string]any) map[string]any {
	out := map[string]any{}
	for key, value := range schema {
		switch key {
		case "properties":
			fields := map[string]any{}
			for name, field := range value.(map[string]any) {
				fields[name] = jsonSchema(field.(map[string]any))
			}
			out[key] = fields
		case "items", "additionalProperties":
			if s, ok := value.(map[string]any); ok {
				value = jsonSchema(s)
			}
			out[key] = value
		case "nullable", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields":
		default:
			// anyOf, oneOf, allOf and not only add conditions; they name no fields.
			out[key] = value
		}
	}
	if _, ok := out["properties"]; ok && out["additionalProperties"] == nil && schema["x-kubernetes-preserve-unknown-fields"] != true {
		out["additionalProperties"] = false
	}
	if schema["x-kubernetes-int-or-string"] == true {
		delete(out, "type")
		if out["anyOf"] == nil {
			out["type"] = []any{"integer", "string"}
		}
	}
	if kind, ok := out["type"].(string); ok && schema["nullable"] == true {
		out["type"] = []any{kind, "null"}
	}
	return out
}

// definitions are the schemas in testdata, by apiVersion and kind.
func definitions(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	all, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// compiled compiles them once.
var compiled = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	files, err := filepath.Glob(filepath.Join(crdDirectory, "*.json"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no definitions in %s: %w", crdDirectory, err)
	}
	all := map[string]*jsonschema.Schema{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var d definition
		if err := json.Unmarshal(text, &d); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		schema := jsonSchema(d.Schema)
		// Every object has these, whether its definition says so or not.
		fields := schema["properties"].(map[string]any)
		for _, name := range []string{"apiVersion", "kind", "metadata"} {
			if fields[name] == nil {
				fields[name] = map[string]any{}
			}
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource(file, schema); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if all[d.Group+"/"+d.Version+" "+d.Kind], err = compiler.Compile(file); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
})

// documents splits a stream as a client would and returns its objects.
func documents(t *testing.T, stream []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for dec := yaml.NewDecoder(bytes.NewReader(stream)); ; {
		var plain map[string]any
		err := dec.Decode(&plain)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, plain)
	}
}

// TestDefinitionsRefuse: the schemas find what an API server would find.
func TestDefinitionsRefuse(t *testing.T) {
	all := definitions(t)
	for name, test := range map[string]struct{ object, want string }{
		"an unknown field":  {`{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: a}, spec: {scaleTargetRef: {name: a}, triggers: [], minReplicas: 3}}`, "minReplicas"},
		"an unknown word":   {`{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: a}, spec: {scaleTargetRef: {name: a}, triggers: [], fallback: {failureThreshold: 1, replicas: 1, behavior: none}}}`, "behavior"},
		"a missing field":   {`{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: a}, spec: {triggers: []}}`, "scaleTargetRef"},
		"a number for text": {`{apiVersion: postgresql.cnpg.io/v1, kind: Cluster, metadata: {name: a}, spec: {instances: 3, postgresql: {parameters: {max_connections: 400}}}}`, "max_connections"},
	} {
		t.Run(name, func(t *testing.T) {
			o := documents(t, []byte(test.object))[0]
			err := all[fmt.Sprint(o["apiVersion"], " ", o["kind"])].Validate(plainJSON(t, o))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// plainJSON is a document with the types that a JSON decoder gives.
func plainJSON(t *testing.T, o map[string]any) any {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
