package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"fournines/audit"
)

// Postgres asks the server at rawURL (postgres://user@host:port/database) in a
// read-only session. password may be empty: then PGPASSWORD and PGPASSFILE
// count. What the account may not see is left out.
func Postgres(ctx context.Context, rawURL, password string) (audit.Postgres, error) {
	u, err := checkURL(rawURL, "postgres", "postgresql")
	if err != nil {
		return audit.Postgres{}, fmt.Errorf("postgres: %w", err)
	}
	cfg, err := pgx.ParseConfig(rawURL)
	if err != nil {
		return audit.Postgres{}, fmt.Errorf("postgres %s: %w", u.Host, err)
	}
	if password != "" {
		cfg.Password = password
	}
	cfg.RuntimeParams["application_name"] = "fournines audit"
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return audit.Postgres{}, fmt.Errorf("postgres %s: %w", u.Host, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// One transaction, so that nothing of the session's settings outlives it
	// behind a pooler. It only reads, so it is rolled back.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return audit.Postgres{}, fmt.Errorf("postgres %s: %w", u.Host, err)
	}
	out, err := askPostgres(ctx, tx)
	if rollback := tx.Rollback(context.WithoutCancel(ctx)); err == nil && !conn.IsClosed() {
		err = rollback
	}
	if err != nil {
		return audit.Postgres{}, fmt.Errorf("postgres %s: %w", u.Host, err)
	}
	out.Name = u.Host
	return out, nil
}

func askPostgres(ctx context.Context, tx pgx.Tx) (audit.Postgres, error) {
	out := audit.Postgres{Settings: map[string]string{}, DeadSlots: map[string]int64{}}
	if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '10s'"); err != nil {
		return out, err
	}
	var name, value string
	err := rows(ctx, tx, `SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'autovacuum', 'synchronous_commit',
		'archive_mode', 'wal_level', 'max_wal_senders', 'max_replication_slots', 'max_slot_wal_keep_size', 'password_encryption', 'max_connections', 'data_checksums')`,
		[]any{&name, &value}, func() {
			out.Settings[name] = value
		})
	if err != nil {
		return out, err
	}
	if err := tx.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&out.Standby); err != nil {
		return out, err
	}
	var s audit.PostgresStandby
	var lag float64
	err = rows(ctx, tx, `SELECT application_name, coalesce(state, ''), coalesce(sync_state, ''), coalesce(extract(epoch FROM replay_lag), 0)::float8 FROM pg_stat_replication ORDER BY 1`,
		[]any{&s.Name, &s.State, &s.Sync, &lag}, func() {
			s.Lag = time.Duration(lag * float64(time.Second))
			// Without pg_monitor the row is there and its columns are not.
			if s.State == "" {
				s.State = "streaming"
			}
			out.Standbys = append(out.Standbys, s)
		})
	if err != nil {
		return out, err
	}
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL").Scan(&out.Sessions); err != nil {
		return out, err
	}
	if err := tx.QueryRow(ctx, `SELECT failed_count, coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) FROM pg_stat_archiver`).Scan(&out.ArchiveFailed, &out.ArchiveFailing); err != nil {
		return out, err
	}
	var kept int64
	if !out.Standby {
		err = rows(ctx, tx, `SELECT slot_name, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8 FROM pg_replication_slots WHERE NOT active`,
			[]any{&name, &kept}, func() { out.DeadSlots[name] = kept })
		if err != nil {
			return out, err
		}
	}
	if err := tx.QueryRow(ctx, "SELECT max(age(datfrozenxid))::int8 FROM pg_database").Scan(&out.TransactionAge); err != nil {
		return out, err
	}
	// Patroni, backups and this session work as superusers by right.
	err = rows(ctx, tx, `SELECT DISTINCT a.usename FROM pg_stat_activity a JOIN pg_roles r ON r.rolname = a.usename
		WHERE r.rolsuper AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND a.application_name !~* 'patroni|backrest|basebackup|barman|psql|exporter|fournines' ORDER BY 1`,
		[]any{&name}, func() { out.Superusers = append(out.Superusers, name) })
	if err != nil {
		return out, err
	}
	err = rows(ctx, tx, `SELECT format('line %s: %s %s', line_number, type, coalesce(address, '')) FROM pg_hba_file_rules
		WHERE auth_method = 'trust' AND type <> 'local' AND address NOT IN ('127.0.0.1', '::1', 'samehost')`,
		[]any{&name}, func() { out.TrustLines = append(out.TrustLines, name) })
	// Only superusers may read that view.
	var denied *pgconn.PgError
	if errors.As(err, &denied) && denied.Code == "42501" {
		err = nil
	}
	return out, err
}

// rows runs a query and calls each for every row.
func rows(ctx context.Context, tx pgx.Tx, sql string, into []any, each func()) error {
	result, err := tx.Query(ctx, sql)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(result, into, func() error {
		each()
		return nil
	})
	return err
}
