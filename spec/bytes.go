package spec

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size, written like 512B, 64KiB, 20MiB or 4GiB.
type Bytes int64

const (
	kibibyte Bytes = 1 << 10
	mebibyte Bytes = 1 << 20
	gibibyte Bytes = 1 << 30
	tebibyte Bytes = 1 << 40
)

// byteUnits are tried in this order: a longer suffix first.
func byteUnits() []struct {
	suffix string
	size   Bytes
} {
	return []struct {
		suffix string
		size   Bytes
	}{{"TiB", tebibyte}, {"GiB", gibibyte}, {"MiB", mebibyte}, {"KiB", kibibyte}, {"B", 1}}
}

// ParseBytes reads a whole number and one of the units B, KiB, MiB, GiB, TiB.
func ParseBytes(s string) (Bytes, error) {
	bad := func(why string) (Bytes, error) {
		return 0, fmt.Errorf("%q is not a size: %s; write it like 64KiB, 20MiB or 4GiB", s, why)
	}
	for _, u := range byteUnits() {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		number = strings.TrimSuffix(number, " ")
		n, err := strconv.ParseUint(number, 10, 63)
		switch {
		case errors.Is(err, strconv.ErrRange):
			return bad("it is too large")
		case err != nil && u.size == 1 && number != "" && !isNumber(number):
			return bad("the unit must be one of B, KiB, MiB, GiB, TiB")
		case err != nil:
			return bad("the number before the unit must be whole")
		}
		if n > uint64(math.MaxInt64)/uint64(u.size) {
			return bad("it is too large")
		}
		return Bytes(n) * u.size, nil
	}
	if isNumber(s) {
		return bad("the unit is missing")
	}
	return bad("the unit must be one of B, KiB, MiB, GiB, TiB")
}

// String writes b with the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range byteUnits() {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.suffix
		}
	}
	return "0B"
}

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}
