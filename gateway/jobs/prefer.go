package jobs

import (
	"net/http"
	"strings"
)

// preference is what a request's Prefer header says about the lane.
type preference struct {
	async  bool // respond-async
	repeat bool // respond-async; repeat: a run that may have been carried out may be repeated
}

// parsePrefer reads the Prefer header fields (RFC 7240 §2): a list of
// preferences, each with parameters. Of a preference that comes twice the first
// one counts. What is malformed is no preference.
func parsePrefer(h http.Header) preference {
	var p preference
	for _, line := range h["Prefer"] {
		for line != "" {
			var item string
			item, line = cutOutsideQuotes(line, ',')
			name, params := cutOutsideQuotes(item, ';')
			if p.async || !strings.EqualFold(token(name), "respond-async") {
				continue
			}
			p.async = true
			for params != "" {
				var param string
				param, params = cutOutsideQuotes(params, ';')
				if strings.EqualFold(token(param), "repeat") {
					p.repeat = true
				}
			}
		}
	}
	return p
}

// token is the name of "name", "name=value" and `name="value"`.
func token(s string) string {
	name, _, _ := strings.Cut(s, "=")
	return strings.TrimSpace(name)
}

// cutOutsideQuotes cuts s at the first sep that is not inside a quoted string.
func cutOutsideQuotes(s string, sep byte) (before, after string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == sep && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}
