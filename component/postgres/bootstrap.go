package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// BootstrapConfig describes the accounts and databases of the cluster.
type BootstrapConfig struct {
	// Name of the task in the plan; empty means "postgres-bootstrap".
	Name string
	// Nodes are the addresses (host:port) of all PostgreSQL nodes.
	Nodes []string
	// After names the units that have to be ready before, usually all nodes.
	After []string
	// Superuser is the password file of the role postgres.
	Superuser string
	// Dify, Monitor and PGProxy are the password files of these roles.
	Dify, Monitor, PGProxy string
	// Database is the application's database; empty means "dify".
	Database string
	// Timeout bounds the search for a primary; 0 means 60 s.
	Timeout time.Duration
}

// BootstrapTask returns the plan's line that creates the roles dify, monitor
// and pgproxy, the application's database and its extensions on whichever node
// is primary. It changes nothing that is right already, and gives a role a new
// password when its file has changed.
func BootstrapTask(cfg BootstrapConfig) (process.Unit, error) {
	if cfg.Name == "" {
		cfg.Name = "postgres-bootstrap"
	}
	if cfg.Database == "" {
		cfg.Database = "dify"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	var f prepare.Fields
	f.Check(len(cfg.Nodes) > 0, "Nodes", "needs at least one address")
	for i, n := range cfg.Nodes {
		f.HostPort(fmt.Sprintf("Nodes[%d]", i), n)
	}
	f.Path("Superuser", cfg.Superuser)
	f.Path("Dify", cfg.Dify)
	f.Path("Monitor", cfg.Monitor)
	f.Path("PGProxy", cfg.PGProxy)
	if err := f.Err("postgres bootstrap"); err != nil {
		return process.Unit{}, err
	}
	return process.Unit{
		Name: cfg.Name, Kind: "postgres-bootstrap", After: cfg.After,
		Task: cfg.run,
	}, nil
}

// run tries until a primary has taken everything: the primary may change
// between two statements.
func (c *BootstrapConfig) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	for {
		primary, err := FindPrimary(ctx, c.Nodes, c.Superuser)
		if err == nil {
			if err = c.apply(ctx, primary); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("create roles and database: %w", err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// FindPrimary asks every node if it is in recovery, as the superuser, and
// returns the address of the one that is not.
func FindPrimary(ctx context.Context, nodes []string, superuserPasswordFile string) (string, error) {
	var errs []error
	var found []string
	for _, node := range nodes {
		standby, err := func() (bool, error) {
			ctx, cancel := context.WithTimeout(ctx, prepare.ProbeTimeout)
			defer cancel()
			conn, err := connect(ctx, node, "postgres", "postgres", superuserPasswordFile)
			if err != nil {
				return false, err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			var standby bool
			return standby, conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby)
		}()
		if err != nil {
			errs = append(errs, err)
		} else if !standby {
			found = append(found, node)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("no primary among %s: %w", strings.Join(nodes, ", "), errors.Join(errs...))
	}
	return "", fmt.Errorf("more than one primary: %s", strings.Join(found, ", "))
}

func (c *BootstrapConfig) apply(ctx context.Context, primary string) error {
	conn, err := connect(ctx, primary, "postgres", "postgres", c.Superuser)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, r := range []struct{ name, file string }{{"dify", c.Dify}, {"monitor", c.Monitor}, {"pgproxy", c.PGProxy}} {
		if err := ensureRole(ctx, conn, r.name, r.file); err != nil {
			return err
		}
	}
	// pgproxy asks a standby which timeline it receives, so that it is used again
	// soon after a failover.
	for _, grant := range []string{"GRANT pg_monitor TO monitor", "GRANT pg_read_all_stats TO pgproxy"} {
		if _, err := conn.Exec(ctx, grant); err != nil {
			return fmt.Errorf("%s: %w", grant, err)
		}
	}
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", c.Database).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", c.Database, err)
	}
	database := pgx.Identifier{c.Database}.Sanitize()
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE DATABASE "+database+" OWNER dify"); err != nil {
			return fmt.Errorf("create database %s: %w", c.Database, err)
		}
	}
	// Whoever is not named has no business in the application's database.
	for _, sql := range []string{
		"REVOKE ALL ON DATABASE " + database + " FROM PUBLIC",
		"GRANT CONNECT ON DATABASE " + database + " TO monitor, pgproxy",
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("set the rights of database %s: %w", c.Database, err)
		}
	}
	for _, e := range []struct {
		database   string
		extensions []string
	}{
		// uuid-ossp gives Dify's models their default keys.
		{c.Database, []string{"uuid-ossp", "pgcrypto"}},
		{"postgres", []string{"pg_stat_statements"}},
	} {
		if err := c.extensions(ctx, primary, e.database, e.extensions); err != nil {
			return err
		}
	}
	return nil
}

// ensureRole creates the role or mends its password. The server only ever sees
// the SCRAM verifier, so the password cannot end up in its log.
func ensureRole(ctx context.Context, conn *pgx.Conn, role, passwordFile string) error {
	password, err := prepare.Secret(passwordFile)
	if err != nil {
		return err
	}
	var stored *string
	err = conn.QueryRow(ctx, "SELECT rolpassword FROM pg_authid WHERE rolname = $1", role).Scan(&stored)
	verb := "ALTER"
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		verb = "CREATE"
	case err != nil:
		return fmt.Errorf("look for role %s: %w", role, err)
	case stored != nil && verifies(*stored, password):
		return nil
	}
	verifier, err := newVerifier(password)
	if err != nil {
		return err
	}
	sql := fmt.Sprintf("%s ROLE %s LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '%s'",
		verb, pgx.Identifier{role}.Sanitize(), verifier)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s role %s: %w", strings.ToLower(verb), role, err)
	}
	return nil
}

func (c *BootstrapConfig) extensions(ctx context.Context, primary, database string, names []string) error {
	conn, err := connect(ctx, primary, "postgres", database, c.Superuser)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, name := range names {
		var available bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", name).Scan(&available)
		if err != nil {
			return fmt.Errorf("look for extension %s: %w", name, err)
		}
		if !available {
			continue // the package postgresql-contrib of a foreign installation is missing; Dify creates what it needs
		}
		if _, err := conn.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS "+pgx.Identifier{name}.Sanitize()); err != nil {
			return fmt.Errorf("create extension %s in %s: %w", name, database, err)
		}
	}
	return nil
}

// scramIterations is PostgreSQL's own number (SCRAM_SHA_256_DEFAULT_ITERATIONS).
const scramIterations = 4096

// newVerifier makes the form in which PostgreSQL stores a SCRAM-SHA-256
// password: SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>.
func newVerifier(password string) (string, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make a salt: %w", err)
	}
	return verifier(password, salt, scramIterations)
}

func verifier(password string, salt []byte, iterations int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive key: %w", err)
	}
	mac := func(message string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(message))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}

// verifies reports if the stored verifier is one of this password.
func verifies(stored, password string) bool {
	rest, ok := strings.CutPrefix(stored, "SCRAM-SHA-256$")
	if !ok {
		return false
	}
	head, _, ok := strings.Cut(rest, "$")
	if !ok {
		return false
	}
	count, salt64, ok := strings.Cut(head, ":")
	if !ok {
		return false
	}
	iterations, err := strconv.Atoi(count)
	if err != nil || iterations < 1 || iterations > 1<<20 {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(salt64)
	if err != nil {
		return false
	}
	want, err := verifier(password, salt, iterations)
	return err == nil && hmac.Equal([]byte(want), []byte(stored))
}
