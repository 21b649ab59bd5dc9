//go:build linux

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fournines/bench/result"
	"fournines/internal/servertest"
)

// TestQuickRun runs the whole thing for seconds, without a comparison.
func TestQuickRun(t *testing.T) {
	servertest.Need(t, "/usr/lib/postgresql/15/bin/postgres")
	dir := servertest.Dir(t, servertest.Owner(t))
	t.Setenv("TMPDIR", dir)
	program := filepath.Join(dir, "fournines")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "fournines/cmd/fournines").CombinedOutput(); err != nil {
		t.Fatalf("build ours: %v\n%s", err, out)
	}
	file := filepath.Join(dir, "splitting.json")
	var table, progress strings.Builder
	if err := run(t.Context(), []string{"-quick", "-peers", "none", "-ours", program, "-o", file}, &table, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	s, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil || s.Suite != "splitting" || len(s.Rows) != 16 {
		t.Errorf("the result is not complete: %v, %+v", err, s)
	}
	for _, row := range s.Rows {
		if row.Ours.Median <= 0 && !strings.HasSuffix(row.Metric, cpuMicros) { // whose unit is 10 ms in all
			t.Errorf("%s is %v", row.Metric, row.Ours.Median)
		}
		// Nothing is faster than the way: the primary is asked before each read.
		if row.Metric == "far_read_"+medianMS && row.Ours.Median < farTrip.Seconds()*1000 {
			t.Errorf("%s is %v ms, the round trip is %v", row.Metric, row.Ours.Median, farTrip)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "fournines-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
