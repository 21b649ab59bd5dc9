package audit

import (
	"fmt"

	"fournines/availability"
)

// BudgetMinutes is what 99.99% leaves in a year of 365 days.
const BudgetMinutes = availability.MinutesPerYear * 0.0001

// Assumption is a number that the rules' arithmetic uses, from the table that the
// model of `fournines plan` and `fournines prove` uses too.
type Assumption = availability.Assumption

// How often things happen, in events a year.
var (
	perCrash    = availability.Assume("crash")
	perHost     = availability.Assume("host")
	perZone     = availability.Assume("zone")
	perRelease  = availability.Assume("release")
	perDrain    = availability.Assume("drain")
	perFailover = availability.Assume("failover")
	perPeak     = availability.Assume("peak")
	perMistake  = availability.Assume("mistake")
	perBlind    = availability.Assume("blind")
)

// How long things take, in minutes.
var (
	takesCut      = availability.Assume("cut")
	takesSwitch   = availability.Assume("switch")
	takesRestart  = availability.Assume("restart")
	takesPeak     = availability.Assume("overload")
	takesPerson   = availability.Assume("person")
	takesUnseen   = availability.Assume("unseen")
	takesZone     = availability.Assume("zoneOut")
	takesRestore  = availability.Assume("restore")
	takesRecreate = availability.Assume("recreate")
)

// Assumptions returns every number that the arithmetic uses.
func Assumptions() []Assumption {
	return []Assumption{
		perCrash, perHost, perZone, perRelease, perDrain, perFailover, perPeak, perMistake, perBlind,
		takesCut, takesSwitch, takesRestart, takesPeak, takesPerson, takesUnseen, takesZone, takesRestore, takesRecreate,
	}
}

// Cost is what a mistake costs in a year: events, times minutes for each, times
// the share of the requests that fail in those minutes.
type Cost struct {
	Events, Takes Assumption
	// Share of the requests, 0 to 1.
	Share float64
}

// costs makes a Cost.
func costs(events, takes Assumption, share float64) Cost { return Cost{events, takes, share} }

// Minutes a year.
func (c Cost) Minutes() float64 { return c.Events.Value * c.Takes.Value * c.Share }

// Availability that is left when nothing else goes wrong, 0 to 1.
func (c Cost) Availability() float64 { return 1 - c.Minutes()/availability.MinutesPerYear }

// String writes the arithmetic.
func (c Cost) String() string {
	share := ""
	if c.Share != 1 {
		share = fmt.Sprintf(" × %g%%", c.Share*100)
	}
	return fmt.Sprintf("%g × %g min%s = %s min/year, %s",
		c.Events.Value, c.Takes.Value, share, number(c.Minutes()), share99(c.Minutes()))
}

// Names writes the arithmetic with the names of the assumptions.
func (c Cost) Names() string {
	return fmt.Sprintf("%s × %s × %g%%", c.Events.Name, c.Takes.Name, c.Share*100)
}

func number(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// share99 relates minutes to the budget of four nines.
func share99(minutes float64) string {
	share := minutes / BudgetMinutes
	if share >= 1 {
		return fmt.Sprintf("%.1f times the budget of 99.99%%", share)
	}
	return fmt.Sprintf("%.0f%% of the budget of 99.99%%", share*100)
}
