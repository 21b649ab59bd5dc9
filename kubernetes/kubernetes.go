// Package kubernetes is the Kubernetes engine: it turns a spec into the objects
// of a highly available Dify, in one kustomize folder for each layer. It is pure:
// the same spec gives the same bytes, and nothing of the machine goes into them.
//
// Databases are left to their operators. What is ours are the three proxies, how
// everything is placed over zones, and how it starts and stops.
package kubernetes

import (
	"fmt"
	"path"
	"strings"

	"fournines/spec"
)

// Layer is one folder: objects that are applied together, after the layers
// before it are ready.
type Layer struct {
	// Name of the folder.
	Name string
	// Files in the order of their kustomization.
	Files []File
}

// File is a file of a layer.
type File struct {
	// Name in the folder, like gateway.yaml.
	Name string
	// Objects in it.
	Objects []Object
}

// Manifests are the layers of an installation in the order in which they are
// applied.
type Manifests struct {
	// Namespace that all objects with a namespace are in.
	Namespace string
	// Layers in order.
	Layers []Layer
}

// builder holds what all layers share.
type builder struct {
	spec    *spec.Spec
	k       *spec.Kubernetes
	version difyVersion
}

// Render returns the objects of s, which must be valid. The error names the
// fields that a rendering needs and that s does not have, one strictyaml.Problem
// each.
func Render(s *spec.Spec) (*Manifests, error) {
	if err := s.ForKubernetes(); err != nil {
		return nil, err
	}
	version, err := versionOf(s.Dify.Version)
	if err != nil {
		return nil, err
	}
	b := &builder{spec: s, k: &s.Kubernetes, version: version}
	m := &Manifests{Namespace: b.k.Namespace}
	for _, layer := range []struct {
		name  string
		files func() ([]File, error)
	}{
		{"namespace", b.namespaceLayer},
		{"secrets", b.secretsLayer},
		{"postgres", b.postgresLayer},
		{"redis", b.redisLayer},
		{"vectors", b.vectorsLayer},
		{"proxies", b.proxiesLayer},
		{"migration", b.migrationLayer},
		{"dify", b.difyLayer},
		{"edge", b.edgeLayer},
		{"observability", b.observabilityLayer},
	} {
		files, err := layer.files()
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer.name, err)
		}
		if len(files) > 0 {
			m.Layers = append(m.Layers, Layer{Name: layer.name, Files: files})
		}
	}
	return m, nil
}

// Objects returns all objects in the order in which they are applied.
func (m *Manifests) Objects() []Object {
	var all []Object
	for _, l := range m.Layers {
		for _, f := range l.Files {
			all = append(all, f.Objects...)
		}
	}
	return all
}

// kustomizationFile is what kustomize looks for in a folder.
const kustomizationFile = "kustomization.yaml"

// Tree returns the content of every file by its path below the folder of the
// rendering: one folder for each layer, and a kustomization of all.
func (m *Manifests) Tree() (map[string][]byte, error) {
	tree := map[string][]byte{}
	var layers []string
	for _, l := range m.Layers {
		layers = append(layers, l.Name)
		var files []string
		for _, f := range l.Files {
			text, err := encode(f.Objects)
			if err != nil {
				return nil, err
			}
			tree[path.Join(l.Name, f.Name)] = text
			files = append(files, f.Name)
		}
		tree[path.Join(l.Name, kustomizationFile)] = kustomization(files)
	}
	tree[kustomizationFile] = kustomization(layers)
	return tree, nil
}

// Stream returns all objects as one stream of YAML documents.
func (m *Manifests) Stream() ([]byte, error) { return encode(m.Objects()) }

func kustomization(resources []string) []byte {
	var w strings.Builder
	w.WriteString(generated + "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n")
	for _, r := range resources {
		w.WriteString("  - " + r + "\n")
	}
	return []byte(w.String())
}
