package stack

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"fournines/internal/eventually"
	"fournines/observe/catalogue"
)

// target is one that the stack's Prometheus reads.
type target struct {
	ScrapeURL string
	Labels    struct{ Job, Component string }
}

func targets(t *testing.T) []target {
	t.Helper()
	var answer struct {
		Data struct{ ActiveTargets []target }
	}
	if err := getJSON(t, theStack.credentials(t).Prometheus.URL+"/api/v1/targets?state=active", &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Data.ActiveTargets
}

// TestMetricsAreThoseOfTheCatalogue compares what our processes expose with the
// catalogue, both ways.
func TestMetricsAreThoseOfTheCatalogue(t *testing.T) {
	seen := map[string]map[string]bool{} // by process
	for _, target := range targets(t) {
		process := target.Labels.Job
		if len(catalogue.Of(process)) == 0 {
			continue // a server that is not ours
		}
		if seen[process] == nil {
			seen[process] = map[string]bool{}
		}
		resp, err := http.Get(target.ScrapeURL)
		if err != nil {
			t.Fatal(err)
		}
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatalf("%s: %v", target.ScrapeURL, err)
		}
		for name, f := range families {
			if catalogue.Runtime(name) {
				continue
			}
			m, ok := catalogue.Find(process, name)
			if !ok {
				t.Errorf("%s exposes %s, which the catalogue has not", target.Labels.Component, name)
				continue
			}
			seen[process][name] = true
			if got := strings.ToLower(f.GetType().String()); got != m.Type {
				t.Errorf("%s: %s is a %s, the catalogue says %s", process, name, got, m.Type)
			}
			if m.Process != catalogue.Every && f.GetHelp() != m.Help {
				t.Errorf("%s: %s means %q, the catalogue says %q", process, name, f.GetHelp(), m.Help)
			}
			for _, s := range f.GetMetric() {
				for _, l := range s.GetLabel() {
					if !slices.Contains(m.Labels, l.GetName()) {
						t.Errorf("%s: %s has the label %s, which the catalogue has not", process, name, l.GetName())
					}
				}
			}
		}
	}
	for _, process := range []string{
		catalogue.Gateway, catalogue.PGProxy, catalogue.RedisProxy, catalogue.LoadBalancer, catalogue.Backup,
		catalogue.DifyAPI, catalogue.DifyWorker,
	} {
		later := 0
		for _, m := range slices.Concat(catalogue.Of(process), catalogue.Of(catalogue.Every)) {
			switch {
			case seen[process][m.Name]:
			case m.Always:
				t.Errorf("%s: the catalogue has %s, which nobody exposes", process, m.Name)
			default:
				later++
			}
		}
		t.Logf("%s: %d metrics, %d more wait for their first event", process, len(seen[process]), later)
	}
}

// TestExternalMetricsExist asks Prometheus for each metric of other servers that
// a rule may name.
func TestExternalMetricsExist(t *testing.T) {
	base := theStack.credentials(t).Prometheus.URL
	for _, m := range catalogue.External() {
		if m.Elsewhere != "" {
			continue
		}
		eventually.Nil(t, time.Minute, func() error {
			var answer struct{ Data []any }
			match := fmt.Sprintf("%s{job=%q}", m.Name, m.Job)
			if err := getJSON(t, base+"/api/v1/series?match[]="+url.QueryEscape(match), &answer); err != nil {
				return err
			}
			if len(answer.Data) == 0 && m.When == "" {
				return fmt.Errorf("no series %s", match)
			}
			return nil
		})
	}
}
