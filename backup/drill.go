package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Drill is what a restore drill proved.
type Drill struct {
	// Label of the backup that was restored.
	Label string `json:"label"`
	// RPO is the most that is lost with the cluster: archive_timeout and the
	// time that a segment took to the archive.
	RPO time.Duration `json:"rpo"`
	// RTO is the time from the order to restore to a server that takes writes.
	RTO time.Duration `json:"rto"`
	// Tables and Rows were read and compared with the original.
	Tables int   `json:"tables"`
	Rows   int64 `json:"rows"`
	// Indexes were checked against their tables (amcheck).
	Indexes int `json:"indexes"`
}

// mostCounted bounds the size of a table whose rows the drill counts on the
// primary, in bytes: reading a large one would push the application's pages out
// of memory. The restored copy is read whole.
const mostCounted = 256 << 20

// table is a table of the cluster.
type table struct{ database, schema, name string }

func (t table) String() string { return t.database + "." + t.schema + "." + t.name }

// Drill restores the newest backup into a scratch directory, to a point that it
// has just marked on the primary, and checks that the copy is what the original
// was at that point: a row written just before is there, one written just after
// is not, tables have as many rows, every page can be read, every index fits its
// table. The scratch directory is removed.
func (b *Backups) Drill(ctx context.Context) (Drill, error) {
	var d Drill
	err := b.record(OpDrill, func(r *Record) error {
		var err error
		d, err = b.drill(ctx)
		if err == nil {
			r.RPO, r.RTO = d.RPO, d.RTO
		}
		return err
	})
	return d, err
}

func (b *Backups) drill(ctx context.Context) (Drill, error) {
	node, err := b.primary(ctx)
	if err != nil {
		return Drill{}, err
	}
	mark := "fournines-drill-" + strings.ToLower(rand.Text())
	b.progress(Progress{Phase: "mark a point on " + node.Name, Percent: -1})
	want, err := b.mark(ctx, node, mark)
	if err != nil {
		return Drill{}, fmt.Errorf("mark a point on %s: %w", node.Name, err)
	}
	rpo, err := b.shipped(ctx, node)
	if err != nil {
		return Drill{}, err
	}
	dir := filepath.Join(b.state("drill"), "data")
	clear := func() error { return errors.Join(os.RemoveAll(dir), os.RemoveAll(tablespaces(dir))) }
	if err := clear(); err != nil { // of a drill that was killed
		return Drill{}, fmt.Errorf("clear the scratch directory: %w", err)
	}
	defer func() { _ = clear() }()
	begin := time.Now()
	done, err := b.files(ctx, Restore{Dir: dir, Goal: Goal{Name: mark}})
	if err != nil {
		return Drill{}, err
	}
	server, err := b.startPrivate(ctx, dir)
	if err != nil {
		return Drill{}, err
	}
	defer server.kill()
	d := Drill{Label: done.Label, RPO: rpo, RTO: time.Since(begin)}
	b.progress(Progress{Phase: "check the copy", Percent: -1})
	return d, b.check(ctx, server, mark, want, &d)
}

// original is what the primary had around the marked point.
type original struct {
	// before and after are rows by table; quiet says that nothing was written
	// between the two, so that the copy has to have exactly these.
	before, after map[table]int64
	quiet         bool
}

const canaryTable = "fournines.backup_drill"

// mark makes a restore point between two rows of a table of our own, and counts
// the rows of the application's tables as they were before and after it.
func (b *Backups) mark(ctx context.Context, node Node, name string) (original, error) {
	conn, err := b.connect(ctx, node, "postgres")
	if err != nil {
		return original{}, err
	}
	defer closeConn(ctx, conn)
	for _, sql := range []string{
		"CREATE SCHEMA IF NOT EXISTS fournines",
		"CREATE TABLE IF NOT EXISTS " + canaryTable + " (mark text, side text, written timestamptz DEFAULT now())",
		"DELETE FROM " + canaryTable,
		"INSERT INTO " + canaryTable + " VALUES ('" + name + "', 'before')",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return original{}, err
		}
	}
	databases, err := b.databases(ctx, conn)
	if err != nil {
		return original{}, err
	}
	first, done, err := b.snapshots(ctx, node, databases)
	if err != nil {
		return original{}, err
	}
	defer done()
	if _, err := conn.Exec(ctx, "SELECT pg_create_restore_point($1)", name); err != nil {
		return original{}, err
	}
	second, done2, err := b.snapshots(ctx, node, databases)
	if err != nil {
		return original{}, err
	}
	defer done2()
	if _, err := conn.Exec(ctx, "INSERT INTO "+canaryTable+" VALUES ($1, 'after')", name); err != nil {
		return original{}, err
	}
	o := original{quiet: true}
	for i := range first {
		o.quiet = o.quiet && first[i].id == second[i].id
	}
	if o.before, err = countAll(ctx, first); err != nil {
		return original{}, err
	}
	o.after = o.before
	if !o.quiet {
		if o.after, err = countAll(ctx, second); err != nil {
			return original{}, err
		}
	}
	return o, nil
}

func (b *Backups) databases(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	if len(b.cfg.Databases) > 0 {
		return b.cfg.Databases, nil
	}
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// snapshot is a transaction that sees one moment of a database.
type snapshot struct {
	database, id string
	conn         *pgx.Conn
}

func (b *Backups) snapshots(ctx context.Context, node Node, databases []string) (all []snapshot, done func(), err error) {
	done = func() {
		for _, s := range all {
			closeConn(ctx, s.conn)
		}
	}
	for _, database := range databases {
		conn, err := b.connect(ctx, node, database)
		if err != nil {
			done()
			return nil, nil, err
		}
		s := snapshot{database: database, conn: conn}
		all = append(all, s)
		if _, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err == nil {
			err = conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&all[len(all)-1].id)
		}
		if err != nil {
			done()
			return nil, nil, err
		}
	}
	return all, done, nil
}

func countAll(ctx context.Context, all []snapshot) (map[table]int64, error) {
	counts := map[table]int64{}
	for _, s := range all {
		tables, err := tablesOf(ctx, s.conn, s.database, mostCounted)
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			n, err := count(ctx, s.conn, t)
			if err != nil {
				return nil, err
			}
			counts[t] = n
		}
	}
	return counts, nil
}

func tablesOf(ctx context.Context, conn *pgx.Conn, database string, largest int64) ([]table, error) {
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT LIKE 'pg\_%'
		AND n.nspname NOT IN ('information_schema', 'fournines') AND pg_relation_size(c.oid) <= $1 ORDER BY 1, 2`, largest)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (table, error) {
		t := table{database: database}
		return t, row.Scan(&t.schema, &t.name)
	})
}

func count(ctx context.Context, conn *pgx.Conn, t table) (n int64, err error) {
	err = conn.QueryRow(ctx, "SELECT count(*) FROM ONLY "+pgx.Identifier{t.schema, t.name}.Sanitize()).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the rows of %s: %w", t, err)
	}
	return n, nil
}

// shipped ends the current segment, waits until the archive has it, and returns
// how much could be lost with the cluster.
func (b *Backups) shipped(ctx context.Context, node Node) (time.Duration, error) {
	conn, err := b.connect(ctx, node, "postgres")
	if err != nil {
		return 0, err
	}
	defer closeConn(ctx, conn)
	var segment string
	if err := conn.QueryRow(ctx, "SELECT pg_walfile_name(pg_switch_wal())").Scan(&segment); err != nil {
		return 0, fmt.Errorf("end the WAL segment: %w", err)
	}
	b.progress(Progress{Phase: "wait for the WAL", Percent: -1})
	begin := time.Now()
	for {
		lag, err := b.archiveLag(ctx, node)
		switch {
		case err != nil:
			return 0, err
		case lag.Timeout == 0:
			return 0, fmt.Errorf("archive_timeout of %s is 0, so nothing bounds what is lost with it: set it to 60s", node.Name)
		case len(lag.LastArchived) >= len(segment) && lag.LastArchived[:len(segment)] >= segment:
			return lag.Timeout + time.Since(begin), nil
		case time.Since(begin) > b.cfg.ArchiveTimeout:
			return 0, fmt.Errorf("WAL segment %s did not reach the archive within %v: archive_command fails or hangs, see the server's log", segment, b.cfg.ArchiveTimeout)
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(recoveryPoll):
		}
	}
}

// check compares the copy with the original.
func (b *Backups) check(ctx context.Context, s *privateServer, mark string, want original, d *Drill) error {
	conn, err := s.connect(ctx, b.cfg.User, "postgres")
	if err != nil {
		return fmt.Errorf("log in to the restored server: %w", err)
	}
	defer closeConn(ctx, conn)
	var before, after bool
	err = conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE side = 'before') = 1, count(*) FILTER (WHERE side = 'after') > 0
		FROM `+canaryTable+` WHERE mark = $1`, mark).Scan(&before, &after)
	switch {
	case err != nil:
		return fmt.Errorf("the copy has not the drill's table: %w", err)
	case !before:
		return errors.New("a row that was committed before the point is not in the copy: the recovery stops too early")
	case after:
		return errors.New("a row that was committed after the point is in the copy: the recovery goes too far")
	}
	databases, err := b.databases(ctx, conn)
	if err != nil {
		return fmt.Errorf("list the databases of the copy: %w", err)
	}
	var wrong []string
	found := map[table]bool{}
	for _, database := range databases {
		if err := b.checkDatabase(ctx, s, database, want, d, found, &wrong); err != nil {
			return err
		}
	}
	for t := range want.before {
		if _, still := want.after[t]; still && !found[t] {
			wrong = append(wrong, t.String()+" is missing")
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return fmt.Errorf("the copy differs from the original: %s (%d differences)", wrong[0], len(wrong))
	}
	return nil
}

func (b *Backups) checkDatabase(ctx context.Context, s *privateServer, database string, want original, d *Drill, found map[table]bool, wrong *[]string) error {
	conn, err := s.connect(ctx, b.cfg.User, database)
	if err != nil {
		return fmt.Errorf("log in to database %s of the copy: %w", database, err)
	}
	defer closeConn(ctx, conn)
	tables, err := tablesOf(ctx, conn, database, 1<<62)
	if err != nil {
		return fmt.Errorf("list the tables of the copy: %w", err)
	}
	for _, t := range tables {
		n, err := count(ctx, conn, t)
		if err != nil {
			return fmt.Errorf("the copy cannot be read: %w", err)
		}
		found[t] = true
		d.Tables++
		d.Rows += n
		if before, ok := want.before[t]; ok {
			if low, high := between(before, want.after[t], want.quiet); n < low || n > high {
				*wrong = append(*wrong, fmt.Sprintf("%s has %d rows, want %d to %d", t, n, low, high))
			}
		}
	}
	if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS amcheck"); err != nil {
		return fmt.Errorf("install amcheck in the copy: %w", err)
	}
	rows, err := conn.Query(ctx, `SELECT c.oid, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
		WHERE a.amname = 'btree' AND i.indisvalid AND i.indisready AND c.relpersistence = 'p' AND c.relkind = 'i' ORDER BY 1`)
	if err != nil {
		return fmt.Errorf("list the indexes of the copy: %w", err)
	}
	type index struct {
		OID  uint32
		Name string
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return fmt.Errorf("list the indexes of the copy: %w", err)
	}
	for _, i := range indexes {
		if _, err := conn.Exec(ctx, "SELECT bt_index_check($1::oid::regclass, true)", i.OID); err != nil {
			return fmt.Errorf("index %s of database %s is damaged in the copy: %w", i.Name, database, err)
		}
		d.Indexes++
	}
	return nil
}

// between are the numbers of rows that the copy may have. On a quiet cluster
// they are one; else transactions that ended within the milliseconds around the
// point may be on either side of it.
func between(before, after int64, quiet bool) (low, high int64) {
	low, high = min(before, after), max(before, after)
	if !quiet {
		room := 1000 + high/10
		low, high = low-room, high+room
	}
	return low, high
}
