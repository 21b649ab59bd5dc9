package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestDuration(t *testing.T) {
	for _, tc := range []struct {
		text string
		want time.Duration
		out  string // when it differs from text
	}{
		{"0s", 0, ""},
		{"0", 0, "0s"},
		{"500ms", 500 * time.Millisecond, ""},
		{"1500ms", 1500 * time.Millisecond, "1.5s"},
		{"30s", 30 * time.Second, ""},
		{"90s", 90 * time.Second, "1m30s"},
		{"60m", time.Hour, "1h"},
		{"1h1s", time.Hour + time.Second, "1h0m1s"},
		{"24h", 24 * time.Hour, "1d"},
		{"36h", 36 * time.Hour, "1d12h"},
		{"7d", 7 * 24 * time.Hour, ""},
		{"1d2h30m", 26*time.Hour + 30*time.Minute, ""},
		{"-5s", -5 * time.Second, ""},
		{"-2d", -48 * time.Hour, ""},
	} {
		got, err := ParseDuration(tc.text)
		if err != nil || got.Std() != tc.want {
			t.Errorf("%q: got %v, %v, want %v", tc.text, got, err, tc.want)
			continue
		}
		out := tc.out
		if out == "" {
			out = tc.text
		}
		if got.String() != out {
			t.Errorf("%q prints as %q, want %q", tc.text, got, out)
		}
		if again, err := ParseDuration(got.String()); err != nil || again != got {
			t.Errorf("%q: %q reads back as %v, %v", tc.text, got, again, err)
		}
	}
	for text, why := range map[string]string{
		"": "it is empty", "30": "the unit is missing", "5 s": "unit or number is wrong", "soon": "unit or number is wrong",
		"1.5d": `the number before "d" must be whole`, "d": `the number before "d" must be whole`, "1d-2h": "a sign stands in the middle",
		"-": "it is empty", "999999999999d": "it is too long", "106751d999999h": "it is too long", "9999999h": "unit or number is wrong",
		"--1d": `the number before "d" must be whole`, "3w": "unit or number is wrong",
	} {
		if got, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: got %v, %v, want %q", text, got, err, why)
		}
	}
	for _, extreme := range []Duration{math.MinInt64, math.MaxInt64} {
		if extreme.String() == "" {
			t.Error("an extreme value does not print")
		}
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0B": 0, "512B": 512, "64KiB": 64 << 10, "20MiB": 20 << 20, "4GiB": 4 << 30, "1TiB": 1 << 40, "1 GiB": 1 << 30, "1536KiB": 1536 << 10,
	} {
		got, err := ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
			continue
		}
		if out := strings.ReplaceAll(text, " ", ""); got.String() != out {
			t.Errorf("%q prints as %q", text, got)
		}
	}
	for text, why := range map[string]string{
		"": "the unit must be one of", "10": "the unit is missing", "10MB": "the unit must be one of", "10kB": "the unit must be one of",
		"10Mi": "the unit must be one of", "-1MiB": "must be whole", "1.5GiB": "must be whole", "MiB": "must be whole", "1.5B": "must be whole",
		"9999999TiB": "it is too large", "99999999999999999999B": "it is too large", "+1B": "must be whole",
	} {
		if got, err := ParseBytes(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: got %v, %v, want %q", text, got, err, why)
		}
	}
}

func TestSecretHides(t *testing.T) {
	type holder struct {
		S Secret            `json:"s" yaml:"s"`
		P *Secret           `json:"p" yaml:"p"`
		L []Secret          `json:"l" yaml:"l"`
		M map[string]Secret `json:"m" yaml:"m"`
	}
	const clear = "hunter2"
	s := Secret(clear)
	h := holder{S: s, P: &s, L: []Secret{s}, M: map[string]Secret{"k": s}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s", "%T"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", h)
		fmt.Fprintf(&out, verb+"\n", &h)
	}
	fmt.Fprintln(&out, s, h, fmt.Errorf("with %v and %w", s, fmt.Errorf("%s", s)))
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("m", "secret", s, "in", h, "at", &h, "list", h.L)
	}
	asJSON, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(asJSON)
	out.Write(asYAML)
	hexed := fmt.Sprintf("%x", clear)
	if text := out.String(); strings.Contains(text, clear) || strings.Contains(strings.ToLower(text), hexed) {
		t.Errorf("the secret shows:\n%s", text)
	}
	if !strings.Contains(string(asYAML), "<redacted>") {
		t.Errorf("no placeholder in %s", asYAML)
	}
	if s.Reveal() != clear {
		t.Error("Reveal does not")
	}
	if Secret("").String() != "" {
		t.Error("an empty secret looks like one")
	}
	var read holder
	if err := yaml.Unmarshal([]byte("s: "+clear), &read); err != nil || read.S != s {
		t.Errorf("a secret cannot be read: %v", err)
	}
}

func TestValuesRoundTrip(t *testing.T) {
	type holder struct {
		D Duration `json:"d" yaml:"d"`
		B Bytes    `json:"b" yaml:"b"`
	}
	h := holder{D: Duration(90 * time.Second), B: 64 << 10}
	text, err := json.Marshal(h)
	if err != nil || string(text) != `{"d":"1m30s","b":"64KiB"}` {
		t.Errorf("json: %s, %v", text, err)
	}
	var back holder
	if err := json.Unmarshal(text, &back); err != nil || back != h {
		t.Errorf("json reads back as %+v, %v", back, err)
	}
	text, err = yaml.Marshal(h)
	if err != nil || string(text) != "d: 1m30s\nb: 64KiB\n" {
		t.Errorf("yaml: %s, %v", text, err)
	}
	if err := yaml.Unmarshal([]byte("d: 5"), &back); err == nil {
		t.Error("a duration without unit was read")
	}
}
