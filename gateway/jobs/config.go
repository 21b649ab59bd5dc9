package jobs

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The values of Config.Durability.
const (
	// DurabilityReplica acknowledges a job when a replica has it too.
	DurabilityReplica = "replica"
	// DurabilityMaster acknowledges it when the master has it.
	DurabilityMaster = "master"
)

// The values of Config.Repeat.
const (
	// RepeatAsked runs a job again, after a run that may have been carried out,
	// only when its caller allowed that ("Prefer: respond-async; repeat").
	RepeatAsked = "asked"
	// RepeatNever never does.
	RepeatNever = "never"
	// RepeatAlways does for every job.
	RepeatAlways = "always"
)

// Config sets the async lane. The zero value is off; DefaultConfig has the
// other defaults.
type Config struct {
	// KeyFile holds the keys that encrypt requests, events and results in
	// Redis, one a line, each at least 32 random characters; the first one
	// encrypts, all decrypt. Mode 0600, the same file at every gateway. Empty
	// (default) turns the lane off: "Prefer: respond-async" is then ignored, as
	// RFC 7240 allows.
	KeyFile string `yaml:"keyFile"`
	// Durability is "replica" (default): a job is accepted, begun and ended only
	// when a replica has it on record too; or "master".
	Durability string `yaml:"durability"`
	// ReplicaTimeout is how long a replica may take to confirm. Default 2s, 10ms to 30s.
	ReplicaTimeout time.Duration `yaml:"replicaTimeout"`
	// Workers are how many jobs this gateway runs at a time. Default 16, 0 runs none
	// (this gateway only takes jobs in and tells about them), at most 1000.
	Workers int `yaml:"workers"`
	// MaxQueued jobs may wait in each of the eight queues over which apps are
	// spread; more are refused with 503. Default 10000.
	MaxQueued int `yaml:"maxQueued"`
	// MaxBytes of requests are kept in each queue, those of dead letters too; more
	// are refused with 503. Default 128 MiB.
	MaxBytes int64 `yaml:"maxBytes"`
	// MaxPerApp unfinished jobs of one app key; more are refused with 429. Default 1000.
	MaxPerApp int `yaml:"maxPerApp"`
	// MaxBodyBytes of a request that becomes a job; more is answered with 413.
	// It cannot be more than limits.replayBytes. Default 1 MiB.
	MaxBodyBytes int64 `yaml:"maxBodyBytes"`
	// MaxAge is how long a job may wait and be refused before it is given up.
	// Default 1h.
	MaxAge time.Duration `yaml:"maxAge"`
	// RunTimeout bounds one run. Default 30m.
	RunTimeout time.Duration `yaml:"runTimeout"`
	// RetryMin and RetryMax bound the pause after a run that was refused (429,
	// 503: nothing was carried out), which doubles each time. Defaults 1s, 1m.
	RetryMin time.Duration `yaml:"retryMin"`
	RetryMax time.Duration `yaml:"retryMax"`
	// Repeat says which jobs run again after a run that was lost and may have
	// been carried out: "asked" (default), "never", "always".
	Repeat string `yaml:"repeat"`
	// MaxRuns bounds how often a job that may be repeated is begun. Default 3.
	MaxRuns int `yaml:"maxRuns"`
	// Lease is how long a job stays with a gateway that is not heard of.
	// Default 15s, at least 1s.
	Lease time.Duration `yaml:"lease"`
	// Retention is how long a finished job can be asked for. Default 24h.
	Retention time.Duration `yaml:"retention"`
	// DeadRetention is how long a failed job stays in the dead-letter list.
	// Default 168h (7 days).
	DeadRetention time.Duration `yaml:"deadRetention"`
	// MaxEvents of a job are kept for those who follow it; older ones go.
	// Default 10000.
	MaxEvents int `yaml:"maxEvents"`
	// MaxFollowers is how many clients may follow jobs as an event stream at
	// this gateway; more get 503. Default 1000.
	MaxFollowers int     `yaml:"maxFollowers"`
	Webhook      Webhook `yaml:"webhook"`
}

// Webhook sets the calls that tell of a finished job.
type Webhook struct {
	// Hosts are the host names that may be called, exact or "*.example.com";
	// default none, and a request that names one is refused.
	Hosts []string `yaml:"hosts"`
	// AllowHTTP permits http:// addresses too. Default false.
	AllowHTTP bool `yaml:"allowHTTP"`
	// AllowNetworks are address ranges (CIDR) that may be called although they are
	// private, loopback or otherwise not public. Default none.
	AllowNetworks []string `yaml:"allowNetworks"`
	// SecretFile holds the secrets that sign, one a line, "whsec_" and base64
	// (Standard Webhooks); every one signs, so that receivers can change over.
	// Needed when hosts is not empty.
	SecretFile string `yaml:"secretFile"`
	// Timeout of one call. Default 15s.
	Timeout time.Duration `yaml:"timeout"`
	// Attempts before a call is given up. Default 10; the pause grows from 5s
	// to an hour.
	Attempts int `yaml:"attempts"`
}

// DefaultConfig returns the defaults named above; the lane is off.
func DefaultConfig() Config {
	return Config{
		Durability: DurabilityReplica, ReplicaTimeout: 2 * time.Second,
		Workers: 16, MaxQueued: 10_000, MaxBytes: 128 << 20, MaxPerApp: 1000, MaxBodyBytes: 1 << 20,
		MaxAge: time.Hour, RunTimeout: 30 * time.Minute,
		RetryMin: time.Second, RetryMax: time.Minute,
		Repeat: RepeatAsked, MaxRuns: 3,
		Lease: 15 * time.Second, Retention: 24 * time.Hour, DeadRetention: 7 * 24 * time.Hour,
		MaxEvents: 10_000, MaxFollowers: 1000,
		Webhook: Webhook{Timeout: 15 * time.Second, Attempts: 10},
	}
}

// On tells whether the lane is configured.
func (c *Config) On() bool { return c.KeyFile != "" }

// Validate reports each problem through bad, with the field's name.
func (c *Config) Validate(bad func(field, format string, args ...any)) {
	if !c.On() {
		return // the rest does nothing
	}
	if !slices.Contains([]string{DurabilityReplica, DurabilityMaster}, c.Durability) {
		bad("jobs.durability", "%q is neither %s nor %s", c.Durability, DurabilityReplica, DurabilityMaster)
	}
	if !slices.Contains([]string{RepeatAsked, RepeatNever, RepeatAlways}, c.Repeat) {
		bad("jobs.repeat", "%q is none of %s, %s, %s", c.Repeat, RepeatAsked, RepeatNever, RepeatAlways)
	}
	span := func(field string, d, least, most time.Duration) {
		if d < least || d > most {
			bad("jobs."+field, "%v is not between %v and %v", d, least, most)
		}
	}
	const day = 24 * time.Hour
	span("replicaTimeout", c.ReplicaTimeout, 10*time.Millisecond, 30*time.Second)
	span("maxAge", c.MaxAge, time.Second, 30*day)
	span("runTimeout", c.RunTimeout, time.Second, day)
	span("retryMin", c.RetryMin, time.Second, time.Hour)
	span("retryMax", c.RetryMax, c.RetryMin, day)
	span("lease", c.Lease, time.Second, 10*time.Minute)
	span("retention", c.Retention, time.Minute, 90*day)
	span("deadRetention", c.DeadRetention, time.Minute, 365*day)
	span("webhook.timeout", c.Webhook.Timeout, 100*time.Millisecond, 5*time.Minute)
	count := func(field string, n, least, most int64) {
		if n < least || n > most {
			bad("jobs."+field, "%d is not between %d and %d", n, least, most)
		}
	}
	count("workers", int64(c.Workers), 0, 1000)
	count("maxQueued", int64(c.MaxQueued), 1, 10_000_000)
	count("maxBytes", c.MaxBytes, 1<<20, 1<<40)
	count("maxPerApp", int64(c.MaxPerApp), 1, 10_000_000)
	count("maxBodyBytes", c.MaxBodyBytes, 1, 64<<20)
	count("maxRuns", int64(c.MaxRuns), 1, 100)
	count("maxEvents", int64(c.MaxEvents), 1, 1_000_000)
	count("maxFollowers", int64(c.MaxFollowers), 0, 1_000_000)
	count("webhook.attempts", int64(c.Webhook.Attempts), 1, 100)
	if len(c.Webhook.Hosts) > 0 && c.Webhook.SecretFile == "" {
		bad("jobs.webhook.secretFile", "needed to sign the calls to jobs.webhook.hosts")
	}
	for _, h := range c.Webhook.Hosts {
		name := strings.TrimPrefix(h, "*.")
		if name == "" || strings.ContainsAny(name, "*/:@ ") && net.ParseIP(name) == nil {
			bad("jobs.webhook.hosts", "%q is not a host name or *.domain", h)
		}
	}
	for _, n := range c.Webhook.AllowNetworks {
		if _, err := netip.ParsePrefix(n); err != nil {
			bad("jobs.webhook.allowNetworks", "%q is not an address range such as 10.0.0.0/8", n)
		}
	}
}
