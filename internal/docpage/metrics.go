package docpage

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics is a registry that notes what is registered with it, also metrics
// that have no series yet.
type Metrics struct {
	*prometheus.Registry
	families []Family
}

// Family is one registered metric.
type Family struct {
	Name, Help string
	// Type is counter, gauge, histogram or summary.
	Type string
	// Labels are the names of its labels, in order.
	Labels []string
	// Always says that it has series from the start of its process; others show
	// after the first event that they count.
	Always bool
	// Buckets are the upper bounds of a histogram that has series.
	Buckets []float64
}

// NewMetrics makes an empty registry.
func NewMetrics() *Metrics { return &Metrics{Registry: prometheus.NewRegistry()} }

// description takes apart how a description prints itself; the client library
// has no other way to ask it.
var description = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "((?:[^"\\]|\\.)*)", unit: "[^"]*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

var constLabel = regexp.MustCompile(`(\w+)="(?:[^"\\]|\\.)*"`)

// Register implements prometheus.Registerer.
func (m *Metrics) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc, 100)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	for d := range ch {
		parts := description.FindStringSubmatch(d.String())
		if parts == nil {
			panic("a description that this package cannot read: " + d.String())
		}
		f := Family{Name: parts[1], Help: strings.ReplaceAll(parts[2], `\"`, `"`), Type: typeOf(c, parts[1])}
		for _, l := range constLabel.FindAllStringSubmatch(parts[3], -1) {
			f.Labels = append(f.Labels, l[1])
		}
		for l := range strings.SplitSeq(parts[4], ",") {
			if l != "" {
				f.Labels = append(f.Labels, l)
			}
		}
		slices.Sort(f.Labels)
		if !slices.ContainsFunc(m.families, func(have Family) bool { return have.Name == f.Name }) {
			m.families = append(m.families, f)
		}
	}
	return m.Registry.Register(c)
}

// typeOf is the type of a metric that has no series to tell it. A collector of
// our own makes constant metrics: counters, which end in _total, and gauges.
func typeOf(c prometheus.Collector, name string) string {
	switch c.(type) {
	case *prometheus.HistogramVec:
		return "histogram"
	case *prometheus.SummaryVec:
		return "summary"
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	}
	if strings.HasSuffix(name, "_total") {
		return "counter"
	}
	return "gauge"
}

// MustRegister implements prometheus.Registerer.
func (m *Metrics) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := m.Register(c); err != nil {
			panic(err)
		}
	}
}

// Families returns what is registered, by name. Series tell the types, where
// there are any.
func (m *Metrics) Families(tb testing.TB) []Family {
	tb.Helper()
	shown, err := m.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	all := slices.Clone(m.families)
	for _, s := range shown {
		i := slices.IndexFunc(all, func(f Family) bool { return f.Name == s.GetName() })
		if i < 0 {
			tb.Errorf("%s is collected, but its collector does not describe it", s.GetName())
			continue
		}
		all[i].Always, all[i].Type = true, strings.ToLower(s.GetType().String())
		for _, b := range s.GetMetric()[0].GetHistogram().GetBucket() {
			all[i].Buckets = append(all[i].Buckets, b.GetUpperBound())
		}
	}
	slices.SortFunc(all, func(a, b Family) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Check reports the metrics that a page does not name, with prefix or without.
func (m *Metrics) Check(tb testing.TB, page, prefix string) {
	tb.Helper()
	if len(m.families) == 0 {
		tb.Error("nothing is registered")
	}
	for _, f := range m.families {
		name := strings.TrimPrefix(f.Name, prefix)
		if !regexp.MustCompile("(`|" + prefix + ")" + name + "[`{ ]").MatchString(page) {
			tb.Errorf("the page does not say what %s is", f.Name)
		}
	}
}
