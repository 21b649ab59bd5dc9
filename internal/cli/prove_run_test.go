package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"fournines/drill"
)

func TestCampaign(t *testing.T) {
	unsteady := fmt.Errorf("%w: it is degraded", drill.ErrUnsteady)
	broken := errors.New("no disk left")
	for _, c := range []struct {
		name    string
		results []error // of each call; none after the last
		kept    []string
		err     error
	}{
		{"all run", nil, []string{"x 1", "y a 1", "x 2"}, nil},
		{"unsteady once", []error{nil, unsteady}, []string{"x 1", "y a 1", "x 2"}, nil},
		{"unsteady twice", []error{nil, unsteady, unsteady}, []string{"x 1"}, drill.ErrUnsteady},
		{"broken", []error{nil, nil, broken}, []string{"x 1", "y a 1"}, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			var kept, said []string
			calls := 0
			campaign := campaign{
				steps: []step{{"x", "", 1}, {"y", "a", 1}, {"x", "", 2}},
				run: func(context.Context, step) (*drill.Report, error) {
					calls++
					if calls <= len(c.results) && c.results[calls-1] != nil {
						return nil, c.results[calls-1]
					}
					return &drill.Report{Verdict: "pass"}, nil
				},
				keep: func(s step, _ *drill.Report) error {
					kept = append(kept, fmt.Sprintf("%s %d", s, s.repetition))
					return nil
				},
				say: func(text string) { said = append(said, text) },
			}
			if err := campaign.do(t.Context()); !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if !slices.Equal(kept, c.kept) {
				t.Errorf("kept %v, want %v", kept, c.kept)
			}
			if len(said) == 0 || !strings.Contains(said[0], "1 of 3: x, repetition 1; about") {
				t.Errorf("said %q", said)
			}
		})
	}
}

func TestCatalogueSteps(t *testing.T) {
	steps := catalogueSteps([]string{"a", "b"}, 2)
	seen := map[step]bool{}
	last := 0
	for _, s := range steps {
		if seen[s] {
			t.Errorf("%v is there twice", s)
		}
		seen[s] = true
		if s.repetition < last {
			t.Errorf("%v comes after repetition %d", s, last)
		}
		last = s.repetition
	}
	for _, d := range drill.Catalogue() {
		if d.NeedsZone != seen[step{d.Name, "b", 2}] || d.NeedsZone == seen[step{d.Name, "", 1}] {
			t.Errorf("%s: needs a zone: %v", d.Name, d.NeedsZone)
		}
	}
}
