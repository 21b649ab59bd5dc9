package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Push is archive_command: it stores one WAL file, which PostgreSQL names
// relative to its data directory, where it runs this. Without an error the file
// is durable in the target, or dropped because Config.WALLimit was exceeded: then
// a new backup is wanted.
func (b *Backups) Push(ctx context.Context, file string) (dropped bool, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return false, fmt.Errorf("find the data directory: %w", err)
	}
	err = b.push(ctx, Node{DataDir: dir}, file, func(warning string) { dropped = droppedWAL.MatchString(warning) })
	if dropped {
		err = b.want(fmt.Sprintf("WAL segment %s was dropped, because more than %s waited for the archive", filepath.Base(file), Bytes(b.cfg.WALLimit)))
	}
	return dropped, err
}

func (b *Backups) push(ctx context.Context, server Node, file string, warned func(string)) error {
	return b.run(ctx, call{command: "archive-push", args: []string{"--no-archive-async"}, node: server, operands: []string{file}, warned: warned})
}

// droppedWAL is how pgBackRest says that archive-push-queue-max was exceeded.
var droppedWAL = regexp.MustCompile(`(?m)^WARN: dropped WAL file`)

// ErrNotArchived says that the archive does not have a file. PostgreSQL asks for
// files that do not exist, to find the end of the archive.
var ErrNotArchived = errors.New("not in the archive")

// Fetch is restore_command: it brings the WAL file called name to path.
func (b *Backups) Fetch(ctx context.Context, name, path string) error {
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	err = b.run(ctx, call{command: "archive-get", args: []string{"--no-archive-async"}, node: Node{DataDir: dir}, operands: []string{name, path}})
	var tool *ToolError
	if errors.As(err, &tool) && tool.Code == 1 {
		return fmt.Errorf("%s: %w", name, ErrNotArchived)
	}
	return err
}

// ArchiveCommand is the value of PostgreSQL's archive_command for the program
// and the configuration file. The remark behind it is for pgBackRest, which takes
// no backup of a server whose archive_command does not have its name.
func ArchiveCommand(executable, configFile string) string {
	return command(executable, "archive-push", configFile) + " %p # pgbackrest"
}

// restoreCommand fetches WAL of the set of backups called name.
func restoreCommand(executable, configFile, name string) string {
	return command(executable, "archive-get", configFile) + ` --set ` + quote(name) + ` %f %p`
}

// command is a line for the shell that PostgreSQL runs, which replaces percent
// signs before the shell sees it.
func command(executable, verb, configFile string) string {
	return quote(executable) + " backup " + verb + " --config " + quote(configFile)
}

func quote(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if plain.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plain = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Lag is how far the archive is behind the primary.
type Lag struct {
	// Node is the primary.
	Node string
	// Timeline is the primary's: it grows with each failover.
	Timeline int
	// Waiting segments are complete and not archived; Oldest is the age of the
	// first of them, 0 when none waits.
	Waiting int
	Oldest  time.Duration
	// Archived and Failed count since the server's statistics began.
	Archived, Failed int64
	// WAL is what the server's WAL takes on its disk, in bytes.
	WAL int64
	// LastArchived is the newest segment that was archived; empty when none was.
	LastArchived string
	// Timeout is archive_timeout: how old a segment gets before it is archived
	// although it is not full; 0 means that it waits until it is.
	Timeout time.Duration
}

// ArchiveLag asks the primary how far its archive is behind.
func (b *Backups) ArchiveLag(ctx context.Context) (Lag, error) {
	node, err := b.primary(ctx)
	if err != nil {
		return Lag{}, err
	}
	return b.archiveLag(ctx, node)
}

func (b *Backups) archiveLag(ctx context.Context, node Node) (Lag, error) {
	conn, err := b.connect(ctx, node, "postgres")
	if err != nil {
		return Lag{}, err
	}
	defer closeConn(ctx, conn)
	lag := Lag{Node: node.Name}
	var mode string
	var oldest, timeout float64
	err = conn.QueryRow(ctx, `SELECT current_setting('archive_mode'),
		extract(epoch FROM current_setting('archive_timeout')::interval)::float8,
		s.archived_count, s.failed_count, coalesce(s.last_archived_wal, ''),
		r.waiting, coalesce(extract(epoch FROM clock_timestamp() - r.oldest), 0)::float8,
		(SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()),
		('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
		FROM pg_stat_archiver s,
		(SELECT count(*)::int waiting, min(modification) oldest FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') r`,
	).Scan(&mode, &timeout, &lag.Archived, &lag.Failed, &lag.LastArchived, &lag.Waiting, &oldest, &lag.WAL, &lag.Timeline)
	if err != nil {
		return Lag{}, fmt.Errorf("ask %s for its archive: %w", node.Name, err)
	}
	if mode == "off" {
		return Lag{}, fmt.Errorf("archive_mode of %s is off: no WAL is archived, so backups cannot be restored", node.Name)
	}
	lag.Oldest = max(0, time.Duration(oldest*float64(time.Second)))
	lag.Timeout = time.Duration(timeout * float64(time.Second))
	return lag, nil
}

// tablespaces is where the tablespaces of a restored directory go: next to it,
// never where the original has them.
func tablespaces(dir string) string { return filepath.Clean(dir) + "-tablespaces" }
