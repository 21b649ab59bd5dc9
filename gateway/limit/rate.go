package limit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Rate is how much is admitted in the long run: a count and the window it is
// meant for. The window is always written: "100 per minute" and "100 per
// second" are sixty times apart, and one is easily said for the other.
type Rate struct {
	// Count per Window, more than 0.
	Count float64
	// Window is a second, a minute, an hour or a day.
	Window time.Duration
}

// Bounds of a rate: at least one in a day, at most one in a microsecond, which
// is the clock's unit.
const (
	day           = 24 * time.Hour
	maxPerSecond  = 1e6
	maxRateLength = 64
)

var windows = []struct {
	name, short string
	d           time.Duration
}{
	{"second", "s", time.Second}, {"minute", "m", time.Minute}, {"hour", "h", time.Hour}, {"day", "d", day},
}

// ParseRate reads "100 per minute", "1.5 per second", "60000 per hour" or
// "1000 per day"; "100/minute" and "100/m" are the same in short.
func ParseRate(s string) (Rate, error) {
	const forms = `write it like "100 per minute" or "1.5 per second"`
	if len(s) > maxRateLength {
		return Rate{}, errors.New("it is too long; " + forms)
	}
	number, unit, ok := strings.Cut(s, "/")
	if !ok {
		number, unit, ok = strings.Cut(s, " per ")
	}
	number, unit = strings.TrimSpace(number), strings.TrimSpace(unit)
	if !ok {
		if _, err := strconv.ParseFloat(number, 64); err == nil {
			return Rate{}, fmt.Errorf(`%s in which time? The window is missing: write "%s per minute" or "%s per second", which is 60 times as much`, number, number, number)
		}
		return Rate{}, fmt.Errorf("%q is no rate; %s", s, forms)
	}
	if number == "" || strings.Trim(number, "0123456789.") != "" { // no signs, exponents, infinities
		return Rate{}, fmt.Errorf("%q is not a plain number; %s", number, forms)
	}
	count, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return Rate{}, fmt.Errorf("%q is not a plain number; %s", number, forms)
	}
	r := Rate{Count: count}
	for _, w := range windows {
		if unit == w.name || unit == w.short {
			r.Window = w.d
		}
	}
	if r.Window == 0 {
		return Rate{}, fmt.Errorf("%q is none of second, minute, hour and day; %s", unit, forms)
	}
	return r, r.validate()
}

func (r Rate) validate() error {
	switch {
	case r.Window <= 0:
		return errors.New(`a rate is needed, like "100 per minute"`)
	case !(r.PerSecond() <= maxPerSecond):
		return fmt.Errorf("%s is more than %.0f per second", r, maxPerSecond)
	case !(r.Count*float64(day/r.Window) >= 1):
		return fmt.Errorf("%s is less than 1 per day", r)
	}
	return nil
}

// PerSecond is the same rate in units per second.
func (r Rate) PerSecond() float64 { return r.Count / r.Window.Seconds() }

// String is the form that ParseRate reads.
func (r Rate) String() string {
	name := r.Window.String()
	for _, w := range windows {
		if w.d == r.Window {
			name = w.name
		}
	}
	return strconv.FormatFloat(r.Count, 'f', -1, 64) + " per " + name
}

// Both says the rate per second and per minute, so that nobody takes one for
// the other.
func (r Rate) Both() string {
	return fmt.Sprintf("%s per second = %s per minute", short(r.PerSecond()), short(60*r.PerSecond()))
}

func short(f float64) string {
	if f >= 100 {
		return strconv.FormatFloat(math.Round(f*100)/100, 'f', -1, 64)
	}
	return strconv.FormatFloat(f, 'g', 4, 64)
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) error {
	v, err := ParseRate(string(text))
	if err == nil {
		*r = v
	}
	return err
}
