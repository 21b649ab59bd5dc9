package gateway

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/balance"
	"fournines/gateway/dify"
)

// maxKeyLabels is how many apps without a configured name get a label of their
// own, the id of their key. Only a key with which an instance has done work
// counts, so that nobody makes series by sending random keys.
const maxKeyLabels = 100

// The labels of requests that belong to no app with a label of its own. No app
// can be configured under these names.
const (
	appOther = "other"
	appNone  = "none" // no key
)

// codeClasses are the values of the label "code" of metrics by app and endpoint.
var codeClasses = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}

func codeClass(status int) int {
	if c := status / 100; c > 0 && c < len(codeClasses) {
		return c
	}
	return 0
}

// contentBuckets fit what language models need to their first word, in seconds.
var contentBuckets = []float64{.01, .025, .05, .1, .25, .5, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60, 120}

// usage are the metrics by app and by instance, and the streams that are open.
// Its labels are bounded: configured apps, maxKeyLabels ids of keys, "other",
// "none"; instances and zones of the configuration; classes.
type usage struct {
	appRequests      *prometheus.CounterVec
	appFailures      *prometheus.CounterVec
	appContent       *prometheus.HistogramVec
	appBytes         *prometheus.CounterVec
	endpointRequests *prometheus.CounterVec
	endpointContent  *prometheus.HistogramVec
	streamDuration   *prometheus.HistogramVec

	apps atomic.Pointer[map[string]*appSeries] // by label, replaced as a whole
	mu   sync.Mutex                            // one change of apps at a time
	keys int                                   // labels that are ids of keys

	openMu sync.Mutex
	open   map[*exchange]struct{}
}

// appSeries are the series of one app, found once.
type appSeries struct {
	codes    [len(codeClasses)]prometheus.Counter
	failures prometheus.Counter
	content  prometheus.Observer
	in, out  prometheus.Counter
	named    bool

	requests atomic.Int64
	errors   atomic.Int64 // answered with 5xx
	lastUsed atomic.Int64 // Unix milliseconds
}

func newUsage(reg prometheus.Registerer) (*usage, error) {
	const ns, sub = "fournines", "gateway"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help, Buckets: buckets}, labels)
	}
	u := &usage{
		appRequests:      counter("app_requests_total", "Requests answered, by app and class of the status code.", "app", "code"),
		appFailures:      counter("app_failures_total", "Requests that failed for their user, by app: a status of 5xx, or an answer that began well and whose instance was lost.", "app"),
		appContent:       histogram("app_first_content_seconds", "Time from a request's header to the first content of its answer, by app.", contentBuckets, "app"),
		appBytes:         counter("app_bytes_total", "Bytes of bodies, by app and direction: in (declared by or read from clients) or out (sent to clients).", "app", "direction"),
		endpointRequests: counter("endpoint_requests_total", "Answers passed to clients, by the instance that gave them and class of the status code.", "endpoint", "zone", "code"),
		endpointContent:  histogram("endpoint_first_content_seconds", "Time from a request's header to the first content of its answer, by the instance that gave it.", contentBuckets, "endpoint", "zone"),
		streamDuration: histogram("stream_duration_seconds", "How long event streams and upgraded connections were open.",
			[]float64{.1, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800}, "class"),
		open: map[*exchange]struct{}{},
	}
	u.apps.Store(&map[string]*appSeries{})
	for _, c := range []prometheus.Collector{u.appRequests, u.appFailures, u.appContent, u.appBytes, u.endpointRequests, u.endpointContent, u.streamDuration} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	u.series(appOther, true)
	u.series(appNone, true)
	return u, nil
}

// series returns the series of a label and makes them when they are not there.
func (u *usage) series(label string, named bool) *appSeries {
	if s := (*u.apps.Load())[label]; s != nil {
		return s
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	old := *u.apps.Load()
	if s := old[label]; s != nil {
		return s
	}
	if !named {
		if u.keys >= maxKeyLabels {
			return old[appOther]
		}
		u.keys++
	}
	s := &appSeries{
		named: named, failures: u.appFailures.WithLabelValues(label), content: u.appContent.WithLabelValues(label),
		in: u.appBytes.WithLabelValues(label, "in"), out: u.appBytes.WithLabelValues(label, "out"),
	}
	for i, code := range codeClasses {
		s.codes[i] = u.appRequests.WithLabelValues(label, code)
	}
	next := maps.Clone(old)
	next[label] = s
	u.apps.Store(&next)
	return s
}

// of returns where a request of a counts. worked says that an instance has done
// work for its key.
func (u *usage) of(a app, worked bool) *appSeries {
	apps := *u.apps.Load()
	switch {
	case a.id == "":
		return apps[appNone]
	case a.named:
		return u.series(a.id, true)
	}
	if s := apps[a.id]; s != nil {
		return s
	}
	if worked {
		return u.series(a.id, false)
	}
	return apps[appOther]
}

// keep forgets the series of names that are not configured any more, and of
// keys that have got a name.
func (u *usage) keep(table appTable) {
	names := map[string]bool{appOther: true, appNone: true}
	for _, a := range table {
		names[a.id] = true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	next := maps.Clone(*u.apps.Load())
	for label, s := range next {
		_, gotName := table[label]
		if s.named && names[label] || !s.named && !gotName {
			continue
		}
		delete(next, label)
		if !s.named {
			u.keys--
		}
		labels := prometheus.Labels{"app": label}
		u.appRequests.DeletePartialMatch(labels)
		u.appFailures.DeletePartialMatch(labels)
		u.appContent.DeletePartialMatch(labels)
		u.appBytes.DeletePartialMatch(labels)
	}
	u.apps.Store(&next)
}

// removed forgets the series of an instance.
func (u *usage) removed(e *balance.Endpoint) {
	labels := prometheus.Labels{"endpoint": e.Name}
	u.endpointRequests.DeletePartialMatch(labels)
	u.endpointContent.DeletePartialMatch(labels)
}

// worked tells whether an instance has done work for the request's key, which
// it does for keys that it knows only. Some GET and OPTIONS requests are
// answered without a look at the key.
func (x *exchange) worked() bool {
	switch x.class {
	case dify.Chat, dify.Workflow, dify.Retrieve, dify.Ingest, dify.Upload:
	default:
		return false
	}
	return x.endpoint != "" && x.status/100 == 2 && strings.HasPrefix(x.r.URL.Path, "/v1/")
}

// received is how many bytes of body the client sent, as far as it said so or
// the gateway has read it whole.
func (x *exchange) received() int64 { return max(x.r.ContentLength, int64(len(x.body.held))) }

// count counts the finished request.
func (u *usage) count(x *exchange, took time.Duration) {
	s := u.of(x.app, x.worked())
	code := codeClass(x.status)
	s.codes[code].Inc()
	s.requests.Add(1)
	if x.status >= 500 {
		s.errors.Add(1)
	}
	if x.status >= 500 || x.broken {
		s.failures.Inc()
	}
	s.lastUsed.Store(x.start.Add(took).UnixMilli())
	s.in.Add(float64(x.received()))
	s.out.Add(float64(x.sent))
	if x.first > 0 {
		s.content.Observe(x.first.Seconds())
	}
	if x.endpoint != "" {
		u.endpointRequests.WithLabelValues(x.endpoint, x.zone, codeClasses[code]).Inc()
		if x.first > 0 {
			u.endpointContent.WithLabelValues(x.endpoint, x.zone).Observe(x.first.Seconds())
		}
	}
}

// opened notes a stream; closed must follow.
func (u *usage) opened(x *exchange) {
	u.openMu.Lock()
	u.open[x] = struct{}{}
	u.openMu.Unlock()
}

func (u *usage) closed(x *exchange) {
	u.openMu.Lock()
	delete(u.open, x)
	u.openMu.Unlock()
	u.streamDuration.WithLabelValues(x.class.String()).Observe(time.Since(x.start).Seconds())
}

func (u *usage) openStreams() int {
	u.openMu.Lock()
	defer u.openMu.Unlock()
	return len(u.open)
}
