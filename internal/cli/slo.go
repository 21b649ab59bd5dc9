package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/internal/promapi"
	"fournines/local"
	"fournines/observe/rules"
	"fournines/observe/slo"
)

// exitOverspent is the exit code of `fournines slo status` when a budget is gone.
const exitOverspent = 3

func (a *app) sloCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "slo",
		Short: "Look at the service level objectives",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.sloStatusCommand())
	return cmd
}

func (a *app) sloStatusCommand() *cobra.Command {
	var dataDir, server, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how much error budget is left, how fast it burns, and who spends it",
		Long: `Show how much error budget is left, how fast it burns, and who spends it.

It counts what users felt, planned work included: requests that failed, answers
that broke off or began late, connections that nobody took. Budgets are told for
the time for which Prometheus has data; the column DATA says how much that is.

Exit status: 0 while every budget of the window is kept, 3 when one is overspent,
1 when that cannot be found out.`,
		Example: `  fournines slo status
  fournines slo status --prometheus http://prometheus:9090 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return &exitError{code: 2, err: fmt.Errorf("output %q: want table or json", output)}
			}
			if server == "" {
				var err error
				if server, err = stackPrometheus(dataDir); err != nil {
					return err
				}
			}
			client, err := promapi.New(server)
			if err != nil {
				return &exitError{code: 2, err: fmt.Errorf("--prometheus: %w", err)}
			}
			st, err := slo.Read(cmd.Context(), client, time.Now())
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(st)
			} else {
				err = printSLO(a.stdout, st)
			}
			if err != nil {
				return err
			}
			for _, i := range st.Indicators {
				if i.Window.Left < 0 {
					return &exitError{code: exitOverspent}
				}
			}
			return nil
		},
	}
	dataDirFlag(cmd.Flags(), &dataDir)
	cmd.Flags().StringVar(&server, "prometheus", "", "URL of the Prometheus to ask; empty means the stack's own")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// stackPrometheus is the address that the credentials file of a stack names.
func stackPrometheus(dataDir string) (string, error) {
	dir, err := local.AbsDir(dataDir)
	if err != nil {
		return "", err
	}
	c, err := local.ReadCredentials(dir)
	if err != nil {
		return "", fmt.Errorf("%w, or name a Prometheus with --prometheus", err)
	}
	return c.Prometheus.URL, nil
}

// printSLO writes the status for a person.
func printSLO(w io.Writer, st *slo.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "OBJECTIVE\tPERIOD\tDATA\tREQUESTS\tBAD\tALLOWED\tBUDGET LEFT\tFULL OUTAGE LEFT\t")
	for _, i := range st.Indicators {
		for _, b := range []slo.Budget{i.Window, i.Year} {
			fmt.Fprintf(tw, "%s %s\t%s\t%s\t%.0f\t%.0f\t%s\t%s\t%s\t\n", i.Name, percent(i.Objective),
				days(b.Period), days(b.Covered), b.Requests, b.Bad, count(b.Allowed), percent(b.Left), outage(b.LeftSeconds))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nBurn (1 spends just all of it):")
	tw = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, i := range st.Indicators {
		fmt.Fprintf(tw, "  %s\t", i.Name)
		if len(i.Burns) == 0 {
			fmt.Fprint(tw, "no requests of late\t")
		}
		for _, b := range i.Burns {
			fmt.Fprintf(tw, "%s: %s\t", b.Window, count(b.Rate))
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, i := range st.Indicators {
		what := "failed requests"
		if i.Name == rules.Latency {
			what = "late answers"
		}
		if err := printSpenders(w, "Top spenders by app, "+what, i.Apps); err != nil {
			return err
		}
	}
	if err := printSpenders(w, "Instances that answered 5xx", st.Instances); err != nil {
		return err
	}
	if st.Refused >= 0.5 {
		fmt.Fprintf(w, "\nConnections that no gateway took: %.0f\n", st.Refused)
	}
	return nil
}

func printSpenders(w io.Writer, title string, list []slo.Spender) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range list {
		fmt.Fprintf(tw, "  %s\t%.0f of %.0f\t%s\t\n", s.Name, s.Bad, s.Requests, percent(s.Share))
	}
	return tw.Flush()
}

// count writes a number with three digits, whole from 100 on.
func count(v float64) string {
	if math.Abs(v) >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// percent keeps the nines: 0.9999 is 99.99%.
func percent(share float64) string {
	text := fmt.Sprintf("%.3f", 100*share)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".") + "%"
}

// days writes a period: 30d, 7h, 12m.
func days(seconds float64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dm", d/time.Minute)
}

// outage writes how long everything may fail: 4m19s, 52m34s.
func outage(seconds float64) string {
	return (time.Duration(seconds*1000) * time.Millisecond).Round(time.Second).String()
}
