package pgproxy

import (
	"fmt"
	"sort"
	"strings"

	"fournines/internal/pgwire"
	"fournines/pgproxy/route"
)

// setting is one session setting and the SQL that makes it.
type setting struct{ name, sql string }

// settings is an immutable set of session settings, sorted by name. Equal keys
// mean equal sets.
type settings struct {
	key  string
	list []setting
	// values has the startup parameters by lower-case name; nil for settings
	// that were made later.
	values map[string]string
	// hint is the startup parameter fournines.route.
	hint route.Hint
}

func newSettings(list []setting) *settings {
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	var b strings.Builder
	for _, s := range list {
		b.WriteString(s.name)
		b.WriteByte(0)
		b.WriteString(s.sql)
		b.WriteByte(0)
	}
	return &settings{key: b.String(), list: list}
}

func (s *settings) get(name string) (string, bool) {
	for _, e := range s.list {
		if e.name == name {
			return e.sql, true
		}
	}
	return "", false
}

func (s *settings) without(name string) *settings {
	list := make([]setting, 0, len(s.list))
	for _, e := range s.list {
		if e.name != name {
			list = append(list, e)
		}
	}
	return newSettings(list)
}

func (s *settings) with(name, sql string) *settings {
	return newSettings(append(s.without(name).list, setting{name, sql}))
}

// changeSQL returns the statements that turn a server connection with the
// settings have into one with the settings want; empty when they are equal.
func changeSQL(have, want *settings) string {
	if have == want || have.key == want.key {
		return ""
	}
	var b strings.Builder
	for _, e := range have.list {
		if _, ok := want.get(e.name); !ok {
			fmt.Fprintf(&b, "RESET %s;", quoteName(e.name))
		}
	}
	for _, e := range want.list {
		if sql, ok := have.get(e.name); !ok || sql != e.sql {
			b.WriteString(e.sql)
			b.WriteString("\n;") // the newline ends a comment at the end of the statement
		}
	}
	return b.String()
}

// quoteName quotes a setting's name; a dot separates two identifiers.
func quoteName(name string) string {
	parts := strings.Split(name, ".")
	for i, p := range parts {
		parts[i] = `"` + strings.ReplaceAll(p, `"`, `""`) + `"`
	}
	return strings.Join(parts, ".")
}

func quoteLiteral(s string) string {
	return `E'` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `''`) + `'`
}

// startupSettings turns startup parameters into settings. PostgreSQL applies
// "options" first and the named ones over them.
func startupSettings(params map[string]string) (*settings, error) {
	var list []setting
	values := make(map[string]string)
	opts, err := pgwire.ParseOptions(params["options"])
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		values[strings.ToLower(o[0])] = o[1]
	}
	for name, value := range params {
		switch name {
		case "user", "database", "options", "replication":
		default:
			values[strings.ToLower(name)] = value
		}
	}
	for name, value := range values {
		if !validSettingName(name) {
			return nil, fmt.Errorf("invalid setting name %q", name)
		}
		list = append(list, setting{name, fmt.Sprintf("SELECT pg_catalog.set_config(%s,%s,false)", quoteLiteral(name), quoteLiteral(value))})
	}
	out := newSettings(list)
	out.values = values
	out.hint = hintOf(values[route.RouteSetting])
	return out, nil
}

// hintOf reads a value of fournines.route.
func hintOf(value string) route.Hint {
	for h := route.HintAuto; h <= route.HintStandby; h++ {
		if strings.EqualFold(value, h.String()) {
			return h
		}
	}
	if value != "" {
		return route.HintInvalid
	}
	return route.NoHint
}

func validSettingName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '_' && c != '.' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 128
}
