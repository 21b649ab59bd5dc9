package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"fournines/backup"
	"fournines/internal/process"
	"fournines/local"
)

// restoreInPlace puts the database of the stack back to the goal of r.
func (b *backupCall) restoreInPlace(ctx context.Context, r backup.Restore, yes bool) error {
	if b.config != "" || b.set != "" {
		return couldNotRun(errors.New("--in-place is for the stack in --data-dir and its own backups: for other servers restore with --dir and put the directory in place by hand"))
	}
	if r.Goal == (backup.Goal{}) {
		return couldNotRun(errors.New("--in-place needs a moment to go back to: --to, --to-lsn, --to-xid or --to-name"))
	}
	dir, err := local.AbsDir(b.dataDir)
	if err != nil {
		return err
	}
	client := local.NewClient(dir)
	defer client.Close()
	replacement, err := local.NewReplacement(ctx, client, dir, time.Now())
	if err != nil {
		return couldNotRun(err)
	}
	if !yes {
		return couldNotRun(fmt.Errorf("this puts the whole database in %s back to %s and sets aside what was written since: say so with --yes", dir, r.Goal))
	}
	if err := roomFor(replacement.Data()); err != nil {
		return couldNotRun(err)
	}

	r.Dir, r.KeepArchiving = replacement.Prepare(), true
	var done backup.Restored
	if err := b.again(ctx, &done, restoreArguments(r)...); err != nil {
		return errors.Join(fmt.Errorf("nothing was changed: %w", err), os.RemoveAll(r.Dir))
	}
	say := func(step string) { fmt.Fprintf(b.app.stderr, "%s\n", step) }
	began := time.Now()
	aside, err := replacement.Replace(ctx, say)
	if err != nil {
		if len(aside) == 0 {
			return errors.Join(fmt.Errorf("the database is as it was; the restored one is in %s: %w", r.Dir, err))
		}
		return fmt.Errorf("the restored database is in place and its server is not ready: see `fournines status` and `fournines logs`; what was there before is in %v: %w", aside, err)
	}
	writable := time.Since(began)
	err = replacement.Finish(ctx, say, func(ctx context.Context) error {
		say("take a new backup")
		return b.again(ctx, nil, "now")
	})
	result := struct {
		backup.Restored
		// Outage is from the stop of the servers to the new primary.
		Outage time.Duration `json:"outage"`
		Aside  []string      `json:"aside"`
	}{done, writable, aside}
	return errors.Join(err, b.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "the database is that of %s (backup %s); it was away for %v\n", r.Goal, done.Label, writable.Round(100*time.Millisecond))
		for _, path := range aside {
			fmt.Fprintf(w, "set aside, remove it when you no longer need it: %s\n", path)
		}
	}))
}

// restoreArguments are those of a restore into r.Dir.
func restoreArguments(r backup.Restore) []string {
	args := []string{"restore", "--dir", r.Dir, "--keep-archiving"}
	switch g := r.Goal; {
	case !g.Time.IsZero():
		args = append(args, "--to", g.Time.Format(time.RFC3339Nano))
	case g.LSN != "":
		args = append(args, "--to-lsn", g.LSN)
	case g.XID != 0:
		args = append(args, "--to-xid", strconv.FormatUint(g.XID, 10))
	default:
		args = append(args, "--to-name", g.Name)
	}
	if r.Label != "" {
		args = append(args, "--backup", r.Label)
	}
	return args
}

// again runs another command of backup as a process of its own, which becomes the
// account of the servers, while this one keeps the rights to operate the stack.
func (b *backupCall) again(ctx context.Context, answer any, args ...string) error {
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own program: %w", err)
	}
	args = append(append([]string{"backup"}, args...), "--data-dir", b.dataDir, "--output", "json")
	cmd := exec.CommandContext(ctx, executable, args...)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, b.app.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("backup %s: %w", args[1], err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), answer)
}

// roomFor refuses when the disks have no room for another copy of each directory:
// the old ones stay.
func roomFor(dirs []string) error {
	var need uint64
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the server removes files all the time
			}
			if err != nil || entry.IsDir() {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return nil //nolint:nilerr // removed meanwhile
			}
			need += uint64(info.Size())
			return nil
		})
		if err != nil {
			return fmt.Errorf("measure the database: %w", err)
		}
	}
	free, err := process.FreeBytes(filepath.Dir(dirs[0]))
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("the disk of %s has %s free, and the new copies beside the old ones may take %s", dirs[0], backup.Bytes(int64(free)), backup.Bytes(int64(need)))
	}
	return nil
}
