// Package cron reads schedules in cron form and computes when they are due.
package cron

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Schedule says when something is due, to the minute. The zero Schedule never is.
type Schedule struct {
	minute, hour, day, month, weekday uint64 // bit n is set when n matches
	// anyDay and anyWeekday: the field begins with a star. Cron takes a day that
	// either field names when both are restricted.
	anyDay, anyWeekday bool
}

// fields are the five fields of a schedule with their bounds. Sunday is 0 or 7.
var fields = []struct {
	name        string
	least, most int
}{{"minute", 0, 59}, {"hour", 0, 23}, {"day", 1, 31}, {"month", 1, 12}, {"weekday", 0, 7}}

// Parse reads minute, hour, day, month and weekday: numbers, ranges (1-5), steps
// (*/15) and lists of these. The error names the field that is wrong.
func Parse(text string) (Schedule, error) {
	words := strings.Fields(text)
	if len(words) != len(fields) {
		return Schedule{}, fmt.Errorf("has %d fields, want %d", len(words), len(fields))
	}
	var s Schedule
	for i, into := range []*uint64{&s.minute, &s.hour, &s.day, &s.month, &s.weekday} {
		for item := range strings.SplitSeq(words[i], ",") {
			bits, err := parseItem(i, item)
			if err != nil {
				return Schedule{}, err
			}
			*into |= bits
		}
	}
	if s.weekday&(1<<7) != 0 {
		s.weekday |= 1
	}
	s.anyDay, s.anyWeekday = strings.HasPrefix(words[2], "*"), strings.HasPrefix(words[4], "*")
	return s, nil
}

func parseItem(field int, item string) (bits uint64, err error) {
	f := fields[field]
	span, by, stepped := strings.Cut(item, "/")
	step := 1
	if stepped {
		if step, err = strconv.Atoi(by); err != nil || step < 1 {
			return 0, fmt.Errorf("%s %q has a wrong step", f.name, item)
		}
	}
	low, high := f.least, f.most
	if span != "*" {
		from, to, ranged := strings.Cut(span, "-")
		switch {
		case ranged:
		case stepped:
			to = strconv.Itoa(f.most) // 5/15 is 5-59/15
		default:
			to = from
		}
		var errLow, errHigh error
		low, errLow = strconv.Atoi(from)
		high, errHigh = strconv.Atoi(to)
		if cmp.Or(errLow, errHigh) != nil || low < f.least || high > f.most || low > high {
			return 0, fmt.Errorf("%s %q is not within %d to %d", f.name, item, f.least, f.most)
		}
	}
	for n := low; n <= high; n += min(step, f.most+1) {
		bits |= 1 << n
	}
	return bits, nil
}

// horizon bounds the search for the next time: a 29th of February is at most
// eight years away.
const horizon = 9

// Next returns the first minute after t at which the schedule is due, in t's
// time zone, or the zero time when there is none ("0 0 31 2 *"). A time that a
// change of the clock leaves out is skipped.
func (s Schedule) Next(t time.Time) time.Time {
	end := t.AddDate(horizon, 0, 0)
	t = t.Truncate(time.Minute).Add(time.Minute)
	for t.Before(end) {
		switch {
		case s.month&(1<<int(t.Month())) == 0:
			t = after(t, time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, t.Location()))
		case !s.onDay(t):
			t = after(t, time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, t.Location()))
		case s.hour&(1<<t.Hour()) == 0:
			t = t.Add(time.Duration(60-t.Minute()) * time.Minute)
		case s.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// after is next, or an hour later when a change of the clock makes next lie
// before: midnight may not exist.
func after(t, next time.Time) time.Time {
	if next.After(t) {
		return next
	}
	return t.Add(time.Hour)
}

func (s Schedule) onDay(t time.Time) bool {
	day, weekday := s.day&(1<<t.Day()) != 0, s.weekday&(1<<int(t.Weekday())) != 0
	if s.anyDay || s.anyWeekday {
		return day && weekday
	}
	return day || weekday
}
