package difysim

import (
	"context"
	_ "embed" // for the schema
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// SchemaVersion is what alembic_version holds when the schema fits this program.
const SchemaVersion = "difysim_0001"

//go:embed schema.sql
var schemaSQL string

const (
	migrationLock    = "db_upgrade_lock"
	migrationLockTTL = 60 * time.Second
)

// Migrate creates or completes the schema and the seeded apps, one process at a
// time by Dify's own Redis lock. It may be run again and by several at once. With
// skipWhenLocked it does what Dify's entry point does when another replica is
// migrating: nothing, and reports skipped.
func Migrate(ctx context.Context, cfg Config, log *slog.Logger, skipWhenLocked bool) (skipped bool, err error) {
	seed := &Seed{}
	if cfg.SeedFile != "" {
		if seed, err = LoadSeed(cfg.SeedFile); err != nil {
			return false, err
		}
	}
	b, err := newBackend(cfg, log, newMetrics(prometheus.NewRegistry()))
	if err != nil {
		return false, err
	}
	defer b.close()
	ctx, cancel := context.WithTimeout(ctx, cfg.MigrationTimeout)
	defer cancel()
	wait := cfg.MigrationTimeout
	if skipWhenLocked {
		wait = 0
	}
	l, err := retryUnavailable(ctx, log, func() (*lock, error) {
		return acquire(ctx, b.redis, migrationLock, migrationLockTTL, wait)
	})
	if errors.Is(err, errLocked) && skipWhenLocked {
		log.Info("database migration skipped: another process is at it")
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	defer func() {
		rctx, rcancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer rcancel()
		err = errors.Join(err, l.release(rctx))
	}()
	hctx, stop := context.WithCancel(ctx)
	var renew sync.WaitGroup
	renew.Go(func() {
		for sleep(hctx, migrationLockTTL/3) == nil {
			if held, err := l.extend(hctx); err == nil && !held {
				log.Warn("migration lock was lost", "key", migrationLock)
				return
			}
		}
	})
	defer renew.Wait()
	defer stop()
	_, err = retryUnavailable(ctx, log, func() (struct{}, error) { return struct{}{}, b.upgrade(ctx, seed) })
	if err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	log.Info("database migrated", "version", SchemaVersion, "apps", len(seed.Apps))
	return false, nil
}

// retryUnavailable tries again while a server is away, until ctx ends: a
// migration often starts together with what it needs.
func retryUnavailable[T any](ctx context.Context, log *slog.Logger, try func() (T, error)) (T, error) {
	said := ""
	for {
		v, err := try()
		if err == nil || errors.Is(err, errLocked) || permanent(err) {
			return v, err
		}
		if msg := err.Error(); msg != said {
			log.Info("migration waits", "err", msg)
			said = msg
		}
		if sleep(ctx, 300*time.Millisecond) != nil {
			return v, err
		}
	}
}

// permanent tells errors that waiting cannot mend: the server refused the
// account, the database or a statement.
func permanent(err error) bool {
	if errors.Is(err, context.Canceled) {
		return true
	}
	msg := err.Error()
	for _, s := range []string{"SQLSTATE 28", "SQLSTATE 3D", "SQLSTATE 42", "SQLSTATE 22", "SQLSTATE 0A", "WRONGPASS", "NOAUTH", "NOPERM"} {
		if strings.Contains(msg, s) {
			return true
		}
	}
	return false
}

// upgrade applies the schema and the seed in one transaction.
func (b *backend) upgrade(ctx context.Context, seed *Seed) error {
	s := b.db.Session()
	defer s.Close()
	for _, statement := range strings.Split(schemaSQL, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := s.Exec(ctx, statement); err != nil {
			return fmt.Errorf("schema: %w", err)
		}
	}
	if err := seed.apply(ctx, s); err != nil {
		return err
	}
	if _, err := s.Exec(ctx, "DELETE FROM alembic_version"); err != nil {
		return err
	}
	if _, err := s.Exec(ctx, "INSERT INTO alembic_version (version_num) VALUES ($1)", SchemaVersion); err != nil {
		return err
	}
	return s.Commit(ctx)
}
