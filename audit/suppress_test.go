package audit

import (
	"strings"
	"testing"
	"time"
)

func TestSuppressionMistakes(t *testing.T) {
	now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct{ text, want string }{
		"unknown rule": {"suppressions:\n  - {rule: FN20, reason: x}\n", `.yaml:2:12: suppressions[0].rule: there is no rule "FN20"`},
		"no reason":    {"suppressions:\n  - {rule: FN201}\n", "suppressions[0].reason: a reason is needed"},
		"blank reason": {"suppressions:\n  - {rule: FN201, reason: ' '}\n", "a reason is needed"},
		"ended":        {"suppressions:\n  - {rule: FN201, reason: x, until: 2026-11-28}\n", "ended on 2026-11-28; decide again"},
		"no day":       {"suppressions:\n  - {rule: FN201, reason: x, until: soon}\n", `"soon" is not a day`},
		"pattern":      {"suppressions:\n  - {rule: FN201, reason: x, file: '['}\n", `"[" is not a pattern`},
		"field":        {"suppressions:\n  - {rule: FN201, reasn: x}\n", `did you mean "reason"?`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSuppressions("s.yaml", []byte(c.text), now)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	list, err := ParseSuppressions("s.yaml", []byte("suppressions:\n  - rule: FN201\n    reason: x\n    until: 2026-11-29\n"), now)
	if err != nil || len(list) != 1 || list[0].Source.Line != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestCommentMistakes(t *testing.T) {
	for name, c := range map[string]struct{ comment, want string }{
		"unknown rule": {"# fournines:ignore FN999 because", `c.yaml:2: fournines:ignore: there is no rule "FN999"`},
		"no reason":    {"# fournines:ignore FN203", "c.yaml:2: fournines:ignore FN203 gives no reason"},
		"nothing":      {"# fournines:ignore", "c.yaml:2: fournines:ignore names no rule"},
	} {
		t.Run(name, func(t *testing.T) {
			err := (&Inventory{}).Add("c.yaml", []byte("services:\n  a: "+c.comment+"\n    image: x:1\n"), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestSuppressionsCover(t *testing.T) {
	rule := &Rule{ID: "FN201"}
	f := Finding{Rule: rule, Place: Place{File: "a/compose.yaml", Line: 7}, Message: "six services on one host"}
	for _, c := range []struct {
		s    Suppression
		want bool
	}{
		{Suppression{Rule: "FN201"}, true},
		{Suppression{Rule: "FN202"}, false},
		{Suppression{Rule: "FN201", File: "compose.yaml"}, true},
		{Suppression{Rule: "FN201", File: "a/*.yaml"}, true},
		{Suppression{Rule: "FN201", File: "b/*.yaml"}, false},
		{Suppression{Rule: "FN201", Match: "one host"}, true},
		{Suppression{Rule: "FN201", Match: "two hosts"}, false},
		{Suppression{Rule: "FN201", File: "a/compose.yaml", line: 7}, true},
		{Suppression{Rule: "FN201", File: "a/compose.yaml", line: 8}, false},
		{Suppression{Rule: "FN201", File: "compose.yaml", line: 7}, false},
	} {
		if got := c.s.covers(f); got != c.want {
			t.Errorf("%+v covers: %v, want %v", c.s, got, c.want)
		}
	}
}
