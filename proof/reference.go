package proof

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"

	"fournines/availability"
)

//go:generate go test -run ^TestReferenceIsCurrent$ . -update

// introduction of docs/proof.md, what the code cannot say.
//
//go:embed introduction.md
var introduction string

// Reference returns docs/proof.md.
func Reference() []byte {
	var out bytes.Buffer
	m := availability.Default()
	out.WriteString(introduction)
	fmt.Fprintf(&out, "\n## The verdict\n\n%s\n", availability.Rule)
	fmt.Fprint(&out, `
## Rates and times

The value is the mean. Factor: with 90% belief the truth lies between the median
divided by it and the median times it. Spread is the same for single events.

| name | value | factor | spread | where it comes from |
| --- | --- | --- | --- | --- |
`)
	for _, a := range availability.Assumptions() {
		spread := ""
		if a.Unit == availability.Minutes {
			spread = fmt.Sprintf("%g", a.Spread)
		}
		fmt.Fprintf(&out, "| `%s` | %g %s | %g | %s | %s |\n", a.Name, a.Value, a.Unit, a.Factor, spread, a.Source)
	}
	fmt.Fprintf(&out, `
A drill may differ from the fault in production that it stands for by a factor of
%g (`+"`laboratory`"+`).

## Classes of faults

Rate: events a year for each of what the class counts. Away: how long redundancy is
reduced. Outage and share: what users lose while the rest takes over; a part that
has no replacement is missed until it is back. A drill of a class marked with *
measures the share, because it lasts as long as it is told to.

| class | what happens | kind | rate | away | outage | share | drills |
| --- | --- | --- | --- | --- | --- | --- | --- |
`, m.Laboratory)
	for _, f := range m.Faults {
		rate := "`" + f.Rate + "`"
		if f.Part != 1 {
			rate += fmt.Sprintf(" × %g", f.Part)
		}
		rate += " for " + string(f.Scope)
		if f.Group != "" {
			rate += " (" + f.Group + ")"
		}
		share := fmt.Sprintf("%g: %s", f.Share, f.ShareSource)
		if f.Share == 0 {
			share = "what one part carries"
		}
		drills := "none can"
		if len(f.Drills) > 0 {
			drills = strings.Join(f.Drills, ", ")
		}
		if f.ShareOnly {
			drills += " *"
		}
		about := f.About
		if f.Outside {
			about += " (not counted, reported beside)"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s | `%s` | %s | %s |\n", f.Name, about, f.Kind, rate, code(f.Away), f.Outage, share, drills)
	}
	fmt.Fprintf(&out, `
## Prices

%g %s a month for one virtual CPU with its share of memory: an AWS m5.large in
us-east-1 at 0.096 USD an hour. CPUs of one part:

| part | CPUs |
| --- | --- |
`, m.Prices.CPUMonth, m.Prices.Currency)
	for _, g := range availability.Groups() {
		fmt.Fprintf(&out, "| %s | %g |\n", g, m.Prices.CPUs[g])
	}
	return out.Bytes()
}

func code(name string) string {
	if name == "" {
		return ""
	}
	return "`" + name + "`"
}
