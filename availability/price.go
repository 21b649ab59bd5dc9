package availability

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"fournines/internal/strictyaml"
)

// Prices is what parts cost.
type Prices struct {
	// Currency is a word for the reports.
	Currency string `json:"currency" yaml:"currency"`
	// CPUMonth is the price of one virtual CPU with its share of memory for a month.
	CPUMonth float64 `json:"cpuMonth" yaml:"cpuMonth"`
	// DowntimeMinute is what a minute without service costs; 0 leaves it out.
	DowntimeMinute float64 `json:"downtimeMinute" yaml:"downtimeMinute"`
	// CPUs of one part of each group.
	CPUs map[string]float64 `json:"cpus" yaml:"cpus"`
}

// DefaultPrices takes the list price of an AWS m5.large in us-east-1, 0.096 USD
// an hour for 2 virtual CPUs with 8 GiB, and the sizes of the article where it
// has them: an API instance is limited to 2 CPUs, PostgreSQL has 4.
func DefaultPrices() Prices {
	return Prices{
		Currency: "USD", CPUMonth: 35.04,
		CPUs: map[string]float64{
			groupGateway: 1, groupAPI: 2, groupWorker: 2, groupPgproxy: 0.5, groupRedisPx: 0.5,
			groupPG: 4, groupEtcd: 0.5, groupRedis: 1, groupVectors: 4, groupPlugins: 1,
		},
	}
}

// Validate reports every field that is out of range.
func (p Prices) Validate() error {
	var errs []error
	check := func(path string, v float64) {
		if !(v >= 0 && v <= 1e9) {
			errs = append(errs, strictyaml.Problem{Path: "prices." + path, Message: fmt.Sprintf("%g is not between 0 and 1e9", v)})
		}
	}
	check("cpuMonth", p.CPUMonth)
	check("downtimeMinute", p.DowntimeMinute)
	for _, name := range slices.Sorted(maps.Keys(p.CPUs)) {
		if !slices.Contains(Groups(), name) {
			errs = append(errs, strictyaml.Problem{Path: "prices.cpus." + name, Message: fmt.Sprintf("there is no part %q", name), Hint: strictyaml.Suggest(name, Groups())})
			continue
		}
		check("cpus."+name, p.CPUs[name])
	}
	return errors.Join(errs...)
}

// Month is what a layout costs a month.
func (p Prices) Month(l Layout) float64 {
	cpus := 0.0
	for name, n := range l.Counts() {
		cpus += p.CPUs[name] * float64(n)
	}
	return cpus * p.CPUMonth
}

func (p Prices) template() string {
	var b strings.Builder
	fmt.Fprintf(&b, `
# An AWS m5.large in us-east-1 is 0.096 USD an hour for 2 CPUs with 8 GiB.
# prices:
#   currency: %s
#   cpuMonth: %g        # one virtual CPU with its memory
#   downtimeMinute: %g      # what a minute without service costs; 0 leaves it out
#   cpus: # of one part
`, p.Currency, p.CPUMonth, p.DowntimeMinute)
	for _, name := range Groups() {
		fmt.Fprintf(&b, "#     %s: %g\n", name, p.CPUs[name])
	}
	return b.String()
}
