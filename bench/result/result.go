// Package result is the form in which benchmarks report: what ours and its peers
// reached in each row, as JSON for tools and as a Markdown table for people. All
// suites share it, so that their files can be read by one reader.
package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Better says which direction of a row is good.
const (
	Higher = "higher"
	Lower  = "lower"
)

// Suite is one run of one benchmark.
type Suite struct {
	// Suite is its name, which is also the file's: gateway, pgproxy, redis ...
	Suite   string    `json:"suite"`
	Date    time.Time `json:"date"`
	Machine Machine   `json:"machine"`
	// Runs is how many rounds were made; in each, ours and the peers take turns.
	Runs int   `json:"runs"`
	Rows []Row `json:"rows"`
	// Missing has the peers that could not run at all, with the reason.
	Missing map[string]string `json:"missing,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	CPUs      int    `json:"cpus"`
	MemoryGiB int    `json:"memoryGiB"`
	Kernel    string `json:"kernel"`
}

// Row is one metric; its name ends in the unit.
type Row struct {
	Metric string `json:"metric"`
	Better string `json:"better"` // Higher or Lower
	Ours   Stat   `json:"ours"`
	// Peers are keyed by name and version, "nginx 1.22.1".
	Peers map[string]Stat `json:"peers"`
	// Ratio is the median of ours divided by the peer's; there is none where the
	// peer's is not above zero.
	Ratio map[string]float64 `json:"ratio"`
	// Missing has the peers that have no figure in this row, with the reason.
	Missing map[string]string `json:"missing,omitempty"`
	// Goal is what ours has to reach, when there is something.
	Goal *Goal `json:"goal,omitempty"`
}

// Goal bounds the median of ours in the row's direction: from below where higher
// is better, from above where lower is.
type Goal struct {
	Bound float64 `json:"bound"`
	Met   bool    `json:"met"`
}

// Demand sets the row's goal and notes whether ours meets it.
func (r *Row) Demand(bound float64) {
	met := r.Ours.Median <= bound
	if r.Better == Higher {
		met = r.Ours.Median >= bound
	}
	r.Goal = &Goal{Bound: bound, Met: met}
}

// Stat sums up one figure over the runs.
type Stat struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// Of sums up values, rounded to four significant digits. It is zero for none.
func Of(values []float64) Stat {
	if len(values) == 0 {
		return Stat{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Stat{Median: round((v[(n-1)/2] + v[n/2]) / 2), Min: round(v[0]), Max: round(v[n-1])}
}

// Compare fills in Ratio from Ours and Peers.
func (r *Row) Compare() {
	r.Ratio = map[string]float64{}
	for name, peer := range r.Peers {
		if peer.Median > 0 {
			r.Ratio[name] = round(r.Ours.Median / peer.Median)
		}
	}
}

func round(f float64) float64 {
	if f == 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return f
	}
	unit := math.Pow(10, math.Floor(math.Log10(math.Abs(f)))-3)
	// Through the decimal form, because 0.1 times an integer is often not what one writes.
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(math.Round(f/unit)*unit, 'g', 4, 64), 64)
	return rounded
}

// Missed names the rows whose goal is not met.
func (s *Suite) Missed() (metrics []string) {
	for _, r := range s.Rows {
		if r.Goal != nil && !r.Goal.Met {
			metrics = append(metrics, r.Metric)
		}
	}
	return metrics
}

// ThisMachine describes the machine that the caller runs on.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 1 && fields[0] == "MemTotal:" {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			m.MemoryGiB = int(math.Round(kib / (1 << 20)))
		}
	}
	return m
}

// Validate reports what a complete result may not lack.
func (s *Suite) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Suite == "" || s.Date.IsZero() || s.Machine.CPUs < 1 || s.Runs < 1 {
		bad("suite, date, machine and runs: one is empty")
	}
	if len(s.Rows) == 0 {
		bad("rows: none")
	}
	for _, r := range s.Rows {
		if r.Metric == "" || r.Better != Higher && r.Better != Lower {
			bad("row %q: metric or better is wrong", r.Metric)
		}
		for name, st := range r.stats() {
			if st.Min > st.Median || st.Median > st.Max || math.IsNaN(st.Median) || math.IsInf(st.Median, 0) {
				bad("row %s: %s: min %v, median %v, max %v", r.Metric, name, st.Min, st.Median, st.Max)
			}
		}
	}
	return errors.Join(errs...)
}

func (r *Row) stats() map[string]Stat {
	all := maps.Clone(r.Peers)
	if all == nil {
		all = map[string]Stat{}
	}
	all["ours"] = r.Ours
	return all
}

// Read reads a result that Write has written.
func Read(path string) (*Suite, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s Suite
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &s, nil
}

// Write writes the result to path, and notes below its table to a Markdown file
// of the same name beside it.
func (s *Suite) Write(path, notes string) error {
	if err := s.Validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	page := s.Markdown()
	if notes != "" {
		page += "\n" + notes
	}
	return errors.Join(
		os.WriteFile(path, append(b, '\n'), 0o644),
		os.WriteFile(strings.TrimSuffix(path, filepath.Ext(path))+".md", []byte(page), 0o644),
	)
}

// Markdown is the result as a table: one line per row, one column per contender,
// each cell "median (min to max)", and below the peers' median how ours compares.
func (s *Suite) Markdown() string { return "# " + s.Suite + "\n\n" + s.Tables() }

// Tables is Markdown without its heading, for a page that has one of its own.
func (s *Suite) Tables() string {
	names := map[string]bool{}
	for _, r := range s.Rows {
		for n := range r.Peers {
			names[n] = true
		}
	}
	peers := slices.Sorted(maps.Keys(names))
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs, %d GiB, Linux %s; %d runs, contenders in turn. Cells: median (min to max); × is ours divided by the peer.\n\n",
		s.Date.UTC().Format("2006-01-02 15:04 UTC"), s.Machine.CPUs, s.Machine.MemoryGiB, s.Machine.Kernel, s.Runs)
	b.WriteString("| row | better | ours |")
	for _, p := range peers {
		fmt.Fprintf(&b, " %s |", p)
	}
	b.WriteString("\n|---|---|---|" + strings.Repeat("---|", len(peers)) + "\n")
	for _, r := range s.Rows {
		fmt.Fprintf(&b, "| `%s` | %s | %s |", r.Metric, r.Better, cell(r.Ours))
		for _, p := range peers {
			st, ok := r.Peers[p]
			switch ratio, comparable := r.Ratio[p]; {
			case !ok:
				b.WriteString(" - |")
			case comparable:
				fmt.Fprintf(&b, " %s ×%s |", cell(st), number(ratio))
			default:
				fmt.Fprintf(&b, " %s |", cell(st))
			}
		}
		b.WriteString("\n")
	}
	var goals []string
	for _, r := range s.Rows {
		if r.Goal == nil {
			continue
		}
		relation, verdict := "at most", "missed"
		if r.Better == Higher {
			relation = "at least"
		}
		if r.Goal.Met {
			verdict = "met"
		}
		goals = append(goals, fmt.Sprintf("| `%s` | %s %s | %s | %s |", r.Metric, relation, number(r.Goal.Bound), number(r.Ours.Median), verdict))
	}
	if len(goals) > 0 {
		fmt.Fprintf(&b, "\n| goal | wanted | ours | |\n|---|---|---|---|\n%s\n", strings.Join(goals, "\n"))
	}
	lines := []string{}
	for _, name := range slices.Sorted(maps.Keys(s.Missing)) {
		lines = append(lines, fmt.Sprintf("- %s: %s", name, s.Missing[name]))
	}
	for _, r := range s.Rows {
		for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
			lines = append(lines, fmt.Sprintf("- %s in `%s`: %s", name, r.Metric, r.Missing[name]))
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(&b, "\nMissing:\n%s\n", strings.Join(lines, "\n"))
	}
	return b.String()
}

func cell(s Stat) string {
	return fmt.Sprintf("%s (%s to %s)", number(s.Median), number(s.Min), number(s.Max))
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
