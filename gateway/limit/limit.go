// Package limit bounds how many requests and language model tokens apps, users,
// addresses and routes may use, over all gateways together.
//
// The rule is GCRA, the generic cell rate algorithm: a budget holds at most a
// burst of units and fills up evenly at the rate. Its state lives in Redis
// Cluster, one short script per tenant of a request. While Redis is away each
// gateway enforces its share of the rate by itself: the part of the demand that
// came to it when the gateways last compared theirs. ../DESIGN.md has the
// reasons.
package limit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Request is what limits look at.
type Request struct {
	// App is the app's name or the id of its key, "" without a key.
	App string
	// User is Dify's user within the app, "" when the request names none.
	User string
	// Address is the client's, see Proxies.Client.
	Address netip.Addr
	// Class of the request, one of those given to Validate.
	Class string
	// Path of its URL.
	Path string
}

// Limiter decides whether requests are within the limits.
type Limiter struct {
	log    *slog.Logger
	m      *metrics
	client *redis.ClusterClient // nil: limits are this gateway's own
	id     string               // of this gateway among those that share
	begin  time.Time

	rules    atomic.Pointer[[]*rule]
	sharing  atomic.Pointer[Sharing]
	gateways atomic.Int64 // alive, as last counted; 0 is not known yet
	keys     table
	shards   shards
	charges  charges
	asking   sync.WaitGroup // questions to Redis
}

// rule is a limit with what is computed from it once.
type rule struct {
	Limit
	tokens bool
	burst  float64
	// capacity is what a full budget holds: the burst and, where whole requests
	// are counted, half a unit. That never admits one more in a whole window,
	// and what comes up to half a unit's time late does not lose that time,
	// which without it would cost a budget without a burst some percent.
	capacity float64
	// perNano is the rate in units per nanosecond.
	perNano float64
	// period is the time of one unit, in microseconds.
	period float64
	// scale is the period of a million units, in whole microseconds: what the
	// script tells settings apart by.
	scale int64
	// tolerance is how far ahead of the clock a budget may be spent for one
	// more request to be admitted, in microseconds.
	tolerance int64
	policy    string // its item of RateLimit-Policy

	admitted, limited prometheus.Counter
}

// New makes a limiter without limits; Update gives it some. client may be nil.
// It starts nothing.
func New(client *redis.ClusterClient, sharing Sharing, log *slog.Logger, reg prometheus.Registerer) (*Limiter, error) {
	l := &Limiter{log: log, client: client, begin: time.Now()}
	var id [6]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	l.id = hex.EncodeToString(id[:])
	l.shards.init()
	l.charges.init()
	l.keys.init()
	var err error
	if l.m, err = newMetrics(reg, l); err != nil {
		return nil, err
	}
	l.rules.Store(&[]*rule{})
	l.sharing.Store(&sharing)
	return l, nil
}

// Update replaces the limits, which must be valid. What has been spent stays
// spent, in units: a budget's state belongs to its limit's name.
func (l *Limiter) Update(limits []Limit, sharing Sharing) {
	old := *l.rules.Load()
	rules := make([]*rule, len(limits))
	for i := range limits {
		rules[i] = newRule(limits[i], l.m)
	}
	l.sharing.Store(&sharing)
	l.rules.Store(&rules)
	for _, o := range old {
		if !slices.ContainsFunc(rules, func(r *rule) bool { return r.Name == o.Name }) {
			l.m.forget(o.Name)
		}
	}
	for _, r := range rules {
		scope := "all gateways together"
		if l.client == nil {
			scope = "each gateway by itself, because no redis is configured"
		}
		l.log.Info("rate limit", "limit", r.Name, "rate", r.Rate.String(), "means", r.Rate.Both(),
			"burst", r.burst, "unit", r.unit(), "by", r.By, "scope", scope)
	}
}

func newRule(c Limit, m *metrics) *rule {
	r := &rule{Limit: c, tokens: c.unit() == Tokens, burst: c.burst()}
	perSecond := c.Rate.PerSecond()
	r.perNano, r.period = perSecond/1e9, 1e6/perSecond
	r.scale = int64(math.Round(r.period * 1e6))
	if r.tokens {
		r.capacity = r.burst
		r.tolerance = max(0, int64(math.Round(r.capacity*r.period))-1) // anything left is enough
	} else {
		r.capacity = r.burst + 0.5
		r.tolerance = int64(math.Round((r.capacity - 1) * r.period))
	}
	r.policy = r.policyItem()
	r.admitted, r.limited = m.outcomes(c.Name)
	return r
}

// matches tells whether the rule holds for q, and for whom.
func (r *rule) matches(q *Request, network string) (tenant string, ok bool) {
	m := &r.Match
	if len(m.Apps) > 0 && !slices.Contains(m.Apps, q.App) ||
		len(m.Classes) > 0 && !slices.Contains(m.Classes, q.Class) ||
		!strings.HasPrefix(q.Path, m.PathPrefix) {
		return "", false
	}
	switch r.By {
	case ByApp:
		return "app:" + q.App, q.App != ""
	case ByUser:
		if q.User == "" {
			return "", false
		}
		// Users are free text and somebody's name: neither belongs in a key.
		sum := sha256.Sum256([]byte(q.App + "\x00" + q.User))
		return "user:" + hex.EncodeToString(sum[:12]), true
	case ByAddress:
		return "address:" + network, network != ""
	case ByRoute:
		return "route:" + q.Class, true
	}
	return "all", true
}

// claim is one limit's part in the decision about one request.
type claim struct {
	r    *rule
	e    *entry
	left float64       // units, after the decision
	wait time.Duration // > 0: refused, until then
	// local tells that this gateway decided by its share.
	local bool

	carry int64 // microseconds that the script is to charge besides
	owed  owed  // and what they stand for
	cost  int64 // microseconds of this request
}

// Decision is what became of one request. The zero value, no limit having
// matched, admits.
type Decision struct {
	l      *Limiter
	claims []claim
	// Refused is the name of the limit that refuses, "" when all admit.
	Refused string
	// Rate of that limit, and its unit.
	Rate Rate
	Unit string
	// RetryAfter is when the refusing limits admit again.
	RetryAfter time.Duration
	// Degraded tells that Redis could not be asked and this gateway decided by
	// its share.
	Degraded bool
}

// Active tells whether there are limits at all.
func (l *Limiter) Active() bool { return len(*l.rules.Load()) > 0 }

// Admit decides about q and charges it to all limits that match, or to none
// when one of them refuses.
func (l *Limiter) Admit(ctx context.Context, q Request) Decision {
	rules := *l.rules.Load()
	if len(rules) == 0 {
		return Decision{}
	}
	d := Decision{l: l, claims: l.match(rules, &q)}
	if len(d.claims) == 0 {
		return Decision{}
	}
	now := l.now()
	blocked := false
	for i := range d.claims {
		c := &d.claims[i]
		if c.e.want(c.r, now, c) {
			blocked = true
		}
	}
	if !blocked {
		if l.client == nil {
			l.takeLocal(d.claims, now)
		} else {
			l.takeShared(ctx, d.claims)
		}
	}
	for i := range d.claims {
		c := &d.claims[i]
		d.Degraded = d.Degraded || c.local && l.client != nil
		if c.wait > 0 {
			c.r.limited.Inc()
			if c.wait > d.RetryAfter {
				d.Refused, d.Rate, d.Unit, d.RetryAfter = c.r.Name, c.r.Rate, c.r.unit(), c.wait
			}
		}
	}
	if d.Refused == "" {
		for i := range d.claims {
			d.claims[i].r.admitted.Inc()
		}
	}
	if d.Degraded {
		l.m.degradedDecisions.Inc()
	}
	return d
}

// Admitted is the decision about a request that was admitted before, as another
// one that asked for it: only its tokens will be charged.
func (l *Limiter) Admitted(q Request) Decision {
	return Decision{l: l, claims: l.match(*l.rules.Load(), &q)}
}

func (l *Limiter) match(rules []*rule, q *Request) (claims []claim) {
	network := ""
	for _, r := range rules {
		if r.By == ByAddress && network == "" {
			network = Network(q.Address)
		}
		if tenant, ok := r.matches(q, network); ok {
			claims = append(claims, claim{r: r, e: l.keys.get(r, tenant)})
		}
	}
	return claims
}

// takeLocal decides by what this gateway knows, and charges all or none.
func (l *Limiter) takeLocal(claims []claim, now int64) bool {
	share := l.equalShare()
	for i := range claims {
		c := &claims[i]
		if c.e.take(c.r, now, l.client != nil, share, c) {
			continue
		}
		for j := range i {
			claims[j].e.giveBack(claims[j].r, &claims[j])
		}
		return false
	}
	return true
}

// CountsTokens tells whether somebody has to say what the answer cost.
func (d *Decision) CountsTokens() bool {
	return d.Refused == "" && slices.ContainsFunc(d.claims, func(c claim) bool { return c.r.tokens })
}

// Charge says how many tokens an admitted request has used.
func (d *Decision) Charge(tokens int64, estimated bool) {
	if tokens <= 0 || d.Refused != "" {
		return
	}
	now := d.l.now()
	for i := range d.claims {
		c := &d.claims[i]
		if !c.r.tokens {
			continue
		}
		d.l.m.tokens(c.r.Name, estimated).Add(float64(tokens))
		if c.e.charge(c.r, now, float64(tokens), d.l.client != nil) {
			d.l.charges.add(c.r, c.e)
		}
	}
}

// equalShare is the share of a gateway that knows nothing about the others'
// demand.
func (l *Limiter) equalShare() float64 {
	n := l.gateways.Load()
	if n == 0 {
		n = int64(l.sharing.Load().Gateways)
	}
	return 1 / float64(max(n, 1))
}

// now is the monotonic clock, in nanoseconds since the limiter was made, never 0.
func (l *Limiter) now() int64 { return int64(time.Since(l.begin)) + 1 }

// policyItem is the limit in RateLimit-Policy: whole units q in w seconds.
func (r *rule) policyItem() string {
	q, w := math.Ceil(r.Rate.Count), int64(r.Rate.Window/time.Second)
	for k := int64(1); k <= 1000; k++ {
		if f := r.Rate.Count * float64(k); f == math.Trunc(f) {
			q, w = f, w*k
			break
		}
	}
	s := `"` + r.Name + `";q=` + strconv.FormatInt(int64(q), 10) + ";w=" + strconv.FormatInt(w, 10)
	if r.tokens {
		s += `;qu="tokens"`
	}
	return s
}

// Headers returns the values of RateLimit-Policy and RateLimit
// (draft-ietf-httpapi-ratelimit-headers-10), "" when no limit matched. r is
// what is left at once, t the seconds until the budget is full, or, with
// nothing left, until it admits again.
func (d *Decision) Headers() (policy, state string) {
	if len(d.claims) == 0 {
		return "", ""
	}
	p, s := make([]byte, 0, 48*len(d.claims)), make([]byte, 0, 40*len(d.claims))
	for i := range d.claims {
		c := &d.claims[i]
		if i > 0 {
			p, s = append(p, ", "...), append(s, ", "...)
		}
		p = append(p, c.r.policy...)
		left := max(0, math.Floor(c.left+1e-6))
		seconds := (c.r.capacity - c.left) * c.r.period / 1e6
		if left == 0 {
			seconds = (1 - c.left) * c.r.period / 1e6
		}
		if c.wait > 0 {
			left, seconds = 0, c.wait.Seconds()
		}
		s = append(s, '"')
		s = append(s, c.r.Name...)
		s = append(s, `";r=`...)
		s = strconv.AppendInt(s, int64(left), 10)
		s = append(s, ";t="...)
		s = strconv.AppendInt(s, int64(math.Ceil(max(0, seconds)-1e-6)), 10)
	}
	return string(p), string(s)
}

// charges are the entries whose spending Redis has to be told.
type charges struct {
	mu     sync.Mutex
	due    map[*entry]*rule
	signal chan struct{}
}

func (c *charges) init() {
	c.due, c.signal = map[*entry]*rule{}, make(chan struct{}, 1)
}

func (c *charges) add(r *rule, e *entry) {
	c.mu.Lock()
	c.due[e] = r
	c.mu.Unlock()
	c.kick()
}

func (c *charges) kick() {
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

func (c *charges) takeAll() map[*entry]*rule {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.due) == 0 {
		return nil
	}
	due := c.due
	c.due = map[*entry]*rule{}
	return due
}
