package audit

import "strings"

// setting is one setting of a server, with its place.
type setting struct {
	value string
	place Place
	// node it stands in, when it can be edited.
	node node
}

// settings of one server from one source.
type settings struct {
	// name of the server or file.
	name string
	// at is where a missing setting is reported.
	at     Place
	values map[string]setting
	// partial means that other sources may set more.
	partial bool
}

func (s settings) get(name string) string { return s.values[name].value }

func (s settings) place(name string) Place {
	if v, ok := s.values[name]; ok {
		return v.place
	}
	return s.at
}

// settingsFile is redis.conf or postgresql.conf.
type settingsFile struct {
	*file
	settings
}

// parseSettings reads lines of a name and a value. The last line of a name
// counts, as for the servers.
func parseSettings(f *file, separator string) *settingsFile {
	s := &settingsFile{file: f, settings: settings{name: f.name, at: f.at(1), values: map[string]setting{}}}
	for i, line := range f.lines {
		text := strings.TrimSpace(line)
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, separator)
		if !ok && separator == "=" {
			name, value, _ = strings.Cut(text, " ")
		}
		value = strings.TrimSpace(value)
		if separator == "=" {
			// A comment may follow a value of postgresql.conf.
			if rest, _, found := strings.Cut(value, "#"); found && !strings.HasPrefix(value, "'") {
				value = strings.TrimSpace(rest)
			}
		}
		if end := strings.LastIndexByte(value, '\''); strings.HasPrefix(value, "'") && end > 0 {
			value = value[1:end]
		}
		s.values[strings.ToLower(strings.TrimSpace(name))] = setting{value: strings.Trim(value, `"`), place: f.at(i + 1)}
	}
	return s
}
