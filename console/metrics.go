package console

import client "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	updates client.Counter
	bytes   client.Gauge
	errors  *client.CounterVec
}

func newMetrics(reg client.Registerer, viewers func() float64) (*metrics, error) {
	const ns, sub = "fournines", "console"
	m := &metrics{
		updates: client.NewCounter(client.CounterOpts{Namespace: ns, Subsystem: sub, Name: "snapshots_total",
			Help: "Snapshots made; all open pages get the same one."}),
		bytes: client.NewGauge(client.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "snapshot_bytes",
			Help: "Size of the newest snapshot."}),
		errors: client.NewCounterVec(client.CounterOpts{Namespace: ns, Subsystem: sub, Name: "source_errors_total",
			Help: "Questions without a usable answer, by source: stack, prometheus, alertmanager."}, []string{"source"}),
	}
	for _, source := range []string{sourceStack, sourcePrometheus, sourceAlertmanager} {
		m.errors.WithLabelValues(source)
	}
	for _, c := range []client.Collector{m.updates, m.bytes, m.errors, client.NewGaugeFunc(client.GaugeOpts{
		Namespace: ns, Subsystem: sub, Name: "viewers", Help: "Pages that are open."}, viewers)} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
