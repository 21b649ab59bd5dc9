package limit

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// metrics of the limits. Labels are names of the configuration; never whom a
// limit counts.
type metrics struct {
	requests          *prometheus.CounterVec
	spent             *prometheus.CounterVec
	degradedDecisions prometheus.Counter
	redisSeconds      prometheus.Histogram
	redisErrors       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, l *Limiter) (*metrics, error) {
	const ns, sub = "fournines", "gateway"
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: ns, Subsystem: sub, Name: name, Help: help}
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), f)
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts(opts("limit_requests_total",
			"Requests that a rate limit matched, by outcome: admitted (by all limits) or limited (by this one).")), []string{"limit", "outcome"}),
		spent: prometheus.NewCounterVec(prometheus.CounterOpts(opts("limit_tokens_total",
			"Language model tokens charged to a rate limit, by source: usage (said by Dify) or estimate (the answer did not come to its end).")), []string{"limit", "source"}),
		degradedDecisions: prometheus.NewCounter(prometheus.CounterOpts(opts("limit_degraded_requests_total",
			"Requests decided by this gateway's share of a rate limit, because Redis could not be asked."))),
		redisSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: "limit_redis_seconds", Help: "Time of one question to Redis about rate limits.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .02, .03, .1, 1},
		}),
		redisErrors: prometheus.NewCounterVec(prometheus.CounterOpts(opts("limit_redis_errors_total",
			"Questions to Redis about rate limits without a usable answer, by reason: timeout, connection or answer.")), []string{"reason"}),
	}
	all := []prometheus.Collector{m.requests, m.spent, m.degradedDecisions, m.redisSeconds, m.redisErrors,
		gauge("limit_degraded", "1 while some Redis master is out of reach and this gateway enforces its share of rate limits by itself.", func() float64 {
			if l.client != nil && len(*l.rules.Load()) > 0 && len(l.shards.away()) > 0 {
				return 1
			}
			return 0
		}),
		gauge("limit_gateways", "Gateways that share the rate limits, as last counted; 0 before that.", func() float64 { return float64(l.gateways.Load()) }),
		gauge("limit_budgets", "Budgets (a limit and one whom it counts) that this gateway keeps in memory.", func() float64 { return float64(l.keys.size()) }),
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("rate limits: %w", err)
		}
	}
	for _, reason := range []string{"timeout", "connection", "answer"} {
		m.redisErrors.WithLabelValues(reason)
	}
	return m, nil
}

func (m *metrics) outcomes(limit string) (admitted, limited prometheus.Counter) {
	return m.requests.WithLabelValues(limit, "admitted"), m.requests.WithLabelValues(limit, "limited")
}

func (m *metrics) tokens(limit string, estimated bool) prometheus.Counter {
	if estimated {
		return m.spent.WithLabelValues(limit, "estimate")
	}
	return m.spent.WithLabelValues(limit, "usage")
}

func (m *metrics) forget(limit string) {
	m.requests.DeletePartialMatch(prometheus.Labels{"limit": limit})
	m.spent.DeletePartialMatch(prometheus.Labels{"limit": limit})
}

func (m *metrics) redisError(err error) {
	var answer redis.Error
	var network net.Error
	reason := "connection"
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		reason = "timeout"
	case errors.As(err, &answer), errors.Is(err, errAnswer):
		reason = "answer"
	}
	m.redisErrors.WithLabelValues(reason).Inc()
}
