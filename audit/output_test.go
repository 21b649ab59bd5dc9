package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// sample is a report with every kind of content: findings in files, one at a
// server, suppressed ones of both sources.
func sample(t *testing.T) *Report {
	t.Helper()
	in := &Inventory{}
	text := "services:\n  worker: # fournines:ignore FN203 systemd does it\n    image: langgenius/dify-api\n    environment: {MODE: worker}\n  api:\n    image: langgenius/dify-api\n"
	if err := in.Add("folder with space/compose.yaml", []byte(text), nil); err != nil {
		t.Fatal(err)
	}
	r := Run(in, []Suppression{{Rule: "FN222", File: "*.yaml", Reason: "small"}, {Rule: "FN101", Reason: "none here"}})
	r.Findings = append(r.Findings, Finding{Rule: r.Findings[0].Rule, Place: Place{File: "db:5432", Query: "SHOW fsync"}, Message: "off"})
	return r
}

func validate(t *testing.T, schema string, text []byte) {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(schema)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestSARIF(t *testing.T) {
	var out bytes.Buffer
	r := sample(t)
	if err := WriteSARIF(&out, r, "1.2.3"); err != nil {
		t.Fatal(err)
	}
	// FOURNINES_SARIF_SCHEMA names the whole schema of OASIS; the one here has
	// the part of it that the writer uses, and is stricter about names.
	schema := "testdata/sarif.schema.json"
	validate(t, schema, out.Bytes())
	if full := os.Getenv("FOURNINES_SARIF_SCHEMA"); full != "" {
		validate(t, full, out.Bytes())
	}
	var log sarifLog
	if err := json.Unmarshal(out.Bytes(), &log); err != nil {
		t.Fatal(err)
	}
	run := log.Runs[0]
	if got, want := len(run.Results), len(r.Findings)+len(r.Suppressed); got != want {
		t.Errorf("%d results, want %d", got, want)
	}
	prints := map[string]bool{}
	kinds := map[string]bool{}
	for _, res := range run.Results {
		if run.Tool.Driver.Rules[res.RuleIndex].ID != res.RuleID {
			t.Errorf("ruleIndex of %s names %s", res.RuleID, run.Tool.Driver.Rules[res.RuleIndex].ID)
		}
		if p := res.Fingerprints["fournines/v1"]; prints[p] {
			t.Errorf("two results have the fingerprint %s", p)
		} else {
			prints[p] = true
		}
		if p := res.Locations[0].Physical; p != nil && p.Artifact.URI != "folder%20with%20space/compose.yaml" {
			t.Errorf("uri %q", p.Artifact.URI)
		}
		for _, s := range res.Suppressions {
			kinds[s.Kind] = true
		}
	}
	if !kinds["inSource"] || !kinds["external"] {
		t.Errorf("kinds of suppressions: %v", kinds)
	}
}

func TestJSON(t *testing.T) {
	for _, c := range []struct {
		failOn  Severity
		verdict string
	}{{High, "fail"}, {Critical + 1, "pass"}} {
		var out bytes.Buffer
		if err := WriteJSON(&out, sample(t), c.failOn); err != nil {
			t.Fatal(err)
		}
		var got struct {
			Version  int
			Verdict  string
			Findings []map[string]any
			Unused   []any `json:"unusedSuppressions"`
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Version != FormatVersion || got.Verdict != c.verdict || len(got.Findings) == 0 || len(got.Unused) != 1 {
			t.Errorf("version %d verdict %q, %d findings, %d unused", got.Version, got.Verdict, len(got.Findings), len(got.Unused))
		}
		for _, f := range got.Findings {
			for _, name := range []string{"rule", "severity", "file", "message", "why", "minutesPerYear", "cost", "fix"} {
				if f[name] == nil || f[name] == "" {
					t.Errorf("%v has no %s", f["rule"], name)
				}
			}
		}
	}
}

func TestTableShowsEverythingOnce(t *testing.T) {
	var out bytes.Buffer
	if err := WriteTable(&out, sample(t), true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"folder with space/compose.yaml:3", "db:5432: SHOW fsync", "suppressed  FN203", "unused suppression of FN101", "min/year", "1 compose."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if label, _, _ := strings.Cut(strings.TrimSpace(line), " "); (label == "why" || label == "fix") && len(line) > 120 {
			t.Errorf("a line of %d letters: %s", len(line), line)
		}
	}
}
