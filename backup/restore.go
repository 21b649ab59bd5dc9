package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"fournines/internal/process"
)

// Goal is the point that a restore goes to. At most one of its fields is set;
// the zero Goal is the end of the archive.
type Goal struct {
	// Time is the latest commit time that is still restored.
	Time time.Time
	// LSN is a WAL position, "0/3000148".
	LSN string
	// XID is the last transaction that is still restored.
	XID uint64
	// Name is a restore point made with pg_create_restore_point.
	Name string
}

var lsnForm = regexp.MustCompile(`^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$`)

// pgTime is how PostgreSQL reads a time without doubt.
const pgTime = "2006-01-02 15:04:05.999999-07:00"

// arguments are pgBackRest's for the goal.
func (g Goal) arguments(now time.Time) ([]string, error) {
	var args []string
	set := 0
	add := func(kind, target string) {
		set++
		args = []string{"--type=" + kind, "--target=" + target, "--target-action=promote"}
	}
	if !g.Time.IsZero() {
		if g.Time.After(now) {
			return nil, fmt.Errorf("%s is in the future: leave the target out to restore everything", g.Time.Format(time.RFC3339))
		}
		add("time", g.Time.UTC().Format(pgTime))
	}
	if g.LSN != "" {
		if !lsnForm.MatchString(g.LSN) {
			return nil, fmt.Errorf("LSN %q: want two hexadecimal numbers like 0/3000148", g.LSN)
		}
		add("lsn", g.LSN)
	}
	if g.XID != 0 {
		add("xid", strconv.FormatUint(g.XID, 10))
	}
	if g.Name != "" {
		if len(g.Name) > 63 || strings.ContainsAny(g.Name, "'\n\\") {
			return nil, fmt.Errorf("restore point %q: want at most 63 characters without quotes, backslashes and line breaks", g.Name)
		}
		add("name", g.Name)
	}
	if set > 1 {
		return nil, errors.New("a restore has one target: give a time, an LSN, a transaction or a name")
	}
	return args, nil
}

func (g Goal) String() string {
	switch {
	case !g.Time.IsZero():
		return "time " + g.Time.Format(time.RFC3339Nano)
	case g.LSN != "":
		return "LSN " + g.LSN
	case g.XID != 0:
		return "transaction " + strconv.FormatUint(g.XID, 10)
	case g.Name != "":
		return "restore point " + g.Name
	}
	return "the end of the archive"
}

// Restore says what to restore and where.
type Restore struct {
	Goal Goal
	// Dir is the data directory to make. It must be empty or not exist.
	Dir string
	// Label of the backup to begin with; empty means the newest that ends before
	// the goal.
	Label string
	// FilesOnly leaves the recovery to whoever starts a server on the directory;
	// otherwise a private server carries it out and is stopped again.
	FilesOnly bool
	// KeepArchiving lets the restored server archive like the original, whose
	// place it takes; what a primary that still runs has written last is brought
	// to the archive first. Otherwise its archive_mode is off, because two servers
	// must not archive into one set of backups.
	KeepArchiving bool
}

// Restored is what a restore made.
type Restored struct {
	Dir string `json:"dir"`
	// Label is the backup that it began with.
	Label string `json:"label"`
	// LastCommit is the commit time of the last transaction that was replayed;
	// zero when none was, or with Restore.FilesOnly.
	LastCommit time.Time `json:"lastCommit,omitzero"`
	// LSN is where the recovery ended; empty with Restore.FilesOnly.
	LSN string `json:"lsn,omitempty"`
	// Took is how long the restore lasted, recovery included.
	Took time.Duration `json:"took"`
}

// Restore restores into a directory that is empty, and never into one that a
// server uses. The directory is complete only when the error is nil.
func (b *Backups) Restore(ctx context.Context, r Restore) (Restored, error) {
	if err := b.prepare(); err != nil {
		return Restored{}, err
	}
	begin := time.Now()
	if r.KeepArchiving {
		b.shipLast(ctx)
	}
	done, err := b.files(ctx, r)
	if err != nil {
		return done, err
	}
	if !r.FilesOnly {
		server, err := b.startPrivate(ctx, done.Dir)
		if err != nil {
			return done, err
		}
		done.LastCommit, done.LSN = server.lastCommit, server.lsn
		if err := server.stop(); err != nil {
			return done, err
		}
	}
	var drop []string
	if r.KeepArchiving {
		drop = append(drop, "archive_mode")
	}
	if !r.FilesOnly {
		// The target is behind us: a server that once follows another one would
		// stop there again.
		drop = append(drop, "restore_command", "recovery_target", "recovery_target_*")
	}
	if err := dropSettings(filepath.Join(done.Dir, "postgresql.auto.conf"), drop); err != nil {
		return done, err
	}
	done.Took = time.Since(begin)
	return done, nil
}

// shipLast has the primary, if there is one, archive what it wrote last. Without
// it the restore goes as far as the archive does, and says so when that is not
// far enough.
func (b *Backups) shipLast(ctx context.Context) {
	if node, err := b.primary(ctx); err == nil {
		_, _ = b.shipped(ctx, node)
	}
}

// files brings the files of a backup and the settings of the recovery.
func (b *Backups) files(ctx context.Context, r Restore) (Restored, error) {
	if !filepath.IsAbs(r.Dir) || filepath.Clean(r.Dir) == "/" {
		return Restored{}, fmt.Errorf("directory %q: want an absolute path below the root", r.Dir)
	}
	dir := filepath.Clean(r.Dir)
	if err := mustBeEmpty(dir); err != nil {
		return Restored{}, err
	}
	target, err := r.Goal.arguments(b.now())
	if err != nil {
		return Restored{}, err
	}
	label, err := b.begin(ctx, r)
	if err != nil {
		return Restored{}, err
	}
	if err := b.reachable(ctx, label, r.Goal); err != nil {
		return Restored{}, err
	}
	if err := process.MkdirAll(dir, 0o700, process.Owner{}); err != nil {
		return Restored{}, err
	}
	args := append([]string{
		"--set=" + label,
		"--archive-mode=off",
		"--tablespace-map-all=" + tablespaces(dir),
		"--recovery-option=restore_command=" + restoreCommand(b.executable, b.configFile, b.cfg.Name),
	}, target...)
	err = b.run(ctx, call{command: "restore", args: args, node: Node{DataDir: dir}, phase: "restore files"})
	if err != nil {
		return Restored{}, err
	}
	return Restored{Dir: dir, Label: label}, nil
}

// begin chooses the backup to restore.
func (b *Backups) begin(ctx context.Context, r Restore) (string, error) {
	inv, err := b.List(ctx)
	if err != nil {
		return "", err
	}
	if len(inv.Backups) == 0 {
		return "", fmt.Errorf("%s has no backup called %s to restore", b.Target(), b.cfg.Name)
	}
	if r.Label != "" {
		k, err := inv.find(r.Label)
		return k.Label, err
	}
	for i := len(inv.Backups) - 1; i >= 0; i-- {
		if k := inv.Backups[i]; k.reaches(r.Goal) {
			return k.Label, nil
		}
	}
	return "", fmt.Errorf("no backup ends before %s: the oldest, %s, ended at %s", r.Goal, inv.Backups[0].Label, inv.Backups[0].Ended.Format(time.RFC3339))
}

// reachable refuses to restore everything from an archive with a hole: without a
// target PostgreSQL takes the hole for the end and loses what lies behind it. On
// the way to a target it notices by itself.
func (b *Backups) reachable(ctx context.Context, label string, g Goal) error {
	if g != (Goal{}) {
		return nil
	}
	inv, err := b.List(ctx)
	if err != nil {
		return err
	}
	from, err := inv.find(label)
	if err != nil {
		return err
	}
	archives, err := b.segments(ctx)
	if err != nil {
		return err
	}
	if problems := holes(Inventory{Backups: []Backup{from}}, archives); len(problems) > 0 {
		return fmt.Errorf("everything cannot be restored: %s; give a target that lies before it", problems[0])
	}
	return nil
}

// reaches reports whether a recovery that begins with the backup can get to the
// goal. For a restore point nobody can know; the newest backup is right for all
// that were made after it.
func (k Backup) reaches(g Goal) bool {
	switch {
	case !g.Time.IsZero():
		// The times of a backup are whole seconds.
		return k.Ended.Before(g.Time)
	case g.LSN != "":
		end, ok1 := parseSegment(k.LastWAL)
		at, ok2 := segmentOfLSN(g.LSN)
		return ok1 && ok2 && end.number < at
	case g.XID != 0:
		return k.oldestXID != 0 && k.oldestXID <= g.XID
	}
	return true
}

// segmentOfLSN is the number of the segment that holds the position.
func segmentOfLSN(lsn string) (uint64, bool) {
	high, low, _ := strings.Cut(lsn, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	return (h<<32 | l) / walSegmentSize, err1 == nil && err2 == nil
}

// mustBeEmpty refuses a directory that has anything in it.
func mustBeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into the directory to restore into: %w", err)
	}
	if len(entries) == 0 {
		return nil
	}
	for _, e := range entries {
		if e.Name() == "postmaster.pid" {
			return fmt.Errorf("%s is the data directory of a server that runs or crashed: a restore needs an empty directory", dir)
		}
	}
	return fmt.Errorf("%s is not empty (%s): a restore needs an empty directory and never overwrites one", dir, entries[0].Name())
}

// dropSettings removes the lines of settings from a configuration file; a star
// ends a name that stands for several.
func dropSettings(file string, names []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the restored settings: %w", err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		key, _, _ := strings.Cut(line, "=")
		if !slices.ContainsFunc(names, func(name string) bool {
			matches, err := path.Match(name, strings.TrimSpace(key))
			return err == nil && matches
		}) {
			kept.WriteString(line)
		}
	}
	return process.WriteFile(file, []byte(kept.String()), 0o600, process.Owner{})
}
