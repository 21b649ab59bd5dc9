// Package console is the web page of a running installation: zones and what runs
// in them, traffic, the error budget, alerts and what happened, live and without
// any way to change something. It asks the supervisor, Prometheus and
// Alertmanager, and gives all open pages the same snapshot; no request of a user
// needs it.
package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	client "github.com/prometheus/client_golang/prometheus"

	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/topology"
)

// StackSource is asked for the state of what runs.
type StackSource interface {
	// Status returns the state as it is.
	Status(ctx context.Context) (topology.Status, error)
	// Watch calls changed after each change until ctx ends, and returns when the
	// stack cannot be watched any more.
	Watch(ctx context.Context, changed func()) error
}

// Options are what a Server needs besides its configuration.
type Options struct {
	// Version is shown on the page.
	Version string
	// Stack is the stack that is shown.
	Stack StackSource
	// Page holds index.html and what it loads.
	Page fs.FS
	// Logger receives what goes wrong.
	Logger *slog.Logger
	// Registerer receives the console's own metrics.
	Registerer client.Registerer
}

// The names of the sources in metrics and logs.
const (
	sourceStack        = "stack"
	sourcePrometheus   = "prometheus"
	sourceAlertmanager = "alertmanager"
)

// How often the sources are asked. A change in the stack is told at once; the
// rest of its state (memory, links of zones) is asked for. While nobody watches
// only what the timeline needs is asked.
const (
	statusEvery = 2 * time.Second
	budgetEvery = 30 * time.Second
	idleEvery   = 15 * time.Second
	// settle is how long a change waits for others before a snapshot is made.
	settle = 50 * time.Millisecond
	// heartbeat is the longest time between two snapshots: an open page that got
	// none for three of them says that what it shows is old.
	heartbeat = 5 * time.Second
)

// parallelQueries bounds what Prometheus is asked at the same time.
const parallelQueries = 4

// Server serves the page of one stack.
type Server struct {
	cfg     Config
	opts    Options
	token   string
	prom    *prometheus
	alerts  *alertmanager
	metrics *metrics
	feed    feed
	series  seriesCache
	assets  assets
	started time.Time
	// kick asks for everything at once: somebody has begun to watch.
	kickStack, kickMetrics, kickAlerts, kickBudget chan struct{}
	dirty                                          chan struct{}

	mu       sync.Mutex // guards what follows
	seq      int64
	timeline *timeline
	status   *topology.Status
	sources  Health
	alertsOn []Alert
	measured measured
	budget   budget
}

// measured is what the questions to Prometheus brought.
type measured struct {
	components map[string]Figures
	apps       map[string]Figures
	limits     map[string]Figures
	totals     Figures
	flows      []Flow
}

// budget is what the slow questions brought.
type budget struct {
	covered, left *float64
	burn          []Burn
	spenders      []Spender
}

// New makes a server for a valid configuration. It reads the token and the
// timeline, and opens nothing else.
func New(cfg Config, opts Options) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	token, err := adminhttp.ReadToken(cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("tokenFile: %w", err)
	}
	s := &Server{
		cfg: cfg, opts: opts, token: token, started: time.Now(),
		prom:      &prometheus{base: cfg.Prometheus, http: newClient()},
		alerts:    &alertmanager{base: cfg.Alertmanager, http: newClient()},
		kickStack: make(chan struct{}, 1), kickMetrics: make(chan struct{}, 1),
		kickAlerts: make(chan struct{}, 1), kickBudget: make(chan struct{}, 1),
		dirty: make(chan struct{}, 1),
	}
	if s.assets, err = loadAssets(opts.Page); err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(opts.Registerer, func() float64 { return float64(s.feed.count()) }); err != nil {
		return nil, err
	}
	if s.timeline, err = openTimeline(cfg.HistoryFile); err != nil {
		return nil, err
	}
	s.series.ask = s.askSeries
	s.publish()
	return s, nil
}

// newClient makes a client for the servers of the stack itself: no proxy of the
// environment stands between.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: parallelQueries, IdleConnTimeout: time.Minute}}
}

// Run serves the page on ln until ctx ends.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.timeline.close()
	}()
	var group lifecycle.Group
	group.Add("watch", s.watchStack)
	group.Add("publish", s.publishLoop)
	for _, source := range []struct {
		name          string
		kick          chan struct{}
		watched, idle time.Duration
		ask           func(context.Context)
	}{
		{"stack", s.kickStack, statusEvery, idleEvery, s.askStack},
		{"alerts", s.kickAlerts, max(s.cfg.ScrapeInterval, statusEvery), idleEvery, s.askAlerts},
		{"metrics", s.kickMetrics, max(s.cfg.ScrapeInterval, statusEvery), 0, s.askMetrics},
		{"budget", s.kickBudget, budgetEvery, 0, s.askBudget},
	} {
		group.Add(source.name, func(ctx context.Context) error {
			s.every(ctx, source.kick, source.watched, source.idle, source.ask)
			return nil
		})
	}
	group.Add("page", func(ctx context.Context) error { return s.serve(ctx, ln) })
	return group.Run(ctx)
}

// every calls ask when asked to, and each watched while somebody watches, each
// idle while nobody does; 0 is never.
func (s *Server) every(ctx context.Context, asked <-chan struct{}, watched, idle time.Duration, ask func(context.Context)) {
	tick := time.NewTicker(watched)
	defer tick.Stop()
	last := time.Now()
	ask(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		case <-tick.C:
			if s.feed.count() == 0 && (idle == 0 || time.Since(last) < idle) {
				continue
			}
		}
		ask(ctx)
		last = time.Now()
	}
}

func kick(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchStack has the stack asked after each of its changes.
func (s *Server) watchStack(ctx context.Context) error {
	for ctx.Err() == nil {
		err := s.opts.Stack.Watch(ctx, func() { kick(s.kickStack) })
		kick(s.kickStack) // it ended: the supervisor is gone
		if err != nil && ctx.Err() == nil {
			s.opts.Logger.Debug("the stack cannot be watched", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// publishLoop makes a snapshot soon after each change.
func (s *Server) publishLoop(ctx context.Context) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		case <-s.dirty:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
			select { // what came meanwhile is in this snapshot
			case <-s.dirty:
			default:
			}
		}
		s.publish()
		beat.Reset(heartbeat)
	}
}

// answeredBy notes how a source is; the caller holds mu.
func (s *Server) answeredBy(name string, source *Source, now time.Time, err error) {
	if err == nil {
		if source.Error != "" {
			s.opts.Logger.Info("source answers again", "source", name)
		}
		*source = Source{At: now.UnixMilli()}
		return
	}
	s.metrics.errors.WithLabelValues(name).Inc()
	if source.Error == "" { // once for an outage
		s.opts.Logger.Warn("source does not answer", "source", name, "err", err)
	}
	source.Error = err.Error()
}

// record puts events into the timeline; the caller holds mu.
func (s *Server) record(events []Event) {
	if err := s.timeline.add(events); err != nil {
		s.opts.Logger.Error("timeline", "err", err)
	}
}

func (s *Server) askStack(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, err := s.opts.Stack.Status(ask)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	s.mu.Lock()
	s.answeredBy(sourceStack, &s.sources.Stack, now, err)
	if err == nil {
		s.record(s.timeline.stack(s.status, status, now))
		s.status = &status
	}
	s.mu.Unlock()
	kick(s.dirty)
}

func (s *Server) askAlerts(ctx context.Context) {
	list, alive, err := s.alerts.alerts(ctx)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	s.mu.Lock()
	s.answeredBy(sourceAlertmanager, &s.sources.Alertmanager, now, err)
	if err == nil {
		s.record(s.timeline.alerts(list, now))
		s.alertsOn, s.sources.Watchdog = list, alive
	}
	s.mu.Unlock()
	kick(s.dirty)
}

// askMetrics asks for all figures. When one question fails the figures of the
// last time stay, and the page says how old they are.
func (s *Server) askMetrics(ctx context.Context) {
	window := rateWindow(s.cfg.ScrapeInterval)
	m := measured{components: map[string]Figures{}, apps: map[string]Figures{}, limits: map[string]Figures{}, totals: Figures{}}
	owner := s.owners()
	var mu sync.Mutex
	var questions []func(context.Context) error
	each := func(f figure, take func(sample)) {
		questions = append(questions, func(ctx context.Context) error {
			samples, err := s.prom.vector(ctx, fill(f.expr, window, f.everyone()))
			mu.Lock()
			defer mu.Unlock()
			for _, v := range samples {
				take(v)
			}
			return err
		})
	}
	put := func(to map[string]Figures, name, what string, v float64) {
		if name == "" {
			return
		}
		if to[name] == nil {
			to[name] = Figures{}
		}
		to[name][what] = v
	}
	for _, f := range componentFigures {
		each(f, func(v sample) {
			// A name that says something else in another layer is not ours.
			if c := owner[ownerKey(f, v.labels[f.by])]; c.kind == f.kind {
				put(m.components, c.name, f.name, v.value)
			}
		})
	}
	for _, f := range appFigures {
		each(f, func(v sample) { put(m.apps, v.labels[f.by], f.name, v.value) })
	}
	for _, f := range limitFigures {
		each(f, func(v sample) { put(m.limits, v.labels[f.by], f.name, v.value) })
	}
	for _, f := range totals {
		each(f, func(v sample) { m.totals[f.name] = v.value })
	}
	each(figure{expr: flowQuery}, func(v sample) {
		m.flows = append(m.flows, Flow{From: v.labels["zone"], To: v.labels["exported_zone"], RPS: v.value})
	})
	err := together(ctx, questions)
	if ctx.Err() != nil {
		return
	}
	slices.SortFunc(m.flows, func(x, y Flow) int { return cmp.Or(cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To)) })
	s.mu.Lock()
	s.answeredBy(sourcePrometheus, &s.sources.Prometheus, time.Now(), err)
	if err == nil {
		s.measured = m
	}
	s.mu.Unlock()
	kick(s.dirty)
}

// owned is a component as figures know it.
type owned struct{ name, kind string }

// hostKey goes before a host in the keys of owners; no name has a space.
const hostKey = "host "

// ownerKey is how a value finds its component: most by name, a replica by the
// host of its address.
func ownerKey(f figure, label string) string {
	if f.by == "slave_ip" {
		return hostKey + label
	}
	return label
}

// owners lists the components of the stack by what values call them.
func (s *Server) owners() map[string]owned {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]owned{}
	if s.status == nil {
		return out
	}
	for _, z := range s.status.Zones {
		for _, c := range z.Components {
			out[c.Name] = owned{c.Name, c.Kind}
			if host, _, err := net.SplitHostPort(c.Address); err == nil && c.Kind == "redis" {
				out[hostKey+host] = owned{c.Name, c.Kind}
			}
		}
	}
	return out
}

// askBudget asks for what changes slowly and costs more.
func (s *Server) askBudget(ctx context.Context) {
	b, err := s.readBudget(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		// askMetrics reports a Prometheus that is away.
		s.opts.Logger.Debug("budget", "err", err)
		return
	}
	s.mu.Lock()
	s.budget = b
	s.mu.Unlock()
	kick(s.dirty)
}

func (s *Server) readBudget(ctx context.Context) (b budget, err error) {
	allowed := 1 - s.cfg.Objective
	whole := promDuration(s.cfg.Window)
	if b.covered, err = s.prom.scalar(ctx, coveredQuery); err != nil {
		return b, err
	}
	if b.covered != nil {
		*b.covered = min(*b.covered, s.cfg.Window.Seconds())
	}
	ratio, err := s.prom.scalar(ctx, errorRatio(whole))
	if err != nil {
		return b, err
	}
	if ratio != nil {
		left := 1 - *ratio/allowed
		b.left = &left
	}
	for _, w := range burnWindows {
		ratio, err := s.prom.scalar(ctx, errorRatio(w.window))
		if err != nil {
			return b, err
		}
		if ratio != nil {
			*ratio /= allowed
		}
		b.burn = append(b.burn, Burn{Window: w.window, Factor: ratio, Alert: w.alert})
	}
	samples, err := s.prom.vector(ctx, spenderQuery(whole))
	if err != nil {
		return b, err
	}
	for _, v := range samples {
		b.spenders = append(b.spenders, Spender{Class: v.labels["class"], Code: v.labels["code"], Failed: v.value})
	}
	slices.SortFunc(b.spenders, func(x, y Spender) int {
		return cmp.Or(cmp.Compare(y.Failed, x.Failed), cmp.Compare(x.Class, y.Class), cmp.Compare(x.Code, y.Code))
	})
	return b, nil
}

// publish makes the snapshot, once, and hands it to all who watch.
func (s *Server) publish() {
	snapshot := s.snapshot(time.Now())
	text, err := json.Marshal(snapshot)
	if err != nil { // only numbers that are none could do that, and they are left out
		s.opts.Logger.Error("snapshot", "err", err)
		return
	}
	event := bytes.NewBuffer(make([]byte, 0, len(text)+32))
	fmt.Fprintf(event, "id: %d\ndata: %s\n\n", snapshot.Seq, text)
	s.metrics.updates.Inc()
	s.metrics.bytes.Set(float64(len(text)))
	s.feed.publish(&frame{json: text, event: event.Bytes()})
}

// snapshot puts together what is known.
func (s *Server) snapshot(now time.Time) *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	out := &Snapshot{
		Seq: s.seq, At: now.UnixMilli(), Version: s.opts.Version, Started: s.started.UnixMilli(),
		SLO: SLO{
			Objective: s.cfg.Objective, WindowSeconds: s.cfg.Window.Seconds(),
			CoveredSeconds: s.budget.covered, Left: s.budget.left, Burn: list(s.budget.burn),
		},
		Sources: s.sources, Totals: s.measured.totals,
		Flows: list(s.measured.flows), Spenders: list(s.budget.spenders),
		Apps: named(s.measured.apps), Limits: named(s.measured.limits),
		Alerts: list(s.alertsOn), Events: list(s.timeline.newest(liveEvents)),
		Stack: Stack{State: topology.Stopped, Zones: []Zone{}, Endpoints: map[string]string{}},
	}
	if out.Totals == nil {
		out.Totals = Figures{}
	}
	st := s.status
	if st == nil {
		return out
	}
	out.Stack = Stack{Name: st.Name, State: st.State, StartSeconds: st.StartSeconds, Zones: []Zone{}, Endpoints: st.Endpoints}
	for _, z := range st.Zones {
		zone := Zone{Name: z.Name, Power: z.Power, Link: z.Link, Components: []Component{}}
		for _, c := range z.Components {
			figures := s.measured.components[c.Name]
			if figures == nil {
				figures = Figures{}
			}
			zone.Components = append(zone.Components, Component{Component: c, Figures: figures})
		}
		out.Stack.Zones = append(out.Stack.Zones, zone)
	}
	return out
}

// list is never null in JSON.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func named(m map[string]Figures) []Named {
	out := []Named{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, Named{Name: name, Figures: m[name]})
	}
	return out
}
