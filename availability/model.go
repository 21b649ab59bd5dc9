package availability

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"fournines/internal/strictyaml"
)

// Model is everything that an estimate is made from.
type Model struct {
	// Target availability, above 0 and below 1.
	Target float64 `json:"target"`
	Layout Layout  `json:"layout"`
	// Assumptions by name.
	Assumptions map[string]Assumption `json:"assumptions"`
	Faults      []Fault               `json:"faults"`
	// Laboratory is the factor, as at Assumption.Factor, by which a fault in
	// production may take longer or shorter than the drill that stands for it.
	Laboratory float64 `json:"laboratory"`
	Prices     Prices  `json:"prices"`
}

// Default is the model without measurements and without edits.
func Default() Model {
	m := Model{
		Target: 0.9999, Layout: DefaultLayout(), Assumptions: map[string]Assumption{},
		Faults: Catalogue(), Laboratory: 2, Prices: DefaultPrices(),
	}
	for _, a := range assumptions {
		m.Assumptions[a.Name] = a
	}
	return m
}

// FileName is what a file with edits is called by custom.
const FileName = "availability.yaml"

// edits is a model file: what it names replaces the default, the rest stays.
type edits struct {
	Target      *float64                  `yaml:"target"`
	Laboratory  *float64                  `yaml:"laboratory"`
	Layout      Layout                    `yaml:"layout"`
	Assumptions map[string]editAssumption `yaml:"assumptions"`
	Faults      map[string]editFault      `yaml:"faults"`
	Prices      Prices                    `yaml:"prices"`

	// model is what the edits are checked against.
	model *Model
}

// editAssumption replaces fields of an Assumption.
type editAssumption struct {
	Value    *float64  `yaml:"value"`
	Factor   *float64  `yaml:"factor"`
	Spread   *float64  `yaml:"spread"`
	Observed *Observed `yaml:"observed"`
	Source   *string   `yaml:"source"`
}

// editFault replaces fields of a Fault, or leaves it out.
type editFault struct {
	Enabled     *bool    `yaml:"enabled"`
	Part        *float64 `yaml:"part"`
	Share       *float64 `yaml:"share"`
	ShareSource *string  `yaml:"shareSource"`
	Outside     *bool    `yaml:"outside"`
	Rate        *string  `yaml:"rate"`
	Away        *string  `yaml:"away"`
	Outage      *string  `yaml:"outage"`
}

// Edit applies the file called name with that text. Every mistake is reported
// with its place in the file.
func (m *Model) Edit(name string, text []byte) error {
	e := edits{Layout: m.Layout, Prices: m.Prices, model: m}
	e.Prices.CPUs = maps.Clone(m.Prices.CPUs)
	if err := strictyaml.UnmarshalValid(name, text, &e); err != nil {
		return err
	}
	m.Layout, m.Prices = e.Layout, e.Prices
	set(&m.Target, e.Target)
	set(&m.Laboratory, e.Laboratory)
	table := maps.Clone(m.Assumptions)
	for key, edit := range e.Assumptions {
		a := table[key]
		set(&a.Value, edit.Value)
		set(&a.Factor, edit.Factor)
		set(&a.Spread, edit.Spread)
		if edit.Observed != nil {
			a.Observed = edit.Observed
			a.Source = fmt.Sprintf("%s: %g in %g years", name, edit.Observed.Events, edit.Observed.Years)
		} else if edit.Value != nil {
			a.Source = name
		}
		set(&a.Source, edit.Source)
		table[key] = a
	}
	m.Assumptions = table
	var kept []Fault
	for _, f := range m.Faults {
		edit := e.Faults[f.Name]
		if edit.Enabled != nil && !*edit.Enabled {
			continue
		}
		set(&f.Part, edit.Part)
		set(&f.Share, edit.Share)
		if edit.Share != nil {
			f.ShareSource = name
		}
		set(&f.ShareSource, edit.ShareSource)
		set(&f.Outside, edit.Outside)
		set(&f.Rate, edit.Rate)
		set(&f.Away, edit.Away)
		set(&f.Outage, edit.Outage)
		kept = append(kept, f)
	}
	m.Faults = kept
	return nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Validate implements strictyaml.Validator.
func (e *edits) Validate() error {
	var errs []error
	bad := func(path, hint, format string, args ...any) {
		errs = append(errs, strictyaml.Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	within := func(path string, v *float64, low, high float64) {
		if v != nil && !(*v >= low && *v <= high) {
			bad(path, "", "%g is not between %g and %g", *v, low, high)
		}
	}
	within("target", e.Target, 0.5, 0.9999999)
	within("laboratory", e.Laboratory, 1, 100)
	errs = append(errs, e.Layout.Validate(), e.Prices.Validate())
	known := slices.Sorted(maps.Keys(e.model.Assumptions))
	for _, key := range slices.Sorted(maps.Keys(e.Assumptions)) {
		at, edit := "assumptions."+key, e.Assumptions[key]
		a, ok := e.model.Assumptions[key]
		if !ok {
			bad(at, strictyaml.Suggest(key, known), "there is no assumption %q", key)
			continue
		}
		high := 1e6
		if a.Unit == Minutes {
			high = MinutesPerYear
		}
		within(at+".value", edit.Value, 0, high)
		within(at+".factor", edit.Factor, 1, 100)
		within(at+".spread", edit.Spread, 1, 100)
		if edit.Spread != nil && a.Unit != Minutes {
			bad(at+".spread", "", "events a year have no spread; factor says how well the rate is known")
		}
		if o := edit.Observed; o != nil {
			within(at+".observed.events", &o.Events, 0, 1e6)
			within(at+".observed.years", &o.Years, 0.01, 1e6)
			if a.Unit != PerYear {
				bad(at+".observed", "", "only events can be counted; set value and factor")
			}
		}
	}
	var names []string
	for _, f := range e.model.Faults {
		names = append(names, f.Name)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Faults)) {
		at, edit := "faults."+key, e.Faults[key]
		i := slices.Index(names, key)
		if i < 0 {
			bad(at, strictyaml.Suggest(key, names), "there is no fault %q", key)
			continue
		}
		within(at+".part", edit.Part, 0, 1000)
		within(at+".share", edit.Share, 0, 1)
		for _, ref := range []struct {
			field string
			name  *string
			unit  Unit
		}{{"rate", edit.Rate, PerYear}, {"away", edit.Away, Minutes}, {"outage", edit.Outage, Minutes}} {
			if ref.name == nil {
				continue
			}
			a, ok := e.model.Assumptions[*ref.name]
			switch {
			case !ok:
				bad(at+"."+ref.field, strictyaml.Suggest(*ref.name, known), "there is no assumption %q", *ref.name)
			case a.Unit != ref.unit:
				bad(at+"."+ref.field, "", "%s counts %s, want %s", a.Name, a.Unit, ref.unit)
			case ref.field == "away" && e.model.Faults[i].Scope == ScopeService:
				bad(at+".away", "set outage", "nothing can be away in its place")
			}
		}
	}
	return errors.Join(errs...)
}

// Recording is the repetitions of one drill in one place: the same name may stand
// for a whole stack in one place and for one of its layers in another.
type Recording struct {
	Drill  string
	Events []Event
}

// Measure puts what drills recorded into the model. It returns the names that no
// class of faults has.
func (m *Model) Measure(recordings []Recording) (unknown []string) {
	used := map[string]bool{}
	m.Faults = slices.Clone(m.Faults)
	for i := range m.Faults {
		f := &m.Faults[i]
		f.Measured = nil
		for _, r := range recordings {
			if !slices.Contains(f.Drills, r.Drill) {
				continue
			}
			used[r.Drill] = true
			// Where several recordings stand for a class, the one that costs most
			// does: they break the same thing in different ways or at different
			// layers.
			if len(r.Events) > 0 && (f.Measured == nil || f.cost(r.Events) > f.cost(f.Measured)) {
				f.Measured = r.Events
			}
		}
	}
	for _, r := range recordings {
		if !used[r.Drill] && !slices.Contains(unknown, r.Drill) {
			unknown = append(unknown, r.Drill)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// cost is the mean of what counts of events for this class.
func (f Fault) cost(events []Event) float64 { return mean(f.samples(events)) }

// samples are the numbers of events that this class uses: shares when the drill
// decides how long the fault lasts, minutes otherwise.
func (f Fault) samples(events []Event) []float64 {
	out := make([]float64, len(events))
	for i, e := range events {
		out[i] = e.Minutes
		if f.ShareOnly {
			out[i] = e.Share
		}
	}
	return out
}

// Template is a model file that changes nothing: every number as a comment with
// its source.
func (m Model) Template() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `# What fournines plan and fournines prove calculate with. Every line is a comment
# that holds the default: remove the "#" to change a number.

# target: %g
# Factor by which production may differ from a drill (90%% of the belief).
# laboratory: %g

# What runs where. fournines plan -f fournines.yaml takes it from the spec.
# layout:
#   zones: %d            # fail independently
#   fullZones: %d        # carry traffic
#   hostsPerZone: %d
#   gatewaysPerZone: %d
#   apiPerZone: %d
#   apiNeeded: %d        # instances that carry the load; 0 is half of them
#   workers: %d
#   postgres: %d
#   quorum: %d           # members of etcd
#   redisReplicas: %d    # of each of 3 masters
#   vectors: %d
#   pluginDaemons: %d    # 1 for Dify 1.x
#   workerShare: %g      # of the requests need a worker
#   vectorShare: %g      # of the requests need the vector database
#   reschedule: %t       # parts without data start elsewhere when their host is lost
`, m.Target, m.Laboratory, m.Layout.Zones, m.Layout.FullZones, m.Layout.HostsPerZone, m.Layout.GatewaysPerZone,
		m.Layout.APIPerZone, m.Layout.APINeeded, m.Layout.Workers, m.Layout.Postgres, m.Layout.Quorum,
		m.Layout.RedisReplicas, m.Layout.Vectors, m.Layout.PluginDaemons, m.Layout.WorkerShare, m.Layout.VectorShare, m.Layout.Reschedule)
	b.WriteString(m.Prices.template())
	b.WriteString(`
# Events a year, and minutes for each. value is the mean; 90% of the belief lies
# within factor of the median; 90% of the events within spread of theirs. Your
# own count is better than any study; "observed: {events: 7, years: 1.5}" in the
# braces takes the place of value and factor.
# assumptions:
`)
	for _, a := range assumptions {
		a = m.Assumptions[a.Name]
		for line := range wrapped("# "+a.Source, 94) {
			fmt.Fprintf(&b, "#   %s\n", line)
		}
		spread := ""
		if a.Unit == Minutes {
			spread = fmt.Sprintf(", spread: %g", a.Spread)
		}
		fmt.Fprintf(&b, "#   %s: {value: %g, factor: %g%s} # %s\n", a.Name, a.Value, a.Factor, spread, a.Unit)
	}
	b.WriteString(`
# Classes of faults. part: which part of the rate's events; share: of the
# requests that fail (0: what one part of its layer carries).
# faults:
`)
	for _, f := range m.Faults {
		fmt.Fprintf(&b, "#   %s: {enabled: true, part: %g, share: %g} # %s; %s of %s\n", f.Name, f.Part, f.Share, f.About, f.Rate, f.Scope)
	}
	return []byte(b.String())
}

// wrapped yields text in lines of at most width letters; lines after the first
// start with "# ".
func wrapped(text string, width int) func(func(string) bool) {
	return func(yield func(string) bool) {
		line := ""
		for word := range strings.FieldsSeq(text) {
			if line != "" && len(line)+1+len(word) > width {
				if !yield(line) {
					return
				}
				line = "#"
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		if line != "" {
			yield(line)
		}
	}
}
