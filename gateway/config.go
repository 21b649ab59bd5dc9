package gateway

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"fournines/gateway/balance"
	"fournines/gateway/cache"
	"fournines/gateway/jobs"
	"fournines/gateway/limit"
	"fournines/internal/adminhttp"
	"fournines/topology"
)

// Config is everything a gateway can be told. DefaultConfig has the defaults;
// a file overrides what it names.
type Config struct {
	// Listen is the address for clients, host:port. Default ":8080".
	Listen string `yaml:"listen"`
	// AdminListen is the address of /metrics, /livez, /readyz and the admin API;
	// empty turns them off. Default "127.0.0.1:9101".
	AdminListen string           `yaml:"adminListen"`
	Admin       adminhttp.Config `yaml:"admin"`
	// Handover is the path of a Unix socket through which a second process with
	// the same path takes over the listening sockets of a running one; see
	// internal/handover. Empty (default) hands nothing over.
	Handover string `yaml:"handover"`
	// Zone is where this gateway runs; upstreams of the same zone come first.
	Zone string `yaml:"zone"`
	// TLS serves clients over TLS when both files are given.
	TLS TLS `yaml:"tls"`
	// Upstreams are the Dify API instances, at least one.
	Upstreams []Upstream `yaml:"upstreams"`
	// Apps gives applications names and what they may use; one that is not
	// listed is known by the id of its key. Default none.
	Apps     []App    `yaml:"apps"`
	Health   Health   `yaml:"health"`
	Balance  Balance  `yaml:"balance"`
	Ejection Ejection `yaml:"ejection"`
	Retry    Retry    `yaml:"retry"`
	Stream   Stream   `yaml:"stream"`
	// Conversations sets how requests of one conversation follow each other.
	Conversations Conversations `yaml:"conversations"`
	Limits        Limits        `yaml:"limits"`
	Drain         Drain         `yaml:"drain"`
	// RateLimits bound how many requests and tokens are admitted. Default none.
	RateLimits []limit.Limit `yaml:"rateLimits"`
	// RateLimitSharing sets how gateways enforce them together, when there is a redis.
	RateLimitSharing limit.Sharing `yaml:"rateLimitSharing"`
	// ProxyProtocol is for load balancers in front that do not speak HTTP.
	ProxyProtocol ProxyProtocol `yaml:"proxyProtocol"`
	// TrustedProxies are networks (CIDR) or addresses of proxies in front whose
	// X-Forwarded-For is believed by limits by address. Default none: the
	// address is that of the connection.
	TrustedProxies []string `yaml:"trustedProxies"`
	// Overload sets what happens when there is more to do than the instances can.
	Overload Overload `yaml:"overload"`
	// Redis is what the gateways share. Default none.
	Redis Redis `yaml:"redis"`
	// Cache answers repeated retrievals. Default off.
	Cache cache.Config `yaml:"cache"`
	// Jobs is the async lane. Default off.
	Jobs    jobs.Config `yaml:"jobs"`
	Tracing Tracing     `yaml:"tracing"`
	// AccessLog writes one log line per request. Default false.
	AccessLog bool `yaml:"accessLog"`
	// AccessLogShare (0..1) is the share of the requests without an error that
	// are logged; those with one always are. Default 1.
	AccessLogShare float64 `yaml:"accessLogShare"`
}

// Upstream is one Dify API instance.
type Upstream struct {
	topology.Endpoint `yaml:",inline"`
	// Scheme is "http" (default) or "https".
	Scheme string `yaml:"scheme"`
}

// Health sets the active probes.
type Health struct {
	// Path is asked with GET; a 2xx answer is healthy. Default "/health".
	Path string `yaml:"path"`
	// Interval between probes of one instance. Default 1s, at least 50ms.
	Interval time.Duration `yaml:"interval"`
	// Timeout of one probe. Default 1s.
	Timeout time.Duration `yaml:"timeout"`
	// Rise is how many good probes in a row make an instance healthy. Default 2.
	Rise int `yaml:"rise"`
	// Fall is how many bad probes in a row make it unhealthy. Default 2.
	Fall int `yaml:"fall"`
}

// Balance sets the choice of an instance.
type Balance struct {
	// LocalThreshold (0..1] is the healthy share of the own zone's instances
	// under which requests spill over to other zones. Default 0.6.
	LocalThreshold float64 `yaml:"localThreshold"`
	// SlowStart is how long a recovered instance takes to its full share. Default 10s.
	SlowStart time.Duration `yaml:"slowStart"`
}

// Ejection sets what passive observation does.
type Ejection struct {
	// ConsecutiveErrors is how many connect errors, resets and cut answers in a
	// row eject an instance. Slow answers are not among them. Default 3.
	ConsecutiveErrors int `yaml:"consecutiveErrors"`
	// Consecutive5xx is how many 5xx answers in a row do. Default 5.
	Consecutive5xx int `yaml:"consecutive5xx"`
	// ErrorShare (0..1): more failed requests than this share of an instance's
	// requests in errorWindow eject it, in a row or not. Connect errors,
	// resets, cut answers and 5xx count; so do answers later than
	// retry.tryTimeout, unless more than half of the available instances give
	// such. Default 0.4; 0 turns the rule off.
	ErrorShare float64 `yaml:"errorShare"`
	// OthersErrorShare (0..1): the rule holds only while at least half of the
	// other available instances fail less than this share. Default 0.1.
	OthersErrorShare float64 `yaml:"othersErrorShare"`
	// ErrorWindow is what the rule looks back on. Default 10s, at least 100ms.
	ErrorWindow time.Duration `yaml:"errorWindow"`
	// MinRequests in the window are needed to judge an instance, a quarter of
	// it to compare it with. Default 20.
	MinRequests int `yaml:"minRequests"`
	// BaseTime is the length of the first ejection; the n-th lasts n times as
	// long. Default 5s.
	BaseTime time.Duration `yaml:"baseTime"`
	// MaxTime bounds it. Default 60s.
	MaxTime time.Duration `yaml:"maxTime"`
	// MaxShare (0..1) of the instances may be out at a time for an ejection to
	// be allowed; those that fail their probes count. The first of several may
	// always be ejected, the last that is left never. Default 0.5.
	MaxShare float64 `yaml:"maxShare"`
}

// Retry sets when a request is sent again.
type Retry struct {
	// Attempts per request, the first one included. Default 3, 1 is no retry.
	Attempts int `yaml:"attempts"`
	// BudgetShare (0..1) bounds retries to this share of the requests of the
	// last ten seconds. Default 0.2.
	BudgetShare float64 `yaml:"budgetShare"`
	// BudgetMin retries in ten seconds are always allowed. Default 30.
	BudgetMin int `yaml:"budgetMin"`
	// ConnectTimeout of one attempt. Default 1s.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
	// TryTimeout is how long an attempt at an idempotent request waits for the
	// answer to begin before another instance is asked. When there is no other
	// or no attempt left, it waits on, up to limits.requestTimeout. Default 10s.
	TryTimeout time.Duration `yaml:"tryTimeout"`
}

// Limits bounds what clients may use.
type Limits struct {
	// MaxBodyBytes of a request; more is answered with 413. Default 100 MiB.
	MaxBodyBytes int64 `yaml:"maxBodyBytes"`
	// MaxHeaderBytes of a request; more is answered with 431. Default 64 KiB.
	MaxHeaderBytes int `yaml:"maxHeaderBytes"`
	// ReplayBytes of a body are kept so that the request can be sent again;
	// larger bodies are streamed and sent once. Default 1 MiB.
	ReplayBytes int64 `yaml:"replayBytes"`
	// MaxInFlight requests at one instance; 0 is no bound. Default 1000.
	MaxInFlight int64 `yaml:"maxInFlight"`
	// MaxQueue requests wait when all instances are full. Default 1000.
	MaxQueue int `yaml:"maxQueue"`
	// QueueTimeout is how long one waits before it gets 503. Default 5s.
	QueueTimeout time.Duration `yaml:"queueTimeout"`
	// HeaderTimeout is how long a client may take to send a request's header. Default 10s.
	HeaderTimeout time.Duration `yaml:"headerTimeout"`
	// BodyTimeout is how long a client may send nothing while its body is
	// awaited, and how long a body that is kept for replay may take in all. Default 30s.
	BodyTimeout time.Duration `yaml:"bodyTimeout"`
	// WriteTimeout is how long a client may take nothing of an answer. Default 30s.
	WriteTimeout time.Duration `yaml:"writeTimeout"`
	// IdleTimeout of client connections between requests. Default 75s.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// RequestTimeout bounds a whole request, streams too. Default 30m.
	RequestTimeout time.Duration `yaml:"requestTimeout"`
}

// Drain sets how a gateway stops.
type Drain struct {
	// Announce is how long the gateway goes on serving, not ready and with
	// "Connection: close", so that the load balancer in front notices. Default 2s.
	Announce time.Duration `yaml:"announce"`
	// Timeout is how long requests and streams may then take to end by
	// themselves; streams get an error event after it. Default 60s.
	Timeout time.Duration `yaml:"timeout"`
}

// DefaultConfig returns the defaults named above, without upstreams.
func DefaultConfig() Config {
	return Config{
		Listen:      ":8080",
		AdminListen: "127.0.0.1:9101",
		Admin:       adminhttp.Config{API: true}, Tracing: defaultTracing(), ProxyProtocol: ProxyProtocol{Mode: ProxyProtocolOff},
		TLS: TLS{Poll: 5 * time.Second}, AccessLogShare: 1,
		Health:  Health{Path: "/health", Interval: time.Second, Timeout: time.Second, Rise: 2, Fall: 2},
		Balance: Balance{LocalThreshold: 0.6, SlowStart: 10 * time.Second},
		Ejection: Ejection{
			ConsecutiveErrors: 3, Consecutive5xx: 5,
			ErrorShare: 0.4, OthersErrorShare: 0.1, ErrorWindow: 10 * time.Second, MinRequests: 20,
			BaseTime: 5 * time.Second, MaxTime: time.Minute, MaxShare: 0.5,
		},
		Retry:  Retry{Attempts: 3, BudgetShare: 0.2, BudgetMin: 30, ConnectTimeout: time.Second, TryTimeout: 10 * time.Second},
		Stream: defaultStream(), Conversations: defaultConversations(), Overload: defaultOverload(),
		RateLimitSharing: limit.DefaultSharing(),
		Limits: Limits{
			MaxBodyBytes: 100 << 20, MaxHeaderBytes: 64 << 10, ReplayBytes: 1 << 20,
			MaxInFlight: 1000, MaxQueue: 1000, QueueTimeout: 5 * time.Second,
			HeaderTimeout: 10 * time.Second, BodyTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
			IdleTimeout: 75 * time.Second, RequestTimeout: 30 * time.Minute,
		},
		Drain: Drain{Announce: 2 * time.Second, Timeout: time.Minute},
		Cache: cache.DefaultConfig(),
		Jobs:  jobs.DefaultConfig(),
	}
}

// ParseUpstream reads "http://host:port@zone"; scheme and zone are optional.
func ParseUpstream(s string) (Upstream, error) {
	scheme, e, err := topology.ParseEndpoint(s)
	if err != nil {
		return Upstream{}, err
	}
	return Upstream{Endpoint: e, Scheme: scheme}, nil
}

// Validate reports every problem, each with the field's name.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	address := func(field, s string) {
		if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
			bad(field, "%q is not host:port", s)
		}
	}
	address("listen", c.Listen)
	if c.AdminListen != "" {
		address("adminListen", c.AdminListen)
	}
	c.Admin.Validate(c.AdminListen, bad)
	c.Tracing.validate(bad)
	c.ProxyProtocol.validate(bad)
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls", "certFile and keyFile are needed together")
	}
	if c.TLS.Poll != 0 && c.TLS.Poll < 10*time.Millisecond {
		bad("tls.poll", "%v is less than 10ms", c.TLS.Poll)
	}
	if !(c.AccessLogShare >= 0 && c.AccessLogShare <= 1) {
		bad("accessLogShare", "%v is not between 0 and 1", c.AccessLogShare)
	}
	if len(c.Upstreams) == 0 {
		bad("upstreams", "at least one Dify instance is needed")
	}
	seen, names := map[string]int{}, map[string]int{}
	for i, u := range c.Upstreams {
		field := fmt.Sprintf("upstreams[%d]", i)
		host, port, err := net.SplitHostPort(u.Address)
		if err != nil || host == "" || port == "" || strings.ContainsAny(u.Address, "/ ?#@") {
			bad(field+".address", "%q is not host:port", u.Address)
		}
		if !slices.Contains([]string{"", "http", "https"}, u.Scheme) {
			bad(field+".scheme", "%q is neither http nor https", u.Scheme)
		}
		if first, ok := seen[u.Address]; ok {
			bad(field+".address", "%s is the same instance as upstreams[%d]", u.Address, first)
		} else {
			seen[u.Address] = i
		}
		if u.Name != "" {
			if first, ok := names[u.Name]; ok {
				bad(field+".name", "%q is already the name of upstreams[%d]", u.Name, first)
			} else {
				names[u.Name] = i
			}
		}
	}
	validateApps(c.Apps, bad)
	c.Redis.validate(bad)
	c.Cache.Validate(bad)
	c.validateLane(bad)
	validateRateLimits(c, bad)
	if !strings.HasPrefix(c.Health.Path, "/") {
		bad("health.path", "%q does not begin with /", c.Health.Path)
	}
	atLeast := func(field string, d, least time.Duration) {
		if d < least {
			bad(field, "%v is less than %v", d, least)
		}
	}
	const ms = time.Millisecond
	atLeast("health.interval", c.Health.Interval, 50*ms)
	atLeast("health.timeout", c.Health.Timeout, 10*ms)
	atLeast("balance.slowStart", c.Balance.SlowStart, ms)
	atLeast("ejection.baseTime", c.Ejection.BaseTime, ms)
	atLeast("ejection.maxTime", c.Ejection.MaxTime, c.Ejection.BaseTime)
	atLeast("retry.connectTimeout", c.Retry.ConnectTimeout, 10*ms)
	atLeast("retry.tryTimeout", c.Retry.TryTimeout, 10*ms)
	c.Stream.validate(bad)
	c.Conversations.validate(bad)
	c.Overload.validate(bad)
	atLeast("limits.queueTimeout", c.Limits.QueueTimeout, ms)
	atLeast("limits.headerTimeout", c.Limits.HeaderTimeout, 10*ms)
	atLeast("limits.bodyTimeout", c.Limits.BodyTimeout, 10*ms)
	atLeast("limits.writeTimeout", c.Limits.WriteTimeout, 10*ms)
	atLeast("limits.idleTimeout", c.Limits.IdleTimeout, 10*ms)
	atLeast("limits.requestTimeout", c.Limits.RequestTimeout, 100*ms)
	atLeast("drain.announce", c.Drain.Announce, 0)
	atLeast("drain.timeout", c.Drain.Timeout, 0)
	positive := func(field string, n, least int64) {
		if n < least {
			bad(field, "%d is less than %d", n, least)
		}
	}
	positive("health.rise", int64(c.Health.Rise), 1)
	positive("health.fall", int64(c.Health.Fall), 1)
	positive("ejection.consecutiveErrors", int64(c.Ejection.ConsecutiveErrors), 1)
	positive("ejection.consecutive5xx", int64(c.Ejection.Consecutive5xx), 1)
	positive("retry.attempts", int64(c.Retry.Attempts), 1)
	positive("retry.budgetMin", int64(c.Retry.BudgetMin), 0)
	positive("limits.maxBodyBytes", c.Limits.MaxBodyBytes, 1)
	positive("limits.maxHeaderBytes", int64(c.Limits.MaxHeaderBytes), 1024)
	positive("limits.replayBytes", c.Limits.ReplayBytes, 0)
	positive("limits.maxInFlight", c.Limits.MaxInFlight, 0)
	positive("limits.maxQueue", int64(c.Limits.MaxQueue), 0)
	share := func(field string, f, above float64) {
		if !(f >= above && f <= 1) {
			bad(field, "%v is not between %v and 1", f, above)
		}
	}
	share("balance.localThreshold", c.Balance.LocalThreshold, 0.01)
	share("ejection.maxShare", c.Ejection.MaxShare, 0)
	share("ejection.errorShare", c.Ejection.ErrorShare, 0)
	if c.Ejection.ErrorShare > 0 {
		share("ejection.othersErrorShare", c.Ejection.OthersErrorShare, 0)
		atLeast("ejection.errorWindow", c.Ejection.ErrorWindow, 100*ms)
		positive("ejection.minRequests", int64(c.Ejection.MinRequests), 1)
	}
	share("retry.budgetShare", c.Retry.BudgetShare, 0)
	return errors.Join(errs...)
}

// pool translates the settings for the balancer.
func (c *Config) pool() (balance.Config, []balance.Target) {
	targets := make([]balance.Target, len(c.Upstreams))
	for i, u := range c.Upstreams {
		t := balance.Target{Endpoint: u.Endpoint, Scheme: u.Scheme}
		if t.Scheme == "" {
			t.Scheme = "http"
		}
		if t.Name == "" {
			t.Name = t.Address
		}
		targets[i] = t
	}
	return balance.Config{
		Zone: c.Zone, LocalThreshold: c.Balance.LocalThreshold, SlowStart: c.Balance.SlowStart,
		HealthPath: c.Health.Path, HealthInterval: c.Health.Interval, HealthTimeout: c.Health.Timeout,
		Rise: c.Health.Rise, Fall: c.Health.Fall,
		ConsecutiveErrors: c.Ejection.ConsecutiveErrors, Consecutive5xx: c.Ejection.Consecutive5xx,
		ErrorShare: c.Ejection.ErrorShare, OthersErrorShare: c.Ejection.OthersErrorShare,
		ErrorWindow: c.Ejection.ErrorWindow, MinRequests: c.Ejection.MinRequests,
		EjectionBase: c.Ejection.BaseTime, EjectionMax: c.Ejection.MaxTime, MaxEjectedShare: c.Ejection.MaxShare,
		MaxInFlight: c.Limits.MaxInFlight, MaxStreams: c.Overload.MaxStreams, Limit: c.Overload.limit(),
	}, targets
}
