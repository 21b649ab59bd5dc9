// Package backup keeps copies of a PostgreSQL cluster outside it, and proves
// that they can be restored. pgBackRest takes base backups, archives WAL and
// restores; this package decides when, from which node and under which guards it
// runs, checks what it left, and says in one sentence what went wrong.
//
// Everything that touches the servers' files runs as the account that owns them,
// on the machine that has them.
package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/process"
)

// Backups are the backups of one cluster in one target. Its methods may be
// called from several goroutines and processes; those that change the target
// exclude each other by a lock file in the state directory.
type Backups struct {
	cfg Config
	// executable is this program, which PostgreSQL calls to fetch WAL.
	executable string
	configFile string
	progress   func(Progress)
	now        func() time.Time
}

// Progress is how far a long operation is.
type Progress struct {
	// Phase in a few words, "copy files".
	Phase string
	// Percent of the phase's bytes that are done, 0 to 100; negative when the
	// phase has no measure.
	Percent float64
}

// Options are what New needs beside the configuration.
type Options struct {
	// ConfigFile is the file the configuration came from. PostgreSQL hands it to
	// this program when it fetches WAL during a restore.
	ConfigFile string
	// Progress is told how far long operations are; nil means nobody wants to know.
	Progress func(Progress)
	// Set is the name of the set of backups to look at when it is not that of the
	// configuration: one that an earlier cluster left in the same target.
	Set string
	// Now is the clock of the schedule; nil means time.Now.
	Now func() time.Time
}

// New returns the backups that cfg describes. It opens nothing.
func New(cfg Config, opts Options) (*Backups, error) {
	if opts.Set != "" {
		cfg.Name = opts.Set
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	executable, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the own program: %w", err)
	}
	file, err := filepath.Abs(opts.ConfigFile)
	if err != nil {
		return nil, fmt.Errorf("find the configuration file: %w", err)
	}
	b := &Backups{cfg: cfg, executable: executable, configFile: file, progress: opts.Progress, now: opts.Now}
	if b.progress == nil {
		b.progress = func(Progress) {}
	}
	if b.now == nil {
		b.now = time.Now
	}
	return b, nil
}

// Target says in words where the backups lie.
func (b *Backups) Target() string {
	if s := b.cfg.S3; s != nil {
		return "s3://" + s.Bucket + s.prefix() + " at " + s.Endpoint
	}
	return b.cfg.Folder
}

func (b *Backups) state(name string) string { return filepath.Join(b.cfg.StateDir, name) }

// prepare makes the directories that pgBackRest and this package write to.
func (b *Backups) prepare() error {
	dirs := []string{b.cfg.StateDir, b.state("lock"), b.state("spool")}
	if b.cfg.Folder != "" {
		dirs = append(dirs, b.cfg.Folder)
	}
	for _, dir := range dirs {
		if err := process.MkdirAll(dir, 0o700, process.Owner{}); err != nil {
			return err
		}
	}
	return nil
}

// readSecret reads the secret in path and refuses one that others can read.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("secret file %s has mode %#o, so others can read it: chmod 0600 %s", path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" || strings.ContainsAny(secret, "\r\n\x00") {
		return "", fmt.Errorf("secret file %s: want one line that is not empty", path)
	}
	return secret, nil
}

// connect logs in to a node through its socket.
func (b *Backups) connect(ctx context.Context, n Node, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable connect_timeout=5")
	if err != nil {
		return nil, err
	}
	cfg.Host, cfg.Port, cfg.User, cfg.Database = n.SocketDir, uint16(n.Port), b.cfg.User, database
	cfg.RuntimeParams["application_name"] = "fournines backup"
	if b.cfg.PasswordFile != "" {
		if cfg.Password, err = readSecret(b.cfg.PasswordFile); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("log in to %s: %w", n.Name, err)
	}
	return conn, nil
}

// primary finds the node that is not in recovery.
func (b *Backups) primary(ctx context.Context) (Node, error) {
	var found []Node
	var names []string
	var errs []error
	for _, n := range b.cfg.Nodes {
		names = append(names, n.Name)
		standby, err := b.inRecovery(ctx, n)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !standby:
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Node{}, fmt.Errorf("no primary among %s: %w", strings.Join(names, ", "), oneLine(errors.Join(errs...)))
	}
	return Node{}, fmt.Errorf("%s and %s both call themselves primary: nothing is backed up until one is", found[0].Name, found[1].Name)
}

func (b *Backups) inRecovery(ctx context.Context, n Node) (standby bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := b.connect(ctx, n, "postgres")
	if err != nil {
		return false, err
	}
	defer closeConn(ctx, conn)
	return standby, conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby)
}

// probeTimeout bounds a question to one node.
const probeTimeout = 5 * time.Second

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// oneLine keeps an error of several lines in one; nil stays nil.
func oneLine(err error) error {
	if err == nil {
		return errors.New("all are standbys")
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if text == err.Error() {
		return err
	}
	return &flatError{text: text, err: err}
}

type flatError struct {
	text string
	err  error
}

func (e *flatError) Error() string { return e.text }
func (e *flatError) Unwrap() error { return e.err }

// Bytes writes a size the way people read it.
func Bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, suffix := float64(n)/unit, 0
	for value >= unit && suffix < 4 {
		value /= unit
		suffix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[suffix])
}
