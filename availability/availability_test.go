package availability

import (
	"math"
	"strings"
	"testing"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > tolerance {
		t.Errorf("%s: %v, want %v ± %v", what, got, want, tolerance)
	}
}

func TestArithmetic(t *testing.T) {
	// The article's plugin chain: three nodes of 99.9% give 99.7%.
	near(t, "three of 99.9% in series", Series(0.999, 0.999, 0.999), 0.997003, 1e-9)
	near(t, "two of 99.9% in parallel", Parallel(0.999, 0.999), 0.999999, 1e-12)
	near(t, "eight of 99.99% in series, minutes", (1-Series(0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999))*MinutesPerYear, 420.3, 0.1)
	near(t, "2 of 3 of 99.9%", KOfN(2, 3, 0.999), 3*0.999*0.999-2*0.999*0.999*0.999, 1e-12)
	near(t, "2 of 3 of 99.5%", KOfN(2, 3, 0.995), 0.999925, 1e-6)
	near(t, "1 of n is parallel", KOfN(1, 4, 0.9), Parallel(0.9, 0.9, 0.9, 0.9), 1e-12)
	near(t, "n of n is series", KOfN(4, 4, 0.9), Series(0.9, 0.9, 0.9, 0.9), 1e-12)
	near(t, "0 of n", KOfN(0, 3, 0.5), 1, 0)
	near(t, "budget of 99.99%", BudgetMinutes(0.9999), 52.56, 1e-9)
	near(t, "and back", FromMinutes(52.56), 0.9999, 1e-12)
	near(t, "nines of 99.95%", Nines(0.9995), 3.301, 1e-3)
	near(t, "steady state of a failure a year that lasts a day", SteadyState(1, 24*60), 365.0/366, 1e-12)
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		a    float64
		want string
	}{
		{0.9, "90.0%"}, {0.999, "99.9%"}, {0.997003, "99.7%"}, {0.9999, "99.99%"},
		{math.Pow(0.9999, 1.0/3), "99.9967%"}, {0.999999, "99.9999%"}, {1, "100%"}, {0.5, "50.0%"}, {0, "0.0%"},
	} {
		if got := Percent(c.a); got != c.want {
			t.Errorf("%v: %q, want %q", c.a, got, c.want)
		}
	}
}

func TestParseAvailability(t *testing.T) {
	for text, want := range map[string]float64{"0.9999": 0.9999, "99.99%": 0.9999, "99.99": 0.9999, "0.5%": 0.005} {
		got, err := ParseAvailability(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		near(t, text, got, want, 1e-12)
	}
	for _, text := range []string{"", "x", "0", "100%", "1", "-0.5", "NaN", "101", "Inf", "1e400", "%"} {
		if got, err := ParseAvailability(text); err == nil || !strings.Contains(err.Error(), "availability") {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestChain(t *testing.T) {
	v, err := Chain{Parts: []float64{0.999, 0.999, 0.999}, Target: 0.9999}.Judge()
	if err != nil {
		t.Fatal(err)
	}
	near(t, "now", v.Now, 0.997003, 1e-9)
	near(t, "minutes", v.Minutes, 1575.2, 0.1)
	if v.Met || len(v.Needs) != 3 {
		t.Fatalf("%+v", v)
	}
	n := v.Needs[0]
	near(t, "each", n.Each, 0.99996667, 1e-8)
	if n.Replicas != 2 || n.ReplicasShared != 2 {
		t.Errorf("%+v", n)
	}
	near(t, "with two replicas each", v.WithReplicas, 0.999997, 1e-9)

	// When one failure in ten hits all replicas, no number of replicas helps.
	v, err = Chain{Parts: []float64{0.999, 0.999, 0.999}, Target: 0.9999, CommonCause: 0.1}.Judge()
	if err != nil {
		t.Fatal(err)
	}
	if n := v.Needs[0]; n.ReplicasShared != 0 || n.Replicas != 2 {
		t.Errorf("%+v", n)
	}
	near(t, "ceiling", v.Needs[0].Ceiling, 0.9999, 1e-12)
	near(t, "with shared causes", v.WithShared, 0.9997, 1e-6)

	// A chain that meets its target needs nothing.
	v, err = Chain{Parts: []float64{0.99999}, Target: 0.9999, CommonCause: 0.1}.Judge()
	if err != nil || !v.Met || v.Needs[0].Replicas != 1 || v.Needs[0].ReplicasShared != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	for _, c := range []Chain{
		{Target: 0.99},
		{Parts: []float64{1}, Target: 0.99},
		{Parts: []float64{math.NaN()}, Target: 0.99},
		{Parts: []float64{0.9}, Target: 1},
		{Parts: []float64{0.9}, Target: 0.99, CommonCause: -1},
	} {
		if _, err := c.Judge(); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
