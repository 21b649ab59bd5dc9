package gateway

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"fournines/gateway/dify"
	"fournines/gateway/jobs"
	"fournines/gateway/limit"
)

const (
	// meteredBytes bounds what is kept of a blocking answer to read its usage,
	// which stands near its end; of a longer one the tokens are estimated.
	meteredBytes = 256 << 10
	// bytesPerToken is the estimate of how long a token is, in bytes of UTF-8.
	bytesPerToken = 4
)

// degradedHeader tells a client that its request was decided by one gateway's
// share of a limit.
const degradedHeader = "X-Fournines-Ratelimit"

func validateRateLimits(c *Config, bad func(field, format string, args ...any)) {
	limit.Validate(c.RateLimits, dify.ClassNames(), bad)
	c.RateLimitSharing.Validate(bad)
	limit.ParseProxies(c.TrustedProxies, bad)
	for i, l := range c.RateLimits {
		for j, name := range l.Match.Apps {
			named := slices.ContainsFunc(c.Apps, func(a App) bool { return a.Name == name })
			if !named && !keyIDHex.MatchString(name) && appName.MatchString(name) {
				bad(fmt.Sprintf("rateLimits[%d].match.apps[%d]", i, j), "%q is the name of none of the apps, nor the id of a key", name)
			}
		}
	}
}

// admit asks the rate limits, and returns the refusal.
func (x *exchange) admit() error {
	if !x.g.limits.Active() || x.ctx.Value(internalKey{}) != nil {
		return nil
	}
	q := limit.Request{
		App: x.app.id, User: x.asked.User, Class: x.class.String(), Path: x.r.URL.Path,
		Address: x.set.proxies.Client(x.r.RemoteAddr, x.r.Header["X-Forwarded-For"]),
	}
	if jobs.TraceOf(x.ctx) != nil {
		// A job was admitted when it was taken in; its runs only cost tokens.
		x.limits = x.g.limits.Admitted(q)
		x.meter.on = x.class.Streams() && x.limits.CountsTokens()
		return nil
	}
	x.limits = x.g.limits.Admit(x.ctx, q)
	d := &x.limits
	policy, state := d.Headers()
	if policy == "" {
		return nil
	}
	h := x.w.Header()
	h.Set("RateLimit-Policy", policy)
	h.Set("RateLimit", state)
	if d.Degraded {
		h.Set(degradedHeader, "degraded")
	}
	if d.Refused == "" {
		x.meter.on = x.class.Streams() && d.CountsTokens()
		return nil
	}
	seconds := int(max(1, math.Ceil(d.RetryAfter.Seconds())))
	return dify.Error{
		Code: "too_many_requests", Status: http.StatusTooManyRequests, RetryAfterSeconds: seconds,
		Message: fmt.Sprintf("The rate limit %s (%s %s) is used up. The request was not carried out; try again in %v.",
			d.Refused, d.Unit, d.Rate, time.Duration(seconds)*time.Second),
	}
}

// meter finds out what an answer has cost, for requests under a limit in
// tokens. The zero value is off.
type meter struct {
	on     bool
	exact  int64
	known  bool
	pieces int64 // events with output of a model
	bytes  int64 // of a blocking answer
	body   []byte
}

// event looks at one event of a stream; only the last one is looked into.
func (m *meter) event(class dify.Class, eventType, block []byte) {
	switch {
	case !m.on:
	case dify.ModelOutput(eventType):
		m.pieces++
	case dify.Terminal(class, eventType):
		if n, ok := dify.EventTokens(block); ok {
			m.exact, m.known = n, true
		}
	}
}

// take looks at a part of an answer that is not a stream.
func (m *meter) take(p []byte) {
	if !m.on || m.known {
		return
	}
	m.bytes += int64(len(p))
	if m.bytes <= meteredBytes {
		m.body = append(m.body, p...)
	}
}

// settle charges the limits in tokens for an answer that has ended. Dify says
// what it cost; where it did not come to that, the cost is estimated: the
// request and a blocking answer by their length, a stream by its pieces.
func (x *exchange) settle() {
	m := &x.meter
	if !m.on {
		return
	}
	if !m.known && m.bytes > 0 && m.bytes <= meteredBytes {
		m.exact, m.known = dify.Tokens(m.body)
	}
	m.body = nil
	if m.known {
		x.limits.Charge(m.exact, false)
		return
	}
	asked := int64(len(x.body.held))/bytesPerToken + 1
	switch {
	case m.pieces > 0:
		x.limits.Charge(asked+m.pieces, true)
	case x.status == http.StatusOK && m.bytes > 0:
		x.limits.Charge(asked+m.bytes/bytesPerToken, true)
	case x.status == statusClientGone && x.attempts > 0:
		x.limits.Charge(asked, true) // it may have cost as much before it was given up
	}
}
