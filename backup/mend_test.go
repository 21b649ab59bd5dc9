package backup_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/backup"
	"fournines/internal/eventually"
)

// TestArchiveWithAHole starts a cluster with a scheduler, which takes the first
// backup by itself, and lets the archive lose WAL in the ways in which it can.
func TestArchiveWithAHole(t *testing.T) {
	// Two segments may wait.
	s := newSite(t, func(c *backup.Config) { c.WALLimit = 40 << 20 })
	k := s.open(t, nil)
	ctx := t.Context()
	s.pg.Exec("CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")
	reg := prometheus.NewRegistry()
	scheduler, err := backup.NewScheduler(k, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- scheduler.Run(runCtx) }()
	eventually.Nil(t, 3*archiveLimit, func() error {
		if got := gather(t, reg); got["fournines_backup_backups"] != 1 || got["fournines_backup_wal_bytes"] == 0 {
			return fmt.Errorf("no first backup yet: %v", got)
		}
		return nil
	})
	// A drill that has not been due yet is not late.
	if got := gather(t, reg); got["fournines_backup_last_success_timestamp_seconds drill"] == 0 || got["fournines_backup_wanted"] != 0 {
		t.Errorf("after the first backup: %v", got)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	t.Run("what a new primary has and the archive lacks", func(t *testing.T) {
		s.insert(t, "a")
		segment := s.archive(t, k)
		s.insert(t, "b")
		s.archive(t, k)
		files, err := filepath.Glob(filepath.Join(s.cfg.Folder, "archive", "main", "*", "*", segment+"-*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("segment %s is in %v, %v", segment, files, err)
		}
		if err := os.Remove(files[0]); err != nil {
			t.Fatal(err)
		}
		stored, err := k.Mend(ctx)
		if err != nil || !slices.Equal(stored, []string{segment}) {
			t.Errorf("mended %v, %v; want %s", stored, err, segment)
		}
		if _, err := k.Verify(ctx); err != nil {
			t.Errorf("after mending: %v", err)
		}
		if stored, err := k.Mend(ctx); err != nil || len(stored) != 0 {
			t.Errorf("mended %v, %v a second time", stored, err)
		}
		wanted(t, k, false)
	})

	t.Run("more WAL than may wait", func(t *testing.T) {
		archive := filepath.Join(s.cfg.Folder, "archive", "main")
		if err := os.Chmod(archive, 0o000); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(archive, 0o700) //nolint:gosec // a directory
		for range 4 {
			s.insert(t, "dropped")
			s.pg.Exec("SELECT pg_switch_wal()")
		}
		eventually.Nil(t, archiveLimit, func() error {
			if _, ok, err := k.Wanted(); err != nil || !ok {
				return fmt.Errorf("no backup is wanted yet (%w)", err)
			}
			return nil
		})
		if err := os.Chmod(archive, 0o700); err != nil { //nolint:gosec // a directory
			t.Fatal(err)
		}
		// What still waits may be dropped, too, and then a later backup is wanted.
		eventually.Nil(t, archiveLimit, func() error {
			var waiting int
			err := s.pg.QueryRow("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'").Scan(&waiting)
			if err != nil || waiting > 0 {
				return fmt.Errorf("%d files wait for the archive: %w", waiting, err)
			}
			return nil
		})
		wanted(t, k, true)
		if _, err := k.Now(ctx, ""); err != nil {
			t.Fatal(err)
		}
		wanted(t, k, false)
		s.insert(t, "z")
		s.archive(t, k)
		dir := filepath.Join(s.dir, "after-the-hole")
		defer os.RemoveAll(dir)
		if _, err := k.Restore(ctx, backup.Restore{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		if got := notes(t, dir); len(got) != 7 || got[6] != "z" {
			t.Errorf("restored rows %v, want all seven", got)
		}
	})

	t.Run("another cluster's set", func(t *testing.T) {
		other := newSite(t, func(c *backup.Config) { c.Folder, c.CipherPassFile = s.cfg.Folder, s.cfg.CipherPassFile })
		_, err := other.open(t, nil).Now(ctx, "")
		oneSentence(t, err, "is that of another cluster")
		apart, err := backup.New(other.cfg, backup.Options{ConfigFile: other.cfgFile, Set: "apart"})
		if err != nil {
			t.Fatal(err)
		}
		inv, err := apart.List(ctx)
		if err != nil || len(inv.Backups) != 0 {
			t.Errorf("set apart has %+v, %v", inv, err)
		}
	})
}

// wanted fails the test unless a backup is, or is not, due before its schedule.
func wanted(t *testing.T, k *backup.Backups, want bool) {
	t.Helper()
	why, got, err := k.Wanted()
	if err != nil || got != want {
		t.Errorf("a backup is wanted: %t (%s), %v; want %t", got, why.Reason, err, want)
	}
}
