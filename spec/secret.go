package spec

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted stands for every secret that is not empty.
const redacted = "<redacted>"

// Secret is a text that never shows in output: fmt, JSON, YAML and slog print
// a placeholder. Reveal returns the text itself.
type Secret string

// Reveal returns the secret in clear. Hand it to what needs it, never to a
// log, an error or a command line.
func (s Secret) Reveal() string { return string(s) }

// String returns the placeholder, or nothing when the secret is empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format implements fmt.Formatter, so that no verb (%q, %x, %#v) shows the text.
func (s Secret) Format(f fmt.State, verb rune) {
	out := s.String()
	if verb == 'q' || f.Flag('#') {
		out = `"` + out + `"`
	}
	// A failed write to a fmt.State has nowhere to be reported.
	_, _ = io.WriteString(f, out)
}

// MarshalText implements encoding.TextMarshaler, which JSON uses.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML implements yaml.Marshaler.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
