// Package docpage holds an operator's page under docs/ against the code that it
// describes: every setting with its default, every metric. For tests.
package docpage

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var fenced = regexp.MustCompile("(?s)```.*?```")

// Read reads a page, without its fenced code.
func Read(tb testing.TB, path string) string {
	tb.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return fenced.ReplaceAllString(string(text), "")
}

// CheckSettings reports what the first table below a heading lacks or has too
// much against config, a struct with yaml tags that holds the defaults. The
// table's first column has one or more settings, its second their default.
func CheckSettings(tb testing.TB, page, heading string, config any) {
	tb.Helper()
	_, below, ok := strings.Cut(page, "\n"+heading+"\n")
	if !ok {
		tb.Fatalf("the page has no heading %q", heading)
	}
	defaults := map[string]string{} // as the page writes them, by setting
	begun := false
	for line := range strings.Lines(below) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			if begun {
				break
			}
			continue
		}
		begun = true
		for name := range strings.SplitSeq(cells[1], ",") {
			defaults[strings.Trim(strings.TrimSpace(name), "`")] = strings.Trim(strings.TrimSpace(cells[2]), "`")
		}
	}
	known := map[string]bool{"setting": true}
	for name, want := range settingsOf(reflect.ValueOf(config), "") {
		known[name] = true
		got, ok := defaults[name]
		switch {
		case !ok:
			tb.Errorf("%s is not in the table of settings", name)
		case !strings.Contains(name, "[]") && got != want:
			tb.Errorf("%s: the page says that the default is %q, it is %q", name, got, want)
		}
	}
	for name := range defaults {
		if !known[name] && strings.Trim(name, "-: ") != "" {
			tb.Errorf("there is no setting %s", name)
		}
	}
}

// settingsOf lists the settings below v with their defaults as a page writes
// them. Elements of a list have its name and "[]".
func settingsOf(v reflect.Value, prefix string) map[string]string {
	out := map[string]string{}
	for i := range v.NumField() {
		f, field := v.Type().Field(i), v.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "-" {
			continue
		}
		at := strings.TrimPrefix(prefix+"."+name, ".")
		if options == "inline" {
			at = prefix
		}
		switch x := field.Interface().(type) {
		case time.Duration:
			out[at] = short(x)
			continue
		case fmt.Stringer:
			out[at] = x.String()
			continue
		}
		below := map[string]string{}
		switch {
		case field.Kind() == reflect.Struct:
			below = settingsOf(field, at)
		case field.Kind() == reflect.Slice && field.Type().Elem().Kind() == reflect.Struct:
			below = settingsOf(reflect.New(field.Type().Elem()).Elem(), at+"[]")
		case field.Kind() == reflect.Slice:
			out[at] = ""
		default:
			out[at] = fmt.Sprint(field.Interface())
		}
		for k, s := range below {
			out[k] = s
		}
	}
	return out
}

// short writes d without units that are 0.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
