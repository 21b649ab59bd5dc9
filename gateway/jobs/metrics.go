package jobs

import "github.com/prometheus/client_golang/prometheus"

// metrics are the lane's. Gauges of the queues are what this gateway's last sweep
// saw of all gateways' jobs: take the maximum over gateways, not the sum.
type metrics struct {
	accepted    *prometheus.CounterVec
	finished    *prometheus.CounterVec
	retries     *prometheus.CounterVec
	redelivered prometheus.Counter
	hooks       *prometheus.CounterVec
	duration    prometheus.Histogram
	running     prometheus.Gauge
	jobs        *prometheus.GaugeVec
	hookJobs    *prometheus.GaugeVec
	oldest      prometheus.Gauge
	storeUp     prometheus.Gauge
	unsafe      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const ns, sub = "fournines", "gateway"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	m := &metrics{
		accepted: counter("jobs_submitted_total", "Requests for a job at this gateway, by outcome: accepted, repeated (known Idempotency-Key), or the code of the refusal.", "outcome"),
		finished: counter("jobs_finished_total", "Jobs that this gateway put on record as finished, by state and, for failed ones, reason: rejected (Dify said no), lost (may have been carried out), expired (not carried out), internal.", "state", "reason"),
		retries:  counter("jobs_retries_total", "Runs that are followed by another one, by reason: refused (nothing was carried out) or lost (the caller allows to repeat).", "reason"),
		redelivered: prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "jobs_redelivered_total",
			Help: "Waiting jobs whose delivery was missing and was made again."}),
		hooks: counter("jobs_webhook_calls_total", "Webhook calls, by outcome: delivered, failed (tried again later), dead (given up).", "outcome"),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "jobs_duration_seconds",
			Help: "Time from a job's acceptance to its end, for jobs that ended here.", Buckets: []float64{.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600}}),
		running:  gauge("jobs_workers_busy", "Jobs that this gateway runs."),
		jobs:     gauges("jobs", "Unfinished and dead jobs of all gateways by state: queued, running, dead. The same at every gateway.", "state"),
		hookJobs: gauges("jobs_webhooks", "Webhook calls of all gateways: pending, dead. The same at every gateway.", "state"),
		oldest:   gauge("jobs_oldest_seconds", "How long the oldest waiting job has been due."),
		unsafe:   gauge("jobs_queues_unreplicated", "Queues, of eight, whose Redis master has no replica: they take no new jobs unless jobs.durability is master."),
		storeUp:  gauge("jobs_store_up", "1 while all queues could be read at the last sweep."),
	}
	for _, c := range []prometheus.Collector{m.accepted, m.finished, m.retries, m.redelivered, m.hooks, m.duration, m.running, m.jobs, m.hookJobs, m.oldest, m.storeUp, m.unsafe} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) ended(s State, reason string) {
	m.finished.WithLabelValues(string(s), reason).Inc()
}

// show publishes what a sweep found; what it could not read stays as it was.
func (m *metrics) show(t totals, complete bool) {
	m.unsafe.Set(float64(t.unsafe))
	if !complete {
		m.storeUp.Set(0)
		return
	}
	m.storeUp.Set(1)
	m.jobs.WithLabelValues("queued").Set(float64(t.queued))
	m.jobs.WithLabelValues("running").Set(float64(t.running))
	m.jobs.WithLabelValues("dead").Set(float64(t.dead))
	m.hookJobs.WithLabelValues("pending").Set(float64(t.hooks))
	m.hookJobs.WithLabelValues("dead").Set(float64(t.hooksDead))
	m.oldest.Set(t.oldest.Seconds())
}
