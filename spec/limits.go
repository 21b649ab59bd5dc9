package spec

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"fournines/internal/strictyaml"
)

// SplitRange splits the value of a range tag, "1..9", into its two bounds.
func SplitRange(tag string) (lowest, highest string, ok bool) {
	return strings.Cut(tag, "..")
}

// checkLimits reports every field of v, a struct, whose value its range, enum
// or pattern tag does not allow.
func checkLimits(path string, v reflect.Value) []strictyaml.Problem {
	var out []strictyaml.Problem
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, _, ok := strictyaml.FieldName(field)
		if !ok {
			continue
		}
		at := name
		if path != "" {
			at = path + "." + name
		}
		value := v.Field(i)
		if p, bad := checkField(at, value, field.Tag); bad {
			out = append(out, p)
		}
		switch {
		case value.Kind() == reflect.Struct:
			out = append(out, checkLimits(at, value)...)
		case value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Struct:
			for j := range value.Len() {
				out = append(out, checkLimits(fmt.Sprintf("%s[%d]", at, j), value.Index(j))...)
			}
		}
	}
	return out
}

func checkField(path string, v reflect.Value, tag reflect.StructTag) (strictyaml.Problem, bool) {
	problem := func(hint, format string, args ...any) (strictyaml.Problem, bool) {
		return strictyaml.Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint}, true
	}
	if list := tag.Get("enum"); list != "" {
		words := strings.Split(list, ",")
		if !slices.Contains(words, v.String()) {
			return problem(strictyaml.Suggest(v.String(), words), "%q is not one of %s", v.String(), strings.Join(words, ", "))
		}
	}
	if pattern := tag.Get("pattern"); pattern != "" {
		if v.String() == "" {
			return problem("want "+tag.Get("wants"), "a value is needed")
		}
		if !regexp.MustCompile(pattern).MatchString(v.String()) {
			return problem("want "+tag.Get("wants"), "%q is not allowed", v.String())
		}
	}
	bounds := tag.Get("range")
	if bounds == "" {
		return strictyaml.Problem{}, false
	}
	lowest, highest, _ := SplitRange(bounds)
	if v.Kind() == reflect.Slice {
		low, high := mustInt(lowest), mustInt(highest)
		if n := int64(v.Len()); n < low || n > high {
			return problem("", "want %s elements, got %d", between(lowest, highest), n)
		}
		return strictyaml.Problem{}, false
	}
	if inRange(v, lowest, highest) {
		return strictyaml.Problem{}, false
	}
	return problem("", "%v is out of range, want %s", v.Interface(), between(lowest, highest))
}

func between(lowest, highest string) string {
	if lowest == highest {
		return "exactly " + lowest
	}
	return lowest + " to " + highest
}

// inRange compares v with bounds written in the notation of its type.
func inRange(v reflect.Value, lowest, highest string) bool {
	switch x := v.Interface().(type) {
	case Duration:
		return mustParse(ParseDuration, lowest) <= x && x <= mustParse(ParseDuration, highest)
	case Bytes:
		return mustParse(ParseBytes, lowest) <= x && x <= mustParse(ParseBytes, highest)
	case float64:
		parse := func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }
		// Written so that NaN is out of every range.
		return mustParse(parse, lowest) <= x && x <= mustParse(parse, highest)
	}
	return mustInt(lowest) <= v.Int() && v.Int() <= mustInt(highest)
}

func mustInt(s string) int64 {
	return mustParse(func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }, s)
}

// mustParse reads a bound of a struct tag. Tags are part of the program and
// every one is read by Default().Validate() in the tests.
func mustParse[T any](parse func(string) (T, error), s string) T {
	v, err := parse(s)
	if err != nil {
		panic(fmt.Sprintf("range tag: %v", err))
	}
	return v
}
