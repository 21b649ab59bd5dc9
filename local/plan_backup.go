package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fournines/backup"
	"fournines/component/postgres"
	"fournines/internal/process"
)

// Names under the data directory.
const (
	// backupUnit is the scheduler, and the directory of its configuration and
	// state.
	backupUnit = "backup"
	// BackupFolder holds the backups unless the spec names another directory.
	BackupFolder = "backups"
)

// backupStopTimeout is how long the scheduler may take to stop a backup in order.
const backupStopTimeout = 15 * time.Second

// backupConfig is the file that PostgreSQL's archive_command and `fournines
// backup` read.
func (p *planner) backupConfig() string { return filepath.Join(p.Dir, backupUnit, "config.yaml") }

// archiveCommand is that of all nodes; empty when nothing is backed up.
func (p *planner) archiveCommand() string {
	if !p.Spec.Backup.Enabled {
		return ""
	}
	return backup.ArchiveCommand(p.binary(), p.backupConfig())
}

// planBackup returns the scheduler of backups, and adds the task that makes what
// archive_command needs; the nodes come after it. The scheduler stands outside
// the zones: it reaches the files of all nodes, and the backups belong to no zone,
// as in object storage or on a file server, so that the loss of one stops neither
// the archive nor a backup.
func (p *planner) planBackup(nodes []postgres.Config) (scheduler process.Unit, err error) {
	s := p.Spec.Backup
	name, err := p.backupSet()
	if err != nil {
		return scheduler, err
	}
	admin, err := p.addr("", hostBackup, backupAdminPort)
	if err != nil {
		return scheduler, err
	}
	cfg := backup.Default()
	cfg.Name = name
	cfg.StateDir = filepath.Join(p.Dir, backupUnit)
	cfg.Folder = s.Directory
	if cfg.Folder == "" {
		cfg.Folder = filepath.Join(p.Dir, BackupFolder)
	}
	cfg.KeepDays, cfg.Schedule, cfg.DrillSchedule, cfg.WALLimit = s.KeepDays, s.Schedule, s.DrillSchedule, int64(s.WALLimit)
	cfg.PasswordFile = p.secrets.Path("postgres-superuser")
	cfg.BinDir = postgres.BinDir(p.Spec.Postgres.Version)
	cfg.AdminListen = admin
	for i := range nodes {
		n := &nodes[i]
		if n.SocketDir() == "" {
			return scheduler, fmt.Errorf("backup: the path %s is too long for a socket of PostgreSQL: choose a shorter --data-dir, or set backup.enabled to false", n.DataDir)
		}
		cfg.Nodes = append(cfg.Nodes, backup.Node{Name: n.Name, DataDir: n.DatabaseDir(), SocketDir: n.SocketDir(), Port: postgresPort})
	}
	u := p.own(process.Unit{
		Name: backupUnit, Kind: "backup", Address: admin, After: []string{"postgres-bootstrap"},
		// A target that is away must not keep the stack from being ready: Dify does
		// without it, and alerts say so.
		Ready: func(ctx context.Context) error { return getOK(ctx, "http://"+admin+"/livez") },
	}, []string{"backup", "schedule"}, cfg)
	u.Process.StopTimeout = backupStopTimeout
	configure := u.Prepare
	u.Prepare = func(ctx context.Context) error {
		return errors.Join(configure(ctx), process.MkdirAll(cfg.Folder, 0o700, p.Owner))
	}
	p.scrape("backup", u.Name, "", admin, "/metrics")
	return u, p.add(process.Unit{Name: "backup-setup", Kind: "backup-setup", Task: u.Prepare}, nil)
}

// backupSet is the name of this cluster's set of backups, chosen once for the
// life of its data: what a former cluster of the same name left in the target
// stays apart from it, because no archive takes the WAL of two.
func (p *planner) backupSet() (string, error) {
	path := filepath.Join(p.Dir, backupUnit, "set")
	text, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the name of the set of backups: %w", err)
	}
	name := p.Spec.Name + "-" + time.Now().UTC().Format("20060102150405")
	if err := process.MkdirAll(filepath.Dir(path), 0o700, p.Owner); err != nil {
		return "", err
	}
	return name, process.WriteFile(path, []byte(name+"\n"), 0o600, p.Owner)
}
