package backup_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"fournines/backup"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// cipherPass must be nowhere but in its file.
const cipherPass = "correct-horse-battery-staple"

// archiveLimit bounds how long a segment takes to the archive on a busy machine.
const archiveLimit = time.Minute

// site is a cluster with an archive.
type site struct {
	pg      *servertest.Postgres
	dir     string
	cfg     backup.Config
	cfgFile string
}

// newSite starts a server that archives into a folder, encrypted.
func newSite(t *testing.T, change func(*backup.Config)) *site {
	t.Helper()
	servertest.Need(t, backup.DefaultPgBackRest)
	dir, err := os.MkdirTemp("", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &site{dir: dir, cfgFile: filepath.Join(dir, "backup.yaml")}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.pg = servertest.NewPostgres(t, servertest.PostgresOptions{Settings: map[string]string{
		"unix_socket_directories": dir, "wal_level": "replica",
		"archive_mode": "on", "archive_command": backup.ArchiveCommand(executable, s.cfgFile), "archive_timeout": "60s",
	}})
	s.cfg = backup.Default()
	s.cfg.Name, s.cfg.StateDir, s.cfg.Folder = "main", filepath.Join(dir, "state"), filepath.Join(dir, "repository")
	s.cfg.CipherPassFile = s.secret(t, "cipher", cipherPass)
	s.cfg.PasswordFile = s.secret(t, "superuser", s.pg.Password("postgres"))
	s.cfg.Nodes = []backup.Node{{Name: "postgres-a", DataDir: s.pg.DataDir(), SocketDir: dir, Port: s.pg.Port()}}
	if change != nil {
		change(&s.cfg)
	}
	s.write(t, s.cfgFile, s.cfg)
	return s
}

func (s *site) secret(t *testing.T, name, value string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *site) write(t *testing.T, path string, cfg backup.Config) {
	t.Helper()
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// open returns the site's backups with a changed configuration.
func (s *site) open(t *testing.T, change func(*backup.Config)) *backup.Backups {
	t.Helper()
	cfg, err := backup.LoadConfig(s.cfgFile)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	k, err := backup.New(cfg, backup.Options{ConfigFile: s.cfgFile})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// archive ends the current segment and waits until the archive has it.
func (s *site) archive(t *testing.T, k *backup.Backups) string {
	t.Helper()
	var segment string
	if err := s.pg.QueryRow("SELECT pg_walfile_name(pg_switch_wal())").Scan(&segment); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, archiveLimit, func() error {
		lag, err := k.ArchiveLag(t.Context())
		if err == nil && lag.LastArchived < segment {
			err = fmt.Errorf("%s is not archived, only %s", segment, lag.LastArchived)
		}
		return err
	})
	return segment
}

// moment is what identifies a transaction.
type moment struct {
	xid  uint64
	lsn  string
	time time.Time
}

// insert adds a row in a transaction of its own, well apart from the next one.
func (s *site) insert(t *testing.T, note string) moment {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, s.pg.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var m moment
	if err := conn.QueryRow(ctx, "INSERT INTO ledger(note) VALUES ($1) RETURNING txid_current()", note).Scan(&m.xid); err != nil {
		t.Fatal(err)
	}
	// A clock reading between this commit and the next one.
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text, clock_timestamp() FROM pg_sleep(0.01)").Scan(&m.lsn, &m.time); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_sleep(0.01)"); err != nil {
		t.Fatal(err)
	}
	return m
}

// notes reads the rows of a restored directory with PostgreSQL itself, without
// starting a server.
func notes(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/lib/postgresql/15/bin/postgres", "--single", "-D", dir,
		"-c", "hba_file=", "-c", "unix_socket_directories=", "-c", "log_min_messages=error", "postgres")
	cmd.Stdin = strings.NewReader("SELECT note FROM ledger ORDER BY id\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("read %s: %v\n%s", dir, err, out)
	}
	var found []string
	for _, m := range regexp.MustCompile(`note = "([^"]*)"`).FindAllStringSubmatch(string(out), -1) {
		found = append(found, m[1])
	}
	return found
}

// oneSentence checks that err says what is wanted in one line.
func oneSentence(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q, want it to have %q", err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 900 {
		t.Errorf("error is not one sentence: %q", err)
	}
	if strings.Contains(err.Error(), cipherPass) {
		t.Errorf("error has the passphrase: %q", err)
	}
}

// TestBackups takes one cluster through all that can happen to its backups; the
// parts build on each other.
func TestBackups(t *testing.T) {
	s := newSite(t, nil)
	k := s.open(t, nil)
	ctx := t.Context()
	s.pg.Exec("CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")

	inv, err := k.List(ctx)
	if err != nil || len(inv.Backups) != 0 {
		t.Fatalf("before the first backup: %v, %v", inv, err)
	}
	_, err = k.Restore(ctx, backup.Restore{Dir: filepath.Join(s.dir, "nothing")})
	oneSentence(t, err, "has no backup called main")

	first, err := k.Now(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if first.Type != backup.Full || first.Size < 10<<20 || first.Stored == 0 {
		t.Errorf("first backup %+v, want a full one with sizes", first)
	}
	salted, err := os.ReadFile(filepath.Join(s.cfg.Folder, "backup", "main", "backup.info"))
	if err != nil || !strings.HasPrefix(string(salted), "Salted__") {
		t.Errorf("the target is not encrypted (%v)", err)
	}

	a := s.insert(t, "a")
	b := s.insert(t, "b")
	s.pg.Exec("SELECT pg_create_restore_point('before-c')")
	s.insert(t, "c")
	s.archive(t, k)
	second, err := k.Now(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if second.Type != backup.Differential || !slices.Contains(second.Needs, first.Label) {
		t.Errorf("second backup %+v, want a differential one of %s", second, first.Label)
	}
	s.insert(t, "d")
	s.archive(t, k)

	t.Run("recovery to a point", func(t *testing.T) {
		for _, tt := range []struct {
			name    string
			restore backup.Restore
			label   string
			want    []string
		}{
			{"transaction", backup.Restore{Goal: backup.Goal{XID: b.xid}}, first.Label, []string{"a", "b"}},
			{"time", backup.Restore{Goal: backup.Goal{Time: a.time}, Label: first.Label}, first.Label, []string{"a"}},
			{"position", backup.Restore{Goal: backup.Goal{LSN: b.lsn}}, first.Label, []string{"a", "b"}},
			{"name", backup.Restore{Goal: backup.Goal{Name: "before-c"}, Label: first.Label}, first.Label, []string{"a", "b"}},
			{"everything", backup.Restore{KeepArchiving: true}, second.Label, []string{"a", "b", "c", "d"}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.restore.Dir = filepath.Join(s.dir, "restored-"+tt.name)
				done, err := k.Restore(ctx, tt.restore)
				if err != nil {
					t.Fatal(err)
				}
				if done.Label != tt.label || done.LSN == "" || done.Took <= 0 {
					t.Errorf("restored %+v, want it from %s", done, tt.label)
				}
				if got := notes(t, tt.restore.Dir); !slices.Equal(got, tt.want) {
					t.Errorf("restored rows %v, want %v", got, tt.want)
				}
				auto, err := os.ReadFile(filepath.Join(tt.restore.Dir, "postgresql.auto.conf"))
				if strings.Contains(string(auto), "\nrecovery_target") || strings.Contains(string(auto), "\nrestore_command") {
					t.Errorf("the restored server still has a target:\n%s", auto)
				}
				if off := strings.Contains(string(auto), "archive_mode = 'off'"); err != nil || off == tt.restore.KeepArchiving {
					t.Errorf("archive_mode is off in the restored server: %t (%v)", off, err)
				}
				if err := os.RemoveAll(tt.restore.Dir); err != nil {
					t.Error(err)
				}
			})
		}
	})

	t.Run("files only", func(t *testing.T) {
		dir := filepath.Join(s.dir, "files")
		defer os.RemoveAll(dir)
		if _, err := k.Restore(ctx, backup.Restore{Dir: dir, FilesOnly: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
			t.Error(err)
		}
	})

	t.Run("what a restore refuses", func(t *testing.T) {
		full := filepath.Join(s.dir, "full")
		if err := os.MkdirAll(filepath.Join(full, "precious"), 0o700); err != nil {
			t.Fatal(err)
		}
		empty := filepath.Join(s.dir, "refused")
		for _, tt := range []struct {
			name    string
			restore backup.Restore
			want    string
		}{
			{"a running server's directory", backup.Restore{Dir: s.pg.DataDir()}, "is the data directory of a server that runs"},
			{"a directory with something in it", backup.Restore{Dir: full}, "is not empty (precious)"},
			{"the root", backup.Restore{Dir: "/"}, "below the root"},
			{"the future", backup.Restore{Dir: empty, Goal: backup.Goal{Time: time.Now().Add(time.Hour)}}, "is in the future"},
			{"before the oldest backup", backup.Restore{Dir: empty, Goal: backup.Goal{Time: first.Started.Add(-time.Hour)}}, "no backup ends before time"},
			{"a transaction before the oldest backup", backup.Restore{Dir: empty, Goal: backup.Goal{XID: 3}}, "no backup ends before transaction 3"},
			{"a backup that is not there", backup.Restore{Dir: empty, Label: "20200101-000000F"}, "there is no backup 20200101-000000F; there are: " + first.Label},
			{"two targets", backup.Restore{Dir: empty, Goal: backup.Goal{XID: b.xid, LSN: b.lsn}}, "a restore has one target"},
			{"a position that is none", backup.Restore{Dir: empty, Goal: backup.Goal{LSN: "x"}}, `LSN "x"`},
			{"a name that never was", backup.Restore{Dir: empty, Goal: backup.Goal{Name: "never"}}, "recovery ended before configured recovery target was reached"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				_, err := k.Restore(ctx, tt.restore)
				oneSentence(t, err, tt.want)
				_ = os.RemoveAll(empty)
			})
		}
	})

	t.Run("verify finds nothing wrong", func(t *testing.T) {
		v, err := k.Verify(ctx)
		if err != nil || len(v.Checked) != 2 || v.Segments < 3 {
			t.Errorf("verification %+v, %v", v, err)
		}
	})

	t.Run("corrupt file", func(t *testing.T) {
		file := largest(t, filepath.Join(s.cfg.Folder, "backup", "main", first.Label))
		defer flip(t, file)()
		v, err := k.Verify(ctx)
		oneSentence(t, err, first.Label, "is corrupt")
		if !slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, "invalid checksum") }) {
			t.Errorf("problems %q do not name what is damaged in %s", v.Problems, file)
		}
		dir := filepath.Join(s.dir, "corrupt")
		defer os.RemoveAll(dir)
		_, err = k.Restore(ctx, backup.Restore{Dir: dir, Label: first.Label})
		oneSentence(t, err, "a file in the backup is corrupt")
		records, err := k.Records()
		if err != nil || !records[backup.OpVerify].Failed() {
			t.Errorf("the failed verification is not on record: %+v, %v", records, err)
		}
	})

	t.Run("missing WAL segment", func(t *testing.T) {
		// One between the first backup and its successor.
		segment, file := middleSegment(t, filepath.Join(s.cfg.Folder, "archive", "main"), first.LastWAL, second.FirstWAL)
		away := filepath.Join(s.dir, segment)
		if err := os.Rename(file, away); err != nil {
			t.Fatal(err)
		}
		defer os.Rename(away, file)
		_, err := k.Verify(ctx)
		oneSentence(t, err, "WAL segment "+segment+" is missing")
		dir := filepath.Join(s.dir, "hole")
		defer os.RemoveAll(dir)
		_, err = k.Restore(ctx, backup.Restore{Dir: dir, Label: first.Label})
		oneSentence(t, err, "everything cannot be restored: WAL segment "+segment+" is missing")
	})

	t.Run("full target", func(t *testing.T) {
		small := os.Getenv(smallDisk)
		if small == "" {
			t.Skip("needs root for a small file system")
		}
		// The set of backups as it is, with room for nothing more but WAL.
		target := filepath.Join(small, "repository")
		if err := os.MkdirAll(filepath.Join(target, "backup", "main"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(s.cfg.Folder, "archive"), filepath.Join(target, "archive")); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"backup.info", "backup.info.copy"} {
			text, err := os.ReadFile(filepath.Join(s.cfg.Folder, "backup", "main", name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(target, "backup", "main", name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := s.open(t, func(c *backup.Config) { c.Folder, c.StateDir = target, filepath.Join(s.dir, "small-state") })
		before, err := k.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Now(ctx, backup.Full)
		oneSentence(t, err, "the target "+target+" is full")
		records, err := k.Records()
		if err != nil || !records[backup.OpBackup].Failed() {
			t.Errorf("the failed backup is not on record: %+v, %v", records, err)
		}
		if inv, err := k.List(ctx); err != nil || len(inv.Backups) != len(before.Backups) {
			t.Errorf("the failed backup is listed: %+v, %v", inv, err)
		}
	})

	t.Run("killed", func(t *testing.T) { s.killed(t, k) })

	t.Run("one at a time", func(t *testing.T) {
		slow := s.open(t, func(c *backup.Config) { c.PgBackRest = s.script(t, "slow", "exec sleep 60") })
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := slow.Verify(ctx)
			done <- err
		}()
		eventually.Nil(t, archiveLimit, func() error {
			if r, err := k.Records(); err != nil || !r[backup.OpVerify].Ended.IsZero() {
				return fmt.Errorf("not running: %+v, %w", r, err)
			}
			return nil
		})
		_, err := k.Now(ctx, "")
		if !errors.Is(err, backup.ErrBusy) {
			t.Errorf("error %v, want ErrBusy", err)
		}
		oneSentence(t, err, "is running (verify, process ")
		cancel()
		oneSentence(t, <-done, "interrupted")
	})

	t.Run("wrong passphrase", func(t *testing.T) {
		k := s.open(t, func(c *backup.Config) { c.CipherPassFile = s.secret(t, "wrong", "something else") })
		_, err := k.List(ctx)
		oneSentence(t, err, "cannot be read with the passphrase in "+filepath.Join(s.dir, "wrong"))
	})

	t.Run("secret that others can read", func(t *testing.T) {
		path := s.secret(t, "open", cipherPass)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := s.open(t, func(c *backup.Config) { c.CipherPassFile = path }).List(ctx)
		oneSentence(t, err, "others can read it: chmod 0600 "+path)
	})

	t.Run("server away", func(t *testing.T) {
		k := s.open(t, func(c *backup.Config) { c.Nodes[0].Port++ })
		_, err := k.Now(ctx, "")
		oneSentence(t, err, "no primary among postgres-a")
	})

	t.Run("prune", func(t *testing.T) {
		if removed, err := k.Prune(ctx, false); err != nil || len(removed) != 0 {
			t.Errorf("removed %v of backups that are minutes old, %v", removed, err)
		}
		servertest.Need(t, "faketime")
		third, err := k.Now(ctx, backup.Full)
		if err != nil {
			t.Fatal(err)
		}
		later := s.open(t, func(c *backup.Config) {
			c.PgBackRest = s.script(t, "later", `exec faketime -f +20d `+backup.DefaultPgBackRest+` "$@"`)
		})
		removed, err := later.Prune(ctx, true)
		if err != nil || !slices.Contains(removed, first.Label) || slices.Contains(removed, third.Label) {
			t.Errorf("a dry run removes %v, %v; want %s and not %s", removed, err, first.Label, third.Label)
		}
		if inv, err := k.List(ctx); err != nil || inv.Backups[0].Label != first.Label {
			t.Errorf("a dry run removed something: %+v, %v", inv, err)
		}
		if _, err := later.Prune(ctx, false); err != nil {
			t.Fatal(err)
		}
		inv, err := k.List(ctx)
		if err != nil || len(inv.Backups) != 1 || inv.Backups[0].Label != third.Label {
			t.Errorf("%+v, %v; want %s alone", inv, err, third.Label)
		}
		if _, err := k.Verify(ctx); err != nil {
			t.Errorf("after pruning: %v", err)
		}
	})

	t.Run("drill", func(t *testing.T) { s.drills(t, k) })
	t.Run("schedule", func(t *testing.T) { s.schedules(t) })
}

// drills restores the newest backup and has it refused when it is damaged.
func (s *site) drills(t *testing.T, k *backup.Backups) {
	t.Helper()
	ctx := t.Context()
	d, err := k.Drill(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d.Rows < 4 || d.Tables < 1 || d.Indexes < 100 || d.RPO < time.Minute || d.RTO <= 0 {
		t.Errorf("drill %+v, want rows, tables, indexes, and an RPO of at least archive_timeout", d)
	}
	inv, err := k.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	last, _ := inv.Latest()
	undo := flip(t, largest(t, filepath.Join(s.cfg.Folder, "backup", "main", last.Label, "bundle")))
	_, err = k.Drill(ctx)
	undo()
	oneSentence(t, err, "a file in the backup is corrupt")
	records, err := k.Records()
	if r := records[backup.OpDrill]; err != nil || !r.Failed() || r.RTO != d.RTO {
		t.Errorf("record %+v, %v; want a failed drill with the times of the good one", r, err)
	}
	if _, err := os.Stat(filepath.Join(s.cfg.StateDir, "drill", "data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch directory is still there (%v)", err)
	}
}

// schedules lets a day pass and waits for the backup and the drill of that day.
func (s *site) schedules(t *testing.T) {
	t.Helper()
	var ahead atomic.Int64
	cfg := s.cfg
	cfg.Schedule, cfg.DrillSchedule = "0 2 * * *", "0 3 * * *"
	k, err := backup.New(cfg, backup.Options{ConfigFile: s.cfgFile, Now: func() time.Time {
		return time.Now().Add(time.Duration(ahead.Load()))
	}})
	if err != nil {
		t.Fatal(err)
	}
	before, err := k.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	scheduler, err := backup.NewScheduler(k, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- scheduler.Run(ctx) }()
	eventually.Nil(t, archiveLimit, scheduler.Ready)
	ahead.Store(int64(26 * time.Hour))
	eventually.Nil(t, 3*archiveLimit, func() error {
		got := gather(t, reg)
		if got["fournines_backup_backups"] <= float64(len(before.Backups)) || got["fournines_backup_drill_rto_seconds"] == 0 ||
			got["fournines_backup_last_run_failed drill"] != 0 || got["fournines_backup_archive_known"] != 1 {
			return fmt.Errorf("no backup and drill yet: %v", got)
		}
		return nil
	})
	stop()
	if err := <-done; err != nil {
		t.Errorf("the scheduler ended with %v", err)
	}
	if got := gather(t, reg)["fournines_backup_max_age_seconds backup"]; got != 2*86400 {
		t.Errorf("a daily backup is too old after %v s, want two days", got)
	}
}

// gather returns the values of a registry by name and operation.
func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// killed kills a backup, once pgBackRest and once the program that started it.
func (s *site) killed(t *testing.T, k *backup.Backups) {
	t.Helper()
	ctx := t.Context()
	before, err := k.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	unchanged := func() {
		t.Helper()
		if now, err := k.List(ctx); err != nil || len(now.Backups) != len(before.Backups) {
			t.Errorf("a killed backup is listed: %+v, %v", now, err)
		}
	}
	t.Run("pgBackRest", func(t *testing.T) {
		script := s.script(t, "killed", `for a; do [ "$a" != backup ] || kill -9 $$; done; exec `+backup.DefaultPgBackRest+` "$@"`)
		_, err := s.open(t, func(c *backup.Config) { c.PgBackRest = script }).Now(ctx, "")
		oneSentence(t, err, "pgBackRest was killed")
		unchanged()
	})
	t.Run("the program", func(t *testing.T) {
		executable, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, executable, "backup", "now", "--type", "full", "--config", s.cfgFile)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var seen strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(seen.String(), "copy files") {
			n, err := stderr.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				t.Fatalf("the backup ended before it was killed: %v\n%s", err, &seen)
			}
		}
		children := childrenOf(cmd.Process.Pid)
		for _, pid := range children {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(line), cipherPass) {
				t.Errorf("the passphrase is in the arguments: %q", line)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		// pgBackRest does not outlive what started it.
		for _, pid := range children {
			eventually.Nil(t, archiveLimit, func() error {
				if err := syscall.Kill(pid, 0); err == nil {
					return fmt.Errorf("process %d lives on", pid)
				}
				return nil
			})
		}
		unchanged()
		records, err := k.Records()
		if err != nil || records[backup.OpBackup].Error != "was killed before it ended" {
			t.Errorf("records %+v, %v; want a killed backup", records, err)
		}
		if _, err := k.Now(ctx, backup.Full); err != nil {
			t.Errorf("the backup after it: %v", err)
		}
		if records, err := k.Records(); err != nil || records[backup.OpBackup].Failed() {
			t.Errorf("records %+v, %v; want a good backup", records, err)
		}
	})
}

// script writes a program that stands in for pgBackRest.
func (s *site) script(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/bash\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func childrenOf(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var pids []int
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, f := range strings.Fields(string(text)) {
			var n int
			if _, err := fmt.Sscan(f, &n); err == nil {
				pids = append(append(pids, n), childrenOf(n)...)
			}
		}
	}
	return pids
}

// largest is the largest file below dir.
func largest(t *testing.T, dir string) string {
	t.Helper()
	var path string
	var size int64
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			path, size = p, info.Size()
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no file in %s: %v", dir, err)
	}
	return path
}

// flip changes one byte in the middle of a file; the result changes it back.
func flip(t *testing.T, path string) (undo func()) {
	t.Helper()
	change := func() {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 0x40
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change()
	return change
}

// middleSegment finds a file of the archive between two segments.
func middleSegment(t *testing.T, dir, after, before string) (segment, path string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*", "*-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := filepath.Base(f)[:24]; name > after && name < before {
			return name, f
		}
	}
	t.Fatalf("no segment between %s and %s in %v", after, before, files)
	return "", ""
}
