package audit

import "fmt"

// BudgetMinutes is what 99.99% leaves in a year of 365 days.
const BudgetMinutes = 365 * 24 * 60 * 0.0001

// Assumption is a number that the rules' arithmetic uses.
type Assumption struct {
	// Name in the arithmetic.
	Name string
	// Value is events a year, or minutes.
	Value float64
	// Source says where the number comes from.
	Source string
}

// How often things happen, in events a year.
var (
	perCrash    = Assumption{"crash", 12, "assumed: one process in a layer ends or hangs once a month"}
	perHost     = Assumption{"host", 1, "assumed: one host of a small installation is lost or rebooted unplanned once a year"}
	perZone     = Assumption{"zone", 0.5, "assumed: a zone loses power or network once in two years"}
	perRelease  = Assumption{"release", 24, "assumed: two releases or configuration changes a month"}
	perDrain    = Assumption{"drain", 12, "assumed: each node is drained for maintenance once a month"}
	perFailover = Assumption{"failover", 12, "assumed: the primary of a layer changes once a month, planned or not"}
	perPeak     = Assumption{"peak", 52, "assumed: one evening peak a week exceeds what a fixed size carries (the article's peak is 20:00 to 22:00 every day)"}
	perMistake  = Assumption{"mistake", 0.5, "assumed: a person or a program destroys or exposes data once in two years"}
	perBlind    = Assumption{"blind", 2, "assumed: two faults a year are of a kind that only this signal shows"}
)

// How long things take, in minutes.
var (
	takesCut      = Assumption{"cut", 0.25, "assumed: a cut stream or refused request costs its user a quarter of a minute"}
	takesSwitch   = Assumption{"switch", 0.5, "30 s: what a failover of PostgreSQL or Redis with default settings takes"}
	takesRestart  = Assumption{"restart", 1, "assumed: a container starts, loads its code and answers in a minute"}
	takesPeak     = Assumption{"overload", 10, "assumed: an overload lasts ten minutes"}
	takesPerson   = Assumption{"person", 30, "assumed: a person is paged, finds the cause and mends it in half an hour"}
	takesUnseen   = Assumption{"unseen", 60, "assumed: without an alert the first users complain after half an hour, and half an hour more until it is mended"}
	takesZone     = Assumption{"zoneOut", 120, "the article's power loss of a zone: 2 hours"}
	takesRestore  = Assumption{"restore", 240, "assumed: finding a good backup and restoring it takes four hours"}
	takesRecreate = Assumption{"recreate", 1440, "assumed: what no backup has is put together again in a day"}
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
func (c Cost) Availability() float64 { return 1 - c.Minutes()/(365*24*60) }

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
