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
	// Weight is the app's share of the instances when they are short, next to
	// other apps, which have 1. 0 to 1000; default 1.
	Weight float64 `yaml:"weight"`
	// MaxInFlight bounds its requests in work, per gateway; more wait, and get
	// 429 when that takes too long. 0, the default, is no bound.
	MaxInFlight int64 `yaml:"maxInFlight"`
	// MaxQueue bounds its waiting requests; 0, the default, is
	// overload.appQueue.
	MaxQueue int `yaml:"maxQueue"`
	// Priority is the best its requests can have: "interactive" (default) or
	// "batch", which waits behind interactive and is refused before it.
	Priority string `yaml:"priority"`
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
		if !(a.Weight >= 0 && a.Weight <= 1000) {
			bad(field+".weight", "%v is not between 0 and 1000", a.Weight)
		}
		if a.MaxInFlight < 0 {
			bad(field+".maxInFlight", "%d is less than 0", a.MaxInFlight)
		}
		if a.MaxQueue < 0 {
			bad(field+".maxQueue", "%d is less than 0", a.MaxQueue)
		}
		if a.Priority != "" && a.Priority != PriorityInteractive && a.Priority != PriorityBatch {
			bad(field+".priority", "%q is neither %s nor %s", a.Priority, PriorityInteractive, PriorityBatch)
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
