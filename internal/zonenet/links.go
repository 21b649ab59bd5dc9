package zonenet

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxDelay bounds the delay and the jitter of a link.
const MaxDelay = 10 * time.Second

// Duration is a time.Duration that is written as text ("15ms") in YAML and JSON.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, for example 15ms", text)
	}
	*d = Duration(v)
	return nil
}

// Link is what happens to the packets that go one way from a zone to another.
// The zero Link passes them as they are.
type Link struct {
	// Delay is added to each packet; 0 to 10 s. It is one way: a round trip
	// has it twice when both ways are set.
	Delay Duration `yaml:"delay,omitempty" json:"delay,omitzero"`
	// Jitter is the most that is added to Delay at random; 0 to 10 s. The
	// order of the packets stays.
	Jitter Duration `yaml:"jitter,omitempty" json:"jitter,omitzero"`
	// Loss is the share of packets that are lost at random, 0 to 1.
	Loss float64 `yaml:"loss,omitempty" json:"loss,omitzero"`
	// Drop loses every packet. Set on one way only, the other zone is deaf.
	Drop bool `yaml:"drop,omitempty" json:"drop,omitzero"`
	// Rate limits the link, in bytes per second; 0 is no limit. At most one
	// second of traffic waits, more is lost.
	Rate int64 `yaml:"rate,omitempty" json:"rate,omitzero"`
}

// Links are the settings by sending zone and receiving zone. A pair that is
// not there has the zero Link.
type Links map[string]map[string]Link

// Get returns the settings from one zone to another.
func (l Links) Get(from, to string) Link { return l[from][to] }

// Set changes the settings from one zone to another.
func (l Links) Set(from, to string, link Link) {
	if l[from] == nil {
		l[from] = map[string]Link{}
	}
	l[from][to] = link
}

// Clone copies the matrix.
func (l Links) Clone() Links {
	out := make(Links, len(l))
	for from, row := range l {
		for to, link := range row {
			out.Set(from, to, link)
		}
	}
	return out
}

// UniformLinks gives every pair of zones half of the round trip on each way.
func UniformLinks(zones []string, roundTrip time.Duration) Links {
	out := Links{}
	for _, from := range zones {
		for _, to := range zones {
			if from != to {
				out.Set(from, to, Link{Delay: Duration(roundTrip / 2)})
			}
		}
	}
	return out
}

// Validate reports every problem, each with its place in the matrix.
func (l Links) Validate(zones []string) error {
	var errs []error
	for from, row := range l {
		for to, link := range row {
			bad := func(format string, args ...any) {
				errs = append(errs, fmt.Errorf("links.%s.%s%s", from, to, fmt.Sprintf(format, args...)))
			}
			switch {
			case !slices.Contains(zones, from):
				bad(": unknown zone %q", from)
			case !slices.Contains(zones, to):
				bad(": unknown zone %q", to)
			case from == to:
				bad(": a zone has no link to itself")
			}
			if d := time.Duration(link.Delay); d < 0 || d > MaxDelay {
				bad(".delay %v: want 0 to %v", d, MaxDelay)
			}
			if d := time.Duration(link.Jitter); d < 0 || d > MaxDelay {
				bad(".jitter %v: want 0 to %v", d, MaxDelay)
			}
			if !(link.Loss >= 0 && link.Loss <= 1) {
				bad(".loss %v: want 0 to 1", link.Loss)
			}
			if link.Rate < 0 {
				bad(".rate %d: want 0 (no limit) or bytes per second", link.Rate)
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int {
		if a.Error() < b.Error() {
			return -1
		}
		return 1
	})
	return errors.Join(errs...)
}
