package limit

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The values of Limit.By.
const (
	ByApp     = "app"
	ByUser    = "user"
	ByAddress = "address"
	ByRoute   = "route"
	ByAll     = "all"
)

// The values of Limit.Unit.
const (
	Requests = "requests"
	Tokens   = "tokens"
)

// Limit is one rule. A request must be admitted by every limit that matches it;
// one that is refused by any is charged to none.
type Limit struct {
	// Name is what metrics, headers, errors and the keys in Redis call it:
	// letters, digits, '.', '_' and '-', at most 64. The state of a limit
	// belongs to its name: with another name it begins anew.
	Name string `yaml:"name"`
	// Rate is what is admitted in the long run, with its window: "100 per
	// minute". From 1 per day to 1000000 per second.
	Rate Rate `yaml:"rate"`
	// Burst is how many units may come at once after a pause. In any one window
	// at most burst + rate are admitted, from then on exactly the rate.
	//
	// The default is a tenth of the rate's count, at least 1: "100 per minute"
	// admits at most 110 in the first minute and 100 in each minute after it.
	// A tenth lets a page load its few calls at once, and keeps what is
	// admitted close to what is written; a burst as large as the count, the
	// custom of fixed windows, would admit 200 in the first minute. 1 admits
	// no two at once; requests are then spread evenly.
	Burst int64 `yaml:"burst"`
	// By says who shares one budget: "app" (all requests with the keys of one
	// app), "user" (one of Dify's users within an app), "address" (one IPv4
	// address, or one /64 of IPv6), "route" (one class of requests) or "all"
	// (everybody). Requests without an app key or a user pass limits by these.
	By string `yaml:"by"`
	// Unit is "requests" (default) or "tokens": what Dify says the language
	// model has used. Tokens are known when an answer ends, so a request is
	// admitted while the budget is not in debt, and those that come later pay
	// for what it took.
	Unit string `yaml:"unit"`
	// Match narrows the limit to some requests; empty is all.
	Match Match `yaml:"match"`
}

// Match selects requests; all its fields must agree, and an empty one agrees
// with everything.
type Match struct {
	// Apps by configured name or key id.
	Apps []string `yaml:"apps"`
	// Classes of requests: chat, workflow, read, retrieve, upload, ingest,
	// mutate, stop, console, other.
	Classes []string `yaml:"classes"`
	// PathPrefix of the URL's path, like "/v1/".
	PathPrefix string `yaml:"pathPrefix"`
}

// Sharing sets how gateways enforce limits together.
type Sharing struct {
	// Timeout is how long a request waits for Redis; then this gateway
	// enforces its share of the limits by itself until Redis answers again.
	// Default 30ms, 1ms to 10s. It must be longer than the way to the farthest
	// Redis master and back.
	Timeout time.Duration `yaml:"timeout"`
	// Gateways is how many share the limits, for a gateway that starts while
	// Redis is away; otherwise they count themselves. Default 1.
	Gateways int `yaml:"gateways"`
}

// DefaultSharing returns the defaults named above.
func DefaultSharing() Sharing { return Sharing{Timeout: 30 * time.Millisecond, Gateways: 1} }

const (
	// MaxLimits bounds the rules of one gateway.
	MaxLimits = 64
	// maxAhead bounds how far in the future a budget may be spent.
	maxAhead = 366 * day
)

var limitName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Validate reports what is wrong with limits, by field; classes are the known
// classes of requests.
func Validate(limits []Limit, classes []string, bad func(field, format string, args ...any)) {
	if len(limits) > MaxLimits {
		bad("rateLimits", "%d limits, at most %d are possible", len(limits), MaxLimits)
	}
	seen := map[string]int{}
	for i, l := range limits {
		at := func(name string) string { return fmt.Sprintf("rateLimits[%d].%s", i, name) }
		if first, ok := seen[l.Name]; ok {
			bad(at("name"), "%q is already the name of rateLimits[%d]", l.Name, first)
		} else if !limitName.MatchString(l.Name) {
			bad(at("name"), "%q is not 1 to 64 letters, digits, '.', '_' or '-'", l.Name)
		}
		seen[l.Name] = i
		rateErr := l.Rate.validate()
		if rateErr != nil {
			bad(at("rate"), "%v", rateErr)
		}
		switch {
		case l.Burst < 0:
			bad(at("burst"), "%d is less than 0; 0 is the default, a tenth of the rate's count", l.Burst)
		case rateErr == nil && float64(l.Burst)/l.Rate.PerSecond() > maxAhead.Seconds():
			bad(at("burst"), "%d at %s is more than a year's worth", l.Burst, l.Rate)
		}
		if !slices.Contains([]string{ByApp, ByUser, ByAddress, ByRoute, ByAll}, l.By) {
			bad(at("by"), "%q is none of app, user, address, route, all", l.By)
		}
		if !slices.Contains([]string{"", Requests, Tokens}, l.Unit) {
			bad(at("unit"), "%q is neither requests nor tokens", l.Unit)
		}
		for j, c := range l.Match.Classes {
			if !slices.Contains(classes, c) {
				bad(fmt.Sprintf("%s[%d]", at("match.classes"), j), "%q is none of %s", c, strings.Join(classes, ", "))
			}
		}
		for j, a := range l.Match.Apps {
			if !limitName.MatchString(a) {
				bad(fmt.Sprintf("%s[%d]", at("match.apps"), j), "not the name of an app or the id of a key")
			}
		}
		if p := l.Match.PathPrefix; p != "" && !strings.HasPrefix(p, "/") {
			bad(at("match.pathPrefix"), "%q does not begin with /", p)
		}
	}
}

// Validate reports what is wrong with s, by field.
func (s *Sharing) Validate(bad func(field, format string, args ...any)) {
	if s.Timeout < time.Millisecond || s.Timeout > 10*time.Second {
		bad("rateLimitSharing.timeout", "%v is not between 1ms and 10s", s.Timeout)
	}
	if s.Gateways < 1 || s.Gateways > 1000 {
		bad("rateLimitSharing.gateways", "%d is not between 1 and 1000", s.Gateways)
	}
}

// burst is Burst or its default.
func (l *Limit) burst() float64 {
	if l.Burst > 0 {
		return float64(l.Burst)
	}
	return max(1, math.Floor(l.Rate.Count/10))
}

func (l *Limit) unit() string {
	if l.Unit == "" {
		return Requests
	}
	return l.Unit
}
