package gateway

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/balance"
	"fournines/gateway/dify"
)

// metrics are all the gateway's metrics. Labels are bounded: classes, status
// codes, zones and endpoints of the configuration; never paths or keys.
type metrics struct {
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	firstContent *prometheus.HistogramVec
	inFlight     prometheus.Gauge
	streams      prometheus.Gauge
	healthy      *prometheus.GaugeVec
	ejections    *prometheus.CounterVec
	retries      *prometheus.CounterVec
	noBudget     prometheus.Counter
	cuts         *prometheus.CounterVec
	disconnects  *prometheus.CounterVec
	stops        *prometheus.CounterVec
	draining     prometheus.Gauge
	reloads      *prometheus.CounterVec
	endpointGone func(*balance.Endpoint) // forgets what others measure of an instance
}

func newMetrics(reg prometheus.Registerer, waiting func() float64) (*metrics, error) {
	const ns, sub = "fournines", "gateway"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: name, Help: help,
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"class"})
	}
	m := &metrics{
		requests:     counter("requests_total", "Requests answered, by class, status code and the zone of the instance that answered (empty: the gateway itself).", "class", "code", "zone"),
		duration:     histogram("request_duration_seconds", "Time from a request's header to the end of its answer, streams included."),
		firstContent: histogram("first_content_seconds", "Time from a request's header to the first byte of its answer, in streams to the first event that is not a ping."),
		inFlight:     gauge("requests_in_flight", "Requests in work."),
		streams:      gauge("streams_open", "Event streams and upgraded connections in work."),
		healthy: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "endpoint_healthy",
			Help: "1 while the instance takes requests, 0 while it is unhealthy or ejected."}, []string{"endpoint", "zone"}),
		ejections:   counter("ejections_total", "Ejections of an instance because of what requests met there.", "endpoint", "reason"),
		retries:     counter("retries_total", "Requests sent again, by class and reason.", "class", "reason"),
		noBudget:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "retry_budget_exhausted_total", Help: "Retries not made because the budget was spent."}),
		cuts:        counter("stream_cuts_total", "Streams whose instance was lost, by outcome: restarted (unseen by the client) or error_event.", "outcome"),
		disconnects: counter("client_disconnects_total", "Requests that the client gave up, by class.", "class"),
		stops:       counter("stop_calls_total", "Calls of Dify's stop endpoint for streams that nobody reads, by reason (disconnect, given_up) and outcome (ok, refused, failed, dropped).", "reason", "outcome"),
		draining:    gauge("draining", "1 while the gateway is stopping."),
		reloads:     counter("config_reloads_total", "Configuration reloads, by outcome: applied or refused.", "outcome"),
	}
	all := []prometheus.Collector{
		m.requests, m.duration, m.firstContent, m.inFlight, m.streams, m.healthy, m.ejections, m.retries,
		m.noBudget, m.cuts, m.disconnects, m.stops, m.draining, m.reloads,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "requests_waiting",
			Help: "Requests waiting because all instances are full."}, waiting),
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	// A rate does not see the step from no series to 1.
	for _, outcome := range []string{"restarted", "error_event"} {
		m.cuts.WithLabelValues(outcome)
	}
	return m, nil
}

func codeLabel(code int) string {
	if code != 499 && http.StatusText(code) == "" {
		return "other" // keeps a creative instance from making series
	}
	return strconv.Itoa(code)
}

func (m *metrics) done(class dify.Class, code int, zone string, seconds float64) {
	m.requests.WithLabelValues(class.String(), codeLabel(code), zone).Inc()
	m.duration.WithLabelValues(class.String()).Observe(seconds)
}

// Health implements balance.Observer.
func (m *metrics) Health(e *balance.Endpoint, healthy bool) {
	v := 0.0
	if healthy {
		v = 1
	}
	m.healthy.WithLabelValues(e.Name, e.Zone).Set(v)
}

// Ejected implements balance.Observer.
func (m *metrics) Ejected(e *balance.Endpoint, reason string) {
	m.ejections.WithLabelValues(e.Name, reason).Inc()
}

// Removed implements balance.Observer.
func (m *metrics) Removed(e *balance.Endpoint) {
	m.endpointGone(e)
	m.healthy.DeleteLabelValues(e.Name, e.Zone)
	m.ejections.DeletePartialMatch(prometheus.Labels{"endpoint": e.Name})
}

var _ balance.Observer = (*metrics)(nil)
