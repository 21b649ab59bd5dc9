// Package catalogue knows every metric that the processes of fournines expose:
// name, type, unit, labels, meaning. And it knows the metrics of the servers
// beside them that rules, dashboards and commands read.
//
// Where a process registers a metric is the one source. metrics.json, which
// this package embeds, and docs/metrics.md are written from the registrations
// themselves (`go generate ./observe/catalogue`); tests fail when they are
// stale, and compare them with the live /metrics of a stack, both ways.
package catalogue

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:generate go test -run ^TestGeneratedFiles$ . -update

// Processes of fournines with metrics of their own. A job of Prometheus bears
// the same name.
const (
	Gateway      = "gateway"
	PGProxy      = "pgproxy"
	RedisProxy   = "redisproxy"
	LoadBalancer = "loadbalancer"
	Backup       = "backup"
	Zonelink     = "zonelink"
	DifyAPI      = "dify-api"    // the simulator
	DifyWorker   = "dify-worker" // the simulator
	// Every is not a process: all of them have these.
	Every = "every"
)

// Metric is one metric of one process.
type Metric struct {
	// Process exposes it, one of the constants above.
	Process string `json:"process"`
	Name    string `json:"name"`
	// Type is counter, gauge or histogram.
	Type string `json:"type"`
	// Unit is seconds, bytes, "Unix time", boolean or count.
	Unit string `json:"unit"`
	// Labels are the names of its labels, in order.
	Labels []string `json:"labels,omitempty"`
	// Help is what it means.
	Help string `json:"help"`
	// Always says that it is there from the start of the process; others appear
	// with the first event that they count.
	Always bool `json:"always"`
	// Buckets are the upper bounds of a histogram, where they are known.
	Buckets []float64 `json:"buckets,omitempty"`
}

//go:embed metrics.json
var generated []byte

var load = sync.OnceValue(func() []Metric {
	var all []Metric
	if err := json.Unmarshal(generated, &all); err != nil {
		panic(fmt.Sprintf("metrics.json: %v", err)) // it is part of the program, and tested
	}
	return all
})

// All lists the metrics of our processes, by process and name.
func All() []Metric { return slices.Clone(load()) }

// Of lists the metrics of one process without those that every process has.
func Of(process string) []Metric {
	var of []Metric
	for _, m := range load() {
		if m.Process == process {
			of = append(of, m)
		}
	}
	return of
}

// Find returns the metric of a process, or of every one, that has a name.
func Find(process, name string) (Metric, bool) {
	for _, m := range load() {
		if m.Name == name && (m.Process == process || m.Process == Every) {
			return m, true
		}
	}
	return Metric{}, false
}

// series are the names under which a histogram's parts are stored.
var series = []string{"_bucket", "_sum", "_count"}

// Known tells whether a query may name a metric: one of ours, one of External,
// one that Prometheus makes itself, or a part of a histogram.
func Known(name string) bool {
	switch name {
	case "up", "ALERTS", "scrape_duration_seconds":
		return true
	}
	for _, m := range load() {
		if m.Name == name {
			return m.Type != "histogram"
		}
		if m.Type == "histogram" {
			for _, s := range series {
				if name == m.Name+s {
					return true
				}
			}
		}
	}
	return slices.ContainsFunc(external, func(e ExternalMetric) bool { return e.Name == name })
}

var goRuntime = regexp.MustCompile(`^(go|promhttp)_`)

// Runtime tells whether a metric is one of the Go runtime's, which every process
// has and the catalogue does not list.
func Runtime(name string) bool { return goRuntime.MatchString(name) }

// UnitOf tells a metric's unit by its name, as the conventions of Prometheus put
// it there.
func UnitOf(name, help string) string {
	base := strings.TrimSuffix(name, "_total")
	switch {
	case strings.HasSuffix(base, "_timestamp_seconds"), strings.HasSuffix(base, "_start_time_seconds"):
		return "Unix time"
	case strings.HasSuffix(base, "_seconds"):
		return "seconds"
	case strings.HasSuffix(base, "_bytes"):
		return "bytes"
	case strings.HasPrefix(help, "1 when "), strings.HasPrefix(help, "1 while "), strings.HasPrefix(help, "1 for "),
		strings.HasPrefix(help, "Always 1"), strings.HasPrefix(help, "Whether "):
		return "boolean"
	}
	return "count"
}
