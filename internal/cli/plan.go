package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/availability"
	"fournines/proof"
	"fournines/spec"
)

// modelFlags are what plan and prove have in common: where the numbers come from.
type modelFlags struct {
	file, model, target string
	from                []string
	seed                uint64
}

func (f *modelFlags) add(cmd *cobra.Command) {
	fileFlag(cmd, &f.file)
	flags := cmd.Flags()
	flags.StringVar(&f.model, "model", "", "file with your own rates, times, layout and prices (fournines plan --write-model shows one)")
	flags.StringArrayVar(&f.from, "from", nil, "recorded drills: a file, or a folder with .json files; may be repeated")
	flags.StringVar(&f.target, "target", "", `availability to keep, such as 99.99% or 0.9999 (default: the objective in the spec)`)
	flags.Uint64Var(&f.seed, "seed", 1, "seed of the random numbers: the same seed gives the same result")
}

// read makes the model from the spec, the model file and the flags, and reads
// the recorded drills.
func (f *modelFlags) read(a *app, cmd *cobra.Command) (availability.Model, []proof.Record, error) {
	m := availability.Default()
	s, _, err := a.specOrDefault(f.file, cmd.Flags().Changed("file"))
	if err != nil {
		return m, nil, err
	}
	m.Layout, m.Target = layoutOf(s), s.SLO.Objective
	if f.model != "" {
		text, err := os.ReadFile(f.model)
		if err != nil {
			return m, nil, err
		}
		if err := m.Edit(f.model, text); err != nil {
			return m, nil, err
		}
	}
	if f.target != "" {
		if m.Target, err = availability.ParseAvailability(f.target); err != nil {
			return m, nil, fmt.Errorf("--target: %w", err)
		}
	}
	records, err := proof.Read(f.from)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("--from: %w", err)
	}
	return m, records, err
}

// layoutOf says what a spec starts.
func layoutOf(s *spec.Spec) availability.Layout {
	l := availability.DefaultLayout()
	full := len(s.FullZones())
	l.Zones, l.FullZones = len(s.Zones), full
	l.APIPerZone, l.Workers = s.Dify.APIReplicasPerZone, s.Dify.Workers
	if s.Dify.Source == spec.SourceExternal {
		l.APIPerZone, l.Workers = max(1, len(s.Dify.External)/max(1, full)), 0
	}
	l.Postgres, l.Quorum = len(s.Zones), len(s.Zones)
	l.RedisReplicas = s.Redis.ReplicasPerMaster
	if before(s.Dify.Version, 1, 13) {
		// Requests wait for no worker: what workers do, they do later.
		l.WorkerShare = 0
	}
	return l
}

// before tells whether a version is older than major.minor.
func before(version string, major, minor int) bool {
	parts := strings.Split(version, ".")
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a < major || a == major && b < minor)
}

// layoutFlags are counts of the layout that plan takes on the command line.
var layoutFlags = []struct {
	name, about string
	field       func(*availability.Layout) *int
}{
	{"zones", "zones that fail independently of each other", func(l *availability.Layout) *int { return &l.Zones }},
	{"full-zones", "zones that carry traffic; the rest hold members of quorums", func(l *availability.Layout) *int { return &l.FullZones }},
	{"hosts", "hosts in each zone", func(l *availability.Layout) *int { return &l.HostsPerZone }},
	{"gateways", "gateways, and proxies of each kind, in each full zone", func(l *availability.Layout) *int { return &l.GatewaysPerZone }},
	{"api", "instances of Dify's API in each full zone", func(l *availability.Layout) *int { return &l.APIPerZone }},
	{"api-needed", "instances of Dify's API that carry the load (0: half of them)", func(l *availability.Layout) *int { return &l.APINeeded }},
	{"workers", "workers of Dify in all", func(l *availability.Layout) *int { return &l.Workers }},
	{"postgres", "PostgreSQL servers", func(l *availability.Layout) *int { return &l.Postgres }},
	{"quorum", "members of etcd", func(l *availability.Layout) *int { return &l.Quorum }},
	{"redis-replicas", "replicas of each of three Redis masters", func(l *availability.Layout) *int { return &l.RedisReplicas }},
	{"vectors", "replicas of the vector database", func(l *availability.Layout) *int { return &l.Vectors }},
	{"plugin-daemons", "plugin daemons (1 for Dify 1.x)", func(l *availability.Layout) *int { return &l.PluginDaemons }},
}

// planCommand answers what-if questions without a running stack.
func (a *app) planCommand() *cobra.Command {
	var (
		f          modelFlags
		output     string
		chain      []string
		common     float64
		recovery   time.Duration
		reschedule bool
		writeModel bool
		counts     = make([]int, len(layoutFlags))
	)
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Ask what a year would cost with other zones, replicas or recovery times",
		Long: `Calculates, without a running stack, which availability a layout gives, what
single changes would win, and what they cost. The layout is that of the spec (or
the default one), changed by flags; how often things fail and how long they take
is in a table whose every number has its source and can be replaced (--model);
--from puts recorded drills in the place of assumed times.

With --chain it says what parts in series, such as the plugins that a workflow
calls, have to become: replicas in parallel, or a higher availability of each.

docs/proof.md has the method, the sources and every default.`,
		Example: `  fournines plan
  fournines plan --zones 2 --full-zones 2
  fournines plan --workers 2 --vectors 2 --recovery 10s --from bench/results
  fournines plan --chain 0.999,0.999,0.999 --target 0.9999
  fournines plan --write-model > availability.yaml
  fournines plan --model availability.yaml -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return couldNotRun(fmt.Errorf("output %q: want table or json", output))
			}
			m, records, err := f.read(a, cmd)
			if err != nil {
				return couldNotRun(err)
			}
			for i, lf := range layoutFlags {
				if cmd.Flags().Changed(lf.name) {
					*lf.field(&m.Layout) = counts[i]
				}
			}
			if !cmd.Flags().Changed("full-zones") {
				// Zones of quorum members alone are for a third one.
				m.Layout.FullZones = min(m.Layout.FullZones, m.Layout.Zones)
			}
			if cmd.Flags().Changed("reschedule") {
				m.Layout.Reschedule = reschedule
			}
			if cmd.Flags().Changed("recovery") {
				if recovery < 0 || recovery > 24*time.Hour {
					return couldNotRun(fmt.Errorf("--recovery %v: want 0s to 24h", recovery))
				}
				known := m.Assumptions["switch"]
				known.Value, known.Factor, known.Source = recovery.Minutes(), 1, "--recovery"
				m.Assumptions["switch"] = known
			}
			if err := m.Layout.Validate(); err != nil {
				return couldNotRun(err)
			}
			if writeModel {
				_, err := a.stdout.Write(m.Template())
				return err
			}
			if len(chain) > 0 {
				return couldNotRun(a.planChain(chain, common, m, output))
			}
			unused := m.Measure(proof.Recordings(records))
			for _, name := range unused {
				fmt.Fprintf(a.stderr, "drill %s stands for no class of faults and is not used\n", name)
			}
			variants, err := availability.WhatIf(cmd.Context(), m, availability.Options{Seed: f.seed})
			if err != nil {
				return couldNotRun(err)
			}
			return couldNotRun(a.writePlan(planAnswer{
				Version: 1, Target: m.Target, BudgetMinutes: availability.BudgetMinutes(m.Target),
				Layout: m.Layout, Currency: m.Prices.Currency, Variants: variants,
				Drills: len(records), DowntimeMinute: m.Prices.DowntimeMinute,
			}, output))
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	for i, lf := range layoutFlags {
		flags.IntVar(&counts[i], lf.name, *lf.field(ptr(availability.DefaultLayout())), lf.about)
		flags.Lookup(lf.name).DefValue = "that of the spec"
	}
	flags.BoolVar(&reschedule, "reschedule", false, "parts without data start on another host when theirs is lost, as on Kubernetes")
	flags.DurationVar(&recovery, "recovery", 0, "how long a failover takes, where no drill measured it (default 30s)")
	flags.StringSliceVar(&chain, "chain", nil, "availabilities of parts in series, separated by commas")
	flags.Float64Var(&common, "common-cause", 0.1, "share of the failures of a link that hits all of its replicas at once (with --chain)")
	flags.BoolVar(&writeModel, "write-model", false, "print a model file with every number and its source, and stop")
	flags.StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func ptr[T any](v T) *T { return &v }

// planAnswer is the JSON form of an answer.
type planAnswer struct {
	Version       int                    `json:"version"`
	Target        float64                `json:"target"`
	BudgetMinutes float64                `json:"budgetMinutes"`
	Layout        availability.Layout    `json:"layout"`
	Currency      string                 `json:"currency"`
	Variants      []availability.Variant `json:"variants"`
	// Drills that the numbers come from; with 0 all times are assumed.
	Drills         int     `json:"drills"`
	DowntimeMinute float64 `json:"downtimeMinute"`
}

func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (a *app) writePlan(p planAnswer, output string) error {
	if output == "json" {
		return a.writeJSON(p)
	}
	l := p.Layout
	fmt.Fprintf(a.stdout, "%d zones (%d with traffic), %d hosts each; %d API instances, %d gateways, %d workers, %d PostgreSQL, %d etcd, Redis 3+%d, %d vector replicas, %d plugin daemons\n",
		l.Zones, l.FullZones, l.HostsPerZone, l.APIPerZone*l.FullZones, l.GatewaysPerZone*l.FullZones, l.Workers, l.Postgres, l.Quorum, 3*l.RedisReplicas, l.Vectors, l.PluginDaemons)
	base := p.Variants[0]
	fmt.Fprintf(a.stdout, "%s a year (95%%: %s to %s): %.0f minutes of the %.2f that %s leaves; %.0f%% of what is believed keeps it\n",
		availability.Percent(base.Availability.Mean), availability.Percent(base.Availability.Low), availability.Percent(base.Availability.High),
		base.Minutes.Mean, p.BudgetMinutes, availability.Percent(p.Target), base.Belief*100)
	if p.Drills == 0 {
		fmt.Fprintln(a.stdout, "no drill is recorded: all times are assumed (--from FILE)")
	}
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nWHAT IF\tAVAILABILITY\tMIN/YEAR\t95%%\tWINS\tBELIEF\t%s/MONTH\tMORE\n", p.Currency)
	for i, v := range p.Variants {
		wins, more := "", ""
		if i > 0 {
			wins, more = signed(v.MinutesLess)+" min", signed(v.MonthMore)
		}
		fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.0f to %.0f\t%s\t%.0f%%\t%.0f\t%s\n", v.Name, availability.Percent(v.Availability.Mean),
			v.Minutes.Mean, v.Minutes.Low, v.Minutes.High, wins, v.Belief*100, v.Month, more)
	}
	if p.DowntimeMinute > 0 {
		fmt.Fprintf(tw, "\nA minute without service costs %g %s: %.0f a year as it is.\n", p.DowntimeMinute, p.Currency, p.DowntimeMinute*base.Minutes.Mean)
	}
	return tw.Flush()
}

// signed writes a difference, and 0 for one that rounds to nothing.
func signed(v float64) string {
	text := fmt.Sprintf("%+.0f", v)
	if text == "+0" || text == "-0" {
		return "0"
	}
	return text
}

// chainPlan is the JSON form of an answer about a chain.
type chainPlan struct {
	Version int `json:"version"`
	availability.Chain
	availability.ChainVerdict
	Currency string `json:"currency"`
	// LinkMonth is what one replica of a link costs a month: the plugin daemon
	// of the prices. Month is the chain as it is, MonthWith with the replicas.
	LinkMonth float64 `json:"linkMonth"`
	Month     float64 `json:"month"`
	MonthWith float64 `json:"monthWith"`
}

func (a *app) planChain(links []string, common float64, m availability.Model, output string) error {
	p := chainPlan{Version: 1, Chain: availability.Chain{Target: m.Target, CommonCause: common}, Currency: m.Prices.Currency}
	for i, text := range links {
		part, err := availability.ParseAvailability(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("--chain: link %d: %w", i+1, err)
		}
		p.Parts = append(p.Parts, part)
	}
	var err error
	if p.ChainVerdict, err = p.Judge(); err != nil {
		return err
	}
	p.LinkMonth = m.Prices.CPUs["plugin-daemon"] * m.Prices.CPUMonth
	for _, n := range p.Needs {
		p.Month += p.LinkMonth
		p.MonthWith += p.LinkMonth * float64(max(1, n.Replicas))
	}
	if output == "json" {
		return a.writeJSON(p)
	}
	fmt.Fprintf(a.stdout, "%d links in series give %s: %.0f minutes a year, where %s leaves %.2f\n",
		len(p.Parts), availability.Percent(p.Now), p.Minutes, availability.Percent(p.Target), p.BudgetMinutes)
	if p.Met {
		fmt.Fprintln(a.stdout, "the chain keeps its target as it is")
		return nil
	}
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nLINK\tNOW\tEITHER IT BECOMES\tOR REPLICAS\tWHICH GIVE\tREPLICAS WITH %.0f%% SHARED CAUSES\tTHEY STAY BELOW\n", p.CommonCause*100)
	for i, n := range p.Needs {
		with, shared := availability.Percent(n.With), strconv.Itoa(n.ReplicasShared)
		replicas := strconv.Itoa(n.Replicas)
		if n.Replicas == 0 {
			replicas, with = fmt.Sprintf("more than %d", availability.MaxReplicas), "-"
		}
		if n.ReplicasShared == 0 {
			shared = "no number is enough"
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", i+1, availability.Percent(n.Now), availability.Percent(n.Each), replicas, with, shared, availability.Percent(n.Ceiling))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	if p.WithReplicas > 0 {
		fmt.Fprintf(a.stdout, "with these replicas, when they fail independently: %s, for %.0f %s a month instead of %.0f\n",
			availability.Percent(p.WithReplicas), p.MonthWith, p.Currency, p.Month)
	}
	if p.WithShared < p.Target {
		fmt.Fprintf(a.stdout, "when %.0f%% of the failures hit all replicas of a link at once: %s at best; then the links themselves have to become better, or fewer\n",
			p.CommonCause*100, availability.Percent(p.WithShared))
	} else {
		fmt.Fprintf(a.stdout, "when %.0f%% of the failures hit all replicas of a link at once: %s\n", p.CommonCause*100, availability.Percent(p.WithShared))
	}
	return nil
}
