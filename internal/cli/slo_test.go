package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"fournines/observe/rules"
	"fournines/observe/slo"
)

func TestPrintSLO(t *testing.T) {
	month := 30 * 24 * time.Hour
	var out bytes.Buffer
	err := printSLO(&out, &slo.Status{
		Refused: 3,
		Indicators: []slo.Indicator{
			{
				Name: rules.Availability, Objective: 0.9999,
				Window: slo.Left(0.9999, month, 26*time.Hour, 1e6, 25), Year: slo.Left(0.9999, slo.Year, 26*time.Hour, 1e6, 25),
				Burns: []slo.Burn{{Window: "5m", Rate: 0}, {Window: "1h", Rate: 14.44}, {Window: "6h", Rate: 1234.5}},
				Apps:  []slo.Spender{{Name: "shop", Requests: 1000, Bad: 20, Share: 0.8}, {Name: "wiki", Requests: 10, Bad: 5, Share: 0.2}},
			},
			{Name: rules.Latency, Objective: 0.99, Window: slo.Left(0.99, month, 0, 0, 0), Year: slo.Left(0.99, slo.Year, 0, 0, 0)},
		},
		Instances: []slo.Spender{{Name: "dify-api-a-1", Requests: 500, Bad: 7, Share: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(` +`).ReplaceAllString(out.String(), " ")
	for _, want := range []string{
		"availability 99.99% 30d 26h 1000000 25 100 75% 3m14s",
		"availability 99.99% 365d 26h 1000000 25 100 75% 39m25s",
		"latency 99% 30d 0m 0 0 0 100% 7h12m0s",
		"availability 5m: 0 1h: 14.4 6h: 1234",
		"latency no requests of late",
		"shop 20 of 1000 80%", "wiki 5 of 10 20%", "dify-api-a-1 7 of 500 100%",
		"Connections that no gateway took: 3",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestSLOStatusSaysWhatItNeeds(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"slo", "status", "--prometheus", "nowhere"}, 2, "--prometheus"},
		{[]string{"slo", "status", "-o", "xml"}, 2, "table or json"},
		{[]string{"slo", "status", "--data-dir", t.TempDir()}, 1, "--prometheus"},
		{[]string{"slo", "status", "--prometheus", "http://127.0.0.1:1"}, 1, "query Prometheus"},
	} {
		var stderr bytes.Buffer
		if code := Main(t.Context(), tt.args, strings.NewReader(""), &bytes.Buffer{}, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%v: exit %d, %q; want %d and %q", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

// command is a call of ours on a line of a runbook.
var command = regexp.MustCompile("(?m)(?:^|`|; |, `)fournines ([a-z][^`#|;\n]*)")

// TestRunbooksNameRealCommands looks up every command of ours in every runbook,
// with its flags: at 3 a.m. it must work.
func TestRunbooksNameRealCommands(t *testing.T) {
	files, err := filepath.Glob("../../" + rules.RunbookDir + "*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no runbooks: %v", err)
	}
	calls := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			calls++
			root := (&app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}).rootCommand()
			root.InitDefaultHelpFlag()
			cmd, rest, err := root.Find(strings.Fields(strings.ReplaceAll(m[1], "$G", "--config FILE")))
			if err != nil || cmd == root || cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
				t.Errorf("%s: there is no command `fournines %s`", filepath.Base(f), m[1])
				continue
			}
			cmd.InitDefaultHelpFlag()
			if err := cmd.ParseFlags(rest); err != nil && !strings.Contains(err.Error(), "help") {
				t.Errorf("%s: `fournines %s`: %v", filepath.Base(f), m[1], err)
			}
		}
	}
	if calls < 100 {
		t.Errorf("%d calls found in %d runbooks: the pattern of this test no longer fits", calls, len(files))
	}
}
