package rules

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The two indicators, values of the label "sli".
const (
	// Availability counts what users felt: a request that failed, an answer that
	// broke off, a connection that nobody took.
	Availability = "availability"
	// Latency counts answers whose first content came late.
	Latency = "latency"
)

// The values of the label "scope".
const (
	Overall = "overall"
	PerApp  = "app" // with the label "app"
)

// Series that the rules record and others read.
const (
	// Requests and Bad count what happened in each Step, exactly: their sums are
	// what counters say, over restarts of gateways and over new series.
	Requests = "slo:requests:increase30s"
	Bad      = "slo:bad:increase30s"
	// Objective is the share that must be good, by sli.
	Objective = "slo:objective:ratio"
	// Window is how long the objectives' window is, in seconds.
	Window = "slo:window:seconds"
	// BudgetLeft is the share of the window's budget that is left; negative when
	// it is overspent.
	BudgetLeft = "slo:budget_left:ratio"
)

// Step is the time between two samples of Requests and Bad.
const Step = 30 * time.Second

// burn is one pair of windows of a burn rate: the long one says that it matters,
// the short one that it still goes on.
type burn struct {
	long, short time.Duration
	// factor is how many times too fast the budget must burn over both.
	factor float64
}

// The pairs of the SRE workbook, table 5-8, for a window of 30 days: 2 % of the
// budget in an hour, 5 % in 6 hours; 10 % in a day, 10 % in 3 days.
var (
	fastBurns = []burn{{time.Hour, 5 * time.Minute, 14.4}, {6 * time.Hour, 30 * time.Minute, 6}}
	slowBurns = []burn{{24 * time.Hour, 2 * time.Hour, 3}, {72 * time.Hour, 6 * time.Hour, 1}}
)

// minBad is how many requests must have gone wrong in the long window. At four
// nines a single one burns the budget of thousands, and a quiet night has few.
const minBad = 5

// Ratio is the series with the share of bad requests over a window.
func Ratio(window time.Duration) string { return "slo:bad:ratio_" + Duration(window) }

// increase is an expression for how much each counter that sel selects has grown
// in the last Step. Unlike increase() it loses nothing between two samples, adds
// up to what the counter says, and counts what a new series or a new process
// begins with: at four nines an outage of seconds is a single sample of a new
// series. It counts nothing that an old process did before Prometheus knew it.
func increase(sel, job string) string {
	step := Duration(Step)
	return fmt.Sprintf(`((%[1]s - %[1]s offset %[2]s >= 0) or (%[1]s and on (instance) (up{job=%[3]q} offset %[2]s == 1 or time() - process_start_time_seconds{job=%[3]q} < %[4]d)))`,
		sel, step, job, int(Step.Seconds()))
}

// slo makes the groups of both objectives.
func (c Config) slo() []Group {
	app := func(metric string) string {
		return "sum by (app) (" + increase("fournines_gateway_app_"+metric, "gateway") + ")"
	}
	labels := func(sli, scope string) map[string]string { return map[string]string{"sli": sli, "scope": scope} }
	sum := func(series, sli string) string {
		return fmt.Sprintf(`sum(%s{sli=%q, scope=%q})`, series, sli, PerApp)
	}
	refused := "sum(" + increase(`fournines_loadbalancer_refused_connections_total{service="gateway"}`, "loadbalancer") + ")"
	le := number(c.FirstContent.Seconds())
	inTime := app(fmt.Sprintf(`first_content_seconds_bucket{le=~"%s|%s.0"}`, strings.ReplaceAll(le, ".", `\\.`), strings.ReplaceAll(le, ".", `\\.`)))
	base := Group{Name: "slo-requests", Interval: Step, Recordings: []Recording{
		{Requests, app("requests_total"), labels(Availability, PerApp)},
		{Bad, app("failures_total"), labels(Availability, PerApp)},
		{Requests, app("first_content_seconds_count"), labels(Latency, PerApp)},
		{Bad, "clamp_min(" + app("first_content_seconds_count") + " - " + inTime + ", 0)", labels(Latency, PerApp)},
		// A connection that no gateway took was a request, and it failed.
		{Requests, "(" + sum(Requests, Availability) + " or vector(0)) + (" + refused + " or vector(0))", labels(Availability, Overall)},
		{Bad, "(" + sum(Bad, Availability) + " or vector(0)) + (" + refused + " or vector(0))", labels(Availability, Overall)},
		{Requests, sum(Requests, Latency), labels(Latency, Overall)},
		{Bad, sum(Bad, Latency), labels(Latency, Overall)},
		{Objective, "vector(" + number(c.Objective) + ")", map[string]string{"sli": Availability}},
		{Objective, "vector(" + number(c.FirstContentObjective) + ")", map[string]string{"sli": Latency}},
		{Window, "vector(" + number(c.Window.Seconds()) + ")", nil},
	}}
	ratio := func(window time.Duration) Recording {
		w := Duration(window)
		return Recording{Record: Ratio(window), Expr: fmt.Sprintf("sum_over_time(%s[%s]) / (sum_over_time(%s[%s]) > 0)", Bad, w, Requests, w)}
	}
	short := Group{Name: LayerSLO, Interval: Step}
	for _, w := range []time.Duration{5 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 6 * time.Hour} {
		short.Recordings = append(short.Recordings, ratio(w))
	}
	window := Duration(c.Window)
	// What reads days is read seldom.
	long := Group{Name: "slo-days", Interval: 5 * time.Minute, Recordings: []Recording{
		ratio(24 * time.Hour), ratio(72 * time.Hour),
		{BudgetLeft, fmt.Sprintf(`1 - sum_over_time(%[1]s{scope=%[2]q}[%[3]s]) / (sum_over_time(%[4]s{scope=%[2]q}[%[3]s]) > 0) / on (sli) group_left () (1 - %[5]s)`,
			Bad, Overall, window, Requests, Objective), nil},
	}}
	short.Alerts = c.sloAlerts()
	return []Group{base, long, short}
}

// burning is an expression that is the burn rate where one of the pairs is
// passed.
func burning(sli string, objective float64, pairs []burn) string {
	var parts []string
	for _, b := range pairs {
		parts = append(parts, fmt.Sprintf(`%[1]s{sli=%[3]q} / %[4]s > %[5]s and %[2]s{sli=%[3]q} / %[4]s > %[5]s and sum_over_time(%[6]s{sli=%[3]q}[%[7]s]) >= %[8]d`,
			Ratio(b.long), Ratio(b.short), sli, number(1-objective), number(b.factor), Bad, Duration(b.long), minBad))
	}
	return strings.Join(parts, " or ")
}

const whose = `{{ with $labels.app }}App {{ . }}{{ else }}The installation{{ end }}`

func (c Config) sloAlerts() []Alert {
	days := strings.TrimSuffix(Duration(c.Window.Truncate(24*time.Hour)), "d")
	budget := number(100*(1-c.Objective)) + " %"
	late := number(100*(1-c.FirstContentObjective)) + " %"
	within := Duration(c.FirstContent)
	alerts := []Alert{
		{
			Name: "ErrorBudgetFastBurn", Severity: Critical, Expr: burning(Availability, c.Objective, fastBurns),
			Summary:     whose + ` fails its users: the error budget burns {{ $value | printf "%.0f" }} times too fast.`,
			Description: `The objective allows ` + budget + ` of requests to fail; {{ $value | printf "%.1f" }} times as many do. At this pace the budget of ` + days + ` days lasts {{ with printf "` + number(c.Window.Seconds()) + ` / %f" $value | query }}{{ . | first | value | humanizeDuration }}{{ end }}.`,
		},
		{
			Name: "ErrorBudgetSlowBurn", Severity: Warning, Expr: burning(Availability, c.Objective, slowBurns),
			Summary:     whose + ` spends its error budget {{ $value | printf "%.1f" }} times too fast.`,
			Description: `The objective allows ` + budget + ` of requests to fail; over the last days {{ $value | printf "%.1f" }} times as many did. Nobody need get up, but the ` + days + ` days will not hold.`,
		},
		{
			Name: "LatencyBudgetFastBurn", Severity: Critical, Expr: burning(Latency, c.FirstContentObjective, fastBurns),
			Summary:     whose + ` is slow: its latency budget burns {{ $value | printf "%.0f" }} times too fast.`,
			Description: `The objective allows ` + late + ` of answers to begin later than ` + within + `; {{ $value | printf "%.1f" }} times as many do.`,
		},
		{
			Name: "LatencyBudgetSlowBurn", Severity: Warning, Expr: burning(Latency, c.FirstContentObjective, slowBurns),
			Summary:     whose + ` spends its latency budget {{ $value | printf "%.1f" }} times too fast.`,
			Description: `The objective allows ` + late + ` of answers to begin later than ` + within + `; over the last days {{ $value | printf "%.1f" }} times as many did.`,
		},
		{
			// The alert of the article. Its floor keeps one failure at night quiet.
			Name: "ErrorRateHigh", Severity: Critical, For: 2 * time.Minute,
			Expr: fmt.Sprintf(`sum_over_time(%[1]s{sli=%[3]q, scope=%[4]q}[2m]) / sum_over_time(%[2]s{sli=%[3]q, scope=%[4]q}[2m]) > 0.05
				and sum_over_time(%[1]s{sli=%[3]q, scope=%[4]q}[2m]) >= %[5]d`, Bad, Requests, Availability, Overall, minBad),
			Summary:     `{{ $value | humanizePercentage }} of all requests fail.`,
			Description: `{{ $value | humanizePercentage }} of the requests of the last 2 minutes failed, for 2 minutes by now; 5 % is the limit.`,
		},
	}
	for i := range alerts {
		alerts[i].Layer = LayerSLO
	}
	return alerts
}

// number writes v in at most ten digits, so that 1-0.9999 is 0.0001.
func number(v float64) string { return strconv.FormatFloat(round(v), 'f', -1, 64) }

func round(v float64) float64 {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 10, 64), 64)
	if err != nil {
		return v // it has been written by the line before
	}
	return rounded
}
