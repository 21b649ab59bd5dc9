package admit

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the package's. Apps that nobody configured share the label
// "other"; reasons, priorities and endpoints are bounded.
type metrics struct {
	wait    [priorities]prometheus.Observer
	waits   *prometheus.HistogramVec
	shed    *prometheus.CounterVec
	appShed *prometheus.CounterVec
	sheds   [priorities]map[string]prometheus.Counter
}

func newMetrics() *metrics {
	const ns, sub = "fournines", "gateway"
	m := &metrics{
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "queue_wait_seconds",
			Help:    "How long requests that had to wait for a place at an instance waited until they got one.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"priority"}),
		shed: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "shed_total",
			Help: "Requests refused by overload protection, by reason and priority."}, []string{"reason", "priority"}),
		appShed: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: "app_shed_total",
			Help: "Requests refused by overload protection, by app (other: apps that are not configured)."}, []string{"app"}),
	}
	for p := range Priority(priorities) {
		m.wait[p] = m.waits.WithLabelValues(p.String())
		m.sheds[p] = map[string]prometheus.Counter{}
		for _, reason := range reasons {
			m.sheds[p][reason] = m.shed.WithLabelValues(reason, p.String())
		}
	}
	return m
}

func (*metrics) admitted(a *App, cost float64) {
	a.served.Add(1)
	a.work.Add(int64(cost * workUnit))
}

func (m *metrics) refused(a *App, p Priority, reason string) {
	m.sheds[p][reason].Inc()
	m.appShed.WithLabelValues(a.Label).Inc()
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fournines_gateway_"+name, help, labels, nil)
}

var (
	descLength    = desc("queue_length", "Requests that wait for a place at an instance.", "priority")
	descInFlight  = desc("app_requests_in_flight", "Requests in work, by app.", "app")
	descAdmitted  = desc("app_admitted_total", "Places given to requests, by app; a request that is sent again gets another.", "app")
	descAppLength = desc("app_queue_length", "Requests that wait, by app.", "app")
	descYields    = desc("app_yields", "1 while the app floods and leaves the last quarter of each instance's limit to others.", "app")
	descLimit     = desc("endpoint_concurrency_limit", "How many requests without content yet the instance may have; 0 is no limit.", "endpoint", "zone")
	descWorking   = desc("endpoint_requests_working", "Requests at the instance that have shown no content yet.", "endpoint", "zone")
	descEndpoint  = desc("endpoint_requests_in_flight", "Requests at the instance, streams included.", "endpoint", "zone")
)

// Describe implements prometheus.Collector.
func (c *Controller) Describe(ch chan<- *prometheus.Desc) {
	c.m.waits.Describe(ch)
	c.m.shed.Describe(ch)
	c.m.appShed.Describe(ch)
	for _, d := range []*prometheus.Desc{descLength, descInFlight, descAdmitted, descAppLength, descYields, descLimit, descWorking, descEndpoint} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Controller) Collect(ch chan<- prometheus.Metric) {
	c.m.waits.Collect(ch)
	c.m.shed.Collect(ch)
	c.m.appShed.Collect(ch)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	type sum struct {
		inFlight, admitted int64
		waiting            int
		yields             float64
	}
	apps := map[string]*sum{}
	all := c.apps.all()
	c.mu.Lock()
	var lengths [priorities]int
	for p := range c.lanes {
		lengths[p] = c.lanes[p].length
	}
	for _, a := range all {
		s := apps[a.Label]
		if s == nil {
			s = &sum{}
			apps[a.Label] = s
		}
		s.inFlight += a.inFlight.Load()
		s.admitted += a.served.Load()
		waiting := 0
		for p := range a.queues {
			waiting += a.queues[p].length
		}
		s.waiting += waiting
		if waiting > 0 && a.recent.yields { // it is not looked at while nobody waits
			s.yields = 1
		}
	}
	c.mu.Unlock()
	for p, n := range lengths {
		gauge(descLength, float64(n), Priority(p).String())
	}
	for label, s := range apps {
		if *s == (sum{}) {
			continue // it has not been seen yet
		}
		gauge(descInFlight, float64(s.inFlight), label)
		ch <- prometheus.MustNewConstMetric(descAdmitted, prometheus.CounterValue, float64(s.admitted), label)
		gauge(descAppLength, float64(s.waiting), label)
		gauge(descYields, s.yields, label)
	}
	for _, e := range c.pool.Endpoints() {
		gauge(descLimit, float64(e.Limit()), e.Name, e.Zone)
		gauge(descWorking, float64(e.Working()), e.Name, e.Zone)
		gauge(descEndpoint, float64(e.InFlight()), e.Name, e.Zone)
	}
}
