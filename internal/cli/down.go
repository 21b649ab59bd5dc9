package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"fournines/internal/process"
	"fournines/local"
	"fournines/spec"
)

func (a *app) downCommand() *cobra.Command {
	var (
		dataDir    string
		del, hurry bool
		delBackups bool
	)
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the stack in the reverse order of its start",
		Long: `Stop the stack in the reverse order of its start.

It also stops what a supervisor that was killed has left running. Data is kept
unless --delete-data is given; that deletes only a directory that fournines made,
and still keeps the backups of PostgreSQL in it: those go with --delete-backups.
Backups in a directory that the specification names (backup.directory) are never
deleted.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			if delBackups && !del {
				return &exitError{code: 2, err: errors.New("--delete-backups goes with --delete-data")}
			}
			if err := a.down(cmd.Context(), dir, hurry); err != nil {
				return err
			}
			if !del {
				return nil
			}
			return a.deleteData(dir, delBackups)
		},
	}
	f := cmd.Flags()
	dataDirFlag(f, &dataDir)
	f.BoolVar(&del, "delete-data", false, "delete the data directory afterwards, except backups")
	f.BoolVar(&delBackups, "delete-backups", false, "with --delete-data: delete the backups in the data directory too")
	f.BoolVar(&hurry, "now", false, "kill everything at once instead of stopping in order")
	return cmd
}

// deleteData deletes the data directory, and the backups in it only on request:
// they are what is left when the rest was deleted by mistake.
func (a *app) deleteData(dir string, backups bool) error {
	if backups || !local.HasBackups(dir) {
		if err := local.DeleteDir(dir); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "Deleted %s.\n", dir)
		return nil
	}
	if err := local.DeleteDir(dir, local.BackupFolder); err != nil {
		return err
	}
	folder := filepath.Join(dir, local.BackupFolder)
	fmt.Fprintf(a.stdout, "Deleted %s, except the backups of PostgreSQL in %s; `fournines down --delete-data --delete-backups` deletes them.\n", dir, folder)
	sets, err := filepath.Glob(filepath.Join(folder, "backup", "*"))
	if err != nil {
		return err
	}
	for _, set := range sets {
		fmt.Fprintf(a.stdout, "After an `up` here, `fournines backup restore --set %s --dir DIR` brings them back.\n", filepath.Base(set))
	}
	return nil
}

// down stops the stack of a data directory, with or without its supervisor.
func (a *app) down(ctx context.Context, dir string, hurry bool) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(a.stdout, "Nothing runs: there is no %s.\n", dir)
		return nil
	}
	began := time.Now()
	client := local.NewClient(dir)
	defer client.Close()
	err := client.Down(ctx, hurry)
	if errors.Is(err, local.ErrNotRunning) && local.IsDataDir(dir) {
		// An `up` that is about to start the supervisor must not win afterwards.
		turn, turnErr := local.AwaitTurn(ctx, dir)
		if turnErr != nil {
			return turnErr
		}
		defer turn.Release()
		err = client.Down(ctx, hurry)
	}
	if err == nil {
		fmt.Fprintf(a.stdout, "Stopped in %.1f s.\n", time.Since(began).Seconds())
		return nil
	}
	if !errors.Is(err, local.ErrNotRunning) {
		return err
	}
	return a.downLeftovers(ctx, dir, hurry)
}

// downLeftovers stops what runs without a supervisor.
func (a *app) downLeftovers(ctx context.Context, dir string, hurry bool) error {
	if !local.IsDataDir(dir) {
		return fmt.Errorf("%s is not the data directory of a stack; name it with --data-dir", dir)
	}
	lock, err := local.Acquire(dir)
	if err != nil {
		return err
	}
	defer lock.Release()
	opts := local.Options{}
	if hurry {
		opts.DownTimeout = time.Nanosecond
	}
	began := time.Now()
	n, err := local.StopLeftovers(ctx, dir, lock, a.planOrNil(ctx, dir), opts)
	if err != nil {
		return err
	}
	if n == 0 {
		fmt.Fprintf(a.stdout, "Nothing runs in %s.\n", dir)
		return nil
	}
	fmt.Fprintf(a.stdout, "Stopped %d processes that ran without a supervisor in %.1f s.\n", n, time.Since(began).Seconds())
	return nil
}

// planOrNil builds the plan of a data directory if that is possible: stopping
// must work with a damaged specification too.
func (a *app) planOrNil(ctx context.Context, dir string) *local.Plan {
	s, err := spec.Load(filepath.Join(dir, local.SpecFile))
	if err != nil {
		return nil
	}
	owner, err := stackOwner(defaultUser)
	if err != nil {
		owner = process.Owner{} // nothing is started any more
	}
	plan, err := a.planFor(ctx, s, dir, owner, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintf(a.stderr, "fournines: stopping by the saved state alone, the plan cannot be made: %v\n", err)
		return nil
	}
	return plan
}
