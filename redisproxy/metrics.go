package redisproxy

import "github.com/prometheus/client_golang/prometheus"

// Families of commands in metrics.
const (
	famRead = iota
	famWrite
	famTransaction
	famBlocking
	famPubSub
	famScript
	famSplit
	famKeyspace
	famConnection
	famRefused
	families
)

var familyNames = [families]string{"read", "write", "transaction", "blocking", "pubsub", "script", "split", "keyspace", "connection", "refused"}

type metrics struct {
	clients     prometheus.Gauge
	accepted    prometheus.Counter
	rejected    *prometheus.CounterVec
	commands    [families]prometheus.Counter
	redirects   *prometheus.CounterVec
	held        prometheus.Gauge
	holds       prometheus.Histogram
	holdExpired prometheus.Counter
	connections *prometheus.GaugeVec
	lost        prometheus.Counter
	ambiguous   prometheus.Counter
	refreshes   *prometheus.CounterVec
	missing     prometheus.Gauge
	masters     prometheus.Gauge
	cut         *prometheus.CounterVec
	putBack     prometheus.Counter
	panics      prometheus.Counter
	unconfirmed *prometheus.CounterVec
	replicas    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const ns, sub = "fournines", "redisproxy"
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	counterVec := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		clients:     gauge("clients", "Connected clients."),
		accepted:    counter("clients_accepted_total", "Client connections accepted."),
		rejected:    counterVec("clients_rejected_total", "Client connections refused, by reason.", "reason"),
		redirects:   counterVec("redirects_total", "Answers of nodes that sent a command elsewhere or asked to wait, by kind.", "kind"),
		held:        gauge("held_commands", "Commands that wait for a node to serve their slot."),
		holdExpired: counter("hold_expired_total", "Commands given up, not executed, after the hold time."),
		lost:        counter("node_connections_lost_total", "Established node connections that broke."),
		ambiguous:   counter("ambiguous_total", "Commands whose connection was lost after sending and that were not repeated."),
		refreshes:   counterVec("refreshes_total", "Looks at the cluster's slot map, by result.", "result"),
		missing:     gauge("slots_missing", "Hash slots without a master in the proxy's view."),
		masters:     gauge("masters", "Masters with slots in the proxy's view."),
		cut:         counterVec("clients_cut_total", "Clients disconnected by the proxy, by reason.", "reason"),
		putBack:     counter("elements_put_back_total", "Elements popped for a client that had gone and put back."),
		unconfirmed: counterVec("unconfirmed_writes_total", "Writes that too few replicas confirmed in time: answered because the master had none, or lost.", "result"),
		replicas:    counterVec("replica_reads_total", "Reads sent to a replica: answered by it, or asked again at the master.", "result"),
		panics:      counter("panics_total", "Failures of the program confined to one client connection."),
	}
	m.holds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: ns, Subsystem: sub, Name: "hold_seconds", Help: "How long held commands waited.",
		Buckets: []float64{.001, .005, .02, .1, .25, .5, 1, 2, 3, 4, 5, 8, 15},
	})
	m.connections = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: ns, Subsystem: sub, Name: "node_connections", Help: "Open node connections, by kind.",
	}, []string{"kind"})
	reg.MustRegister(m.holds, m.connections)
	commands := counterVec("commands_total", "Commands of clients, by family.", "family")
	for i, name := range familyNames {
		m.commands[i] = commands.WithLabelValues(name)
	}
	return m
}
