//go:build linux

package main

import (
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fournines/bench/result"
	"fournines/internal/servertest"
)

// TestQuickRun runs a row of each kind with small loads.
func TestQuickRun(t *testing.T) {
	servertest.Need(t, "redis-server", "redis-benchmark")
	dir := servertest.Dir(t, servertest.Owner(t))
	t.Setenv("TMPDIR", dir) // where the check for leftovers looks
	program := filepath.Join(dir, "fournines")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "fournines/cmd/fournines").CombinedOutput(); err != nil {
		t.Fatalf("build ours: %v\n%s", err, out)
	}
	// Wide bounds: they find a wrong unit or divisor, not a slow machine.
	bounds := map[string][2]float64{"set_get_p32_50_clients_ops": {100, 1e7}, "mget10_p1_50_clients_ops": {10, 1e6}, metricCosts: {1, 1e5}}
	var rows []string
	for name := range bounds {
		rows = append(rows, name)
	}
	file := filepath.Join(dir, "redis.json")
	var table, progress strings.Builder
	err := runCommand(t.Context(), []string{"-quick", "-peers", direct, "-rows", strings.Join(rows, ","), "-ours", program, "-o", file}, &table, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	s, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil || s.Suite != "redis" || len(s.Rows) != len(bounds) || len(s.Missing) > 0 {
		t.Errorf("the result is not complete: %v, %+v", err, s)
	}
	for _, row := range s.Rows {
		if b := bounds[row.Metric]; row.Ours.Median < b[0] || row.Ours.Median > b[1] {
			t.Errorf("%s is %v, not between %v and %v", row.Metric, row.Ours.Median, b[0], b[1])
		}
		if _, ok := row.Peers[direct]; ok != strings.HasPrefix(row.Metric, "set_get") {
			t.Errorf("%s: without a proxy: %v", row.Metric, row.Peers)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "fournines-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestParseBenchmark(t *testing.T) {
	for text, want := range map[string]int{
		"\"test\",\"rps\",\"avg\"\n\"SET\",\"1000.5\",\"1\"\n\"GET\",\"2000\",\"1\"\n":                         2,
		"Cluster has 3 master nodes:\nMaster 0: x\n\n\"test\",\"rps\"\n\"MGET key:__rand_int__ \",\"10.00\"\n": 1,
		"": 0, "\"test\",\"rps\"\n": 0, "\"test\",\"rps\"\n\"SET\",\"nan\"\n": 0,
	} {
		got, err := parseBenchmark(text)
		if len(got) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestUnknownArguments(t *testing.T) {
	for name, args := range map[string][]string{"row": {"-rows", "speed"}, "peer": {"-peers", "twemproxy"}, "ours": {"-ours", "/nowhere"}} {
		t.Run(name, func(t *testing.T) {
			if err := runCommand(t.Context(), args, io.Discard, io.Discard); err == nil {
				t.Error("was accepted")
			}
		})
	}
}
