package loadbalancer

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// The reasons for which the balancer resets connections.
const (
	resetUnreachable = "unreachable" // the checks of the backend get no answer
	resetStalled     = "stalled"     // a peer acknowledges nothing any more
	resetDrain       = "drain"       // the balancer stops
)

type metrics struct {
	connections   *prometheus.GaugeVec
	accepted      *prometheus.CounterVec
	connectErrors *prometheus.CounterVec
	refused       *prometheus.CounterVec
	reset         *prometheus.CounterVec
	bytes         *prometheus.CounterVec
	up            *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	backend := []string{"service", "zone", "backend"}
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fournines", Subsystem: "loadbalancer", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels []string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "fournines", Subsystem: "loadbalancer", Name: name, Help: help}, labels)
	}
	m := &metrics{
		connections:   gauge("connections", "Open connections.", backend),
		accepted:      counter("connections_total", "Connections that were passed on to the backend.", backend),
		connectErrors: counter("connect_errors_total", "Attempts to connect to the backend that failed.", backend),
		refused:       counter("refused_connections_total", "Connections that were reset because no backend could be reached.", []string{"service"}),
		reset:         counter("reset_connections_total", "Connections that were cut: the backend does not answer its checks, a peer acknowledges nothing, the balancer stops.", append(backend, "reason")),
		bytes:         counter("bytes_total", "Bytes of ended connections, from clients (in) and to them (out).", []string{"service", "direction"}),
		up:            gauge("backend_up", "Whether the backend passes its checks.", backend),
	}
	for _, c := range []prometheus.Collector{m.connections, m.accepted, m.connectErrors, m.refused, m.reset, m.bytes, m.up} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// forget removes the series of a backend that a reload took away.
func (m *metrics) forget(service string, b Backend) {
	labels := prometheus.Labels{"service": service, "zone": b.Zone, "backend": b.Name}
	for _, v := range []interface{ DeletePartialMatch(prometheus.Labels) int }{m.connections, m.accepted, m.connectErrors, m.reset, m.up} {
		v.DeletePartialMatch(labels)
	}
}
