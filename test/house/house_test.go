// Package house checks the rules of the repository itself: which package may
// import which, what every package has to say about itself, and what every
// dependency has to earn.
package house

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

type goPackage struct {
	ImportPath string
	Doc        string
	Imports    []string
	GoFiles    []string
}

// packages lists the packages of the module as the go command sees them.
func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Doc,Imports,GoFiles", "fournines/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// layers orders the packages from the bottom up. A package may import packages
// of lower layers only; within a layer nobody imports anybody, except its own
// subpackages.
var layers = [][]string{
	{"spec", "topology", "availability", "internal/strictyaml", "internal/cron"},
	{"internal/", "component/internal/", "web", "bench/result", "bench/rig", "bench/postgres"},
	{"gateway", "pgproxy", "redisproxy", "loadbalancer", "difysim", "component/", "observe", "backup", "audit", "proof", "console"},
	{"proxyconfig"},
	{"local", "kubernetes", "drill"},
	{"internal/cli"},
	{"cmd/", "bench/"},
}

func layerOf(rel string) (layer int, member string) {
	best := -1
	for i, names := range layers {
		for _, n := range names {
			if (rel == strings.TrimSuffix(n, "/") || strings.HasPrefix(rel, strings.TrimSuffix(n, "/")+"/")) && len(n) > best {
				best, layer, member = len(n), i, n
			}
		}
	}
	if best < 0 {
		return -1, ""
	}
	// Folders that end in "/" hold independent packages: each is a member.
	if strings.HasSuffix(member, "/") {
		parts := strings.SplitN(strings.TrimPrefix(rel, member), "/", 2)
		member += parts[0]
	}
	return layer, member
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, "fournines/")
		if strings.HasPrefix(rel, "test") {
			continue
		}
		from, me := layerOf(rel)
		if from < 0 {
			t.Errorf("%s stands in no layer: add it to the list in this test, or move it", rel)
			continue
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, "fournines/")
			if !ok {
				continue
			}
			level, other := layerOf(to)
			mechanisms := from == 1 && level == 1 || from == 0 && level == 0
			if level > from || level == from && other != me && !mechanisms {
				t.Errorf("%s imports %s: imports run from the command down to the mechanisms", rel, to)
			}
		}
	}
}

func TestProxiesDoNotReadTheSpec(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, "fournines/")
		root := strings.SplitN(rel, "/", 2)[0]
		switch root {
		case "gateway", "pgproxy", "redisproxy", "loadbalancer":
			for _, imp := range p.Imports {
				if imp == "fournines/spec" {
					t.Errorf("%s imports spec: a proxy has its own Config and can be used without a spec", rel)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestNoRoomWithoutAName(t *testing.T) {
	for _, p := range packages(t) {
		switch name := filepath.Base(p.ImportPath); name {
		case "util", "utils", "common", "helpers", "manager", "misc", "types":
			t.Errorf("%s: %q says nothing about what is inside", p.ImportPath, name)
		}
	}
}

type goModule struct {
	Path, Version, Dir string
	Indirect, Main     bool
}

// modules lists what the binary and the tests are built from.
func modules(t *testing.T) []goModule {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-json=Module", "fournines/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	var all []goModule
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct{ Module *goModule }
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if m := p.Module; m != nil && !m.Main && !seen[m.Path] {
			seen[m.Path] = true
			all = append(all, *m)
		}
	}
}

func TestEveryDependencyEarnsItsPlace(t *testing.T) {
	page, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	gomod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		listed[m[1]] = true
	}
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(gomod), -1)
	if len(direct) == 0 {
		t.Fatal("go.mod names no direct dependency: the pattern of this test no longer fits")
	}
	for _, m := range direct {
		if !listed[m[1]] {
			t.Errorf("docs/dependencies.md has no line for %s: say why it and not another", m[1])
		}
	}
}

// licences maps a phrase that only one family of licences has to its name. All
// of them allow what an Apache-2.0 program does: to be given on as a binary.
var licences = map[string]string{
	"Permission is hereby granted, free of charge, to any person": "MIT",
	"Redistribution and use in source and binary forms":           "BSD",
	"Apache License": "Apache-2.0",
	"Permission to use, copy, modify, and/or distribute this software":       "ISC",
	"Permission to use, copy, modify, and distribute this software":          "ISC",
	"Mozilla Public License Version 2.0":                                     "MPL-2.0",
	"Mozilla Public License, version 2.0":                                    "MPL-2.0",
	"This is free and unencumbered software released into the public domain": "Unlicense",
}

func TestLicences(t *testing.T) {
	all := modules(t)
	if len(all) == 0 {
		t.Fatal("no module found")
	}
	for _, m := range all {
		entries, err := os.ReadDir(m.Dir)
		if err != nil {
			t.Fatalf("%s: %v", m.Path, err)
		}
		name := ""
		for _, e := range entries {
			base := strings.ToUpper(e.Name())
			if e.IsDir() || !strings.HasPrefix(base, "LICEN") && !strings.HasPrefix(base, "COPYING") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			words := strings.Join(strings.Fields(string(text)), " ")
			if strings.Contains(words, "GNU GENERAL PUBLIC LICENSE Version") || strings.Contains(words, "GNU AFFERO GENERAL PUBLIC LICENSE Version") {
				t.Errorf("%s %s: %s holds a GNU licence", m.Path, m.Version, e.Name())
			}
			for phrase, is := range licences {
				if strings.Contains(words, phrase) {
					name = is
				}
			}
		}
		if name == "" {
			t.Errorf("%s %s: no licence file with a known permissive licence", m.Path, m.Version)
		}
	}
}
