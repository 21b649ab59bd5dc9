//go:build linux

// Package postgres starts PostgreSQL for benchmarks: a primary and standbys that
// stream from it, in a temporary directory, tuned to wait for nothing but the
// processor (fsync is off). What it reports to callers are errors, not figures.
package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/bench/rig"
	"fournines/internal/process"
)

// binDir is where Debian installs the server's own programs.
const binDir = "/usr/lib/postgresql/15/bin"

// The roles of a cluster, all with LOGIN and the cluster's password. User owns
// the database of the same name.
const (
	User       = "bench"
	ProbeUser  = "pgproxy"
	superuser  = "postgres"
	replicator = "replicator"
)

// startLimit bounds the start of one server on a busy machine.
const startLimit = time.Minute

// Options say what Start starts.
type Options struct {
	// Dir is an existing directory, which the cluster's owner gets.
	Dir string
	// Standbys is how many servers stream from the primary.
	Standbys int
	// CPUs are the processors of the servers, one for each in turn; nil is any.
	CPUs []int
	// Users may log in beside the usual roles.
	Users []string
	// Settings are added to postgresql.conf of all servers.
	Settings map[string]string
	// Replication returns where standbys reach the primary, given its address; nil
	// is there.
	Replication func(primary netip.AddrPort) (netip.AddrPort, error)
}

// Cluster is a primary and its standbys.
type Cluster struct {
	// Owner is the account that the servers run as; for programs that refuse to
	// be root like PostgreSQL does.
	Owner    process.Owner
	Password string
	// PasswordFile holds Password, mode 0600.
	PasswordFile string
	// Servers are the primary, then the standbys.
	Servers []*Server

	dir      string
	settings map[string]string
	cpus     []int
	free     *rig.Addresses
}

// Server is one PostgreSQL server.
type Server struct {
	*rig.Process
	Name    string
	Address netip.AddrPort
	data    string
}

// Start makes a cluster, and returns when its standbys stream. Close ends it.
func Start(ctx context.Context, free *rig.Addresses, o Options) (_ *Cluster, err error) {
	c := &Cluster{dir: o.Dir, settings: o.Settings, cpus: o.CPUs, free: free, PasswordFile: filepath.Join(o.Dir, "password")}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.Owner, err = owner(); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(c.dir, c.Owner.UID, c.Owner.GID); err != nil {
			return nil, err
		}
	}
	secret := make([]byte, 12)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	c.Password = hex.EncodeToString(secret)
	if err := process.WriteFile(c.PasswordFile, []byte(c.Password), 0o600, c.Owner); err != nil {
		return nil, err
	}
	primary, err := c.newServer("pg0")
	if err != nil {
		return nil, err
	}
	if err := c.tool(ctx, "initdb", "--pgdata", primary.data, "--username", superuser, "--pwfile", c.PasswordFile,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"); err != nil {
		return nil, err
	}
	if err := c.run(ctx, primary); err != nil {
		return nil, err
	}
	sql := []string{fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION PASSWORD '%s'", replicator, c.Password)}
	for _, name := range append([]string{User, ProbeUser}, o.Users...) {
		sql = append(sql, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", name, c.Password))
	}
	sql = append(sql, fmt.Sprintf("CREATE DATABASE %s OWNER %s", User, User))
	if err := c.exec(ctx, sql...); err != nil {
		return nil, err
	}
	source := primary.Address
	if o.Replication != nil {
		if source, err = o.Replication(source); err != nil {
			return nil, err
		}
	}
	for i := range o.Standbys {
		s, err := c.newServer(fmt.Sprint("pg", i+1))
		if err != nil {
			return nil, err
		}
		from := fmt.Sprintf("host=%s port=%d user=%s password=%s application_name=%s",
			source.Addr(), source.Port(), replicator, c.Password, s.Name)
		if err := c.tool(ctx, "pg_basebackup", "--pgdata", s.data, "--dbname", from, "--checkpoint", "fast",
			"--wal-method", "stream", "--write-recovery-conf", "--no-sync"); err != nil {
			return nil, err
		}
		if err := c.run(ctx, s); err != nil {
			return nil, err
		}
	}
	return c, c.AwaitStandbys(ctx)
}

// owner is the account that stands in for root, which PostgreSQL refuses.
func owner() (process.Owner, error) {
	if os.Geteuid() != 0 {
		return process.Owner{}, nil
	}
	var errs []error
	for _, name := range []string{"fournines", "postgres"} {
		o, err := process.LookupOwner(name)
		if err == nil {
			return o, nil
		}
		errs = append(errs, err)
	}
	return process.Owner{}, errors.Join(errs...)
}

func (c *Cluster) newServer(name string) (*Server, error) {
	at, err := c.free.Free()
	return &Server{Name: name, Address: at, data: filepath.Join(c.dir, name)}, err
}

// run configures and starts a server whose data directory is there.
func (c *Cluster) run(ctx context.Context, s *Server) error {
	all := map[string]string{
		"listen_addresses": s.Address.Addr().String(), "port": strconv.Itoa(int(s.Address.Port())), "unix_socket_directories": "",
		"shared_buffers": "256MB", "fsync": "off", "full_page_writes": "off", "max_wal_size": "4GB", "wal_keep_size": "256MB",
		"autovacuum": "off", "password_encryption": "scram-sha-256", "logging_collector": "off",
	}
	maps.Copy(all, c.settings)
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&text, "%s = '%s'\n", k, strings.ReplaceAll(all[k], "'", "''"))
	}
	hba := "host all all 127.0.0.0/8 scram-sha-256\nhost replication " + replicator + " 127.0.0.0/8 scram-sha-256\n"
	for name, content := range map[string]string{"postgresql.conf": text.String(), "pg_hba.conf": hba} {
		if err := process.WriteFile(filepath.Join(s.data, name), []byte(content), 0o600, c.Owner); err != nil {
			return err
		}
	}
	start := rig.Command{Name: s.Name, Dir: c.dir, Argv: []string{filepath.Join(binDir, "postgres"), "-D", s.data}, Owner: c.Owner}
	if len(c.cpus) > 0 {
		n := len(c.Servers) % len(c.cpus)
		start.CPUs = c.cpus[n : n+1]
	}
	var err error
	if s.Process, err = rig.Start(start); err != nil {
		return err
	}
	c.Servers = append(c.Servers, s)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.dsn(s.Address, superuser, superuser))
		if err == nil {
			return conn.Close(ctx)
		}
		if pause := s.Pause(ctx, 50*time.Millisecond); pause != nil {
			return errors.Join(err, pause)
		}
	}
}

// tool runs one of the server's programs to its end.
func (c *Cluster) tool(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, name), args...)
	cmd.Dir = c.dir
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.Owner.UID), Gid: uint32(c.Owner.GID)}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// Primary is the server that takes writes.
func (c *Cluster) Primary() *Server { return c.Servers[0] }

// DSN connects as User, at a server or at a proxy before it.
func (c *Cluster) DSN(at netip.AddrPort) string { return c.dsn(at, User, User) }

func (c *Cluster) dsn(at netip.AddrPort, user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, c.Password), Host: at.String(), Path: database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Admin logs in at the primary as superuser. The caller closes the connection.
func (c *Cluster) Admin(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, c.dsn(c.Primary().Address, superuser, superuser))
}

// DSNFor is DSN for one of Options.Users.
func (c *Cluster) DSNFor(user string, at netip.AddrPort) string { return c.dsn(at, user, User) }

// exec runs statements as superuser on the primary.
func (c *Cluster) exec(ctx context.Context, statements ...string) error {
	conn, err := c.Admin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// AwaitStandbys waits until all standbys have replayed what the primary has now.
func (c *Cluster) AwaitStandbys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	conn, err := c.Admin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var now string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&now); err != nil {
		return err
	}
	for {
		var n int
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn >= $1::text::pg_lsn", now).Scan(&n); err != nil {
			return err
		}
		if n >= len(c.Servers)-1 {
			return nil
		}
		if err := c.Primary().Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d standbys have caught up: %w", n, len(c.Servers)-1, err)
		}
	}
}

// PIDs are the processes of all servers, without those below them.
func (c *Cluster) PIDs() []int {
	var pids []int
	for _, s := range c.Servers {
		pids = append(pids, s.PID())
	}
	return pids
}

// Close ends all servers. Their files are in the directory that Start was given.
func (c *Cluster) Close() {
	for _, s := range slices.Backward(c.Servers) {
		// Immediate shutdown: backends are in sessions of their own, so that
		// killing the group would not reach them.
		s.End(syscall.SIGQUIT, 10*time.Second)
	}
}
