package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"fournines/internal/strictyaml"
)

// What a rate may be, from 1 per day to 1000000 per second, and how far ahead a
// burst may reach.
const (
	maxPerSecond = 1e6
	maxBurstTime = 366 * 24 * time.Hour
)

var requestClasses = []string{"chat", "workflow", "read", "retrieve", "upload", "ingest", "mutate", "stop", "console", "other"}

// rateLimits checks what tags cannot say.
func (c *checker) rateLimits() {
	seen := map[string]int{}
	for i, l := range c.spec.Gateway.RateLimits {
		at := func(name string) string { return fmt.Sprintf("gateway.rateLimits[%d].%s", i, name) }
		if first, ok := seen[l.Name]; ok {
			c.add(at("name"), "", "%q is already the name of gateway.rateLimits[%d]", l.Name, first)
		}
		seen[l.Name] = i
		if perSecond, ok := perSecond(l.Rate); ok {
			switch {
			case perSecond > maxPerSecond:
				c.add(at("rate"), "", "%s is more than 1000000 per second", l.Rate)
			case perSecond*86400 < 1:
				c.add(at("rate"), "", "%s is less than 1 per day", l.Rate)
			case float64(l.Burst)/perSecond > maxBurstTime.Seconds():
				c.add(at("burst"), "", "%d at %s is more than a year's worth", l.Burst, l.Rate)
			}
		}
		for j, class := range l.Match.Classes {
			if !slices.Contains(requestClasses, class) {
				c.add(fmt.Sprintf("%s[%d]", at("match.classes"), j), strictyaml.Suggest(class, requestClasses), "%q is not one of %s", class, strings.Join(requestClasses, ", "))
			}
		}
		for j, id := range l.Match.Apps {
			named := slices.ContainsFunc(c.spec.Gateway.Apps, func(a GatewayApp) bool { return a.Name == id })
			if !named && (len(id) != 12 || strings.Trim(id, "0123456789abcdef") != "") {
				// Not shown: it may be the key itself.
				c.add(fmt.Sprintf("%s[%d]", at("match.apps"), j), "`fournines gateway key-id` prints the id of a key", "neither the name of one of gateway.apps nor 12 hexadecimal digits")
			}
		}
		if p := l.Match.PathPrefix; p != "" && !strings.HasPrefix(p, "/") {
			c.add(at("match.pathPrefix"), "", "%q does not begin with /", p)
		}
	}
	for i, s := range c.spec.Gateway.TrustedProxies {
		_, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); err != nil && (aerr != nil || a.Zone() != "") {
			c.add(fmt.Sprintf("gateway.trustedProxies[%d]", i), "write it like 10.0.0.0/8", "%q is neither a network nor an address", s)
		}
	}
}

// perSecond reads a rate whose form its pattern allows.
func perSecond(rate string) (float64, bool) {
	number, window, ok := strings.Cut(strings.Replace(rate, " per ", "/", 1), "/")
	seconds := map[string]float64{"second": 1, "minute": 60, "hour": 3600, "day": 86400}[window]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || seconds == 0 || err != nil {
		return 0, false
	}
	return n / seconds, true
}
