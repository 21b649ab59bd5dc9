package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fournines/backup"
	"fournines/local"
	"fournines/topology"
)

// Exit codes of `fournines status`.
const (
	exitNotReady = 3
	exitStopped  = 4
)

// dataDirFlag adds --data-dir with its default.
func dataDirFlag(f *pflag.FlagSet, dir *string) {
	f.StringVar(dir, "data-dir", defaultDataDir(), "directory of the stack: its data, logs and state")
}

// defaultDataDir follows the XDG base directories for users, and the file
// system hierarchy for root.
func defaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/fournines"
	}
	if base := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "fournines")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local/share/fournines")
	}
	return ""
}

func (a *app) statusCommand() *cobra.Command {
	var dataDir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the zones and components of the stack",
		Long: `Show the zones and components of the stack.

Exit status: 0 when every component is ready, 3 when the stack is starting or
something in it is not ready, 4 when it is stopped, 1 when that cannot be found
out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return &exitError{code: 2, err: fmt.Errorf("output %q: want table or json", output)}
			}
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			st, err := stackStatus(cmd.Context(), dir)
			if err != nil {
				return err
			}
			if backsUp(st) {
				if st.Backup, err = backupState(dir, time.Now()); err != nil {
					return err
				}
			}
			if output == "json" {
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(st)
			} else {
				err = printStatus(a.stdout, st)
			}
			if err != nil {
				return err
			}
			return statusExit(st)
		},
	}
	dataDirFlag(cmd.Flags(), &dataDir)
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// stackStatus asks the supervisor, or looks for itself when there is none.
func stackStatus(ctx context.Context, dir string) (topology.Status, error) {
	client := local.NewClient(dir)
	defer client.Close()
	st, err := client.Status(ctx)
	if errors.Is(err, local.ErrNotRunning) {
		return local.LeftRunning(dir)
	}
	return st, err
}

// backsUp reports if the stack has a scheduler of backups.
func backsUp(st topology.Status) bool {
	return slices.ContainsFunc(st.Zones, func(z topology.Zone) bool {
		return slices.ContainsFunc(z.Components, func(c topology.Component) bool { return c.Kind == "backup" })
	})
}

// backupState reads how the backups of the stack went; nil when it has none.
func backupState(dir string, now time.Time) (*topology.Backup, error) {
	b := &backupCall{dataDir: dir}
	cfg, err := backup.LoadConfig(b.configFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k, err := backup.New(cfg, backup.Options{ConfigFile: b.configFile()})
	if err != nil {
		return nil, err
	}
	records, err := k.Records()
	if err != nil {
		return nil, err
	}
	r := records[backup.OpBackup]
	state := &topology.Backup{Error: r.Error}
	if !r.LastSuccess.IsZero() {
		age := max(0, now.Sub(r.LastSuccess).Seconds())
		state.AgeSeconds = &age
	}
	return state, nil
}

// backupLine tells the age of the newest backup.
func backupLine(s *topology.Backup) string {
	line := "none yet"
	if s.AgeSeconds != nil {
		line = fmt.Sprintf("the last one ended %v ago", time.Duration(*s.AgeSeconds)*time.Second)
	}
	if s.Error != "" {
		line += "; the newest attempt FAILED: " + s.Error
	}
	return line
}

func statusExit(st topology.Status) error {
	switch st.State {
	case topology.Ready:
		return nil
	case topology.Stopped:
		return &exitError{code: exitStopped}
	}
	return &exitError{code: exitNotReady}
}

// printStatus writes the table of zones and components and what a user needs
// to get at the stack.
func printStatus(w io.Writer, st topology.Status) error {
	if st.State == topology.Stopped {
		_, err := fmt.Fprintf(w, "The stack in %s is stopped; start it with `fournines up`.\n", st.DataDir)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ZONE\tCOMPONENT\tSTATE\tROLE\tADDRESS\tPID\tMEMORY\tRESTARTS\t")
	var total int64
	var reasons []topology.Component
	for _, z := range st.Zones {
		for _, c := range z.Components {
			total += c.MemoryBytes
			if c.State != topology.Ready && c.Reason != "" {
				reasons = append(reasons, c)
			}
			if c.State == topology.Ready && c.PID == 0 {
				continue // a task that has done its work
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", zoneTitle(z), c.Name, c.State, dash(c.Role), dash(c.Address),
				dash(positive(c.PID)), dash(humanBytes(c.MemoryBytes)), c.Restarts)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(reasons) > 0 {
		fmt.Fprintln(w, "\nNot ready:")
		for _, c := range reasons {
			fmt.Fprintf(w, "  %s: %s\n", c.Name, c.Reason)
		}
	}
	if len(st.Endpoints) > 0 {
		fmt.Fprintln(w, "\nEndpoints:")
		tw = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, name := range slices.Sorted(maps.Keys(st.Endpoints)) {
			fmt.Fprintf(tw, "  %s\t%s\t\n", name, st.Endpoints[name])
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	if st.CredentialsFile != "" {
		fmt.Fprintf(w, "\nCredentials: %s\n", st.CredentialsFile)
	}
	if st.Backup != nil {
		fmt.Fprintf(w, "\nBackups: %s\n", backupLine(st.Backup))
	}
	line := fmt.Sprintf("\nThe stack is %s.", st.State)
	if st.StartSeconds > 0 {
		line += fmt.Sprintf(" Its last start took %.1f s.", st.StartSeconds)
	}
	_, err := fmt.Fprintf(w, "%s Memory in all: %s.\n", line, humanBytes(total))
	return err
}

// zoneTitle is the zone's name with what is wrong with it.
func zoneTitle(z topology.Zone) string {
	name := z.Name
	if name == "" {
		name = "-"
	}
	if z.Power == "off" {
		name += " (no power)"
	}
	if z.Link == "down" {
		name += " (cut off)"
	}
	return name
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func positive(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// humanBytes prints a size with three digits; zero is empty.
func humanBytes(n int64) string {
	switch {
	case n <= 0:
		return ""
	case n < 1<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	case n < 1<<30:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
}
