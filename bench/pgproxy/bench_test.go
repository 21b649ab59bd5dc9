//go:build linux

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fournines/bench/result"
	"fournines/internal/servertest"
)

// quietPlace keeps the files of a run where the check for leftovers looks.
func quietPlace(t *testing.T) string {
	t.Helper()
	dir := servertest.Dir(t, servertest.Owner(t))
	t.Setenv("TMPDIR", dir)
	return dir
}

// TestQuickRun runs a row of each kind with small loads.
func TestQuickRun(t *testing.T) {
	servertest.Need(t, "/usr/lib/postgresql/15/bin/postgres", "pgbench")
	dir := quietPlace(t)
	program := filepath.Join(dir, "fournines")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "fournines/cmd/fournines").CombinedOutput(); err != nil {
		t.Fatalf("build ours: %v\n%s", err, out)
	}
	// Wide bounds: they find a wrong unit or divisor, not a slow machine.
	bounds := map[string][2]float64{
		"select_only_tps_50_clients_prepared": {1, 1e6}, metricCosts: {1, 1e6}, metricIdle: {0.1, 1000}, metricClassify: {1, 1e6},
	}
	var rows []string
	for name := range bounds {
		rows = append(rows, name)
	}
	file := filepath.Join(dir, "pgproxy.json")
	var table, progress strings.Builder
	err := runCommand(t.Context(), []string{"-quick", "-peers", direct, "-rows", strings.Join(rows, ","), "-ours", program, "-o", file}, &table, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	s, err := result.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil || s.Suite != "pgproxy" || len(s.Rows) != len(bounds) || len(s.Missing) > 0 {
		t.Errorf("the result is not complete: %v, %+v", err, s)
	}
	for _, row := range s.Rows {
		if b := bounds[row.Metric]; row.Ours.Median < b[0] || row.Ours.Median > b[1] {
			t.Errorf("%s is %v, not between %v and %v", row.Metric, row.Ours.Median, b[0], b[1])
		}
		if _, ok := row.Peers[direct]; ok != strings.HasPrefix(row.Metric, "select") {
			t.Errorf("%s: without a proxy: %v", row.Metric, row.Peers)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "fournines-bench-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestP99(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, from, to int) {
		var b strings.Builder
		for i := from; i < to; i++ {
			b.WriteString("0 1 " + strings.Repeat("9", i%3+1) + "000 0 1700000000 1 0\n")
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log.1", 0, 297) // 9, 99 and 999 ms in turn
	write("log.1.1", 297, 300)
	if got, err := p99(filepath.Join(dir, "log.*")); err != nil || got != 999 {
		t.Errorf("p99 is %v, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "log.*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	write("log.1", 0, 99)
	if _, err := p99(filepath.Join(dir, "log.*")); err == nil {
		t.Error("99 transactions have a p99")
	}
}

func TestUnknownArguments(t *testing.T) {
	for name, args := range map[string][]string{
		"row": {"-rows", "speed"}, "peer": {"-peers", "odyssey"}, "runs": {"-runs", "-1"}, "ours": {"-ours", "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := runCommand(t.Context(), args, io.Discard, io.Discard); err == nil {
				t.Error("was accepted")
			}
		})
	}
}
