package cache

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	stores        *prometheus.CounterVec
	invalidations *prometheus.CounterVec
	failures      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Cache) (*metrics, error) {
	const ns, sub = "fournines", "gateway"
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, []string{label})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, f)
	}
	m := &metrics{
		stores:        vec("cache_stores_total", "Answers that could be kept, by outcome: stored, too_large, or overtaken by a write.", "outcome"),
		invalidations: vec("cache_invalidations_total", "Times that the answers of a data set, an app or all became void, by source: write (seen here), settled (after one), remote (another gateway's), purge.", "source"),
		failures:      counter("cache_redis_failures_total", "Questions about writes, and notices of them, that Redis did not take in time."),
	}
	for i, r := range results {
		// Beside the registry's own counters: the admin API shows them too.
		if err := reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "cache_requests_total", ConstLabels: prometheus.Labels{"result": string(r)},
			Help: "Retrievals that the cache looked at, by result: hit, shared (with one being asked), miss, stale (the instances failed), bypass (settling, unconfirmed, or wanted by the client), absent (only-if-cached).",
		}, func() float64 { return float64(c.counts[i].Load()) })); err != nil {
			return nil, err
		}
	}
	for _, col := range []prometheus.Collector{
		m.stores, m.invalidations, m.failures,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "cache_evictions_total", Help: "Entries dropped for lack of memory."},
			func() float64 { return float64(c.evicted.Load()) }),
		gauge("cache_bytes", "Memory of the entries.", func() float64 { return float64(c.store.WeightedSize()) }),
		gauge("cache_entries", "Entries, void ones that have not been dropped yet included.", func() float64 { return float64(c.store.EstimatedSize()) }),
		gauge("cache_pending_invalidations", "Invalidations that Redis has not been told of yet.", func() float64 { return float64(c.unsaid()) }),
	} {
		if err := reg.Register(col); err != nil {
			return nil, err
		}
	}
	return m, nil
}
