package spec

import (
	"fmt"
	"strings"
)

// GatewayApp is one Dify application and what it may use of each gateway.
type GatewayApp struct {
	// Name is what metrics, logs and the admin API call the app. Unique.
	Name string `yaml:"name" pattern:"^[A-Za-z0-9._-]{1,64}$" wants:"1 to 64 letters, digits, '.', '_' or '-'"`
	// KeyIDs are the ids of its API keys, which `fournines gateway key-id`
	// prints; the keys themselves stay out of this file.
	KeyIDs []string `yaml:"keyIds" range:"1..100"`
	// Weight is the app's share when api instances are short, next to other
	// apps, which have 1.
	Weight float64 `yaml:"weight" range:"0.01..1000"`
	// MaxInFlight is how many of its requests each gateway has in work at most,
	// streams included; more wait, and get 429 in the end. 0 is no bound.
	MaxInFlight int `yaml:"maxInFlight" range:"0..1000000"`
	// MaxQueue is how many of its requests wait in each gateway at most; 0 is
	// gateway.overload.appQueue.
	MaxQueue int `yaml:"maxQueue" range:"0..1000000"`
	// Priority is the best that its requests can have: batch ones wait behind
	// interactive ones and are refused before them.
	Priority string `yaml:"priority" enum:"interactive,batch"`
}

// SetDefaults makes an app like all others unless the file says otherwise.
func (a *GatewayApp) SetDefaults() { a.Weight, a.Priority = 1, "interactive" }

// GatewayOverload sets what each gateway does when there is more to do than the
// api instances can.
type GatewayOverload struct {
	// Adaptive lets the number of requests that an instance works on before
	// their first content follow what the instance can do.
	Adaptive bool `yaml:"adaptive"`
	// MaxInFlight is how many requests, streams included, one instance gets
	// from one gateway at most; 0 is no bound. Dify's newer images accept
	// SERVER_WORKER_CONNECTIONS at a time, 10 by default: stay below that, or
	// the checks of health wait as well.
	MaxInFlight int `yaml:"maxInFlight" range:"0..1000000"`
	// MaxQueue is how many requests wait in one gateway at most.
	MaxQueue int `yaml:"maxQueue" range:"0..1000000"`
	// AppQueue is how many of them may be one app's.
	AppQueue int `yaml:"appQueue" range:"1..1000000"`
	// QueueTimeout is how long a request waits in a burst.
	QueueTimeout Duration `yaml:"queueTimeout" range:"1ms..5m"`
	// StandingTimeout is how long it waits when its app has had somebody
	// waiting for four times as long; 0s is as long as in a burst.
	StandingTimeout Duration `yaml:"standingTimeout" range:"0s..5m"`
}

func defaultGatewayOverload() GatewayOverload {
	return GatewayOverload{
		Adaptive: true, MaxInFlight: 1000, MaxQueue: 1000, AppQueue: 500,
		QueueTimeout: Duration(5 * second), StandingTimeout: Duration(second / 2),
	}
}

// gatewayApps checks what tags cannot say.
func (c *checker) gatewayApps() {
	names, ids := map[string]int{}, map[string]int{}
	for i, a := range c.spec.Gateway.Apps {
		field := fmt.Sprintf("gateway.apps[%d]", i)
		if first, ok := names[a.Name]; ok {
			c.add(field+".name", "", "%q is already the name of gateway.apps[%d]", a.Name, first)
		} else if keyID(a.Name) {
			c.add(field+".name", "", "%q could be taken for the id of a key", a.Name)
		} else {
			names[a.Name] = i
		}
		for j, id := range a.KeyIDs {
			at := fmt.Sprintf("%s.keyIds[%d]", field, j)
			if !keyID(id) {
				// Not shown: it may be the key itself.
				c.add(at, "`fournines gateway key-id` prints the id of a key", "not 12 hexadecimal digits")
			} else if first, ok := ids[id]; ok {
				c.add(at, "", "%s belongs to gateway.apps[%d] already", id, first)
			} else {
				ids[id] = i
			}
		}
	}
	if o := c.spec.Gateway.Overload; o.StandingTimeout != 0 && o.StandingTimeout.Std() < 10*millisecond {
		c.add("gateway.overload.standingTimeout", "", "%v is neither 0s nor at least 10ms", o.StandingTimeout)
	}
}

func keyID(s string) bool { return len(s) == 12 && strings.Trim(s, "0123456789abcdef") == "" }
