package audit

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"fournines/internal/strictyaml"
)

// SuppressionFile is the file that `fournines audit` reads when none is named.
const SuppressionFile = ".fournines-audit.yaml"

// Suppression hides findings that somebody has decided to live with.
type Suppression struct {
	// Rule is the id of the rule.
	Rule string `yaml:"rule" json:"rule"`
	// File is a pattern of path.Match over the file or server, or over its last
	// element; empty is any.
	File string `yaml:"file" json:"file,omitempty"`
	// Match is a text that the message must contain; empty is any.
	Match string `yaml:"match" json:"match,omitempty"`
	// Reason why; needed.
	Reason string `yaml:"reason" json:"reason"`
	// Until is the last day it holds, like 2027-03-31; empty is for ever. A day
	// that has passed is an error, so that nobody forgets.
	Until string `yaml:"until" json:"until,omitempty"`
	// Source is where the suppression stands.
	Source Place `yaml:"-" json:"source"`

	line int // of the only line it covers; 0 is any
}

// inComment reports whether it stands in the input that it is about.
func (s *Suppression) inComment() bool { return s.line > 0 }

func (s *Suppression) covers(f Finding) bool {
	if s.Rule != f.Rule.ID || s.line > 0 && s.line != f.Line || !strings.Contains(f.Message, s.Match) {
		return false
	}
	if s.inComment() {
		return s.File == f.File
	}
	name := filepath.ToSlash(f.File)
	for _, n := range []string{name, path.Base(name)} {
		if ok, err := path.Match(s.File, n); err == nil && ok {
			return true
		}
	}
	return s.File == ""
}

// suppressions is the file.
type suppressionList struct {
	Suppressions []Suppression `yaml:"suppressions"`
	today        string
}

// Validate implements strictyaml.Validator.
func (l *suppressionList) Validate() error {
	var errs []error
	bad := func(i int, field, hint, format string, args ...any) {
		errs = append(errs, strictyaml.Problem{Path: fmt.Sprintf("suppressions[%d].%s", i, field), Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	for i, s := range l.Suppressions {
		if !knownRule(s.Rule) {
			bad(i, "rule", strictyaml.Suggest(s.Rule, ruleIDs()), "there is no rule %q", s.Rule)
		}
		if strings.TrimSpace(s.Reason) == "" {
			bad(i, "reason", "say why this is acceptable here", "a reason is needed")
		}
		if _, err := path.Match(s.File, ""); err != nil {
			bad(i, "file", "", "%q is not a pattern", s.File)
		}
		if s.Until == "" {
			continue
		}
		if _, err := time.Parse(time.DateOnly, s.Until); err != nil {
			bad(i, "until", "write it like 2027-03-31", "%q is not a day", s.Until)
		} else if s.Until < l.today {
			bad(i, "until", "decide again", "ended on %s", s.Until)
		}
	}
	return errors.Join(errs...)
}

// ParseSuppressions reads a file of suppressions. Every mistake in it is part of
// the error. now decides which have ended.
func ParseSuppressions(name string, data []byte, now time.Time) ([]Suppression, error) {
	list := suppressionList{today: now.Format(time.DateOnly)}
	if err := strictyaml.UnmarshalValid(name, data, &list); err != nil {
		return nil, err
	}
	pos, err := strictyaml.Decode(name, data, &suppressionList{})
	if err != nil {
		return nil, err
	}
	for i := range list.Suppressions {
		p := pos.Lookup(fmt.Sprintf("suppressions[%d]", i))
		list.Suppressions[i].Source = Place{File: name, Line: p.Line, Column: p.Column}
	}
	return list.Suppressions, nil
}

func ruleIDs() []string {
	var out []string
	for _, r := range Rules() {
		out = append(out, r.ID)
	}
	return out
}

func knownRule(id string) bool { return slices.Contains(ruleIDs(), id) }

// mark is a comment that suppresses findings of the line it stands in, or of
// the next line when it stands alone.
var mark = regexp.MustCompile(`#\s*fournines:ignore\b[ \t]*(.*)$`)

// findMarks reads the comments of a file.
func (f *file) findMarks() error {
	var errs []error
	for i, line := range f.lines {
		m := mark.FindStringSubmatchIndex(line)
		if m == nil {
			continue
		}
		at := i + 1
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s", f.name, at, fmt.Sprintf(format, args...)))
		}
		ids, reason, _ := strings.Cut(strings.TrimSpace(line[m[2]:m[3]]), " ")
		if ids == "" {
			bad(`fournines:ignore names no rule; write "# fournines:ignore FN203 reason"`)
			continue
		}
		if strings.TrimSpace(reason) == "" {
			bad(`fournines:ignore %s gives no reason; write it behind the id`, ids)
		}
		covers := at
		if strings.TrimSpace(line[:m[0]]) == "" {
			for covers++; covers <= len(f.lines); covers++ {
				if next := strings.TrimSpace(f.lines[covers-1]); next != "" && next[0] != '#' {
					break
				}
			}
		}
		for id := range strings.SplitSeq(ids, ",") {
			if !knownRule(id) {
				bad("fournines:ignore: there is no rule %q; %s", id, strictyaml.Suggest(id, ruleIDs()))
				continue
			}
			f.marks = append(f.marks, Suppression{
				Rule: id, File: f.name, Reason: strings.TrimSpace(reason), line: covers,
				Source: Place{File: f.name, Line: at, Column: m[0] + 1},
			})
		}
	}
	return errors.Join(errs...)
}

func (in *Inventory) inlineSuppressions() []Suppression {
	var out []Suppression
	for _, f := range in.files {
		out = append(out, f.marks...)
	}
	return out
}
