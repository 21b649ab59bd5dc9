// Package proxyconfig carries what a spec says about the proxies into their
// configurations, for every engine alike. Addresses, zones and secrets are the
// engine's and stay as they are.
package proxyconfig

import (
	"fournines/gateway"
	"fournines/gateway/limit"
	"fournines/pgproxy"
	"fournines/redisproxy"
	"fournines/spec"
)

// Gateway sets what the spec says about any gateway. gateways is how many of them
// share the limits.
func Gateway(cfg *gateway.Config, installation *spec.Spec, gateways int) {
	s := installation.Gateway
	cfg.Health = gateway.Health{
		Path: installation.Dify.HealthPath, Interval: s.Health.Interval.Std(), Timeout: s.Health.Timeout.Std(),
		Rise: s.Health.HealthyAfter, Fall: s.Health.UnhealthyAfter,
	}
	cfg.Balance.LocalThreshold = s.SpillThreshold
	// Field by field: what the spec does not say keeps the gateway's default.
	cfg.Ejection.ConsecutiveErrors, cfg.Ejection.Consecutive5xx = s.Ejection.ConsecutiveErrors, s.Ejection.Consecutive5xx
	cfg.Ejection.BaseTime, cfg.Ejection.MaxTime = s.Ejection.BaseTime.Std(), s.Ejection.MaxTime.Std()
	cfg.Ejection.MaxShare = s.Ejection.MaxShare
	cfg.Retry.Attempts, cfg.Retry.BudgetShare = s.Retry.Attempts, s.Retry.Budget
	cfg.Retry.ConnectTimeout = s.ConnectTimeout.Std()
	cfg.Stream.Heartbeat = s.Heartbeat.Std()
	cfg.Stream.FirstContentTimeout, cfg.Stream.BlockingAsStream = s.FirstContentTimeout.Std(), s.BlockingAsStream
	cfg.Conversations.Serialise = s.SerialiseConversations
	cfg.Limits.MaxBodyBytes = int64(s.MaxBody)
	cfg.Drain.Timeout = s.DrainTimeout.Std()
	cfg.TrustedProxies = s.TrustedProxies
	cfg.AccessLog = s.AccessLog
	cfg.Tracing.Endpoint, cfg.Tracing.SampleRatio = s.TraceEndpoint, s.TraceRatio
	cfg.RateLimitSharing.Gateways = gateways
	cfg.RateLimits = rateLimits(s.RateLimits)
	overload(cfg, s)
	k := s.Cache
	cfg.Cache.Enabled, cfg.Cache.MaxBytes, cfg.Cache.MaxEntryBytes = k.Enabled, int64(k.MaxSize), int64(k.MaxEntry)
	cfg.Cache.TTL, cfg.Cache.StaleIfError = k.TTL.Std(), k.StaleIfError.Std()
	cfg.Cache.MaxStaleness, cfg.Cache.Settle, cfg.Cache.Normalise = k.MaxStaleness.Std(), k.Settle.Std(), k.Normalise
	if s.Jobs.Enabled {
		cfg.Jobs.Workers, cfg.Jobs.MaxAge, cfg.Jobs.Retention = s.Jobs.Workers, s.Jobs.MaxAge.Std(), s.Jobs.Retention.Std()
		hooks := &cfg.Jobs.Webhook
		hooks.Hosts, hooks.AllowHTTP, hooks.AllowNetworks = s.Jobs.Webhooks.Hosts, s.Jobs.Webhooks.AllowHTTP, s.Jobs.Webhooks.AllowNetworks
	}
}

// overload carries over apps and what protects the instances.
func overload(cfg *gateway.Config, s spec.Gateway) {
	for _, a := range s.Apps {
		cfg.Apps = append(cfg.Apps, gateway.App{
			Name: a.Name, KeyIDs: a.KeyIDs, Weight: a.Weight, MaxInFlight: int64(a.MaxInFlight), MaxQueue: a.MaxQueue, Priority: a.Priority,
		})
	}
	o := s.Overload
	cfg.Limits.MaxInFlight, cfg.Limits.MaxQueue, cfg.Limits.QueueTimeout = int64(o.MaxInFlight), o.MaxQueue, o.QueueTimeout.Std()
	cfg.Overload.Adaptive, cfg.Overload.AppQueue, cfg.Overload.StandingTimeout = o.Adaptive, o.AppQueue, o.StandingTimeout.Std()
}

// rateLimits are those of the spec, which has checked the form of their rates.
func rateLimits(list []spec.RateLimit) []limit.Limit {
	var out []limit.Limit
	for _, l := range list {
		r, _ := limit.ParseRate(l.Rate) // one out of range stays empty, which the gateway's own check reports
		out = append(out, limit.Limit{
			Name: l.Name, Rate: r, Burst: int64(l.Burst), By: l.By, Unit: l.Unit,
			Match: limit.Match{Apps: l.Match.Apps, Classes: l.Match.Classes, PathPrefix: l.Match.PathPrefix},
		})
	}
	return out
}

// PGProxy sets what the spec says about any pgproxy.
func PGProxy(cfg *pgproxy.Config, installation *spec.Spec) {
	s := installation.Postgres.Proxy
	cfg.Pool.Size, cfg.Pool.MaxClientConnections = s.PoolSize, s.MaxClientConnections
	cfg.Hold.Timeout, cfg.Hold.Max = s.HoldTimeout.Std(), s.HoldQueue
	cfg.Splitting.Mode, cfg.Splitting.MaxStaleness = string(s.Splitting), s.MaxStaleness.Std()
}

// Redisproxy sets what the spec says about any redisproxy.
func Redisproxy(cfg *redisproxy.Config, installation *spec.Spec) {
	s := installation.Redis.Proxy
	cfg.Timeouts.Hold = s.FailoverTimeout.Std()
	cfg.Limits.MaxClients = s.MaxClientConnections
	cfg.Limits.MaxRequestBytes = int(s.MaxCommand)
	cfg.Limits.MaxBulkBytes = min(cfg.Limits.MaxBulkBytes, cfg.Limits.MaxRequestBytes)
}
