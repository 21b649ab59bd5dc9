package spec

// Gateway configures the HTTP entrance in front of Dify.
type Gateway struct {
	// Port is where each gateway listens inside its zone. The public port is
	// local.ports.gateway.
	Port int `yaml:"port" range:"1..65535"`
	// Health is the active check of every api instance.
	Health GatewayHealth `yaml:"health"`
	// Ejection takes an instance out of rotation when real requests fail on
	// it, before the active check notices.
	Ejection GatewayEjection `yaml:"ejection"`
	// Retry repeats requests that certainly did no work: the connection was
	// refused, or the request is idempotent and nothing was answered yet.
	Retry GatewayRetry `yaml:"retry"`
	// SpillThreshold is the share of healthy instances in the gateway's own
	// zone under which requests go to other zones as well.
	SpillThreshold float64 `yaml:"spillThreshold" range:"0.01..1"`
	// ConnectTimeout bounds the connection to an instance.
	ConnectTimeout Duration `yaml:"connectTimeout" range:"10ms..1m"`
	// DrainTimeout is how long running requests and streams may go on after
	// the gateway was told to stop.
	DrainTimeout Duration `yaml:"drainTimeout" range:"0s..1h"`
	// MaxBody is the largest request body; a larger one is answered with 413.
	// Dify's own upload limit is 15 MB.
	MaxBody Bytes `yaml:"maxBody" range:"1KiB..10GiB"`
	// RateLimits bound what apps, users, addresses and classes of requests may
	// use. A request must be admitted by all that match; others get 429.
	RateLimits []RateLimit `yaml:"rateLimits" range:"0..64"`
	// TrustedProxies are the networks, like 10.0.0.0/8, of proxies in front of
	// the gateways whose X-Forwarded-For is believed by limits by address.
	TrustedProxies []string `yaml:"trustedProxies" range:"0..100"`
	// AccessLog writes one line per request into the gateways' logs.
	AccessLog bool `yaml:"accessLog"`
	// TraceEndpoint is the URL of an OTLP/HTTP receiver that gets OpenTelemetry
	// traces, like http://127.0.0.1:4318/v1/traces. Empty means no traces.
	TraceEndpoint string `yaml:"traceEndpoint"`
	// TraceRatio is the share of requests without a traceparent that are traced.
	TraceRatio float64 `yaml:"traceRatio" range:"0..1"`
	// Heartbeat is the silence after which a stream gets a comment line, so
	// that no proxy in between takes it for dead. Dify pings about every 10
	// seconds, so the default fills in only where it does not. 0s means
	// never.
	Heartbeat Duration `yaml:"heartbeat" range:"0s..10m"`
	// FirstContentTimeout is how long a stream may take to its first event
	// that is not a ping. 0s means for ever.
	FirstContentTimeout Duration `yaml:"firstContentTimeout" range:"0s..1h"`
	// SerialiseConversations lets one request of a conversation work at a
	// time; Dify does not survive two.
	SerialiseConversations bool `yaml:"serialiseConversations"`
	// BlockingAsStream asks Dify for a stream where the client wants one
	// answer, so that a dead or silent instance is noticed and a client that
	// leaves stops its task.
	BlockingAsStream bool `yaml:"blockingAsStream"`
	// Cache answers repeated retrievals from the gateways' memory.
	Cache GatewayCache `yaml:"cache"`
	// Jobs is the async lane: a call with "Prefer: respond-async" is answered
	// with 202 and runs as a job that survives the death of its gateway.
	Jobs GatewayJobs `yaml:"jobs"`
	// Apps gives applications names and what they may use; all others share as
	// equals under the ids of their keys.
	Apps []GatewayApp `yaml:"apps" range:"0..1000"`
	// Overload sets what happens when there is more to do than the api
	// instances can.
	Overload GatewayOverload `yaml:"overload"`
}

// GatewayHealth is the active check of an api instance.
type GatewayHealth struct {
	// Interval between two checks of one instance.
	Interval Duration `yaml:"interval" range:"100ms..5m"`
	// Timeout of one check. At most the interval.
	Timeout Duration `yaml:"timeout" range:"50ms..1m"`
	// UnhealthyAfter is the number of failed checks in a row that take an
	// instance out.
	UnhealthyAfter int `yaml:"unhealthyAfter" range:"1..100"`
	// HealthyAfter is the number of good checks in a row that bring it back.
	HealthyAfter int `yaml:"healthyAfter" range:"1..100"`
}

// GatewayEjection is the passive check of an api instance.
type GatewayEjection struct {
	// ConsecutiveErrors is the number of failures of the connection in a row
	// (refused, reset, timed out, stream cut) that eject an instance.
	ConsecutiveErrors int `yaml:"consecutiveErrors" range:"1..1000"`
	// Consecutive5xx is the number of 5xx answers in a row that do so.
	Consecutive5xx int `yaml:"consecutive5xx" range:"1..1000"`
	// BaseTime is how long the first ejection lasts; each further one lasts
	// longer by as much.
	BaseTime Duration `yaml:"baseTime" range:"100ms..1h"`
	// MaxTime bounds that growth. At least baseTime.
	MaxTime Duration `yaml:"maxTime" range:"100ms..24h"`
	// MaxShare is the largest share of all instances that may be ejected at
	// once; a fault that hits more of them is not the fault of the instances.
	MaxShare float64 `yaml:"maxShare" range:"0..1"`
}

// GatewayRetry bounds repeated requests.
type GatewayRetry struct {
	// Attempts is how often a request is tried, the first time included; 1
	// turns retries off.
	Attempts int `yaml:"attempts" range:"1..10"`
	// Budget bounds retries to this share of all requests, so that they
	// cannot make an overload worse.
	Budget float64 `yaml:"budget" range:"0..1"`
}

func defaultGateway() Gateway {
	return Gateway{
		Port:       8080,
		TraceRatio: 0.01,
		Health: GatewayHealth{
			Interval:       Duration(1 * second),
			Timeout:        Duration(1 * second),
			UnhealthyAfter: 2,
			HealthyAfter:   2,
		},
		Ejection: GatewayEjection{
			ConsecutiveErrors: 3,
			Consecutive5xx:    5,
			BaseTime:          Duration(5 * second),
			MaxTime:           Duration(1 * minute),
			MaxShare:          0.5,
		},
		Retry:          GatewayRetry{Attempts: 3, Budget: 0.2},
		SpillThreshold: 0.6,
		ConnectTimeout: Duration(1 * second),
		DrainTimeout:   Duration(30 * second),
		MaxBody:        100 * mebibyte,
		RateLimits:     []RateLimit{},
		TrustedProxies: []string{},
		Heartbeat:      Duration(15 * second),

		FirstContentTimeout:    Duration(2 * minute),
		SerialiseConversations: true,
		Cache:                  defaultGatewayCache(),
		Jobs:                   defaultGatewayJobs(),
		Apps:                   []GatewayApp{},
		Overload:               defaultGatewayOverload(),
	}
}
