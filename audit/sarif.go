package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
)

// The part of SARIF 2.1.0 (OASIS) that a report needs.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name            string      `json:"name"`
		SemanticVersion string      `json:"semanticVersion,omitempty"`
		Version         string      `json:"version,omitempty"`
		Rules           []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string          `json:"id"`
		Short   sarifText       `json:"shortDescription"`
		Full    sarifText       `json:"fullDescription"`
		Help    sarifText       `json:"help"`
		Default sarifLevel      `json:"defaultConfiguration"`
		Props   sarifProperties `json:"properties"`
	}
	sarifLevel struct {
		Level string `json:"level"`
	}
	sarifProperties struct {
		Tags     []string `json:"tags"`
		Severity string   `json:"severity"`
		Minutes  float64  `json:"minutesPerYear"`
		// Precision and security-severity are what code scanning sorts by.
		Precision string `json:"precision"`
		Score     string `json:"security-severity"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID       string             `json:"ruleId"`
		RuleIndex    int                `json:"ruleIndex"`
		Level        string             `json:"level"`
		Message      sarifText          `json:"message"`
		Locations    []sarifLocation    `json:"locations"`
		Fingerprints map[string]string  `json:"partialFingerprints"`
		Suppressions []sarifSuppression `json:"suppressions,omitempty"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitempty"`
	}
	sarifLogical struct {
		Name          string `json:"name"`
		QualifiedName string `json:"fullyQualifiedName"`
		Kind          string `json:"kind"`
	}
	sarifSuppression struct {
		Kind          string `json:"kind"`
		Justification string `json:"justification"`
	}
)

// level is the severity in SARIF's words.
func (s Severity) level() string {
	switch s {
	case Critical, High:
		return "error"
	case Medium:
		return "warning"
	}
	return "note"
}

// score is the severity on the scale of 0 to 10 that code scanning sorts by.
func (s Severity) score() string {
	return map[Severity]string{Critical: "9.5", High: "8.0", Medium: "5.5", Low: "2.0"}[s]
}

// WriteSARIF writes a report in SARIF 2.1.0, the form that code scanning reads.
// version is the program's.
func WriteSARIF(w io.Writer, r *Report, version string) error {
	driver := sarifDriver{Name: "fournines audit", Version: version}
	index := map[string]int{}
	for i, rule := range Rules() {
		index[rule.ID] = i
		driver.Rules = append(driver.Rules, sarifRule{
			ID: rule.ID, Short: sarifText{rule.Title}, Full: sarifText{rule.Why + " It costs " + rule.Cost.String() + "."},
			Help: sarifText{rule.Fix}, Default: sarifLevel{rule.Severity.level()},
			Props: sarifProperties{Tags: []string{"availability"}, Severity: rule.Severity.String(), Minutes: rule.Cost.Minutes(), Precision: "high", Score: rule.Severity.score()},
		})
	}
	run := sarifRun{Tool: sarifTool{driver}, ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	for _, list := range [][]Finding{r.Findings, r.Suppressed} {
		for _, f := range list {
			res := sarifResult{
				RuleID: f.Rule.ID, RuleIndex: index[f.Rule.ID], Level: f.Rule.Severity.level(), Message: sarifText{f.Message},
				Locations: []sarifLocation{location(f.Place)},
				// Lines move; rule, file and message say whether it is the same.
				Fingerprints: map[string]string{"fournines/v1": fingerprint(f)},
			}
			if s := f.Suppressed; s != nil {
				kind := "external"
				if s.inComment() {
					kind = "inSource"
				}
				res.Suppressions = []sarifSuppression{{kind, s.Reason}}
			}
			run.Results = append(run.Results, res)
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(sarifLog{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run}})
}

func fingerprint(f Finding) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{f.Rule.ID, f.File, f.Query, f.Message}, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// location is a place in a file, or the name of what a server was asked.
func location(p Place) sarifLocation {
	if p.Query != "" {
		return sarifLocation{Logical: []sarifLogical{{Name: p.Query, QualifiedName: fmt.Sprintf("%s: %s", p.File, p.Query), Kind: "resource"}}}
	}
	physical := &sarifPhysical{Artifact: sarifArtifact{(&url.URL{Path: filepath.ToSlash(p.File)}).String()}}
	if p.Line > 0 {
		physical.Region = &sarifRegion{p.Line, p.Column}
	}
	return sarifLocation{Physical: physical}
}
