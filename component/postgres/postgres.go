// Package postgres runs one node of the PostgreSQL cluster: Patroni, which holds
// the leader's lease in etcd, and the PostgreSQL 15 it manages. Three nodes in
// three zones replicate synchronously, so an acknowledged commit survives the
// loss of any zone.
package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Roles a node can have; see Unit.
const (
	RolePrimary     = "primary"
	RoleSyncStandby = "sync standby"
	RoleStandby     = "standby"
)

// Unit returns the plan's line for one node.
//
// Patroni starts PostgreSQL in a session of its own and leaves it running when
// Patroni itself is killed; a Patroni that starts again takes it over.
func Unit(cfg Config) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	patroni, err := prepare.Executable(cfg.Patroni, "patroni")
	if err != nil {
		return process.Unit{}, err
	}
	python, err := pythonOf(patroni)
	if err != nil {
		return process.Unit{}, err
	}
	if _, err := prepare.Executable(filepath.Join(cfg.BinDir, "postgres"), "PostgreSQL 15"); err != nil {
		return process.Unit{}, err
	}
	return process.Unit{
		Name: cfg.Name, Kind: "postgres", Zone: cfg.Zone, Address: cfg.address(),
		Process: &process.Spec{
			Path: python[0],
			Args: append(python[1:], cfg.path("agent.py"), cfg.path("patroni.yml")),
			// Patroni is a Debian package: another Python in PATH lacks its modules.
			Env: prepare.Env(cfg.DataDir, "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"),
			Dir: cfg.DataDir,
			// SIGTERM makes Patroni stop PostgreSQL and hand the lease over.
			StopSignal:  syscall.SIGTERM,
			StopTimeout: 30 * time.Second,
		},
		Prepare: func(context.Context) error { return cfg.prepare() },
		Ready:   cfg.ready,
		Role:    cfg.role,
		// A standby may have to copy the whole primary first.
		ReadyTimeout: 3 * time.Minute,
	}, nil
}

func (c *Config) prepare() error {
	if os.Geteuid() == 0 && c.Owner.UID == 0 {
		return errors.New("postgres: PostgreSQL refuses to run as root; run `make setup`, which creates an account for it")
	}
	dirs := []string{c.DataDir}
	if c.socketDir() != "" {
		dirs = append(dirs, c.socketDir())
	}
	if err := prepare.Dirs(c.Owner, dirs...); err != nil {
		return err
	}
	if err := c.clearHalfMade(); err != nil {
		return err
	}
	content, err := c.patroniFile()
	if err != nil {
		return err
	}
	if err := prepare.File(c.path("agent.py"), agent, c.Owner); err != nil {
		return err
	}
	return prepare.File(c.path("patroni.yml"), content, c.Owner)
}

// clearHalfMade moves a data directory away whose initdb or base backup was
// interrupted: Patroni neither uses nor replaces a directory that is not empty.
// The control file is the last thing a server cannot be without; initdb and
// pg_basebackup write it late or last. Nothing is deleted.
func (c *Config) clearHalfMade() error {
	data := c.path("data")
	entries, err := os.ReadDir(data)
	if errors.Is(err, os.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into %s: %w", data, err)
	}
	_, versionErr := os.Stat(filepath.Join(data, "PG_VERSION"))
	_, controlErr := os.Stat(filepath.Join(data, "global", "pg_control"))
	if versionErr == nil && controlErr == nil {
		return nil
	}
	return c.moveAway()
}

// status is what GET /patroni answers.
type status struct {
	State       string `json:"state"`
	Role        string `json:"role"`
	SyncStandby bool   `json:"sync_standby"`
}

func (c *Config) status(ctx context.Context) (status, error) {
	code, body, err := prepare.Get(ctx, "http://"+c.restAddress()+"/patroni")
	if err != nil {
		return status{}, fmt.Errorf("ask Patroni: %w", err)
	}
	var s status
	if err := json.Unmarshal(body, &s); err != nil {
		return status{}, fmt.Errorf("ask Patroni: status %d: %w", code, err)
	}
	return s, nil
}

func (c *Config) role(ctx context.Context) (string, error) {
	s, err := c.status(ctx)
	if err != nil {
		return "", err
	}
	switch {
	case s.Role == "master" || s.Role == "primary":
		return RolePrimary, nil
	case s.SyncStandby:
		return RoleSyncStandby, nil
	case s.Role == "replica":
		return RoleStandby, nil
	}
	return s.Role, nil
}

// ready asks Patroni and then PostgreSQL itself. A standby is ready when it
// streams: one that only serves old data is not.
func (c *Config) ready(ctx context.Context) error {
	code, body, err := prepare.Get(ctx, "http://"+c.restAddress()+"/health")
	if err != nil {
		return fmt.Errorf("ask Patroni: %w", err)
	}
	if code != http.StatusOK {
		var s status
		if json.Unmarshal(body, &s) == nil && s.State != "" {
			return fmt.Errorf("PostgreSQL is %s", s.State)
		}
		return fmt.Errorf("patroni answers %d", code)
	}
	ctx, cancel := context.WithTimeout(ctx, prepare.ProbeTimeout)
	defer cancel()
	conn, err := connect(ctx, c.address(), "postgres", "postgres", c.Passwords.Superuser)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var standby, streaming bool
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(),
		EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')`).Scan(&standby, &streaming)
	if err != nil {
		return fmt.Errorf("ask PostgreSQL for its role: %w", err)
	}
	if standby && !streaming {
		return errors.New("standby does not stream from the primary yet")
	}
	return nil
}

// connect logs in with the password in the file.
func connect(ctx context.Context, address, user, database, passwordFile string) (*pgx.Conn, error) {
	password, err := prepare.Secret(passwordFile)
	if err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig("postgres://" + address + "/" + database + "?sslmode=disable&connect_timeout=5")
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", address, err)
	}
	cfg.User, cfg.Password = user, password
	cfg.RuntimeParams["application_name"] = "fournines"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", address, err)
	}
	return conn, nil
}
