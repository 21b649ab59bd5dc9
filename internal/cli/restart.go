package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"fournines/local"
	"fournines/topology"
)

// defaultWait is how long restart, start and zone on wait for readiness.
const defaultWait = 2 * time.Minute

func (a *app) restartCommand() *cobra.Command {
	return a.componentCommand("restart", "Start a component anew; a gateway without closing its port or cutting a stream", true, (*local.Client).Restart)
}

// componentCommand is a command that asks one verb of a component. With waits
// it returns when the component is ready again.
func (a *app) componentCommand(verb, short string, waits bool, ask func(*local.Client, context.Context, string) error) *cobra.Command {
	var (
		dataDir string
		wait    time.Duration
	)
	cmd := &cobra.Command{
		Use:   verb + " COMPONENT",
		Short: short,
		Args:  exactlyOne("component", "fournines status"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			client := local.NewClient(dir)
			defer client.Close()
			if err := ask(client, cmd.Context(), args[0]); err != nil {
				return err
			}
			if !waits || wait <= 0 {
				return nil
			}
			return awaitComponent(cmd.Context(), client, dir, args[0], wait)
		},
	}
	dataDirFlag(cmd.Flags(), &dataDir)
	if waits {
		cmd.Flags().DurationVar(&wait, "wait", defaultWait, "how long to wait until it is ready; 0 does not wait")
	}
	return cmd
}

func exactlyOne(what, list string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return &exitError{code: 2, err: fmt.Errorf("%s wants the name of one %s; see `%s`", cmd.CommandPath(), what, list)}
		}
		return nil
	}
}

// errDone ends an event stream whose reader has seen enough.
var errDone = errors.New("done")

// awaitComponent returns when the component is ready.
func awaitComponent(ctx context.Context, client *local.Client, dir, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last topology.Component
	err := client.Events(ctx, func(e local.Event) error {
		if e.Component == nil || e.Component.Name != name {
			return nil
		}
		last = *e.Component
		if last.State == topology.Ready {
			return errDone
		}
		return nil
	})
	switch {
	case errors.Is(err, errDone):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s is not ready after %v: %s", name, limit, failureReport(dir, last))
	case err != nil:
		return err
	}
	return errors.New("the stack was stopped meanwhile")
}
