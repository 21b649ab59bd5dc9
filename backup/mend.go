package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/process"
)

// Mend stores WAL that the primary has and neither the archive nor its archiver
// will ever get. A primary that dies has segments that it could not archive any
// more; its successor streamed them, but took them for archived. And a database
// that was put back to an earlier time began its timeline while it was not
// archiving. Mend returns what it stored.
//
// What is missing after that is a hole: Mend wants a new backup then.
func (b *Backups) Mend(ctx context.Context) (stored []string, err error) {
	node, err := b.primary(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := b.List(ctx)
	if err != nil {
		return nil, err
	}
	newest, ok := inv.Latest()
	if !ok {
		return nil, nil // the first backup begins an archive without a hole
	}
	files, err := b.archivable(ctx, node, inv.Backups[0].FirstWAL)
	if err != nil {
		return nil, err
	}
	have, err := b.archivedNames(ctx)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if have[newest.Archive+"/"+file] {
			continue
		}
		err := b.push(ctx, Node{DataDir: node.DataDir}, filepath.Join(node.DataDir, "pg_wal", file), nil)
		if errors.Is(ctx.Err(), context.Canceled) {
			return stored, err
		}
		if err != nil {
			return stored, fmt.Errorf("bring %s of %s to the archive: %w", file, node.Name, err)
		}
		stored = append(stored, file)
	}
	archives, err := b.segments(ctx)
	if err != nil {
		return stored, err
	}
	if problems := holes(Inventory{Backups: []Backup{newest}}, archives); len(problems) > 0 {
		return stored, b.want(problems[0])
	}
	return stored, nil
}

// archivable lists the files of the primary that are complete and not for its
// archiver to store, from the segment oldest on, whatever their timeline.
func (b *Backups) archivable(ctx context.Context, node Node, oldest string) ([]string, error) {
	conn, err := b.connect(ctx, node, "postgres")
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	// Segments behind the present one are empty ones for later use. Positions are
	// compared without the timeline, which is the first eight digits.
	rows, err := conn.Query(ctx, `SELECT w.name FROM pg_ls_waldir() w
		WHERE w.name || '.ready' NOT IN (SELECT name FROM pg_ls_archive_statusdir())
		AND (w.name ~ '^[0-9A-F]{8}\.history$' OR w.name ~ '^[0-9A-F]{24}$'
			AND substr(w.name, 9) >= substr($1, 9)
			AND substr(w.name, 9) < substr(pg_walfile_name(pg_current_wal_insert_lsn()), 9))
		ORDER BY w.name !~ 'history', substr(w.name, 9), w.name`, oldest)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its WAL: %w", node.Name, err)
	}
	files, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("ask %s for its WAL: %w", node.Name, err)
	}
	return files, nil
}

// Wanted says that a backup is due before its schedule.
type Wanted struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// want leaves a note that a backup is due, which a backup that begins later ends.
func (b *Backups) want(reason string) error {
	text, err := json.Marshal(Wanted{Since: time.Now(), Reason: reason})
	if err != nil {
		return err
	}
	if err := b.prepare(); err != nil {
		return err
	}
	return process.WriteFile(b.state("wanted.json"), append(text, '\n'), 0o600, process.Owner{})
}

// Wanted returns why a backup is due before its schedule; ok is false when none
// is.
func (b *Backups) Wanted() (why Wanted, ok bool, err error) {
	text, err := os.ReadFile(b.state("wanted.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return why, false, nil
	}
	if err != nil {
		return why, false, fmt.Errorf("see if a backup is wanted: %w", err)
	}
	if err := json.Unmarshal(text, &why); err != nil {
		return why, false, fmt.Errorf("see if a backup is wanted: %s: %w", b.state("wanted.json"), err)
	}
	return why, true, nil
}

// satisfy removes the note after a good backup that began at the time given. One
// that was left meanwhile stays: the backup may not have what it is about.
func (b *Backups) satisfy(began time.Time) error {
	why, ok, err := b.Wanted()
	if err != nil || !ok || !why.Since.Before(began) {
		return err
	}
	return os.Remove(b.state("wanted.json"))
}
