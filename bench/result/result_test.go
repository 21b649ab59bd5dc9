package result

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOf(t *testing.T) {
	for name, tc := range map[string]struct {
		values []float64
		want   Stat
	}{
		"none":               {nil, Stat{}},
		"one":                {[]float64{3}, Stat{3, 3, 3}},
		"odd, not in order":  {[]float64{5, 1, 2}, Stat{2, 1, 5}},
		"even":               {[]float64{4, 1, 2, 3}, Stat{2.5, 1, 4}},
		"significant digits": {[]float64{12.34567, 0.000123456, 98765.4}, Stat{12.35, 0.0001235, 98770}},
		"below zero":         {[]float64{-0.012345, 0}, Stat{-0.006173, -0.01235, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Of(tc.values)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestWriteAndRead(t *testing.T) {
	row := Row{
		Metric: "sse_cpu_us_per_event", Better: Lower, Ours: Of([]float64{12.5, 12.9, 13.4}),
		Peers:   map[string]Stat{"nginx 1.22.1": Of([]float64{16.9}), "other 1": {}},
		Missing: map[string]string{"third 2": "wrong answer"},
	}
	row.Compare()
	if diff := cmp.Diff(map[string]float64{"nginx 1.22.1": 0.7633}, row.Ratio); diff != "" {
		t.Errorf("ratio, -want +got:\n%s", diff)
	}
	s := &Suite{
		Suite: "gateway", Date: time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC), Machine: ThisMachine(), Runs: 3,
		Rows: []Row{row}, Missing: map[string]string{"fourth": "not installed"},
	}
	path := filepath.Join(t.TempDir(), "results", "gateway.json")
	if err := s.Write(path, "a note\n"); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
	for _, want := range []string{
		"| `sse_cpu_us_per_event` | lower | 12.9 (12.5 to 13.4) | 16.9 (16.9 to 16.9) ×0.7633 | 0 (0 to 0) |",
		"- fourth: not installed", "- third 2 in `sse_cpu_us_per_event`: wrong answer",
	} {
		if page := s.Markdown(); !strings.Contains(page, want) {
			t.Errorf("the table lacks %q:\n%s", want, page)
		}
	}
}

func TestGoals(t *testing.T) {
	s := &Suite{}
	for _, tt := range []struct {
		metric, better string
		ours, bound    float64
	}{{"share", Higher, .96, .95}, {"less", Higher, .94, .95}, {"ratio", Lower, 1.2, 1.2}, {"more", Lower, 1.3, 1.2}} {
		r := Row{Metric: tt.metric, Better: tt.better, Ours: Of([]float64{tt.ours})}
		r.Demand(tt.bound)
		s.Rows = append(s.Rows, r)
	}
	if diff := cmp.Diff([]string{"less", "more"}, s.Missed()); diff != "" {
		t.Errorf("missed, -want +got:\n%s", diff)
	}
	for _, want := range []string{"| `share` | at least 0.95 | 0.96 | met |", "| `more` | at most 1.2 | 1.3 | missed |"} {
		if page := s.Markdown(); !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := (&Suite{}).Validate(); err == nil {
		t.Error("an empty result is valid")
	}
	s := &Suite{Suite: "x", Date: time.Now(), Machine: ThisMachine(), Runs: 1, Rows: []Row{{Metric: "m", Better: Lower, Ours: Stat{Median: 1, Min: 2, Max: 3}}}}
	if err := s.Validate(); err == nil || !strings.Contains(err.Error(), "row m: ours") {
		t.Errorf("a median below the minimum: %v", err)
	}
}
