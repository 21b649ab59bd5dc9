// Package spec describes an installation: fournines.yaml. It holds the types
// with their defaults and ranges, reads the file, and reports every mistake in
// it with file, line, column and field.
//
// The doc comments of the fields are user documentation: the commented file of
// `fournines init`, the JSON Schema and docs/spec.md are generated from them.
// Struct tags carry what is checked for every field alike: `range:"1..9"`
// bounds a number, a duration, a size or the length of a list, `enum:"a,b"`
// lists the allowed words, `pattern:"^…$"` is a regular expression and
// `wants:"…"` says in words what it allows.
package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"fournines/internal/strictyaml"
)

// FileName is the file that every command reads when none is named.
const FileName = "fournines.yaml"

// MaxFileSize bounds what Load reads, in bytes. A spec has a few kilobytes;
// anything larger is the wrong file.
const MaxFileSize = 1 << 20

// Spec is a whole installation.
type Spec struct {
	// Name of the installation. It labels metrics and tells several stacks on
	// one machine apart.
	Name string `yaml:"name" pattern:"^[a-z][a-z0-9-]{0,30}$" wants:"at most 31 lower-case letters, digits and dashes, starting with a letter"`
	// Zones are the failure domains: whatever can lose power or network at
	// once. Exactly three, so that losing any one leaves a majority for etcd
	// and the Redis Cluster; at least two of them run Dify.
	Zones []Zone `yaml:"zones" range:"3..3"`
	// Dify is the application itself: where it comes from and how many
	// instances run.
	Dify Dify `yaml:"dify"`
	// Gateway is the HTTP entrance in front of Dify, one in each full zone.
	Gateway Gateway `yaml:"gateway"`
	// Postgres is the database layer: Patroni with PostgreSQL in every zone,
	// and one pgproxy in each full zone.
	Postgres Postgres `yaml:"postgres"`
	// Redis is the cache and queue layer: a Redis Cluster over all zones, and
	// one redisproxy in each full zone.
	Redis Redis `yaml:"redis"`
	// Vectors is the vector database behind retrieval.
	Vectors Vectors `yaml:"vectors"`
	// Autoscale is the bounds for the number of api instances as load changes.
	// The Kubernetes engine reads it; `fournines up` runs
	// dify.apiReplicasPerZone instances and does not scale.
	Autoscale Autoscale `yaml:"autoscale"`
	// Observability is what watches the stack: Prometheus and Alertmanager.
	Observability Observability `yaml:"observability"`
	// SLO is the objective that the alerts of `fournines up` and the verdict
	// of `fournines drill` measure against.
	SLO SLO `yaml:"slo"`
	// Backup is when PostgreSQL is backed up, where that goes and how long it is
	// kept. `fournines up` archives and schedules; `fournines backup` lists, takes,
	// checks and restores.
	Backup Backup `yaml:"backup"`
	// Security is what concerns the whole installation. Passwords do not stand
	// here: `fournines up` generates them into its data directory.
	Security Security `yaml:"security"`
	// Local is the engine behind `fournines up`, which runs all zones on this
	// machine.
	Local Local `yaml:"local"`
	// Kubernetes is what `fournines render kubernetes` writes for a cluster.
	Kubernetes Kubernetes `yaml:"kubernetes"`
}

// Default returns the installation that an empty file describes.
func Default() Spec {
	return Spec{
		Name:          "fournines",
		Zones:         defaultZones(),
		Dify:          defaultDify(),
		Gateway:       defaultGateway(),
		Postgres:      defaultPostgres(),
		Redis:         defaultRedis(),
		Vectors:       defaultVectors(),
		Autoscale:     defaultAutoscale(),
		Observability: defaultObservability(),
		SLO:           defaultSLO(),
		Backup:        defaultBackup(),
		Security:      defaultSecurity(),
		Local:         defaultLocal(),
		Kubernetes:    defaultKubernetes(),
	}
}

// missingError says that there is no spec at path. It is fs.ErrNotExist.
type missingError struct{ path string }

func (e *missingError) Error() string {
	init := "fournines init"
	if e.path != FileName {
		init += " -o " + e.path
	}
	return e.path + " does not exist; write one with `" + init + "`"
}

func (e *missingError) Unwrap() error { return fs.ErrNotExist }

// Load reads and validates the file at path. Every mistake in it is part of
// the returned error, each with its line and column.
func Load(path string) (*Spec, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &missingError{path: path}
	case err != nil:
		return nil, fmt.Errorf("open spec: %w", err)
	case info.IsDir():
		return nil, fmt.Errorf("%s is a directory; name the file, for example %s/%s", path, path, FileName)
	case info.Size() > MaxFileSize:
		return nil, fmt.Errorf("%s has %d bytes, more than the %d a spec may have; is it the right file?", path, info.Size(), MaxFileSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return Parse(path, data)
}

// Parse is Load for data that was read from the file called name. What data
// does not mention keeps its default.
func Parse(name string, data []byte) (*Spec, error) {
	s := Default()
	if err := strictyaml.UnmarshalValid(name, data, &s); err != nil {
		return nil, err
	}
	return &s, nil
}
