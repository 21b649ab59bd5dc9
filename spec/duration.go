package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written like 500ms, 30s, 1h30m or 7d.
type Duration time.Duration

const (
	millisecond = time.Millisecond
	second      = time.Second
	minute      = time.Minute
	day         = 24 * time.Hour
)

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// ParseDuration reads what time.ParseDuration reads, and days: 7d, 1d12h.
func ParseDuration(s string) (Duration, error) {
	orig := s
	bad := func(why string) (Duration, error) {
		return 0, fmt.Errorf("%q is not a duration: %s; write it like 500ms, 30s, 5m, 12h or 7d", orig, why)
	}
	negative := strings.HasPrefix(s, "-")
	if negative {
		s = s[1:]
	}
	if s == "" {
		return bad("it is empty")
	}
	var total time.Duration
	if i := strings.IndexByte(s, 'd'); i >= 0 {
		days, err := strconv.ParseInt(s[:i], 10, 64)
		if err != nil || days < 0 {
			return bad("the number before \"d\" must be whole")
		}
		if days > int64(math.MaxInt64/day) {
			return bad("it is too long")
		}
		total, s = time.Duration(days)*day, s[i+1:]
	}
	if s != "" {
		if s[0] == '-' || s[0] == '+' {
			return bad("a sign stands in the middle")
		}
		rest, err := time.ParseDuration(s)
		switch {
		case err == nil:
		case isNumber(s):
			return bad("the unit is missing")
		default:
			return bad("unit or number is wrong")
		}
		if rest > math.MaxInt64-total {
			return bad("it is too long")
		}
		total += rest
	}
	if negative {
		total = -total
	}
	return Duration(total), nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseFloat(s, 64)
	return err == nil
}

// String writes d as ParseDuration reads it, in the shortest form.
func (d Duration) String() string {
	t := time.Duration(d)
	if t == 0 {
		return "0s"
	}
	if t == math.MinInt64 {
		return t.String()
	}
	sign := ""
	if t < 0 {
		sign, t = "-", -t
	}
	days := ""
	if t >= day {
		days = strconv.FormatInt(int64(t/day), 10) + "d"
		t %= day
	}
	rest := ""
	if t > 0 {
		rest = t.String()
		// time.Duration writes 1m0s and 1h0m0s.
		if strings.HasSuffix(rest, "m0s") {
			rest = strings.TrimSuffix(rest, "0s")
		}
		if strings.HasSuffix(rest, "h0m") {
			rest = strings.TrimSuffix(rest, "0m")
		}
	}
	return sign + days + rest
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}
