// Package availability is the arithmetic of being available, and a model that
// turns what single faults cost into what a year costs.
//
// The arithmetic (Series, Parallel, KOfN, BudgetMinutes) is exact and assumes
// parts that fail independently of each other. The model (Model, Run) does not:
// zones, hosts and whole-service faults take many parts at once, the rates are
// known only roughly, and a year may be lucky. It asks nothing and measures
// nothing; package proof feeds it what drills recorded.
package availability

import (
	"fmt"
	"math"
	"strconv"
)

// MinutesPerYear is a year of 365 days.
const MinutesPerYear = 365 * 24 * 60

// BudgetMinutes is how many minutes of a year may be lost at an availability
// between 0 and 1: 52.56 at 0.9999.
func BudgetMinutes(availability float64) float64 { return (1 - availability) * MinutesPerYear }

// FromMinutes is the availability that minutes lost in a year leave, at least 0.
func FromMinutes(minutes float64) float64 { return max(0, 1-minutes/MinutesPerYear) }

// Nines counts the nines of an availability below 1: 0.999 has 3, 0.9995 has 3.3.
func Nines(availability float64) float64 { return -math.Log10(1 - availability) }

// Percent writes an availability with as many digits as its distance from 1 needs:
// "99.9%", "99.9967%".
func Percent(availability float64) string {
	if availability >= 1 {
		return "100%"
	}
	// Two digits of what is missing, without zeros at the end.
	digits := max(1, int(math.Ceil(Nines(availability)-1e-9))-1)
	text := strconv.FormatFloat(availability*100, 'f', digits, 64)
	for text[len(text)-1] == '0' && text[len(text)-2] != '.' {
		text = text[:len(text)-1]
	}
	return text + "%"
}

// Series is the availability of parts that are all needed.
func Series(parts ...float64) float64 {
	a := 1.0
	for _, p := range parts {
		a *= p
	}
	return a
}

// Parallel is the availability of parts of which any one is enough.
func Parallel(parts ...float64) float64 {
	u := 1.0
	for _, p := range parts {
		u *= 1 - p
	}
	return 1 - u
}

// KOfN is the availability of n equal parts, each available with a, of which k
// are needed.
func KOfN(k, n int, a float64) float64 {
	sum := 0.0
	for up := max(k, 0); up <= n; up++ {
		sum += binomial(n, up) * math.Pow(a, float64(up)) * math.Pow(1-a, float64(n-up))
	}
	return min(sum, 1)
}

func binomial(n, k int) float64 {
	c := 1.0
	for i := 1; i <= k; i++ {
		c *= float64(n-k+i) / float64(i)
	}
	return c
}

// SteadyState is the availability of a part that fails rate times a year of
// being up and is away for minutes each time.
func SteadyState(rate, minutes float64) float64 {
	return 1 / (1 + rate*minutes/MinutesPerYear)
}

// ParseAvailability reads "99.99%", "99.99" or "0.9999".
func ParseAvailability(text string) (float64, error) {
	number, percent := text, false
	if n := len(text); n > 0 && text[n-1] == '%' {
		number, percent = text[:n-1], true
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, fmt.Errorf("availability %q: want a share such as 0.9999, or 99.99%%", text)
	}
	if percent || v > 1 {
		v /= 100
	}
	if !(v > 0 && v < 1) {
		return 0, fmt.Errorf("availability %q: want more than 0 and less than 1 (less than 100%%)", text)
	}
	return v, nil
}
