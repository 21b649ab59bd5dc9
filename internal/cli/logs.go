package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"fournines/local"
)

func (a *app) logsCommand() *cobra.Command {
	var (
		dataDir string
		lines   int
		follow  bool
	)
	cmd := &cobra.Command{
		Use:   "logs [-f] [-n LINES] COMPONENT",
		Short: "Print the log of a component, also of one that has stopped",
		Long: `Print the log of a component, also of one that has stopped.

"supervisor" is the log of the supervisor itself. Without a name the command
lists the logs there are. Following goes on over rotations.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			return a.logs(cmd.Context(), dir, args, lines, follow)
		},
	}
	f := cmd.Flags()
	dataDirFlag(f, &dataDir)
	f.IntVarP(&lines, "lines", "n", 100, "how many lines of the past to print")
	f.BoolVarP(&follow, "follow", "f", false, "go on printing what is added")
	return cmd
}

func (a *app) logs(ctx context.Context, dir string, args []string, lines int, follow bool) error {
	names, err := local.LogNames(dir)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("there are no logs in %s; is it the right --data-dir?", dir)
	}
	if len(args) == 0 {
		_, err := fmt.Fprintln(a.stdout, strings.Join(names, "\n"))
		return err
	}
	name := args[0]
	if !slices.Contains(names, name) {
		return fmt.Errorf("there is no log of %q; there are %s", name, strings.Join(names, ", "))
	}
	if follow {
		return local.FollowLog(ctx, dir, name, lines, a.stdout)
	}
	b, err := local.TailLog(dir, name, lines)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b)
	return err
}
