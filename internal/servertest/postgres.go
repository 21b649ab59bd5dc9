package servertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
)

// postgresBinDir is where Debian installs the server's own programs.
const postgresBinDir = "/usr/lib/postgresql/15/bin"

// postgresStartLimit bounds how long a start may take on a loaded machine.
const postgresStartLimit = 2 * time.Minute

// PostgresRoles are the login roles that every test cluster has, with the
// rights they have in a real installation. "dify" owns the database "dify".
func PostgresRoles() []string {
	return []string{"postgres", "replicator", "rewind", "dify", "monitor", "pgproxy"}
}

// PostgresOptions changes what NewPostgres starts. The zero value is useful.
type PostgresOptions struct {
	// Host is the loopback address to listen on; empty means one chosen at
	// random, so that nobody takes the server's port while it is down.
	Host string
	// Settings are added to postgresql.conf.
	Settings map[string]string
	// TLSCertFile and TLSKeyFile switch on TLS; the server gets copies.
	TLSCertFile, TLSKeyFile string
}

// Postgres is one real PostgreSQL 15 server in a temporary directory. Its
// methods fail the test on error and may be called from the test's goroutine
// only, except for Address, Port, DSN and Password.
type Postgres struct {
	tb        testing.TB
	dir       string
	data      string
	host      string
	port      int
	cred      *syscall.Credential
	settings  map[string]string
	passwords map[string]string

	mu   sync.Mutex
	proc *postgresProcess
}

type postgresProcess struct {
	pid  int
	done chan struct{}
	err  error
}

// NewPostgres initialises and starts a primary that accepts SCRAM logins over
// TCP, and stops and deletes it when the test ends. It skips the test when
// PostgreSQL is not installed, or fails it with FOURNINES_REQUIRE_SERVERS=1.
func NewPostgres(tb testing.TB, opts PostgresOptions) *Postgres {
	tb.Helper()
	p := newPostgres(tb, opts)
	p.passwords = make(map[string]string)
	for _, role := range PostgresRoles() {
		b := make([]byte, 12)
		if _, err := rand.Read(b); err != nil {
			tb.Fatal(err)
		}
		p.passwords[role] = hex.EncodeToString(b)
	}
	pwfile := filepath.Join(p.dir, "superuser.password")
	p.write(pwfile, p.passwords["postgres"])
	p.tool("initdb", "--pgdata", p.data, "--username", "postgres", "--pwfile", pwfile,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync")
	p.write(filepath.Join(p.data, "pg_hba.conf"),
		"local all all scram-sha-256\nhost all all 127.0.0.0/8 scram-sha-256\nhost replication replicator 127.0.0.0/8 scram-sha-256\n")
	if opts.TLSCertFile != "" {
		p.copy(opts.TLSCertFile, filepath.Join(p.data, "server.crt"))
		p.copy(opts.TLSKeyFile, filepath.Join(p.data, "server.key"))
		p.settings["ssl"] = "on"
	}
	p.configure()
	p.Start()
	p.Exec(fmt.Sprintf("CREATE ROLE replicator LOGIN REPLICATION PASSWORD '%s'", p.passwords["replicator"]),
		fmt.Sprintf("CREATE ROLE rewind LOGIN PASSWORD '%s'", p.passwords["rewind"]),
		"GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO rewind",
		fmt.Sprintf("CREATE ROLE dify LOGIN PASSWORD '%s'", p.passwords["dify"]),
		fmt.Sprintf("CREATE ROLE monitor LOGIN PASSWORD '%s' IN ROLE pg_monitor", p.passwords["monitor"]),
		fmt.Sprintf("CREATE ROLE pgproxy LOGIN PASSWORD '%s' IN ROLE pg_read_all_stats", p.passwords["pgproxy"]),
		"CREATE DATABASE dify OWNER dify")
	return p
}

// NewStandby clones primary with pg_basebackup and starts the copy as a hot
// standby that streams from it. It waits until the standby is streaming. Its
// application_name is its port number.
func NewStandby(tb testing.TB, primary *Postgres) *Postgres {
	tb.Helper()
	p := newPostgres(tb, PostgresOptions{Host: primary.host, Settings: primary.settings})
	p.passwords = primary.passwords
	p.cloneFrom(primary)
	return p
}

// Rejoin throws this server's data away and makes it a standby of primary, as
// an operator would do with a lost primary that cannot be rewound.
func (p *Postgres) Rejoin(primary *Postgres) {
	p.tb.Helper()
	p.Kill()
	if err := os.RemoveAll(p.data); err != nil {
		p.tb.Fatal(err)
	}
	p.cloneFrom(primary)
}

func (p *Postgres) cloneFrom(primary *Postgres) {
	p.tb.Helper()
	conninfo := fmt.Sprintf("host=%s port=%d user=replicator password=%s application_name=standby_%d",
		primary.host, primary.port, p.passwords["replicator"], p.port)
	p.tool("pg_basebackup", "--pgdata", p.data, "--dbname", conninfo, "--wal-method", "stream",
		"--checkpoint", "fast", "--no-sync", "--write-recovery-conf")
	p.configure()
	p.Start()
	eventually.Nil(p.tb, postgresStartLimit, func() error {
		var streaming bool
		if err := primary.QueryRow("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND application_name = $1)",
			fmt.Sprintf("standby_%d", p.port)).Scan(&streaming); err != nil {
			return err
		}
		if !streaming {
			return errors.New("standby is not streaming")
		}
		return nil
	})
}

func newPostgres(tb testing.TB, opts PostgresOptions) *Postgres {
	tb.Helper()
	if _, err := os.Stat(filepath.Join(postgresBinDir, "postgres")); err != nil {
		missing(tb, "PostgreSQL 15", err)
	}
	p := &Postgres{tb: tb, host: opts.Host, settings: make(map[string]string)}
	if p.host == "" {
		p.host = LoopbackHost()
	}
	for k, v := range opts.Settings {
		p.settings[k] = v
	}
	var err error
	if p.dir, err = os.MkdirTemp("/tmp", "fournines-test-postgres-"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.Kill()
		if err := os.RemoveAll(p.dir); err != nil {
			tb.Errorf("remove test cluster: %v", err)
		}
	})
	p.data = filepath.Join(p.dir, "data")
	if os.Geteuid() == 0 {
		if p.cred, err = postgresUser(); err != nil {
			missing(tb, "a user to run PostgreSQL as", err)
		}
		if err := os.Chown(p.dir, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.Chmod(p.dir, 0o755); err != nil { //nolint:gosec // the server's own user must reach it
		tb.Fatal(err)
	}
	p.port = freePort(tb, p.host)
	return p
}

// postgresUser finds the account that stands in for root, which PostgreSQL refuses.
func postgresUser() (*syscall.Credential, error) {
	var errs []error
	for _, name := range []string{"fournines", "postgres"} {
		u, err := user.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr != nil || gidErr != nil {
			errs = append(errs, uidErr, gidErr)
			continue
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.Join(errs...)
}

func (p *Postgres) write(path, content string) {
	p.tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		p.tb.Fatal(err)
	}
	if p.cred != nil {
		if err := os.Chown(path, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			p.tb.Fatal(err)
		}
	}
}

func (p *Postgres) copy(from, to string) {
	p.tb.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		p.tb.Fatal(err)
	}
	p.write(to, string(b))
}

// configure writes the settings that differ per server; they override what a
// clone brought along.
func (p *Postgres) configure() {
	p.tb.Helper()
	all := map[string]string{
		"listen_addresses": p.host, "port": strconv.Itoa(p.port), "unix_socket_directories": "",
		"max_connections": "100", "shared_buffers": "32MB", "fsync": "off", "hot_standby": "on",
		"wal_level": "logical", "max_wal_senders": "10", "wal_keep_size": "128MB", "wal_log_hints": "on",
		"password_encryption": "scram-sha-256", "logging_collector": "off", "log_line_prefix": "%m [%p] %u@%d ",
		"max_prepared_transactions": "10", "wal_retrieve_retry_interval": "100ms",
	}
	for k, v := range p.settings {
		all[k] = v
	}
	var b strings.Builder
	for k, v := range all {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(v, "'", "''"))
	}
	p.write(filepath.Join(p.data, "postgresql.conf"), b.String())
}

func (p *Postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(postgresBinDir, name), args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=" + p.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
	return cmd
}

func (p *Postgres) tool(name string, args ...string) {
	p.tb.Helper()
	if out, err := p.command(name, args...).CombinedOutput(); err != nil {
		p.tb.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Start starts the server when it does not run, and waits until it answers.
func (p *Postgres) Start() {
	p.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc != nil {
		return
	}
	logFile, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.tb.Fatal(err)
	}
	defer logFile.Close()
	cmd := p.command("postgres", "-D", p.data)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr.Setpgid = true
	// The server must not outlive a test binary that was killed. The signal is
	// tied to the starting thread, hence the goroutine that keeps its own.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	proc := &postgresProcess{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(proc.done)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		proc.pid = cmd.Process.Pid
		started <- nil
		proc.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		p.tb.Fatalf("start postgres: %v", err)
	}
	p.proc = proc
	eventually.Nil(p.tb, postgresStartLimit, func() error {
		select {
		case <-proc.done:
			p.tb.Fatalf("postgres ended at start: %v\n%s", proc.err, p.Log())
		default:
		}
		var one int
		return p.QueryRow("SELECT 1").Scan(&one)
	})
}

// Running tells whether the server process exists, paused or not.
func (p *Postgres) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc != nil
}

// Log is what the server has printed so far.
func (p *Postgres) Log() string {
	b, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(bytes.ToValidUTF8(b, []byte("?")))
}

// Kill ends all processes of the server with SIGKILL, like a power loss of
// the process but not of the disk cache, and waits until they are gone.
func (p *Postgres) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return
	}
	// A stopped postmaster makes no new children while they are listed.
	_ = syscall.Kill(p.proc.pid, syscall.SIGSTOP)
	pids := childrenOf(p.proc.pid)
	_ = syscall.Kill(p.proc.pid, syscall.SIGKILL)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.proc.done
	for _, pid := range pids {
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline) && notZombie(pid); {
			time.Sleep(time.Millisecond)
		}
	}
	p.proc = nil
}

// Pause freezes all processes of the server with SIGSTOP: connections stay
// open and nothing answers.
func (p *Postgres) Pause() { p.signalAll(syscall.SIGSTOP) }

// Resume continues what Pause froze.
func (p *Postgres) Resume() { p.signalAll(syscall.SIGCONT) }

func (p *Postgres) signalAll(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return
	}
	_ = syscall.Kill(p.proc.pid, sig)
	for _, pid := range childrenOf(p.proc.pid) {
		_ = syscall.Kill(pid, sig)
	}
}

// Stop shuts the server down in fast mode: sessions are ended, data is flushed
// and sent to standbys.
func (p *Postgres) Stop() {
	p.tb.Helper()
	p.stop(syscall.SIGINT)
}

// Abort shuts the server down in immediate mode: sessions are told and end at
// once, and the next start is a recovery.
func (p *Postgres) Abort() {
	p.tb.Helper()
	p.stop(syscall.SIGQUIT)
}

func (p *Postgres) stop(sig syscall.Signal) {
	p.tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return
	}
	_ = syscall.Kill(p.proc.pid, sig)
	select {
	case <-p.proc.done:
	case <-time.After(postgresStartLimit):
		p.tb.Fatalf("postgres did not stop\n%s", p.Log())
	}
	p.proc = nil
}

// Restart stops the server in fast mode and starts it again.
func (p *Postgres) Restart() {
	p.tb.Helper()
	p.Stop()
	p.Start()
}

// Promote makes a standby the primary and waits until it accepts writes.
func (p *Postgres) Promote() {
	p.tb.Helper()
	p.Exec("SELECT pg_promote(true, 60)")
	eventually.Nil(p.tb, postgresStartLimit, func() error {
		var recovery bool
		if err := p.QueryRow("SELECT pg_is_in_recovery()").Scan(&recovery); err != nil {
			return err
		}
		if recovery {
			return errors.New("still in recovery")
		}
		return nil
	})
}

// Demote turns this server into a standby of primary without losing its
// data directory, as a planned switchover does with the old primary.
func (p *Postgres) Demote(primary *Postgres) {
	p.tb.Helper()
	p.Stop()
	p.write(filepath.Join(p.data, "standby.signal"), "")
	p.write(filepath.Join(p.data, "postgresql.auto.conf"), fmt.Sprintf(
		"primary_conninfo = 'host=%s port=%d user=replicator password=%s application_name=standby_%d'\nrecovery_target_timeline = 'latest'\n",
		primary.host, primary.port, p.passwords["replicator"], p.port))
	p.Start()
}

// StartAsPrimary starts a standby that is stopped as a primary on its own
// timeline, as who deletes standby.signal does, or who restores an old copy.
func (p *Postgres) StartAsPrimary() {
	p.tb.Helper()
	if err := os.Remove(filepath.Join(p.data, "standby.signal")); err != nil {
		p.tb.Fatal(err)
	}
	p.Start()
}

// Follow makes a running standby stream from another primary, as after a
// failover, without a restart.
func (p *Postgres) Follow(primary *Postgres) {
	p.tb.Helper()
	p.Exec(fmt.Sprintf("ALTER SYSTEM SET primary_conninfo = 'host=%s port=%d user=replicator password=%s application_name=standby_%d'",
		primary.host, primary.port, p.passwords["replicator"], p.port), "SELECT pg_reload_conf()")
}

// PauseReplay makes a standby stop replaying WAL; it goes on receiving it.
func (p *Postgres) PauseReplay() { p.Exec("SELECT pg_wal_replay_pause()") }

// ResumeReplay takes PauseReplay back.
func (p *Postgres) ResumeReplay() { p.Exec("SELECT pg_wal_replay_resume()") }

// Address is the server's host:port.
func (p *Postgres) Address() string { return net.JoinHostPort(p.host, strconv.Itoa(p.port)) }

// Host is the address that the server listens on.
func (p *Postgres) Host() string { return p.host }

// Port is the port that the server listens on.
func (p *Postgres) Port() int { return p.port }

// DataDir is the server's data directory.
func (p *Postgres) DataDir() string { return p.data }

// Password is the password of one of PostgresRoles.
func (p *Postgres) Password(role string) string { return p.passwords[role] }

// PasswordFile writes the role's password into a file of mode 0600 that the
// test's own user can read, and returns its path.
func (p *Postgres) PasswordFile(tb testing.TB, role string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), role+".password")
	if err := os.WriteFile(path, []byte(p.passwords[role]+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// DSN is a connection URL without TLS for the role: to the database "dify",
// for the superuser to "postgres".
func (p *Postgres) DSN(role string) string { return p.DSNVia(p.Address(), role) }

// DSNVia is DSN with another address, for example of a proxy.
func (p *Postgres) DSNVia(address, role string) string {
	db := "dify"
	if role == "postgres" {
		db = "postgres"
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(role, p.passwords[role]), Host: address, Path: "/" + db, RawQuery: "sslmode=disable"}
	return u.String()
}

// Exec runs statements as superuser in the database "postgres", each in its
// own transaction.
func (p *Postgres) Exec(statements ...string) {
	p.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), postgresStartLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN("postgres"))
	if err != nil {
		p.tb.Fatalf("connect to test cluster: %v", err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			p.tb.Fatalf("%s: %v", s, err)
		}
	}
}

// QueryRow asks the server itself as superuser in the database "postgres". The
// caller must call Scan, which closes the connection.
func (p *Postgres) QueryRow(sql string, args ...any) pgx.Row {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	conn, err := pgx.Connect(ctx, p.DSN("postgres"))
	if err != nil {
		cancel()
		return errorRow{err}
	}
	return ownedRow{conn: conn, row: conn.QueryRow(ctx, sql, args...), cancel: cancel}
}

// ownedRow closes its connection after the one Scan.
type ownedRow struct {
	conn   *pgx.Conn
	row    pgx.Row
	cancel context.CancelFunc
}

func (r ownedRow) Scan(dest ...any) error {
	defer r.cancel()
	err := r.row.Scan(dest...)
	_ = r.conn.Close(context.Background())
	return err
}

type errorRow struct{ err error }

func (r errorRow) Scan(...any) error { return r.err }

// childrenOf lists the direct children of a process.
func childrenOf(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

func notZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	i := bytes.LastIndexByte(b, ')')
	return i < 0 || i+2 >= len(b) || b[i+2] != 'Z'
}
