// Package slo tells from Prometheus how much of the error budget is left, how
// fast it burns, and who spends it.
package slo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"fournines/internal/promapi"
	"fournines/observe/rules"
)

// Year is the second period that a budget is told for.
const Year = 365 * 24 * time.Hour

// top is how many spenders are told.
const top = 10

// Prometheus answers queries.
type Prometheus interface {
	Query(ctx context.Context, expr string, at time.Time) ([]promapi.Sample, error)
}

// Budget is what one objective allows over one period, and what is left of it.
// It counts the requests for which there are data; Covered says how much of the
// period that is.
type Budget struct {
	// Period in seconds.
	Period float64 `json:"periodSeconds"`
	// Covered is how much of the period has data, in seconds.
	Covered float64 `json:"coveredSeconds"`
	// Requests and Bad are numbers of requests.
	Requests float64 `json:"requests"`
	Bad      float64 `json:"bad"`
	// Allowed is how many of Requests may be bad.
	Allowed float64 `json:"allowed"`
	// Left is the share of the budget that is left; negative when overspent.
	Left float64 `json:"left"`
	// LeftSeconds is that share of the outage that the objective allows in the
	// period: how long everything could fail at once.
	LeftSeconds float64 `json:"leftSeconds"`
}

// Left returns the budget of an objective, the share of requests that must be
// good, over a period of which covered has data.
func Left(objective float64, period, covered time.Duration, requests, bad float64) Budget {
	b := Budget{Period: period.Seconds(), Covered: covered.Seconds(), Requests: requests, Bad: bad, Left: 1}
	b.Allowed = (1 - objective) * requests
	if b.Allowed > 0 {
		b.Left = 1 - bad/b.Allowed
	}
	b.LeftSeconds = b.Left * (1 - objective) * period.Seconds()
	return b
}

// Burn is how fast the budget burns over a window: 1 spends just all of it.
type Burn struct {
	// Window as Prometheus writes it, "5m".
	Window string  `json:"window"`
	Rate   float64 `json:"rate"`
}

// Indicator is one objective and how it stands.
type Indicator struct {
	// Name is rules.Availability or rules.Latency.
	Name      string  `json:"name"`
	Objective float64 `json:"objective"`
	Window    Budget  `json:"window"`
	Year      Budget  `json:"year"`
	// Burns are those windows in which there were requests.
	Burns []Burn `json:"burns"`
	// Apps are the apps that spent most of the window's budget, most first.
	Apps []Spender `json:"apps"`
}

// Spender is somebody at whom requests went wrong.
type Spender struct {
	Name     string  `json:"name"`
	Requests float64 `json:"requests"`
	Bad      float64 `json:"bad"`
	// Share is its part of all that went wrong.
	Share float64 `json:"share"`
}

// Status is everything that `fournines slo status` tells.
type Status struct {
	Version    int         `json:"version"`
	At         time.Time   `json:"at"`
	Indicators []Indicator `json:"indicators"`
	// Refused are connections over the window that no gateway took.
	Refused float64 `json:"refusedConnections"`
	// Instances are those of Dify that answered with 5xx most over the window.
	Instances []Spender `json:"instances"`
}

// ErrNoRules says that the server does not evaluate our rules, or not yet.
var ErrNoRules = errors.New("this Prometheus has no series of our rules yet; they come a minute after its start")

// burnWindows are those that the rules record.
var burnWindows = []time.Duration{5 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 72 * time.Hour}

// Read asks p how the objectives stand at a moment.
func Read(ctx context.Context, p Prometheus, at time.Time) (*Status, error) {
	r := reader{ask: func(expr string) ([]promapi.Sample, error) { return p.Query(ctx, expr, at) }}
	s := &Status{Version: 1, At: at}
	window := r.one(rules.Window)
	objectives := r.all(rules.Objective)
	if r.err != nil {
		return nil, r.err
	}
	if window <= 0 || len(objectives) == 0 {
		return nil, ErrNoRules
	}
	period := time.Duration(window) * time.Second
	for _, o := range objectives {
		s.Indicators = append(s.Indicators, r.indicator(o.Labels["sli"], o.Value, period))
	}
	slices.SortFunc(s.Indicators, func(a, b Indicator) int { return cmp.Compare(a.Name, b.Name) })
	w := seconds(period)
	s.Refused = r.one(`sum(increase(fournines_loadbalancer_refused_connections_total{service="gateway"}[` + w + `]))`)
	s.Instances = r.spenders("endpoint",
		`sum by (endpoint) (increase(fournines_gateway_endpoint_requests_total[`+w+`]))`,
		`sum by (endpoint) (increase(fournines_gateway_endpoint_requests_total{code="5xx"}[`+w+`]))`)
	if r.err != nil {
		return nil, r.err
	}
	return s, nil
}

// reader asks one question after the other until one fails.
type reader struct {
	ask func(expr string) ([]promapi.Sample, error)
	err error
}

func (r *reader) all(expr string) []promapi.Sample {
	if r.err != nil {
		return nil
	}
	samples, err := r.ask(expr)
	if err != nil {
		r.err = err
	}
	return samples
}

// one is the value of the only series, 0 when there is none.
func (r *reader) one(expr string) float64 {
	samples := r.all(expr)
	switch {
	case len(samples) == 0:
		return 0
	case len(samples) > 1:
		r.err = fmt.Errorf("query %q has %d results, want 1", expr, len(samples))
	}
	return samples[0].Value
}

func (r *reader) indicator(sli string, objective float64, window time.Duration) Indicator {
	i := Indicator{Name: sli, Objective: objective}
	selector := func(series, scope string) string {
		return fmt.Sprintf("%s{sli=%q, scope=%q}", series, sli, scope)
	}
	sum := func(series, scope string, over time.Duration) string {
		return "sum_over_time(" + selector(series, scope) + "[" + seconds(over) + "])"
	}
	budget := func(period time.Duration) Budget {
		samples := r.one("count_over_time(" + selector(rules.Requests, rules.Overall) + "[" + seconds(period) + "])")
		covered := min(period, time.Duration(samples)*rules.Step)
		return Left(objective, period, covered, r.one(sum(rules.Requests, rules.Overall, period)), r.one(sum(rules.Bad, rules.Overall, period)))
	}
	i.Window, i.Year = budget(window), budget(Year)
	for _, w := range burnWindows {
		for _, s := range r.all(selector(rules.Ratio(w), rules.Overall)) {
			i.Burns = append(i.Burns, Burn{Window: rules.Duration(w), Rate: s.Value / (1 - objective)})
		}
	}
	i.Apps = r.spenders("app", sum(rules.Requests, rules.PerApp, window), sum(rules.Bad, rules.PerApp, window))
	return i
}

// spenders are those with anything bad, most first.
func (r *reader) spenders(label, requests, bad string) []Spender {
	asked := map[string]float64{}
	for _, s := range r.all(requests) {
		asked[s.Labels[label]] += s.Value
	}
	var list []Spender
	total := 0.0
	for _, s := range r.all(bad) {
		if s.Value > 0 {
			list = append(list, Spender{Name: s.Labels[label], Requests: asked[s.Labels[label]], Bad: s.Value})
			total += s.Value
		}
	}
	for i := range list {
		list[i].Share = list[i].Bad / total
	}
	slices.SortFunc(list, func(a, b Spender) int {
		return cmp.Or(cmp.Compare(b.Bad, a.Bad), cmp.Compare(a.Name, b.Name))
	})
	return list[:min(len(list), top)]
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int64(d/time.Second)) }
