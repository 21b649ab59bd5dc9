package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"fournines/availability"
	"fournines/proof"
)

// notEnoughEvidence is the exit status when the target is neither shown to hold
// nor shown not to.
const notEnoughEvidence = 3

// proveCommand estimates a year from recorded drills.
func (a *app) proveCommand() *cobra.Command {
	var (
		f      modelFlags
		drills drillFlags
		output string
		years  int
	)
	cmd := &cobra.Command{
		Use:   "prove [--from FILE|FOLDER]",
		Short: "Say from drills whether the availability target holds",
		Long: `Runs every drill of the catalogue on the running stack, or reads what drills
recorded (--from), puts it together with how often faults happen, and says what a
year costs: the availability with its 95% interval, what single years
may bring, which faults spend the budget, what the answer depends on, and the
verdict: the target holds, does not hold, or there is not enough evidence. Faults
that a drill could measure and none did are named.

Recorded drills are the output of "fournines drill NAME -o json" (one report or
many in a file) and tables of faults such as bench/results/postgres-failover.json.
How often things fail is in a table whose every number has its source and can be
replaced by your own (--model; "fournines plan --write-model" shows it).

The drills break the stack under load and mend it again, each several times
(--repeat), all of them once before the second time. Reports are kept in the folder
--save, and --from reads them again. --quick runs each drill once, in one zone and
with short faults.

docs/proof.md has the method, the rule of the verdict, and every default.

Exit status: 0 the target holds, 1 it does not hold, 2 it could not run,
3 not enough evidence.`,
		Example: `  fournines prove --quick
  fournines prove --repeat 5 --save drills/ -o html > proof.html
  fournines drill zone-loss a --repeat 5 -o json > drills/zone-loss.json
  fournines prove --from drills/ --from bench/results/postgres-failover.json
  fournines prove --from drills/ --model availability.yaml -o html > proof.html`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			write := map[string]func(io.Writer, *proof.Report) error{"table": proof.WriteTable, "json": proof.WriteJSON, "html": proof.WriteHTML}[output]
			switch {
			case write == nil:
				return couldNotRun(fmt.Errorf("output %q: want table, json or html", output))
			case years < 20 || years > 10_000_000:
				return couldNotRun(fmt.Errorf("--years %d: want 20 to 10000000", years))
			}
			m, records, err := f.read(a, cmd)
			if err != nil {
				return couldNotRun(err)
			}
			if len(f.from) == 0 {
				if drills.quick {
					drills.short(cmd)
				}
				if records, err = drills.runDrills(cmd.Context(), a); err != nil {
					return couldNotRun(err)
				}
			}
			// Ten years in each world that is drawn, as far as they reach.
			o := availability.Options{Seed: f.seed, Years: 10, Played: years / 10}
			o.Worlds = max(4000, o.Played)
			r, err := proof.New(cmd.Context(), m, records, o, time.Now())
			if err != nil {
				return couldNotRun(err)
			}
			for _, name := range r.Unused {
				fmt.Fprintf(a.stderr, "drill %s stands for no class of faults and is not used\n", name)
			}
			if err := write(a.stdout, r); err != nil {
				return couldNotRun(err)
			}
			switch r.Verdict {
			case availability.Fail:
				return &exitError{code: 1}
			case availability.Unknown:
				return &exitError{code: notEnoughEvidence}
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or html (one page that needs nothing else)")
	cmd.Flags().IntVar(&years, "years", 10000, "how many single years to play")
	drills.add(cmd)
	return cmd
}
