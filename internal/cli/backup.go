package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/backup"
	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
	"fournines/internal/process"
)

// backupCall is what the subcommands of backup share.
type backupCall struct {
	app             *app
	config, dataDir string
	output          string
	// set is the name of another set of backups than that of the configuration.
	set string
}

func (a *app) backupCommand() *cobra.Command {
	b := &backupCall{app: a}
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Take, check and restore backups of PostgreSQL",
		Long: `Take, check and restore backups of PostgreSQL.

A backup is a copy of all files of the primary (pgBackRest) and the WAL since then,
which PostgreSQL archives as it is written; together they bring back any moment of
the days that are kept. Backups go to a folder or to S3, encrypted on request.

Without --config the stack in --data-dir is meant. Root becomes the account that
owns the configuration file.`,
		Example: `  fournines backup list
  fournines backup now
  fournines backup restore --to "2026-11-29 14:05:00" --dir /var/lib/restored`,
		Args: cobra.NoArgs,
	}
	for _, c := range []*cobra.Command{
		b.nowCommand(), b.listCommand(), b.verifyCommand(), b.restoreCommand(), b.pruneCommand(),
		b.drillCommand(), b.scheduleCommand(),
		b.archivePushCommand(), b.archiveGetCommand(),
	} {
		c.Flags().StringVar(&b.config, "config", "", "configuration file (YAML); empty means that of the stack in --data-dir")
		dataDirFlag(c.Flags(), &b.dataDir)
		cmd.AddCommand(c)
	}
	return cmd
}

func (b *backupCall) withOutput(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&b.output, "output", "o", "table", "table or json")
	return c
}

// withSet lets the command look at another set of backups.
func (b *backupCall) withSet(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&b.set, "set", "", "set of backups, when it is one that an earlier cluster left in the same target")
	return c
}

func (b *backupCall) nowCommand() *cobra.Command {
	var kind string
	c := &cobra.Command{
		Use: "now", Short: "Take a backup of whichever server is primary", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kind != "" && kind != backup.Full && kind != backup.Differential {
				return couldNotRun(fmt.Errorf("type %q: want full or diff", kind))
			}
			return b.with(func(k *backup.Backups) error {
				taken, err := k.Now(cmd.Context(), kind)
				if err != nil {
					return err
				}
				return b.print(taken, func(w io.Writer) {
					fmt.Fprintf(w, "backup %s of %s, %s in %s, took %v\n", taken.Label,
						backup.Bytes(taken.Size), backup.Bytes(taken.Stored), k.Target(), taken.Ended.Sub(taken.Started))
				})
			})
		},
	}
	c.Flags().StringVar(&kind, "type", "", "full or diff; empty means what the schedule would take now")
	return b.withOutput(c)
}

func (b *backupCall) listCommand() *cobra.Command {
	return b.withSet(b.withOutput(&cobra.Command{
		Use: "list", Short: "List the backups and how the last runs went", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return b.with(func(k *backup.Backups) error {
				inv, err := k.List(cmd.Context())
				if err != nil {
					return err
				}
				records, err := k.Records()
				if err != nil {
					return err
				}
				all := struct {
					Target string `json:"target"`
					backup.Inventory
					Runs map[string]backup.Record `json:"runs"`
				}{k.Target(), inv, records}
				return b.print(all, func(w io.Writer) { printBackups(w, k.Target(), inv, records) })
			})
		},
	}))
}

func printBackups(w io.Writer, target string, inv backup.Inventory, records map[string]backup.Record) {
	fmt.Fprintf(w, "in %s:\n", target)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LABEL\tTYPE\tENDED\tTOOK\tDATABASE\tSTORED\tFIRST WAL")
	for _, k := range inv.Backups {
		fmt.Fprintf(table, "%s\t%s\t%s\t%v\t%s\t%s\t%s\n", k.Label, k.Type, k.Ended.Format(time.RFC3339),
			k.Ended.Sub(k.Started), backup.Bytes(k.Size), backup.Bytes(k.Stored), k.FirstWAL)
	}
	_ = table.Flush() // a failed write shows at the next line
	if len(inv.Backups) == 0 {
		fmt.Fprintln(w, "none yet: fournines backup now")
	} else {
		fmt.Fprintf(w, "every moment from %s to WAL segment %s can be restored\n", inv.Backups[0].Ended.Format(time.RFC3339), inv.LastWAL)
	}
	for _, op := range []string{backup.OpBackup, backup.OpPrune, backup.OpVerify, backup.OpDrill} {
		r, ok := records[op]
		switch {
		case !ok:
		case r.Ended.IsZero():
			fmt.Fprintf(w, "%s runs since %s\n", op, r.Started.Format(time.RFC3339))
		case r.Failed():
			fmt.Fprintf(w, "the last %s FAILED at %s: %s\n", op, r.Ended.Format(time.RFC3339), r.Error)
		default:
			fmt.Fprintf(w, "the last %s went well at %s\n", op, r.Ended.Format(time.RFC3339))
		}
	}
}

func (b *backupCall) verifyCommand() *cobra.Command {
	return b.withSet(b.withOutput(&cobra.Command{
		Use: "verify", Short: "Read everything in the target and compare it with its checksums", Args: cobra.NoArgs,
		Long: `Read everything in the target and compare it with its checksums.

Also checks that the WAL from the oldest backup on has no hole. Exit status: 0 all
is well, 1 something is corrupt or missing, 2 it could not run.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return b.with(func(k *backup.Backups) error {
				v, err := k.Verify(cmd.Context())
				if err != nil && len(v.Problems) == 0 {
					return couldNotRun(err)
				}
				if printed := b.print(v, func(w io.Writer) {
					for _, p := range v.Problems {
						fmt.Fprintln(w, p)
					}
					fmt.Fprintf(w, "%d backups and %d WAL segments read: %d problems\n", len(v.Checked), v.Segments, len(v.Problems))
				}); printed != nil {
					return printed
				}
				if err != nil {
					return &exitError{code: 1, err: errors.New("the backups in " + k.Target() + " are damaged")}
				}
				return nil
			})
		},
	}))
}

func (b *backupCall) restoreCommand() *cobra.Command {
	var r backup.Restore
	var to string
	var inPlace, yes bool
	c := &cobra.Command{
		Use:   "restore {--dir DIR | --in-place --yes} [--to TIME | --to-lsn LSN | --to-xid ID | --to-name NAME]",
		Short: "Restore the cluster as it was at a moment, aside or in place",
		Long: `Restore the cluster as it was at a moment, into an empty directory or in place.

Without a target everything in the archive is restored. A private server carries
the recovery out, which proves that the target can be reached, and stops; then the
directory is ready for a server. With --dir nothing that runs is touched: a
directory that is not empty is refused.

The restored directory has archive_mode off, so that it cannot archive into the
set of backups of the original. When it takes the original's place, restore it
with --keep-archiving.

With --in-place the whole database of the stack in --data-dir is put back: what was
written after that moment is gone from it. The restore is made and proven beside the
running servers first; only then they are stopped, their data directories are set
aside (nothing is deleted), the restored one takes over as primary, the standbys
copy it, and a new backup is taken. Clients wait or get errors from the stop until
the new primary is there.`,
		Example: `  fournines backup restore --dir /var/lib/restored --to "2026-11-29 14:05:00"
  fournines backup restore --dir /var/lib/restored --to-xid 48211
  fournines backup restore --in-place --yes --to "2026-11-29 14:05:00"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if to != "" {
				if r.Goal.Time, err = parseMoment(to, time.Local); err != nil {
					return couldNotRun(err)
				}
			}
			if inPlace {
				return b.restoreInPlace(cmd.Context(), r, yes)
			}
			if r.Dir, err = filepath.Abs(r.Dir); err != nil {
				return err
			}
			if err := makeFor(r.Dir, b.configFile()); err != nil {
				return couldNotRun(err)
			}
			return b.with(func(k *backup.Backups) error {
				done, err := k.Restore(cmd.Context(), r)
				if err != nil {
					return err
				}
				return b.print(done, func(w io.Writer) {
					fmt.Fprintf(w, "restored backup %s to %s into %s in %v\n", done.Label, r.Goal, done.Dir, done.Took.Round(100*time.Millisecond))
					if !done.LastCommit.IsZero() {
						fmt.Fprintf(w, "last transaction: %s; WAL position %s\n", done.LastCommit.Format(time.RFC3339Nano), done.LSN)
					}
				})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&r.Dir, "dir", "", "data directory to make; empty or not there yet")
	f.StringVar(&to, "to", "", `time, like "2026-11-29 14:05:00" (this machine's zone) or 2026-11-29T14:05:00Z`)
	f.StringVar(&r.Goal.LSN, "to-lsn", "", "WAL position, like 0/3000148")
	f.Uint64Var(&r.Goal.XID, "to-xid", 0, "the last transaction to restore")
	f.StringVar(&r.Goal.Name, "to-name", "", "restore point made with pg_create_restore_point")
	f.StringVar(&r.Label, "backup", "", "backup to begin with; empty means the newest that ends before the target")
	f.BoolVar(&r.FilesOnly, "files-only", false, "leave the recovery to the server that is started on the directory")
	f.BoolVar(&r.KeepArchiving, "keep-archiving", false, "the restored server takes the place of the original and archives on")
	f.BoolVar(&inPlace, "in-place", false, "put the whole database of the stack back to that moment")
	f.BoolVar(&yes, "yes", false, "with --in-place: yes, what was written since is to go")
	c.MarkFlagsOneRequired("dir", "in-place")
	c.MarkFlagsMutuallyExclusive("dir", "in-place")
	c.MarkFlagsMutuallyExclusive("files-only", "in-place")
	c.MarkFlagsMutuallyExclusive("to", "to-lsn", "to-xid", "to-name")
	return b.withSet(b.withOutput(c))
}

func (b *backupCall) pruneCommand() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "prune", Short: "Remove backups and WAL that are older than keepDays", Args: cobra.NoArgs,
		Long: `Remove backups and WAL that are older than keepDays. Every backup does so at its end
as well. The newest backup that is older stays, because going back to the first of
those days begins with it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return b.with(func(k *backup.Backups) error {
				removed, err := k.Prune(cmd.Context(), dry)
				if err != nil {
					return err
				}
				return b.print(struct {
					Removed []string `json:"removed"`
					DryRun  bool     `json:"dryRun"`
				}{append([]string{}, removed...), dry}, func(w io.Writer) {
					for _, label := range removed {
						fmt.Fprintln(w, label)
					}
					fmt.Fprintf(w, "%d backups removed%s\n", len(removed), map[bool]string{true: " (not really: --dry-run)"}[dry])
				})
			})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "say what would go and remove nothing")
	return b.withOutput(c)
}

func (b *backupCall) drillCommand() *cobra.Command {
	return b.withOutput(&cobra.Command{
		Use: "drill", Short: "Restore the newest backup aside and prove that it is what the original was", Args: cobra.NoArgs,
		Long: `Restore the newest backup aside and prove that it is what the original was.

Marks a point on the primary, restores to it into a scratch directory in stateDir
(which needs room for the whole cluster), starts a private server on it, and checks
the copy: a row written just before the point is there, one written just after is
not, tables have as many rows as the original had, every page can be read, every
index fits its table (amcheck). Reports what would be lost (RPO) and how long a
restore takes (RTO), and removes the copy.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return b.with(func(k *backup.Backups) error {
				d, err := k.Drill(cmd.Context())
				if err != nil {
					return err
				}
				return b.print(d, func(w io.Writer) {
					fmt.Fprintf(w, "backup %s restored and checked: %d tables, %d rows, %d indexes\n", d.Label, d.Tables, d.Rows, d.Indexes)
					fmt.Fprintf(w, "recovery point: at most %v lost; recovery time: %v\n", d.RPO.Round(100*time.Millisecond), d.RTO.Round(100*time.Millisecond))
				})
			})
		},
	})
}

func (b *backupCall) scheduleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schedule", Short: "Take backups and run restore drills when they are due, until stopped", Args: cobra.NoArgs,
		Long: `Take backups and run restore drills when they are due, until stopped.

schedule and drillSchedule of the configuration say when. What was missed while
this did not run is made up for at once; a failure is tried again after a pause
that grows. adminListen serves /metrics.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := becomeOwner(b.configFile()); err != nil {
				return couldNotRun(err)
			}
			cfg, err := backup.LoadConfig(b.configFile())
			if err != nil {
				return couldNotRun(err)
			}
			log, err := logging.New(b.app.stderr, cfg.LogLevel)
			if err != nil {
				return couldNotRun(fmt.Errorf("logLevel: %w", err))
			}
			log = log.With("component", "backup")
			k, err := backup.New(cfg, backup.Options{ConfigFile: b.configFile()})
			if err != nil {
				return couldNotRun(err)
			}
			reg := processRegistry()
			s, err := backup.NewScheduler(k, log, reg)
			if err != nil {
				return couldNotRun(err)
			}
			var group lifecycle.Group
			if err := addAdmin(cmd.Context(), &group, cfg.AdminListen, &adminhttp.Server{Gatherer: reg, Ready: s.Ready}); err != nil {
				return err
			}
			group.Add("schedule", s.Run)
			log.Info("started", "target", k.Target(), "schedule", cfg.Schedule, "drill_schedule", cfg.DrillSchedule)
			return group.Run(cmd.Context())
		},
	}
}

func (b *backupCall) archivePushCommand() *cobra.Command {
	return &cobra.Command{
		Use: "archive-push FILE", Short: "Store one WAL file; PostgreSQL's archive_command calls it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return b.with(func(k *backup.Backups) error {
				dropped, err := k.Push(cmd.Context(), args[0])
				if dropped {
					fmt.Fprintf(b.app.stderr, "fournines: %s was dropped: the archive takes none and more than walLimit waits for it\n", args[0])
				}
				return err
			})
		},
	}
}

// noSuchWAL ends archive-get when the archive does not have the file. PostgreSQL
// takes every status up to 125 for that; it is apart from 1 for people.
const noSuchWAL = 3

func (b *backupCall) archiveGetCommand() *cobra.Command {
	return b.withSet(&cobra.Command{
		Use: "archive-get NAME PATH", Short: "Fetch one WAL file; PostgreSQL's restore_command calls it", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return b.with(func(k *backup.Backups) error {
				err := k.Fetch(cmd.Context(), args[0], args[1])
				if errors.Is(err, backup.ErrNotArchived) {
					return &exitError{code: noSuchWAL, err: err}
				}
				return err
			})
		},
	})
}

// with opens the configuration and calls do as the account that owns it.
func (b *backupCall) with(do func(*backup.Backups) error) error {
	if b.output != "" && b.output != "table" && b.output != "json" {
		return couldNotRun(fmt.Errorf("output %q: want table or json", b.output))
	}
	k, progress, err := b.open()
	if err != nil {
		return couldNotRun(err)
	}
	defer progress.end()
	return do(k)
}

// configFile is the file that --config names, or that of the stack.
func (b *backupCall) configFile() string {
	if b.config != "" {
		return b.config
	}
	return filepath.Join(b.dataDir, "backup", "config.yaml")
}

func (b *backupCall) open() (*backup.Backups, *progressLine, error) {
	file := b.configFile()
	if b.config == "" {
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("the stack in %s has no backups: set backup.enabled in its spec and run `fournines up`, or name a configuration with --config", b.dataDir)
		}
	}
	if err := becomeOwner(file); err != nil {
		return nil, nil, err
	}
	cfg, err := backup.LoadConfig(file)
	if err != nil {
		return nil, nil, err
	}
	progress := newProgressLine(b.app.stderr)
	k, err := backup.New(cfg, backup.Options{ConfigFile: file, Set: b.set, Progress: progress.show})
	return k, progress, err
}

// becomeOwner makes a process of root one of the account that owns the file:
// what it writes has to be readable for the servers, which root does not run.
func becomeOwner(file string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return fmt.Errorf("%s belongs to root: give it to the account that PostgreSQL runs as (chown)", file)
	}
	groups := []int{int(st.Gid)}
	if account, err := user.LookupId(strconv.Itoa(int(st.Uid))); err == nil {
		if ids, err := account.GroupIds(); err == nil {
			groups = groups[:0]
			for _, id := range ids {
				if n, err := strconv.Atoi(id); err == nil {
					groups = append(groups, n)
				}
			}
		}
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("become the owner of %s: %w", file, err)
	}
	if err := syscall.Setgid(int(st.Gid)); err != nil {
		return fmt.Errorf("become the owner of %s: %w", file, err)
	}
	if err := syscall.Setuid(int(st.Uid)); err != nil {
		return fmt.Errorf("become the owner of %s: %w", file, err)
	}
	return nil
}

// print writes value as JSON or lets table write it for people.
func (b *backupCall) print(value any, table func(io.Writer)) error {
	if b.output != "json" {
		table(b.app.stdout)
		return nil
	}
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(b.app.stdout, string(text))
	return err
}

// momentForms are the ways to write a time, the ones with a zone first.
var momentForms = []string{
	time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999 Z07:00",
	"2006-01-02 15:04:05.999999999-07", "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04",
}

// parseMoment reads a time; without a zone it is one of zone.
func parseMoment(text string, zone *time.Location) (time.Time, error) {
	for _, form := range momentForms {
		if t, err := time.ParseInLocation(form, strings.TrimSpace(text), zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(`time %q: want it like "2026-11-29 14:05:00" (in the zone of this machine) or 2026-11-29T14:05:00Z`, text)
}

// makeFor makes a directory that does not exist yet for the owner of the file:
// its parent may be one that only root can write to.
func makeFor(dir, file string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return process.MkdirAll(dir, 0o700, process.Owner{UID: int(st.Uid), GID: int(st.Gid)})
}
