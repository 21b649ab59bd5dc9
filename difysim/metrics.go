package difysim

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are what one simulator process measures of itself.
type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	inflight    prometheus.Gauge
	generations *prometheus.CounterVec
	cpuSeconds  prometheus.Counter
	tasks       *prometheus.CounterVec
	tasksActive prometheus.Gauge
	cutStreams  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "difysim_requests_total", Help: "HTTP requests by route and status code.",
		}, []string{"route", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "difysim_request_duration_seconds", Help: "Time from the request to the end of its response.",
			Buckets: []float64{.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
		}, []string{"route"}),
		inflight: f.NewGauge(prometheus.GaugeOpts{
			Name: "difysim_requests_in_flight", Help: "HTTP requests being answered.",
		}),
		generations: f.NewCounterVec(prometheus.CounterOpts{
			Name: "difysim_generations_total", Help: "Generations by app mode and outcome.",
		}, []string{"mode", "outcome"}),
		cpuSeconds: f.NewCounter(prometheus.CounterOpts{
			Name: "difysim_simulated_cpu_seconds_total", Help: "Time given out on the simulated core.",
		}),
		tasks: f.NewCounterVec(prometheus.CounterOpts{
			Name: "difysim_tasks_total", Help: "Celery tasks by name and outcome.",
		}, []string{"task", "outcome"}),
		tasksActive: f.NewGauge(prometheus.GaugeOpts{
			Name: "difysim_tasks_active", Help: "Celery tasks being run.",
		}),
		cutStreams: f.NewCounter(prometheus.CounterOpts{
			Name: "difysim_cut_requests_total", Help: "Requests cut at a stop after the grace time.",
		}),
	}
}
