package slo_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/component/prometheus"
	"fournines/internal/eventually"
	"fournines/internal/promapi"
	"fournines/internal/servertest"
	"fournines/observe/rules"
	"fournines/observe/slo"
)

func TestLeft(t *testing.T) {
	month := 30 * 24 * time.Hour
	for name, tt := range map[string]struct {
		objective     float64
		requests, bad float64
		left, seconds float64
	}{
		"untouched":    {0.9999, 1e6, 0, 1, 259.2},
		"half":         {0.9999, 1e6, 50, 0.5, 129.6},
		"just all":     {0.9999, 1e6, 100, 0, 0},
		"overspent":    {0.9999, 1e6, 300, -2, -518.4},
		"no requests":  {0.9999, 0, 0, 1, 259.2},
		"three nines":  {0.999, 1e6, 50, 0.95, 2462.4},
		"total outage": {0.9999, 200, 200, -9999, -2591740.8},
	} {
		b := slo.Left(tt.objective, month, month, tt.requests, tt.bad)
		if math.Abs(b.Left-tt.left) > 1e-6 || math.Abs(b.LeftSeconds-tt.seconds) > 1e-3 {
			t.Errorf("%s: left %v, %v s; want %v, %v s", name, b.Left, b.LeftSeconds, tt.left, tt.seconds)
		}
	}
}

// history is what a number of days held, step by step.
type history struct {
	steps    int
	end      time.Time
	requests map[string][]float64 // by app
	bad      map[string][]float64
}

// record makes up some days: a quiet night each, a shop that is busy, and an
// outage of a minute and a half.
func record(days int, end time.Time) history {
	h := history{steps: days * 24 * 120, end: end, requests: map[string][]float64{}, bad: map[string][]float64{}}
	rnd := rand.New(rand.NewPCG(4, 9999))
	for _, app := range []string{"shop", "wiki"} {
		for i := range h.steps {
			n, bad := float64(20+rnd.IntN(100)), 0.0
			if app == "wiki" {
				n = float64(rnd.IntN(4))
			}
			switch {
			case i >= h.steps-400 && i < h.steps-397 && app == "shop":
				bad = n
			case rnd.IntN(500) == 0:
				bad = min(n, 1)
			}
			h.requests[app] = append(h.requests[app], n)
			h.bad[app] = append(h.bad[app], bad)
		}
	}
	return h
}

// openMetrics writes the recorded series as promtool reads them.
func (h *history) openMetrics() string {
	var b strings.Builder
	at := func(i int) int64 { return h.end.Add(-time.Duration(h.steps-1-i) * rules.Step).Unix() }
	series := func(name string, label func(app string) string, of map[string][]float64) {
		for app, values := range of {
			for i, v := range values {
				fmt.Fprintf(&b, "%s{%s} %v %d\n", name, label(app), v, at(i))
			}
		}
	}
	total := func(of map[string][]float64) map[string][]float64 {
		sum := make([]float64, h.steps)
		for _, values := range of {
			for i, v := range values {
				sum[i] += v
			}
		}
		return map[string][]float64{"": sum}
	}
	app := func(app string) string {
		return fmt.Sprintf("sli=%q,scope=%q,app=%q", rules.Availability, rules.PerApp, app)
	}
	overall := func(string) string { return fmt.Sprintf("sli=%q,scope=%q", rules.Availability, rules.Overall) }
	for _, s := range []struct {
		name string
		of   map[string][]float64
	}{{rules.Requests, h.requests}, {rules.Bad, h.bad}} {
		fmt.Fprintf(&b, "# TYPE %s gauge\n", s.name)
		series(s.name, app, s.of)
		series(s.name, overall, total(s.of))
	}
	fmt.Fprintf(&b, "# TYPE %s gauge\n%s{sli=%q} 0.9999 %d\n", rules.Objective, rules.Objective, rules.Availability, at(h.steps-1))
	fmt.Fprintf(&b, "# TYPE %s gauge\n%s 2592000 %d\n# EOF\n", rules.Window, rules.Window, at(h.steps-1))
	return b.String()
}

// TestBudgetOfRecordedSeries puts days of recorded series into a real Prometheus
// and compares what Read tells with sums made here.
func TestBudgetOfRecordedSeries(t *testing.T) {
	servertest.Need(t, "prometheus", "promtool")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	end := time.Now().Add(-time.Minute).Truncate(rules.Step)
	h := record(2, end)
	tsdb := filepath.Join(dir, "prometheus", "tsdb")
	input := filepath.Join(t.TempDir(), "series")
	if err := os.WriteFile(input, []byte(h.openMetrics()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "promtool", "tsdb", "create-blocks-from", "openmetrics", input, tsdb).CombinedOutput(); err != nil {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	err := filepath.WalkDir(filepath.Join(dir, "prometheus"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || owner.Name == "" {
			return err
		}
		return os.Chown(path, owner.UID, owner.GID)
	})
	if err != nil {
		t.Fatal(err)
	}
	unit, err := prometheus.Unit(prometheus.Config{
		Host: "127.66.1.2", DataDir: filepath.Join(dir, "prometheus"), Retention: 400 * 24 * time.Hour, Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	servertest.Start(t, owner, unit)
	client, err := promapi.New("http://" + unit.Address)
	if err != nil {
		t.Fatal(err)
	}
	var got *slo.Status
	eventually.Nil(t, time.Minute, func() error {
		got, err = slo.Read(t.Context(), client, end)
		return err
	})
	if len(got.Indicators) != 1 {
		t.Fatalf("%d indicators, want one", len(got.Indicators))
	}
	i := got.Indicators[0]
	sum := func(values []float64) (n float64) {
		for _, v := range values {
			n += v
		}
		return n
	}
	requests := sum(h.requests["shop"]) + sum(h.requests["wiki"])
	bad := sum(h.bad["shop"]) + sum(h.bad["wiki"])
	left := 1 - bad/(requests*0.0001)
	for name, b := range map[string]slo.Budget{"window": i.Window, "year": i.Year} {
		if b.Requests != requests || b.Bad != bad || math.Abs(b.Left-left) > 1e-9 {
			t.Errorf("%s: %v of %v requests bad, %v left; want %v of %v, %v", name, b.Bad, b.Requests, b.Left, bad, requests, left)
		}
		if want := float64(h.steps) * rules.Step.Seconds(); b.Covered != want {
			t.Errorf("%s: %v s have data, want %v", name, b.Covered, want)
		}
	}
	if got, want := i.Window.LeftSeconds, left*259.2; math.Abs(got-want) > 1e-6 {
		t.Errorf("%v s of outage are left, want %v", got, want)
	}
	if len(i.Apps) != 2 || i.Apps[0].Name != "shop" || i.Apps[0].Bad != sum(h.bad["shop"]) || i.Apps[0].Requests != sum(h.requests["shop"]) ||
		math.Abs(i.Apps[0].Share-sum(h.bad["shop"])/bad) > 1e-9 {
		t.Errorf("apps %+v", i.Apps)
	}
	t.Logf("%v of %v requests bad in %d days: %.1f of the budget left", bad, requests, h.steps/2880, left)
}

// noSeries is a Prometheus that has nothing.
type noSeries struct{ err error }

func (n noSeries) Query(context.Context, string, time.Time) ([]promapi.Sample, error) {
	return nil, n.err
}

func TestReadSaysWhatIsMissing(t *testing.T) {
	if _, err := slo.Read(t.Context(), noSeries{}, time.Now()); !errors.Is(err, slo.ErrNoRules) {
		t.Errorf("without series: %v", err)
	}
	away := errors.New("away")
	if _, err := slo.Read(t.Context(), noSeries{away}, time.Now()); !errors.Is(err, away) {
		t.Errorf("without an answer: %v", err)
	}
}
