package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fournines/drill"
	"fournines/local"
	"fournines/topology"
)

// drillTarget lets drills act on a stack of the local engine.
type drillTarget struct{ client *local.Client }

func (t drillTarget) Status(ctx context.Context) (topology.Status, error) {
	return t.client.Status(ctx)
}
func (t drillTarget) KillUnit(ctx context.Context, name string) error {
	return t.client.Kill(ctx, name)
}
func (t drillTarget) PauseUnit(ctx context.Context, name string) error {
	return t.client.Pause(ctx, name)
}
func (t drillTarget) ResumeUnit(ctx context.Context, name string) error {
	return t.client.Resume(ctx, name)
}
func (t drillTarget) RestartUnit(ctx context.Context, name string) error {
	return t.client.Restart(ctx, name)
}
func (t drillTarget) ZoneCut(ctx context.Context, zone string) error {
	return t.client.Cut(ctx, zone)
}
func (t drillTarget) ZoneHeal(ctx context.Context, zone string) error {
	return t.client.Heal(ctx, zone)
}
func (t drillTarget) ZoneOff(ctx context.Context, zone string) error {
	return t.client.PowerOff(ctx, zone)
}
func (t drillTarget) ZoneOn(ctx context.Context, zone string) error {
	return t.client.PowerOn(ctx, zone)
}

func (a *app) drillCommand() *cobra.Command {
	var (
		dataDir string
		output  string
		repeat  int
		o       = drill.Options{
			Load:   drill.Load{Rate: 12, Timeout: 35 * time.Second},
			Warmup: 5 * time.Second, Hold: 20 * time.Second, Recover: 3 * time.Minute, Slow: time.Second,
		}
	)
	var list strings.Builder
	for _, d := range drill.Catalogue() {
		fmt.Fprintf(&list, "  %-15s %s\n", d.Name, d.About)
	}
	cmd := &cobra.Command{
		Use:   "drill NAME [ZONE]",
		Short: "Break the running stack under load and measure what its users get",
		Long: `Runs one fault against the stack while requests arrive at a constant rate, and
reports from the client's side: failed and slow requests, the longest outage,
whether every acknowledged write is still there. What the drill broke it mends,
also when it is interrupted.

` + list.String() + `  restore         mend what a killed drill left broken

Exit status: 0 the drill passed, 1 it failed, 2 it could not run.`,
		Example: `  fournines drill api-kill
  fournines drill zone-loss a
  fournines drill primary-kill --repeat 5 -o json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := local.NewClient(dataDir)
			defer client.Close()
			target := drillTarget{client}
			if args[0] == "restore" {
				return couldNotRun(restore(cmd.Context(), a, client))
			}
			d, err := drill.Find(args[0])
			if err != nil {
				return couldNotRun(err)
			}
			switch {
			case d.NeedsZone && len(args) < 2:
				return couldNotRun(fmt.Errorf("drill %s needs a zone: fournines drill %s a", d.Name, d.Name))
			case !d.NeedsZone && len(args) > 1:
				return couldNotRun(fmt.Errorf("drill %s takes no zone", d.Name))
			case d.NeedsZone:
				o.Zone = args[1]
			}
			if output != "table" && output != "json" {
				return couldNotRun(fmt.Errorf("output %q: want table or json", output))
			}
			if o.Load.Rate <= 0 || o.Load.Rate > 10000 {
				return couldNotRun(fmt.Errorf("--rate %g: want more than 0 and at most 10000 requests a second", o.Load.Rate))
			}
			credentials, err := local.ReadCredentials(dataDir)
			if err != nil {
				return couldNotRun(err)
			}
			o.Load.URL, o.Load.AppKey = credentials.Gateway.URL, credentials.Gateway.AppKey
			o.PostgresURL = credentials.Postgres.URL
			start := time.Now()
			o.Progress = func(text string) {
				fmt.Fprintf(a.stderr, "%6.1fs  %s\n", time.Since(start).Seconds(), text)
			}
			var reports []*drill.Report
			failed := false
			for n := 1; n <= max(1, repeat); n++ {
				o.Repetition = n
				r, err := d.Run(cmd.Context(), target, o, slog.New(slog.DiscardHandler))
				if err != nil {
					return couldNotRun(err)
				}
				reports = append(reports, r)
				failed = failed || r.Verdict != "pass"
				if output == "json" {
					text, err := json.Marshal(r)
					if err != nil {
						return couldNotRun(err)
					}
					fmt.Fprintln(a.stdout, string(text))
				}
			}
			if output == "table" {
				if err := drill.WriteTable(a.stdout, reports); err != nil {
					return err
				}
			}
			if failed {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	f := cmd.Flags()
	dataDirFlag(f, &dataDir)
	f.StringVarP(&output, "output", "o", "table", "table or json (one report per line)")
	f.IntVar(&repeat, "repeat", 1, "how many times to run the drill")
	f.Float64Var(&o.Load.Rate, "rate", o.Load.Rate, "requests per second, arriving whatever the answers are")
	f.DurationVar(&o.Hold, "hold", o.Hold, "how long the fault lasts")
	f.DurationVar(&o.Warmup, "warmup", o.Warmup, "load without a failure before the fault, and load after the repair")
	f.DurationVar(&o.Slow, "slow", o.Slow, "how much longer than before the fault an answer may take before it counts as slow, and as an outage")
	f.DurationVar(&o.Load.Timeout, "timeout", o.Load.Timeout, "a request without an answer after this has failed")
	f.DurationVar(&o.Recover, "recover", o.Recover, "how long to wait for the steady state after the repair")
	f.DurationVar(&o.MaxOutage, "max-outage", 0, "longest outage with which the drill passes (0: the drill's own)")
	return cmd
}

func couldNotRun(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: 2, err: err}
}

// restore gives power and links back to every zone and starts what stands
// still.
func restore(ctx context.Context, a *app, client *local.Client) error {
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, z := range status.Zones {
		if z.Name == "" {
			continue
		}
		if z.Link == "down" {
			fmt.Fprintf(a.stdout, "zone %s: link up\n", z.Name)
			errs = append(errs, client.Heal(ctx, z.Name))
		}
		if z.Power == "off" {
			fmt.Fprintf(a.stdout, "zone %s: power on\n", z.Name)
			errs = append(errs, client.PowerOn(ctx, z.Name))
		}
	}
	return errors.Join(errs...)
}
