package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"fournines/internal/strictyaml"
	"fournines/spec"
)

// Kind of an input.
type Kind string

// The kinds of inputs.
const (
	KindSpec         Kind = "spec"
	KindCompose      Kind = "compose"
	KindKubernetes   Kind = "kubernetes"
	KindRules        Kind = "prometheus-rules"
	KindPrometheus   Kind = "prometheus-config"
	KindAlertmanager Kind = "alertmanager-config"
	KindNginx        Kind = "nginx-config"
	KindPostgresConf Kind = "postgres-config"
	KindRedisConf    Kind = "redis-config"
	KindScript       Kind = "script"
	// What runs.
	KindLivePrometheus Kind = "prometheus"
	KindLivePostgres   Kind = "postgres"
	KindLiveRedis      Kind = "redis"
	KindLiveGateway    Kind = "gateway"
)

// Kinds returns every kind with what it is, in the order of the documentation.
func Kinds() [][2]string {
	return [][2]string{
		{string(KindSpec), "a fournines.yaml"},
		{string(KindCompose), "a docker compose file; a `.env` beside it is read"},
		{string(KindKubernetes), "manifests, one or many in a file: kustomize or `helm template` output too"},
		{string(KindRules), "a rules file of Prometheus, or a PrometheusRule"},
		{string(KindPrometheus), "prometheus.yml"},
		{string(KindAlertmanager), "alertmanager.yml"},
		{string(KindNginx), "nginx.conf and what it includes"},
		{string(KindPostgresConf), "postgresql.conf"},
		{string(KindRedisConf), "redis.conf"},
		{string(KindScript), "a shell script"},
		{string(KindLivePrometheus), "a Prometheus that runs, `--prometheus URL`"},
		{string(KindLivePostgres), "a PostgreSQL server that runs, `--postgres URL`"},
		{string(KindLiveRedis), "a Redis that runs, `--redis URL`"},
		{string(KindLiveGateway), "the admin address of a fournines gateway that runs, `--gateway URL`"},
	}
}

// MaxFileSize bounds one input, in bytes.
const MaxFileSize = 8 << 20

// file is the text of one input.
type file struct {
	name  string
	lines []string
	// env are the variables that a compose file takes from its .env.
	env map[string]string
	// marks are the comments that suppress findings, found when it was added.
	marks []Suppression
}

func newFile(name string, data []byte) *file {
	return &file{name: name, lines: strings.Split(string(data), "\n")}
}

// line returns a line by its number, from 1.
func (f *file) line(n int) (string, bool) {
	if n < 1 || n > len(f.lines) {
		return "", false
	}
	return f.lines[n-1], true
}

func (f *file) at(line int) Place { return Place{File: f.name, Line: line, Column: 1} }

// specFile is a spec with the places of its fields.
type specFile struct {
	*file
	spec  spec.Spec
	pos   *strictyaml.Positions
	wrong []*strictyaml.Error
	root  node
}

func (s *specFile) at(path string) Place {
	p := s.pos.Lookup(path)
	return Place{File: s.name, Line: p.Line, Column: p.Column}
}

// document is one YAML document that is none of the others.
type document struct {
	*file
	root node
}

// Inventory is everything that an audit looks at.
type Inventory struct {
	// Servers that run, filled in by audit/live.
	Prometheus []Prometheus
	Postgres   []Postgres
	Redis      []Redis
	Gateways   []Gateway

	files         []*file
	specs         []*specFile
	composes      []*composeFile
	objects       []*object
	groups        []document // rules files of Prometheus
	prometheus    []document
	alertmanagers []document
	nginx         []*nginxFile
	postgresConfs []*settingsFile
	redisConfs    []*settingsFile
	scripts       []*file

	units  []*unit
	alerts []*alertRule
}

func (in *Inventory) count() map[Kind]int {
	out := map[Kind]int{}
	for kind, n := range map[Kind]int{
		KindSpec: len(in.specs), KindCompose: len(in.composes), KindKubernetes: len(in.objects), KindRules: len(in.groups),
		KindPrometheus: len(in.prometheus), KindAlertmanager: len(in.alertmanagers), KindNginx: len(in.nginx),
		KindPostgresConf: len(in.postgresConfs), KindRedisConf: len(in.redisConfs), KindScript: len(in.scripts),
		KindLivePrometheus: len(in.Prometheus), KindLivePostgres: len(in.Postgres), KindLiveRedis: len(in.Redis), KindLiveGateway: len(in.Gateways),
	} {
		if n > 0 {
			out[kind] = n
		}
	}
	return out
}

// has reports whether there is an input of one of the kinds.
func (in *Inventory) has(kinds []Kind) bool {
	have := in.count()
	return slices.ContainsFunc(kinds, func(k Kind) bool { return have[k] > 0 })
}

// ErrUnknown says that a file is of no kind that an audit knows.
var ErrUnknown = errors.New("not a spec, compose file, manifest, Prometheus or server configuration, or script")

// Add reads one file. env are the variables of a compose file's .env. An error
// means that the file could not be audited; a fault in what it says is a
// finding and no error.
func (in *Inventory) Add(name string, data []byte, env map[string]string) error {
	if len(data) > MaxFileSize {
		return fmt.Errorf("%s has %d bytes, more than the %d that are read", name, len(data), MaxFileSize)
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	f := newFile(name, data)
	f.env = env
	if err := f.findMarks(); err != nil {
		return err
	}
	if kind := kindOfName(name, data); kind != "" {
		in.files = append(in.files, f)
		switch kind {
		case KindScript:
			in.scripts = append(in.scripts, f)
		case KindNginx:
			in.nginx = append(in.nginx, parseNginx(f))
		case KindPostgresConf:
			in.postgresConfs = append(in.postgresConfs, parseSettings(f, "="))
		case KindRedisConf:
			in.redisConfs = append(in.redisConfs, parseSettings(f, " "))
		}
		return nil
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json", ".tmpl", "":
	default:
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	roots, err := parseDocuments(f, data)
	if err != nil {
		return err
	}
	known := false
	for _, root := range roots {
		known = in.addDocument(f, data, root, len(roots)) || known
	}
	if !known {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	in.files = append(in.files, f)
	return nil
}

var (
	shebang   = regexp.MustCompile(`^#!.*\b(ba|da|k|z)?sh\b`)
	confNames = []struct {
		kind Kind
		name *regexp.Regexp
	}{
		{KindNginx, regexp.MustCompile(`(?i)nginx[^/]*\.conf(\.template)?$|(^|/)(conf\.d|nginx|sites-(available|enabled))/[^/]+\.conf(\.template)?$|(^|/)proxy\.conf(\.template)?$`)},
		{KindPostgresConf, regexp.MustCompile(`(?i)(^|/)postgres[^/]*\.conf$`)},
		{KindRedisConf, regexp.MustCompile(`(?i)(^|/)redis[^/]*\.conf$|(^|/)(nodes?-)?7\d\d\d\.conf$|(^|/)7\d\d\d/[^/]*\.conf$`)},
	}
)

// kindOfName recognizes files that are not YAML.
func kindOfName(name string, data []byte) Kind {
	if filepath.Ext(name) == ".sh" || shebang.Match(data) {
		return KindScript
	}
	for _, c := range confNames {
		if c.name.MatchString(filepath.ToSlash(name)) {
			return c.kind
		}
	}
	return ""
}

// parseDocuments reads all YAML documents of a file.
func parseDocuments(f *file, data []byte) (roots []node, err error) {
	// The parser panics with its own errors and recovers them; nothing else that
	// a hostile file causes may end the program.
	defer func() {
		if p := recover(); p != nil {
			roots, err = nil, fmt.Errorf("%s: the YAML parser gave up: %v", f.name, p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			hint := ""
			if bytes.Contains(data, []byte("{{")) {
				hint = "; a Helm chart is audited as the output of `helm template`"
			}
			return nil, fmt.Errorf("%s: not valid YAML: %s%s", f.name, strings.TrimPrefix(err.Error(), "yaml: "), hint)
		}
		if at := template(&doc, 0); at != nil {
			return nil, fmt.Errorf("%s:%d: a template that is not filled in; a Helm chart is audited as the output of `helm template`", f.name, at.Line)
		}
		if len(doc.Content) > 0 {
			roots = append(roots, node{resolve(doc.Content[0]), nil, f})
		}
	}
}

// template finds "{{ .Values.x }}" as a value, which is YAML too: a mapping whose
// name is a mapping.
func template(y *yaml.Node, depth int) *yaml.Node {
	if depth > maxDepth {
		return nil
	}
	for i, c := range y.Content {
		if y.Kind == yaml.MappingNode && i%2 == 0 && c.Kind == yaml.MappingNode {
			return c
		}
		if at := template(c, depth+1); at != nil {
			return at
		}
	}
	return nil
}

// addDocument puts a document where it belongs and reports whether it is known.
func (in *Inventory) addDocument(f *file, data []byte, root node, documents int) bool {
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return root.get(n).y != nil })
	}
	switch {
	case !root.isMap():
		return false
	case has("apiVersion", "kind") || has("metadata") && has("spec", "data"):
		in.addObject(root)
	case root.get("services").isMap():
		in.composes = append(in.composes, newCompose(f, root))
	case root.get("groups").isList():
		in.groups = append(in.groups, document{f, root})
	case has("scrape_configs", "rule_files", "alerting"):
		in.prometheus = append(in.prometheus, document{f, root})
	case has("receivers") && has("route"):
		in.alertmanagers = append(in.alertmanagers, document{f, root})
	case documents == 1 && isSpec(root):
		in.specs = append(in.specs, newSpec(f, data, root))
	default:
		return false
	}
	return true
}

// isSpec reports whether a document has the sections of a spec.
func isSpec(root node) bool {
	known := 0
	for _, p := range root.pairs() {
		switch p.name() {
		case "zones", "dify", "gateway", "postgres", "redis", "vectors", "autoscale", "observability", "slo", "backup", "security", "local":
			known++
		}
	}
	return known > 0 && 2*known >= len(root.pairs())
}

func newSpec(f *file, data []byte, root node) *specFile {
	s := &specFile{file: f, spec: spec.Default(), root: root}
	pos, err := strictyaml.Decode(f.name, data, &s.spec)
	var wrong *strictyaml.Errors
	if errors.As(err, &wrong) {
		s.wrong = append(s.wrong, wrong.List...)
	}
	s.pos = pos
	if invalid := s.spec.Validate(); invalid != nil && errors.As(pos.Locate(invalid), &wrong) {
		s.wrong = append(s.wrong, wrong.List...)
	}
	return s
}

// link works out what several inputs say together.
func (in *Inventory) link() {
	in.units, in.alerts = nil, nil
	for _, c := range in.composes {
		in.units = append(in.units, c.units()...)
	}
	for _, o := range in.objects {
		in.units = append(in.units, in.containersOf(o)...)
	}
	for _, g := range in.groups {
		in.alerts = append(in.alerts, alertsOf(g.root)...)
	}
	for _, o := range in.objects {
		if o.kind == "PrometheusRule" {
			in.alerts = append(in.alerts, alertsOf(o.get("spec"))...)
		}
	}
}
