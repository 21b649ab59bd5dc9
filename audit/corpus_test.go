package audit

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the expected findings in testdata/*.txtar and docs/audit.md")

// cases are testdata/*.txtar: files, and above them one line for each finding
// that they must cause: its rule, the file and the line. A file .env beside
// compose files is their environment. Cases that begin with "clean" have none.
func cases(tb testing.TB) map[string]*txtar.Archive {
	tb.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no cases: %v", err)
	}
	out := map[string]*txtar.Archive{}
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			tb.Fatal(err)
		}
		out[p] = a
	}
	return out
}

// inventoryOf reads the files of a case.
func inventoryOf(tb testing.TB, a *txtar.Archive) *Inventory {
	tb.Helper()
	env := map[string]string{}
	for _, f := range a.Files {
		if f.Name == ".env" {
			for line := range strings.Lines(string(f.Data)) {
				if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
					env[name] = value
				}
			}
		}
	}
	in := &Inventory{}
	for _, f := range a.Files {
		if f.Name == ".env" {
			continue
		}
		if err := in.Add(f.Name, f.Data, env); err != nil {
			tb.Fatal(err)
		}
	}
	return in
}

func expectation(f Finding) string {
	return fmt.Sprintf("%s %s: %s", f.Rule.ID, f.Place, f.Message)
}

func TestCorpus(t *testing.T) {
	for path, a := range cases(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			r := Run(inventoryOf(t, a), nil)
			var got []string
			for _, f := range r.Findings {
				got = append(got, expectation(f))
			}
			for _, f := range r.Suppressed {
				got = append(got, "suppressed "+expectation(f))
			}
			var head []string // what is said about the case itself
			var want []string
			for line := range strings.Lines(string(a.Comment)) {
				switch line = strings.TrimSpace(line); {
				case strings.HasPrefix(line, "FN"), strings.HasPrefix(line, "suppressed "):
					want = append(want, line)
				default:
					head = append(head, line)
				}
			}
			if *update {
				text := strings.TrimSpace(strings.Join(head, "\n")) + "\n\n" + strings.Join(got, "\n")
				a.Comment = []byte(strings.TrimSpace(text) + "\n")
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if clean := strings.HasPrefix(filepath.Base(path), "clean"); clean != (len(want) == 0) {
				t.Errorf("clean is %v with %d findings", clean, len(want))
			}
		})
	}
}

// TestEveryRuleIsPlanted: a rule over files that no case shows at work could
// never fail.
func TestEveryRuleIsPlanted(t *testing.T) {
	planted := map[string]bool{}
	broken := 0
	for path, a := range cases(t) {
		if !strings.HasPrefix(filepath.Base(path), "clean") {
			broken++
		}
		for _, f := range Run(inventoryOf(t, a), nil).Findings {
			planted[f.Rule.ID] = true
		}
	}
	for _, r := range Rules() {
		if !planted[r.ID] && !live(r) {
			t.Errorf("%s (%s) is planted in no case", r.ID, r.Title)
		}
	}
	if broken < 40 {
		t.Errorf("%d broken cases, want at least 40", broken)
	}
}

// live reports whether a rule reads servers only.
func live(r Rule) bool {
	for _, k := range r.Reads {
		switch k {
		case KindLivePrometheus, KindLivePostgres, KindLiveRedis, KindLiveGateway:
		default:
			return false
		}
	}
	return true
}

func TestRulesAreWhole(t *testing.T) {
	seen := map[string]bool{}
	known := map[Kind]bool{}
	for _, k := range Kinds() {
		known[Kind(k[0])] = true
	}
	for _, r := range Rules() {
		if seen[r.ID] {
			t.Errorf("%s is there twice", r.ID)
		}
		seen[r.ID] = true
		if len(r.ID) != 5 || !strings.HasPrefix(r.ID, "FN") || r.Title == "" || r.Why == "" || r.Fix == "" || r.check == nil || len(r.Reads) == 0 || r.Severity < Low || r.Severity > Critical {
			t.Errorf("%s is not whole: %+v", r.ID, r)
		}
		for _, k := range r.Reads {
			if !known[k] {
				t.Errorf("%s reads %q, which is no kind", r.ID, k)
			}
		}
		if c := r.Cost; c.Minutes() <= 0 || c.Share > 1 || c.Events.Source == "" || c.Takes.Source == "" {
			t.Errorf("%s: cost %v", r.ID, c)
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d rules, want at least 60", len(seen))
	}
}

func TestReferenceIsCurrent(t *testing.T) {
	const page = "../docs/audit.md"
	if *update {
		if err := os.WriteFile(page, Reference(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(Reference())); diff != "" {
		t.Errorf("docs/audit.md is not what the code says; run `go generate ./audit` (-page +code):\n%s", diff)
	}
}

func TestCostArithmetic(t *testing.T) {
	c := costs(perZone, takesZone, 1)
	if got, want := c.Minutes(), 60.0; got != want {
		t.Errorf("%v minutes, want %v", got, want)
	}
	if got, want := c.String(), "0.5 × 120 min = 60 min/year, 1.1 times the budget of 99.99%"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := fmt.Sprintf("%.2f", BudgetMinutes), "52.56"; got != want {
		t.Errorf("budget %s, want %s", got, want)
	}
}
