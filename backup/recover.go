package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/process"
)

// privateServer is a PostgreSQL that carries out a recovery: nobody but this
// account can reach it, and it neither archives nor follows another server.
type privateServer struct {
	dir, socket string
	cmd         *exec.Cmd
	done        chan struct{} // closed when the server has ended
	exit        error         // written before done is closed
	lastCommit  time.Time
	lsn         string
}

// privatePort is only part of the socket's name.
const privatePort = 5432

// startPrivate starts a server on a restored directory and waits until it has
// recovered to its target and takes writes. It fails when the recovery makes no
// progress for Config.RecoveryTimeout.
func (b *Backups) startPrivate(ctx context.Context, dir string) (*privateServer, error) {
	if os.Geteuid() == 0 {
		return nil, errors.New("PostgreSQL refuses to run as root: run this as the account that owns the servers")
	}
	// A socket's path is at most 107 bytes long, a data directory's is not.
	socket, err := os.MkdirTemp("", "fournines-recovery-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	s := &privateServer{dir: dir, socket: socket, done: make(chan struct{})}
	if err := s.start(b.cfg.BinDir); err != nil {
		_ = os.RemoveAll(socket)
		return nil, err
	}
	if err := b.awaitRecovery(ctx, s); err != nil {
		s.kill()
		return nil, err
	}
	return s, nil
}

func (s *privateServer) start(binDir string) error {
	hba := filepath.Join(s.socket, "hba.conf")
	if err := process.WriteFile(hba, []byte("local all all trust\n"), 0o600, process.Owner{}); err != nil {
		return err
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of the recovery: %w", err)
	}
	defer log.Close()
	args := []string{"-D", s.dir}
	for _, setting := range []string{
		"listen_addresses=", "unix_socket_directories=" + s.socket, fmt.Sprintf("port=%d", privatePort),
		"hba_file=" + hba, "ssl=off",
		// Two servers must not archive into one set, a copy must not follow the
		// original, and a commit must not wait for standbys that it has not.
		"archive_mode=off", "primary_conninfo=", "primary_slot_name=", "synchronous_standby_names=",
		// The original's libraries may not be installed here.
		"shared_preload_libraries=", "session_preload_libraries=", "local_preload_libraries=",
		"shared_buffers=64MB", "max_wal_size=1GB", "hot_standby=on", "dynamic_shared_memory_type=mmap",
		"logging_collector=off", "log_destination=stderr", "log_min_messages=log", "lc_messages=C",
		"autovacuum=off", "jit=off",
	} {
		args = append(args, "-c", setting)
	}
	s.cmd = exec.Command(filepath.Join(binDir, "postgres"), args...)
	s.cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + s.dir, "LC_ALL=C.UTF-8", "TZ=UTC"}
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		s.exit = startLocked(s.cmd, started)
		close(s.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start PostgreSQL for the recovery: %w", err)
	}
	return nil
}

func (s *privateServer) logPath() string { return filepath.Join(s.socket, "server.log") }

// connect logs in to the private server.
func (s *privateServer) connect(ctx context.Context, user, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable connect_timeout=5")
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Database = s.socket, privatePort, user, database
	cfg.RuntimeParams["application_name"] = "fournines backup"
	return pgx.ConnectConfig(ctx, cfg)
}

// recoveryPoll is how often a recovery is looked at.
const recoveryPoll = 200 * time.Millisecond

func (b *Backups) awaitRecovery(ctx context.Context, s *privateServer) error {
	b.progress(Progress{Phase: "recover", Percent: -1})
	moved := time.Now()
	last := ""
	for {
		select {
		case <-s.done:
			return fmt.Errorf("the recovery ended early: %s", s.cause())
		case <-ctx.Done():
			return fmt.Errorf("the recovery was interrupted: %w", context.Cause(ctx))
		case <-time.After(recoveryPoll):
		}
		recovering, at, err := s.look(ctx, b.cfg.User)
		if err == nil && !recovering {
			return nil
		}
		// The log moves while the server replays before it accepts logins.
		if at == "" {
			at = s.logSize()
		}
		if at != last {
			last, moved = at, time.Now()
		}
		if time.Since(moved) > b.cfg.RecoveryTimeout {
			return fmt.Errorf("the recovery has not moved for %v: %s", b.cfg.RecoveryTimeout, s.cause())
		}
	}
}

func (s *privateServer) look(ctx context.Context, user string) (recovering bool, at string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := s.connect(ctx, user, "postgres")
	if err != nil {
		return true, "", err
	}
	defer closeConn(ctx, conn)
	var commit *time.Time
	// The end of the replay stays known after the promotion.
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn()::text, ''),
		pg_last_xact_replay_timestamp()`).Scan(&recovering, &at, &commit)
	if err != nil {
		return true, "", err
	}
	if commit != nil {
		s.lastCommit = commit.UTC()
	}
	s.lsn = at
	return recovering, at, nil
}

func (s *privateServer) logSize() string {
	info, err := os.Stat(s.logPath())
	if err != nil {
		return ""
	}
	return fmt.Sprint(info.Size())
}

func (s *privateServer) log() string {
	text, err := os.ReadFile(s.logPath())
	if err != nil {
		return ""
	}
	return string(text)
}

// cause is the reason that the server gave last.
func (s *privateServer) cause() string {
	cause := "the server said nothing"
	for line := range strings.Lines(s.log()) {
		for _, level := range []string{"FATAL:  ", "PANIC:  ", "ERROR:  "} {
			if _, text, ok := strings.Cut(line, level); ok && !strings.Contains(text, "the database system is ") {
				cause = strings.TrimSpace(text)
			}
		}
	}
	if strings.Contains(cause, "recovery ended before configured recovery target was reached") {
		cause += ": the archive ends before the target or has a hole (`fournines backup verify` finds it), or the backup that the recovery began with is newer than the target"
	}
	return cause
}

// stop ends the server in order, so that the directory is ready for another one.
func (s *privateServer) stop() error {
	defer func() { _ = os.RemoveAll(s.socket) }()
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("stop the restored server: %w", err)
	}
	select {
	case <-s.done:
		if s.exit != nil {
			return fmt.Errorf("stop the restored server: %w", s.exit)
		}
		return nil
	case <-time.After(privateStopLimit):
		s.kill()
		return fmt.Errorf("the restored server did not stop within %v", privateStopLimit)
	}
}

// privateStopLimit bounds the last checkpoint of a restored server.
const privateStopLimit = 10 * time.Minute

// kill ends the server when its directory is not wanted any more.
func (s *privateServer) kill() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.done:
	case <-time.After(stopGrace):
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.done
	}
	_ = os.RemoveAll(s.socket)
}
