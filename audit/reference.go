package audit

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
)

//go:generate go test -run ^TestReferenceIsCurrent$ . -update

// introduction of docs/audit.md, what the code cannot say.
//
//go:embed introduction.md
var introduction string

// Reference returns docs/audit.md.
func Reference() []byte {
	var out bytes.Buffer
	out.WriteString(introduction)
	fmt.Fprintln(&out, "\n## Inputs\n\n| kind | what |\n| --- | --- |")
	for _, k := range Kinds() {
		fmt.Fprintf(&out, "| `%s` | %s |\n", k[0], k[1])
	}
	fmt.Fprintf(&out, `
## The arithmetic

Each rule says what its mistake costs in a year: events, times minutes, times the
share of requests that fail in them. 99.99%% leaves %.2f minutes a year. The
numbers below are round assumptions, equal for all rules, so that findings can be
compared; your own history is better, and `+"`fournines drill`"+` measures how long an
event takes on your stack. Costs of several findings do not simply add up: one
outage may have two causes.

| name | value | where it comes from |
| --- | --- | --- |
`, BudgetMinutes)
	for _, a := range Assumptions() {
		fmt.Fprintf(&out, "| %s | %g | %s |\n", a.Name, a.Value, a.Source)
	}
	rules := Rules()
	fmt.Fprintf(&out, "\n## The %d rules\n\n| id | severity | finds | reads | min/year |\n| --- | --- | --- | --- | --- |\n", len(rules))
	for _, r := range rules {
		fmt.Fprintf(&out, "| [%s](#%s) | %s | %s | %s | %s |\n", r.ID, strings.ToLower(r.ID), r.Severity, r.Title, kindList(r.Reads), number(r.Cost.Minutes()))
	}
	for _, r := range rules {
		fmt.Fprintf(&out, "\n### %s\n\n**%s** (%s). %s\n\nCost: %s = %s; alone it leaves %.4f%%.\n\nFix: %s\n",
			r.ID, strings.ToUpper(r.Title[:1])+r.Title[1:], r.Severity, r.Why, r.Cost.Names(), r.Cost, r.Cost.Availability()*100, r.Fix)
	}
	return out.Bytes()
}

func kindList(kinds []Kind) string {
	words := make([]string, len(kinds))
	for i, k := range kinds {
		words[i] = string(k)
	}
	return strings.Join(words, ", ")
}
