package gateway

import (
	"fmt"
	"regexp"
)

// App is one Dify application, as an operator knows it.
type App struct {
	// Name is what metrics, logs and the admin API call it: letters, digits,
	// '.', '_' and '-', at most 64.
	Name string `yaml:"name"`
	// KeyIDs are the ids of its API keys (see dify.KeyID), at least one. A key
	// itself is never configured: the gateway only has to recognise it.
	KeyIDs []string `yaml:"keyIds"`
}

// app is whom a request belongs to.
type app struct {
	// id is the configured name, the id of a key that nobody has named, or ""
	// for a request without a key.
	id string
	// named tells that id is configured, so that it may be a metric's label.
	named bool
}

// appTable finds apps by the ids of their keys.
type appTable map[string]app

func newAppTable(apps []App) appTable {
	t := appTable{}
	for _, a := range apps {
		for _, id := range a.KeyIDs {
			t[id] = app{id: a.Name, named: true}
		}
	}
	return t
}

func (t appTable) find(keyID string) app {
	if a, ok := t[keyID]; ok {
		return a
	}
	return app{id: keyID}
}

var (
	appName  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	keyIDHex = regexp.MustCompile(`^[0-9a-f]{12}$`)
)

func validateApps(apps []App, bad func(field, format string, args ...any)) {
	names, ids := map[string]int{}, map[string]int{}
	for i, a := range apps {
		field := fmt.Sprintf("apps[%d]", i)
		switch first, ok := names[a.Name]; {
		case !appName.MatchString(a.Name):
			bad(field+".name", "%q is not 1 to 64 letters, digits, '.', '_' or '-'", a.Name)
		case a.Name == appOther || a.Name == appNone:
			bad(field+".name", "%q is what metrics call apps without a name", a.Name)
		case keyIDHex.MatchString(a.Name):
			bad(field+".name", "%q could be taken for the id of a key", a.Name)
		case ok:
			bad(field+".name", "%q is already the name of apps[%d]", a.Name, first)
		default:
			names[a.Name] = i
		}
		if len(a.KeyIDs) == 0 {
			bad(field+".keyIds", "at least one is needed; `fournines gateway key-id` prints the id of a key")
		}
		for j, id := range a.KeyIDs {
			at := fmt.Sprintf("%s.keyIds[%d]", field, j)
			switch first, ok := ids[id]; {
			case !keyIDHex.MatchString(id):
				// Not shown: it may be the key itself.
				bad(at, "not 12 hexadecimal digits; `fournines gateway key-id` prints the id of a key")
			case ok:
				bad(at, "%s belongs to apps[%d] already", id, first)
			default:
				ids[id] = i
			}
		}
	}
}
