package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"fournines/drill"
	"fournines/local"
	"fournines/proof"
)

// campaign is drills that are run one after the other on a running stack.
type campaign struct {
	steps []step
	// expect is how long a step takes, until the first has shown it.
	expect time.Duration
	// settle is how long to wait before a drill is tried again that found the
	// stack unsteady.
	settle time.Duration
	// run carries out one step.
	run func(ctx context.Context, s step) (*drill.Report, error)
	// keep gets each report as soon as it is there.
	keep func(s step, r *drill.Report) error
	// say tells in words how far it is.
	say func(text string)
}

// step is one repetition of one drill; zone is empty for drills without one.
type step struct {
	drill, zone string
	repetition  int
}

func (s step) String() string {
	name := s.drill
	if s.zone != "" {
		name += " " + s.zone
	}
	return name
}

// catalogueSteps lists every drill, those of zones for each of the zones, all of
// them once before the second repetition begins, so that a campaign that is cut
// short has measured a little of everything.
func catalogueSteps(zones []string, repetitions int) []step {
	var steps []step
	for n := 1; n <= repetitions; n++ {
		for _, d := range drill.Catalogue() {
			if !d.NeedsZone {
				steps = append(steps, step{d.Name, "", n})
				continue
			}
			for _, zone := range zones {
				steps = append(steps, step{d.Name, zone, n})
			}
		}
	}
	return steps
}

// do runs the steps. A drill that finds the stack unsteady is tried once more
// after a while; any other error, and a second one, ends the campaign.
func (c *campaign) do(ctx context.Context) error {
	began := time.Now()
	for i, s := range c.steps {
		each := c.expect
		if i > 0 {
			each = time.Since(began) / time.Duration(i)
		}
		left := each * time.Duration(len(c.steps)-i)
		c.say(fmt.Sprintf("%d of %d: %s, repetition %d; about %v left", i+1, len(c.steps), s, s.repetition, roughly(left)))
		r, err := c.run(ctx, s)
		if errors.Is(err, drill.ErrUnsteady) && ctx.Err() == nil {
			c.say(fmt.Sprintf("%s: %v; trying again in %v", s, err, c.settle))
			select {
			case <-ctx.Done():
			case <-time.After(c.settle):
			}
			r, err = c.run(ctx, s)
		}
		if err != nil {
			return fmt.Errorf("drill %s: %w", s, err)
		}
		c.say(fmt.Sprintf("%s: %s, longest outage %v, %d of %d requests failed", s, r.Verdict,
			time.Duration(r.LongestOutageMs)*time.Millisecond, r.Requests.Failed, r.Requests.Total))
		if err := c.keep(s, r); err != nil {
			return err
		}
	}
	return nil
}

// roughly rounds a time left to what can be known of it.
func roughly(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(5 * time.Second)
	}
	return d.Round(time.Minute)
}

// minWarmup is long enough for answers of every class before the fault: without
// any, all that follow count as slow.
const minWarmup = 5 * time.Second

// drillFlags say how prove runs drills itself.
type drillFlags struct {
	dataDir, save string
	quick         bool
	repeat        int
	rate          float64
	hold, warmup  time.Duration
}

func (f *drillFlags) add(cmd *cobra.Command) {
	dataDirFlag(cmd.Flags(), &f.dataDir)
	flags := cmd.Flags()
	flags.StringVar(&f.save, "save", "drills", "folder for the reports of the drills that are run")
	flags.BoolVar(&f.quick, "quick", false, "run each drill once, in one zone, with a fault of 5 s")
	flags.IntVar(&f.repeat, "repeat", 3, "how many times to run each drill")
	flags.Float64Var(&f.rate, "rate", 12, "requests per second while drills run")
	flags.DurationVar(&f.hold, "hold", 20*time.Second, "how long a fault lasts that does not mend itself")
	flags.DurationVar(&f.warmup, "warmup", minWarmup, "load without a failure before each fault, and after the repair")
}

// short takes the values of --quick for what the user did not set.
func (f *drillFlags) short(cmd *cobra.Command) {
	changed := cmd.Flags().Changed
	if !changed("repeat") {
		f.repeat = 1
	}
	if !changed("hold") {
		f.hold = 5 * time.Second
	}
}

// runDrills runs the catalogue on the running stack, writes each report into the
// folder save, and reads them back from there as --from does.
func (f *drillFlags) runDrills(ctx context.Context, a *app) ([]proof.Record, error) {
	switch {
	case f.repeat < 1 || f.repeat > 1000:
		return nil, fmt.Errorf("--repeat %d: want 1 to 1000", f.repeat)
	case !(f.rate > 0 && f.rate <= 10000):
		return nil, fmt.Errorf("--rate %g: want more than 0 and at most 10000 requests a second", f.rate)
	case f.hold <= 0:
		return nil, fmt.Errorf("--hold %v: want more than 0", f.hold)
	case f.warmup < minWarmup:
		return nil, fmt.Errorf("--warmup %v: want at least %v: what is slow is judged by the answers before the fault", f.warmup, minWarmup)
	}
	client := local.NewClient(f.dataDir)
	defer client.Close()
	target := drillTarget{client}
	credentials, err := local.ReadCredentials(f.dataDir)
	if err != nil {
		return nil, err
	}
	status, err := target.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the stack for its state: %w", err)
	}
	var zones []string
	for _, z := range status.Zones {
		if z.Name != "" {
			zones = append(zones, z.Name)
		}
	}
	if f.quick {
		zones = zones[:min(1, len(zones))]
	}
	if err := os.MkdirAll(f.save, 0o755); err != nil {
		return nil, err
	}
	o := drill.Options{
		Load:        drill.Load{URL: credentials.Gateway.URL, AppKey: credentials.Gateway.AppKey, Rate: f.rate, Timeout: 35 * time.Second},
		PostgresURL: credentials.Postgres.URL,
		Warmup:      f.warmup, Hold: f.hold, Recover: 3 * time.Minute, Slow: time.Second,
	}
	began := time.Now()
	stamp := began.UTC().Format("20060102-150405")
	var saved []string
	c := campaign{
		steps: catalogueSteps(zones, f.repeat), expect: 2*f.warmup + f.hold + 10*time.Second, settle: 30 * time.Second,
		run: func(ctx context.Context, s step) (*drill.Report, error) {
			d, err := drill.Find(s.drill)
			if err != nil {
				return nil, err
			}
			o.Zone, o.Repetition = s.zone, s.repetition
			return d.Run(ctx, target, o, slog.New(slog.DiscardHandler))
		},
		keep: func(s step, r *drill.Report) error {
			text, err := json.Marshal(r)
			if err != nil {
				return err
			}
			name := s.drill
			if s.zone != "" {
				name += "-" + s.zone
			}
			path := filepath.Join(f.save, fmt.Sprintf("%s-%s-%d.json", stamp, name, s.repetition))
			saved = append(saved, path)
			return os.WriteFile(path, append(text, '\n'), 0o644)
		},
		say: func(text string) { fmt.Fprintf(a.stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), text) },
	}
	if err := c.do(ctx); err != nil {
		if len(saved) > 0 {
			return nil, fmt.Errorf("%w; what is measured so far is kept: fournines prove --from %s", err, f.save)
		}
		return nil, err
	}
	return proof.Read(saved)
}
