package pgproxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/pgproxy/route"
)

// metrics is a collector: what happens per query is counted on the server
// connection that did it and added up when somebody asks.
type metrics struct {
	p         *Proxy
	everReady atomic.Bool

	mu      sync.Mutex
	live    map[*server]bool
	retired map[string]*totals       // by database
	waiting map[string]*atomic.Int64 // nanoseconds that clients have waited, by database
	errors  sync.Map                 // SQLSTATE class → *atomic.Uint64

	holds, cancels, replays, authFailures, authRefused, panics atomic.Uint64
	certificatesApplied, certificatesRefused, diskFull         atomic.Uint64
	pins                                                       [route.PinSessionState + 1]atomic.Uint64

	waits              *prometheus.HistogramVec
	waitPool, waitHold prometheus.Observer // the two of waits
	// Of read/write splitting: units by place and reason.
	routed     [here + 1][]atomic.Uint64
	fenceWaits prometheus.Histogram
}

type totals struct {
	queries, transactions, bytesIn, bytesOut uint64
	waited                                   time.Duration
}

func (t *totals) add(s *server) {
	t.queries += s.queries.Load()
	t.transactions += s.transactions.Load()
	t.bytesIn += s.bytesIn.Load()
	t.bytesOut += s.bytesOut.Load()
}

func newMetrics(p *Proxy) *metrics {
	m := &metrics{p: p, live: make(map[*server]bool), retired: make(map[string]*totals), waiting: make(map[string]*atomic.Int64), waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "fournines_pgproxy_wait_seconds", Help: "Time that clients waited for a server connection, by kind: pool (all in use) or hold (no primary, or paused).",
		Buckets: []float64{.0001, .001, .005, .01, .05, .1, .5, 1, 2, 5, 10, 30},
	}, []string{"kind"}), fenceWaits: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "fournines_pgproxy_fence_wait_seconds", Help: "Time that reads waited for the primary's WAL position.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1},
	})}
	m.waitPool, m.waitHold = m.waits.WithLabelValues("pool"), m.waits.WithLabelValues("hold")
	for i := range m.routed {
		m.routed[i] = make([]atomic.Uint64, routed(whys))
	}
	return m
}

// route counts a simple query or extended batch.
func (m *metrics) route(where place, reason int) { m.routed[where][reason].Add(1) }

// label names a reason as routed counts it.
func label(reason int) string {
	if n := len(route.Reasons()); reason >= n {
		return whyLabels[reason-n]
	}
	return route.Reason(reason).String() //nolint:gosec // below the number of reasons
}

func (m *metrics) addServer(s *server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[s] = true
}

func (m *metrics) removeServer(s *server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, s)
	m.gone(s.database).add(s)
}

// gone returns what is kept of a database. mu is held.
func (m *metrics) gone(database string) *totals {
	t := m.retired[database]
	if t == nil {
		if len(m.retired) >= maxGreetings {
			database = "" // clients choose the names
		}
		if t = m.retired[database]; t == nil {
			t = &totals{}
			m.retired[database] = t
		}
	}
	return t
}

// waited returns where the time is added up, in nanoseconds, that a database's
// clients have waited for a server.
func (m *metrics) waited(database string) *atomic.Int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting[database] == nil {
		if len(m.waiting) >= maxGreetings {
			database = "" // clients choose the names
		}
		if m.waiting[database] == nil {
			m.waiting[database] = new(atomic.Int64)
		}
	}
	return m.waiting[database]
}

// byDatabase returns the totals of every database.
func (m *metrics) byDatabase() map[string]totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]totals)
	for database, t := range m.retired {
		all[database] = *t
	}
	for s := range m.live {
		t := all[s.database]
		t.add(s)
		all[s.database] = t
	}
	for database, ns := range m.waiting {
		t := all[database]
		t.waited = time.Duration(ns.Load())
		all[database] = t
	}
	return all
}

// error counts an error that a client saw, by the class of its SQLSTATE.
func (m *metrics) error(code string) {
	class := "XX"
	if len(code) >= 2 {
		class = code[:2]
	}
	c, ok := m.errors.Load(class)
	if !ok {
		c, _ = m.errors.LoadOrStore(class, new(atomic.Uint64))
	}
	c.(*atomic.Uint64).Add(1)
	if code == codeDiskFull {
		m.diskFull.Add(1)
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fournines_pgproxy_"+name, help, labels, nil)
}

// What has no series before the first event, or without a part of the
// configuration.
var (
	descErrors      = desc("errors_total", "Errors told to clients by SQLSTATE class.", "class")
	descRouted      = desc("routed_total", "Simple queries and extended batches by where they ran (primary, standby, or proxy for what it answered itself) and why; only with splitting.", "target", "reason")
	descConnections = desc("server_connections", "Server connections by state.", "database", "user", "state")
	descWaiting     = desc("waiting_clients", "Clients that wait for a server connection.", "database", "user")
	descStandby     = desc("standby_connections", "Connections to a standby by state.", "database", "user", "backend", "state")
	descExpiry      = desc("certificate_expiry_timestamp_seconds", "When the certificate that clients get is not valid any more, as Unix time; no series without TLS.")
)

// Describe implements prometheus.Collector: what Collect shows at once, and what
// it may show later.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(m, ch)
	for _, d := range []*prometheus.Desc{descErrors, descRouted, descConnections, descWaiting, descStandby, descExpiry} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	var t totals
	for _, d := range m.byDatabase() {
		t.queries, t.transactions, t.bytesIn, t.bytesOut = t.queries+d.queries, t.transactions+d.transactions, t.bytesIn+d.bytesIn, t.bytesOut+d.bytesOut
	}
	counter(desc("queries_total", "Simple queries and extended batches that were answered."), t.queries)
	counter(desc("transactions_total", "Transactions that ended, implicit ones included."), t.transactions)
	counter(desc("received_bytes_total", "Bytes received from servers."), t.bytesIn)
	counter(desc("sent_bytes_total", "Bytes passed on to clients."), t.bytesOut)
	counter(desc("holds_total", "Times that a client had to wait for a primary or for the end of a pause."), m.holds.Load())
	counter(desc("cancels_total", "Cancel requests that were delivered."), m.cancels.Load())
	counter(desc("replays_total", "Times that requests without an answer were sent again after their server was lost: reads, and what it had certainly rolled back."), m.replays.Load())
	counter(desc("auth_failures_total", "Logins refused for a wrong user or password."), m.authFailures.Load())
	counter(desc("auth_refused_total", "Logins refused without looking at the password, because too many from their address had failed."), m.authRefused.Load())
	counter(desc("pauses_total", "Pauses that an administrator asked for."), m.p.gates.pauses.Load())
	counter(desc("pauses_expired_total", "Pauses that nobody ended within their lease."), m.p.gates.expired.Load())
	const certificates = "Certificates found new on disk, by outcome: applied or refused."
	counter(desc("certificate_reloads_total", certificates, "outcome"), m.certificatesApplied.Load(), "applied")
	counter(desc("certificate_reloads_total", certificates, "outcome"), m.certificatesRefused.Load(), "refused")
	if t := m.p.live.Load().tls; t != nil {
		gauge(descExpiry, float64(t.expires.Unix()))
	}
	counter(desc("disk_full_total", "Statements that a server refused because its disk is full (SQLSTATE 53100)."), m.diskFull.Load())
	counter(desc("panics_total", "Sessions ended by a defect of the proxy."), m.panics.Load())
	counter(desc("failovers_total", "Changes of the primary after the first one was found."), m.p.tracker.Failovers())
	counter(desc("primary_conflicts_total", "Times that two servers claimed to be the primary on the same timeline."), m.p.tracker.Conflicts())
	m.errors.Range(func(class, n any) bool {
		counter(descErrors, n.(*atomic.Uint64).Load(), class.(string))
		return true
	})
	for pin := route.PinListen; pin <= route.PinSessionState; pin++ {
		counter(desc("pins_total", "Sessions tied to one server connection, by reason.", "reason"), m.pins[pin].Load(), pin.String())
	}
	for where, byReason := range m.routed {
		for reason := range byReason {
			if n := byReason[reason].Load(); n > 0 {
				counter(descRouted, n, [...]string{"primary", "standby", "proxy"}[where], label(reason))
			}
		}
	}
	counter(desc("fence_questions_total", "Times that the primary was asked for its WAL position; one answer serves all reads that waited for it."), m.p.fence.Questions())
	m.fenceWaits.Collect(ch)
	gauge(desc("clients", "Connected clients."), float64(m.p.clients.Load()))
	gauge(desc("held_clients", "Clients that wait for a primary or for the end of a pause."), float64(m.p.held.Load()))
	gauge(desc("pauses", "Pauses in force: 1 for all databases, or one for each database."), float64(len(m.p.gates.list())))
	v := m.p.tracker.View()
	for _, s := range v.Servers {
		up, isPrimary := 0.0, 0.0
		if s.Up {
			up = 1
		}
		if v.Primary != nil && v.Primary.Endpoint.Address == s.Endpoint.Address {
			isPrimary = 1
		}
		gauge(desc("backend_up", "1 when the server answers probes.", "backend"), up, s.Endpoint.Name)
		gauge(desc("backend_primary", "1 for the server that transactions go to.", "backend"), isPrimary, s.Endpoint.Name)
		readable := 0.0
		for _, t := range v.Standbys {
			if t.Endpoint == s.Endpoint {
				readable = 1
			}
		}
		gauge(desc("backend_standby", "1 for servers that follow the primary, so that reads may go there.", "backend"), readable, s.Endpoint.Name)
		gauge(desc("backend_timeline", "Timeline of the server when it answered last.", "backend"), float64(s.Timeline), s.Endpoint.Name)
	}
	m.p.mu.Lock()
	for k, pl := range m.p.pools {
		st := pl.Stats()
		gauge(descConnections, float64(st.Idle), k.database, k.user, "idle")
		gauge(descConnections, float64(st.Used), k.database, k.user, "used")
		gauge(descWaiting, float64(st.Waiting), k.database, k.user)
	}
	for k, pl := range m.p.standbyPools {
		st := pl.Stats()
		gauge(descStandby, float64(st.Idle), k.database, k.user, k.backend, "idle")
		gauge(descStandby, float64(st.Used), k.database, k.user, k.backend, "used")
	}
	m.p.mu.Unlock()
	m.waits.Collect(ch)
}
