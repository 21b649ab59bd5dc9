package rules_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"fournines/audit"
	"fournines/internal/servertest"
	"fournines/observe/catalogue"
	"fournines/observe/rules"
)

// fourNines is the objective of all unit tests.
var fourNines = rules.Config{
	Objective: 0.9999, Window: 30 * 24 * time.Hour, FirstContent: 8 * time.Second, FirstContentObjective: 0.99,
}

func build(t *testing.T) []rules.Group {
	t.Helper()
	groups, err := rules.Build(fourNines)
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

// unitTest is one history of series and what an alert makes of it.
type unitTest struct {
	Alert string
	// Every is the step of the series' values and of the evaluation.
	Every string
	// Series in the notation of promtool.
	Series map[string]string
	// Silent are moments at which the alert does not fire: before, and after it
	// has resolved.
	Silent []string
	Firing []struct {
		At string
		// Labels without severity and layer.
		Labels               map[string]string
		Summary, Description string
	}
}

func (u *unitTest) every() string {
	if u.Every == "" {
		return "5s"
	}
	return u.Every
}

func unitTests(t *testing.T) []unitTest {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no unit tests: %v", err)
	}
	var all []unitTest
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var list []unitTest
		dec := yaml.NewDecoder(strings.NewReader(string(text)))
		dec.KnownFields(true)
		if err := dec.Decode(&list); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, list...)
	}
	return all
}

type object = map[string]any

// TestAlerts runs every unit test with promtool, each against the rules of its
// own group, and those that the group reads.
func TestAlerts(t *testing.T) {
	servertest.Need(t, "promtool")
	groups := build(t)
	alerts := map[string]rules.Alert{}
	for _, a := range rules.Alerts(groups) {
		alerts[a.Name] = a
	}
	dir := t.TempDir()
	files := map[string][]object{} // tests by layer and step
	for _, u := range unitTests(t) {
		a, ok := alerts[u.Alert]
		if !ok {
			t.Errorf("a unit test of %s, which is no alert", u.Alert)
			continue
		}
		var series, checks []object
		for s, values := range u.Series {
			series = append(series, object{"series": s, "values": values})
		}
		for _, at := range u.Silent {
			checks = append(checks, object{"eval_time": at, "alertname": u.Alert, "exp_alerts": []object{}})
		}
		byTime := map[string][]object{}
		for _, f := range u.Firing {
			labels := object{"severity": string(a.Severity), "layer": a.Layer}
			for k, v := range f.Labels {
				labels[k] = v
			}
			byTime[f.At] = append(byTime[f.At], object{"exp_labels": labels, "exp_annotations": object{
				"summary": f.Summary, "description": f.Description, "runbook_url": a.Runbook(),
			}})
		}
		for at, expected := range byTime {
			checks = append(checks, object{"eval_time": at, "alertname": u.Alert, "exp_alerts": expected})
		}
		key := a.Layer + "-" + u.every()
		files[key] = append(files[key], object{
			"name": u.Alert, "interval": u.every(), "input_series": series, "alert_rule_test": checks,
		})
	}
	args := []string{"test", "rules"}
	for key, tests := range files {
		layer, every, _ := strings.Cut(key, "-")
		write(t, filepath.Join(dir, layer+".rules"), slices.DeleteFunc(slices.Clone(groups), func(g rules.Group) bool {
			return g.Name != layer && (layer != rules.LayerSLO || !strings.HasPrefix(g.Name, "slo"))
		}))
		text, err := json.MarshalIndent(object{
			"rule_files": []string{layer + ".rules"}, "evaluation_interval": every,
			"group_eval_order": []string{"slo-requests", "slo-days", rules.LayerSLO}, "tests": tests,
		}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, key+".test")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func write(t *testing.T, path string, groups []rules.Group) {
	t.Helper()
	text, err := rules.File(groups)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestEveryAlertIsTested: each is silent, fires, and is silent again.
func TestEveryAlertIsTested(t *testing.T) {
	tests := unitTests(t)
	for _, a := range rules.Alerts(build(t)) {
		if a.Name == rules.Watchdog {
			continue // never silent
		}
		whole := slices.ContainsFunc(tests, func(u unitTest) bool {
			if u.Alert != a.Name || len(u.Firing) == 0 {
				return false
			}
			before, after := false, false
			for _, s := range u.Silent {
				before = before || seconds(t, s) < seconds(t, u.Firing[0].At)
				after = after || seconds(t, s) > seconds(t, u.Firing[len(u.Firing)-1].At)
			}
			return before && after
		})
		if !whole {
			t.Errorf("no unit test has %s silent, firing and silent again", a.Name)
		}
	}
}

func seconds(t *testing.T, text string) float64 {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d.Seconds()
}

func TestPromtoolTakesTheRules(t *testing.T) {
	servertest.Need(t, "promtool")
	for name, change := range map[string]func(*rules.Config){
		"four nines": func(*rules.Config) {},
		"three nines": func(c *rules.Config) {
			c.Objective, c.Window, c.FirstContent = 0.999, 36*time.Hour, 1500*time.Millisecond
		},
	} {
		c := fourNines
		change(&c)
		groups, err := rules.Build(c)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "rules.yml")
		write(t, file, groups)
		if out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", "--lint=all", "--lint-fatal", file).CombinedOutput(); err != nil {
			t.Errorf("%s: promtool: %v\n%s", name, err, out)
		}
	}
}

// TestRulesNameOnlyKnownMetrics reads every expression as Prometheus does: it
// names metrics of the catalogue or of the rules themselves, with labels that
// they have.
func TestRulesNameOnlyKnownMetrics(t *testing.T) {
	groups := build(t)
	recorded := map[string]bool{}
	for _, g := range groups {
		for _, r := range g.Recordings {
			recorded[r.Record] = true
		}
	}
	check := func(rule, text string) {
		expr, err := audit.ParsePromQL(text)
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			return
		}
		for _, s := range audit.Selectors(expr) {
			name := audit.MetricName(s)
			if !recorded[name] && !catalogue.Known(name) {
				t.Errorf("%s asks for %q, which nobody has", rule, name)
			}
			checkLabels(t, rule, name, s)
		}
	}
	for _, g := range groups {
		for _, r := range g.Recordings {
			check(r.Record, r.Expr)
		}
		for _, a := range g.Alerts {
			check(a.Name, a.Expr)
		}
	}
}

// checkLabels: a selector wants only labels that our metric has, beside those
// that Prometheus adds.
func checkLabels(t *testing.T, rule, name string, s *parser.VectorSelector) {
	t.Helper()
	base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
	for _, m := range catalogue.All() {
		if m.Name != base || m.Process == catalogue.Every {
			continue
		}
		for _, l := range audit.WantedLabels(s) {
			if !slices.Contains(m.Labels, l) && !slices.Contains([]string{"job", "instance", "component", "zone", "le"}, l) {
				t.Errorf("%s wants the label %s, which %s has not", rule, l, name)
			}
		}
	}
}

var sections = []string{"## What users feel", "## Look first", "## Do", "## Do not"}

// TestEveryAlertHasARunbook, and every runbook an alert.
func TestEveryAlertHasARunbook(t *testing.T) {
	known := map[string]bool{"README.md": true}
	for _, a := range rules.Alerts(build(t)) {
		known[a.Name+".md"] = true
		text, err := os.ReadFile("../../" + a.Runbook())
		if err != nil {
			t.Errorf("%s has no runbook: %v", a.Name, err)
			continue
		}
		page := string(text)
		head := fmt.Sprintf("# %s\n\n**%s**, %s. ", a.Name, a.Severity, a.Layer)
		if !strings.HasPrefix(page, head) {
			t.Errorf("%s does not begin with %q", a.Runbook(), head)
		}
		at := 0
		for _, s := range sections {
			i := strings.Index(page[at:], "\n"+s+"\n")
			if i < 0 {
				t.Errorf("%s has no %q after the section before", a.Runbook(), s)
				break
			}
			at += i + 1
		}
		if !strings.Contains(page, "```\n") {
			t.Errorf("%s has no command to begin with", a.Runbook())
		}
	}
	files, err := os.ReadDir("../../" + rules.RunbookDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !known[f.Name()] {
			t.Errorf("%s%s is the runbook of no alert", rules.RunbookDir, f.Name())
		}
	}
}

var figure = regexp.MustCompile(`\{\{.*\$value`)

// noFigure are alerts about something that is so or not.
var noFigure = []string{
	rules.Watchdog, "TargetDown", "GatewayDown", "ServiceUnreachable", "NoHealthyInstance", "InstanceUnhealthy", "RateLimitsDegraded",
	"JobsStoreDown", "PatroniNoLeader", "PatroniPaused", "EtcdNoLeader", "RedisClusterState", "RedisInstanceDown", "RedisReplicaLinkDown",
	"MilvusDown", "DifyNoWorker", "BackupFailed", "BackupWanted", "RestoreDrillFailed",
}

func TestAlertsSayWhatTheyShould(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range rules.Alerts(build(t)) {
		if seen[a.Name] {
			t.Errorf("two alerts are called %s", a.Name)
		}
		seen[a.Name] = true
		if a.Summary == "" || a.Description == "" || !slices.Contains([]rules.Severity{rules.Critical, rules.Warning, rules.None}, a.Severity) {
			t.Errorf("%s: summary %q, description %q, severity %q", a.Name, a.Summary, a.Description, a.Severity)
		}
		if figure.MatchString(a.Description) == slices.Contains(noFigure, a.Name) {
			t.Errorf("%s: the description %q has a figure, or needs one", a.Name, a.Description)
		}
	}
}

func TestFirstContentIsABucket(t *testing.T) {
	m, ok := catalogue.Find(catalogue.Gateway, "fournines_gateway_app_first_content_seconds")
	if !ok || !slices.Contains(m.Buckets, fourNines.FirstContent.Seconds()) {
		t.Errorf("%v is no bucket of %v", fourNines.FirstContent, m.Buckets)
	}
}

func TestBadConfig(t *testing.T) {
	_, err := rules.Build(rules.Config{Objective: 1, Window: time.Hour})
	for _, want := range []string{"Objective", "Window", "FirstContent", "FirstContentObjective"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}
