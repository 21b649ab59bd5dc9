package proof

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fournines/availability"
)

var update = flag.Bool("update", false, "write docs/proof.md")

func TestReferenceIsCurrent(t *testing.T) {
	const page = "../docs/proof.md"
	if *update {
		if err := os.WriteFile(page, Reference(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(Reference())); diff != "" {
		t.Errorf("docs/proof.md is not what the code says; run `go generate ./proof` (-page +code):\n%s", diff)
	}
}

// drillReport is a report of a minute with 600 requests, 20 s of fault.
const drillReport = `{"version":1,"drill":"%s","target":"b","repetition":%d,"load":{"rps":10,"streams":0},
"window":{"start":"2026-01-01T00:00:00Z","fault":"2026-01-01T00:00:10Z","restored":"2026-01-01T00:00:30Z","end":"2026-01-01T00:01:00Z"},
"requests":{"total":600,"failed":%d,"slow":%d,"byClass":{"idempotent":{"total":300,"failed":0,"longestOutageMs":%d},"post":{"total":300,"failed":0,"longestOutageMs":0}}},
"longestOutageMs":%d,"recoveryMs":0,"checks":[{"name":"acknowledged-writes","ok":%t,"detail":"1 of 2 found"}],"alerts":[],"steadyStateRestored":%t,"verdict":"pass"}`

func one(drill string, repetition, failed, slow, outageMs int, data, restored bool) string {
	return fmt.Sprintf(drillReport, drill, repetition, failed, slow, outageMs, outageMs, data, restored)
}

func TestWhatAnEventCosts(t *testing.T) {
	for _, c := range []struct {
		name           string
		text           string
		seconds, share float64
	}{
		{"nothing", one("d", 1, 0, 0, 0, true, true), 0, 0},
		// 30 of 600 requests at 10 a second are 3 s.
		{"failed", one("d", 1, 30, 0, 0, true, true), 3, 0.15},
		{"slow counts as failed", one("d", 1, 10, 20, 0, true, true), 3, 0.15},
		// A class with half of the requests that waits for 8 s.
		{"held", one("d", 1, 0, 0, 8000, true, true), 4, 0.2},
		{"the longer of both", one("d", 1, 100, 0, 8000, true, true), 10, 0.5},
		{"more than the fault lasted", one("d", 1, 600, 0, 0, true, true), 60, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			all, err := parse("f", []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			e := all[0].Event
			if math.Abs(e.Minutes*60-c.seconds) > 1e-9 || math.Abs(e.Share-c.share) > 1e-9 {
				t.Errorf("%v s with share %v, want %v and %v", e.Minutes*60, e.Share, c.seconds, c.share)
			}
		})
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	lines := write("runs/lines.json", one("api-kill", 1, 1, 0, 0, true, true)+"\n"+one("api-kill", 2, 2, 0, 0, true, true)+"\n")
	write("runs/deep/array.jsonl", "["+one("zone-loss", 1, 60, 0, 0, true, true)+"]")
	write("runs/suite.json", `{"suite":"pg","rows":[],"faults":[{"fault":"zone-loss","about":"x","repetitions":[{"report":`+one("zone-loss", 1, 90, 0, 0, true, true)+`,"extra":1}]}]}`)
	other := write("runs/other.json", `{"suite":"gateway","rows":[]}`)
	write("runs/list.json", `[1,2]`)
	write("runs/notes.txt", "not read")
	empty := write("empty/other.json", `{"a":1}`)

	all, err := Read([]string{filepath.Join(dir, "runs")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range all {
		got = append(got, fmt.Sprintf("%s/%s/%d", r.Suite, r.Drill, r.Repetition))
	}
	slices.Sort(got)
	if want := []string{"/api-kill/1", "/api-kill/2", "/zone-loss/1", "pg/zone-loss/1"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if all, err := Read([]string{lines}); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
	for _, c := range []struct{ path, want string }{
		{other, "no drill is recorded in it"},
		{filepath.Dir(empty), "no file with recorded drills"},
		{filepath.Join(dir, "nowhere"), "no such file"},
		{write("broken.json", `{"version":1`), "at byte"},
		{write("version.json", strings.Replace(one("d", 1, 0, 0, 0, true, true), `"version":1`, `"version":2`, 1)), "version 2"},
		{write("window.json", strings.Replace(one("d", 1, 0, 0, 0, true, true), `00:01:00Z`, `00:00:00Z`, 1)), "window"},
		{write("total.json", strings.Replace(one("d", 3, 0, 0, 0, true, true), `"total":600`, `"total":0`, 1)), `drill "d", repetition 3: requests.total`},
		{write("failed.json", one("d", 1, 601, 0, 0, true, true)), "601 failed"},
		{write("class.json", one("d", 1, 0, 0, -5, true, true)), "byClass.idempotent"},
	} {
		if _, err := Read([]string{c.path}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}

func records(t *testing.T, texts ...string) []Record {
	t.Helper()
	all, err := parse("runs.json", []byte(strings.Join(texts, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var quick = availability.Options{Worlds: 200, Played: 40, Years: 3, Seed: 1}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestReport(t *testing.T) {
	recs := records(t,
		one("zone-loss", 1, 30, 0, 0, true, true), one("zone-loss", 2, 50, 0, 0, true, true),
		one("disk-full", 1, 60, 0, 0, true, true), one("nobody-knows", 1, 0, 0, 0, true, true))
	// The same fault at one layer of the stack, which costs less.
	part := one("zone-loss", 1, 1, 0, 0, true, true)
	recs = append(recs, records(t, `{"suite":"gateway","faults":[{"fault":"zone-loss","repetitions":[{"report":`+part+`},{"report":`+part+`}]}]}`)...)
	r, err := New(t.Context(), availability.Default(), recs, quick, noon)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]availability.Contribution{}
	for _, c := range r.Faults {
		by[c.Fault] = c
	}
	if z := by["zone-loss"]; z.Known != availability.Measured || z.Repetitions != 2 || math.Abs(z.SecondsPerEvent-4) > 1e-9 {
		t.Errorf("the costlier recording is not used: %+v", z)
	}
	if d := by["disk-full"]; d.Known != availability.ShareKnown || math.Abs(d.SecondsPerEvent-30*60*0.3) > 1e-6 {
		t.Errorf("%+v", d)
	}
	if c := by["gateway-crash"]; c.Known != availability.Unmeasured {
		t.Errorf("%+v", c)
	}
	if c := by["region-loss"]; c.Known != availability.Assumed {
		t.Errorf("%+v", c)
	}
	if !slices.Equal(r.Unused, []string{"nobody-knows"}) || len(r.Drills) != 4 || len(r.Problems) != 0 {
		t.Errorf("unused %v, drills %+v, problems %v", r.Unused, r.Drills, r.Problems)
	}
	if why := strings.Join(r.Why, "; "); !strings.Contains(why, "no drill measured") || !strings.Contains(why, "gateway-crash") || strings.Contains(why, "zone-loss,") {
		t.Errorf("why: %s", why)
	}

	var table, page, text bytes.Buffer
	for _, write := range []func() error{
		func() error { return WriteTable(&table, r) },
		func() error { return WriteHTML(&page, r) },
		func() error { return WriteJSON(&text, r) },
	} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{r.Statement, "zone-loss", "measured ×2", "no class of faults", "budget"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	for _, want := range []string{r.Statement, `name="viewport"`, "prefers-color-scheme: dark", "zone-loss", "2026-01-02 12:00"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"<script", "http://", "https://", "ZgotmplZ", "%!"} {
		if strings.Contains(page.String(), not) {
			t.Errorf("the page has %q", not)
		}
	}
	var back struct {
		Version   int     `json:"version"`
		Verdict   string  `json:"verdict"`
		Statement string  `json:"statement"`
		Target    float64 `json:"target"`
		Minutes   struct{ Mean float64 }
		Faults    []struct{ Fault, Known string }
	}
	if err := json.Unmarshal(text.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Version != 1 || back.Verdict != string(r.Verdict) || back.Target != 0.9999 || back.Minutes.Mean <= 0 || len(back.Faults) != len(r.Faults) {
		t.Errorf("%+v", back)
	}
}

// TestHostileNames: what a file of records holds is text on the page.
func TestHostileNames(t *testing.T) {
	r, err := New(t.Context(), availability.Default(), records(t, one("<script>alert(1)</script>", 1, 0, 0, 0, false, true)), quick, noon)
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := WriteHTML(&page, r); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page.String(), "<script") {
		t.Error("a drill's name is markup on the page")
	}
}

// TestProblemsForbidAPass: data that is lost and a stack that stays broken are no
// matter of minutes.
func TestProblemsForbidAPass(t *testing.T) {
	m := availability.Default()
	for i := range m.Faults {
		m.Faults[i].Part /= 1000
	}
	m.Faults = slices.DeleteFunc(m.Faults, func(f availability.Fault) bool { return f.Name != "api-crash" })
	good := one("api-kill", 1, 1, 0, 0, true, true)
	r, err := New(t.Context(), m, records(t, good, good), quick, noon)
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != availability.Pass || r.Statement != "99.99% holds" {
		t.Fatalf("%s: %v", r.Verdict, r.Why)
	}
	for name, bad := range map[string]string{
		"lost writes": one("api-kill", 3, 1, 0, 0, false, true),
		"stays away":  one("api-kill", 3, 600, 0, 0, true, false),
	} {
		r, err := New(t.Context(), m, records(t, good, good, bad), quick, noon)
		if err != nil {
			t.Fatal(err)
		}
		if r.Verdict != availability.Unknown || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "repetition 3") {
			t.Errorf("%s: %s, %v", name, r.Verdict, r.Problems)
		}
		want := 3
		if name == "stays away" {
			// It measured nothing: nobody knows how long it would have taken.
			want = 2
		}
		if got := r.Faults[0].Repetitions; got != want {
			t.Errorf("%s: %d measurements, want %d", name, got, want)
		}
	}
}

// TestRecordedDrills: the fault tables in the repository are measurements.
func TestRecordedDrills(t *testing.T) {
	recs, err := Read([]string{"../bench/results"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(t.Context(), availability.Default(), recs, quick, noon)
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]availability.Known{}
	for _, c := range r.Faults {
		measured[c.Fault] = c.Known
	}
	for fault, want := range map[string]availability.Known{
		"api-crash": availability.Measured, "api-hang": availability.Measured, "gateway-crash": availability.Measured,
		"primary-crash": availability.Measured, "primary-hang": availability.Measured, "switchover": availability.Measured,
		"zone-loss": availability.Measured, "zone-cut": availability.Measured, "disk-full": availability.ShareKnown,
	} {
		if measured[fault] != want {
			t.Errorf("%s: %s, want %s", fault, measured[fault], want)
		}
	}
}
