package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"fournines/internal/cron"
	"fournines/internal/strictyaml"
)

// Config describes the cluster, the target of its backups and when they are
// taken. LoadConfig reads it from a file; Default has what the file may leave out.
type Config struct {
	// Name of the set of backups in the target, pgBackRest's stanza. One target
	// can hold the sets of several clusters.
	Name string `yaml:"name"`
	// StateDir is where locks, results and restore drills live. It is made when
	// it is missing.
	StateDir string `yaml:"stateDir"`
	// Folder is the target when it is a directory. Either Folder or S3 is set.
	Folder string `yaml:"folder"`
	// S3 is the target when it is object storage.
	S3 *S3 `yaml:"s3"`
	// CipherPassFile is a file of mode 0600 with the passphrase that encrypts
	// backups and WAL (AES-256-CBC); empty leaves them in the clear. It cannot
	// be changed for a target that has backups, and without it they are lost.
	CipherPassFile string `yaml:"cipherPassFile"`
	// KeepDays is how many days one can go back. The backup before that time
	// stays as well, because its successors begin later.
	KeepDays int `yaml:"keepDays"`
	// FullEvery is how many days a full backup serves as the base of
	// differential ones. With 1 each daily backup is full.
	FullEvery int `yaml:"fullEvery"`
	// WALLimit in bytes is how much WAL may wait in a server for an archive that
	// takes none. What comes then is dropped, so that the server's disk does not
	// fill up: no recovery can pass that point, and the scheduler takes a backup
	// as soon as the archive works again. 0 never drops any.
	WALLimit int64 `yaml:"walLimit"`
	// Processes copy and compress files at the same time.
	Processes int `yaml:"processes"`
	// ArchiveTimeout is how long a backup waits for the WAL that it needs.
	ArchiveTimeout time.Duration `yaml:"archiveTimeout"`
	// Nodes are the PostgreSQL servers of the cluster on this machine; whichever
	// is primary is backed up.
	Nodes []Node `yaml:"nodes"`
	// User is a superuser of the cluster.
	User string `yaml:"user"`
	// PasswordFile is a file of mode 0600 with its password; empty when the
	// socket asks for none.
	PasswordFile string `yaml:"passwordFile"`
	// Databases are checked by restore drills; empty means all.
	Databases []string `yaml:"databases"`
	// BinDir has PostgreSQL's programs, for restores that recover.
	BinDir string `yaml:"binDir"`
	// PgBackRest is the path of the program.
	PgBackRest string `yaml:"pgbackrest"`
	// Schedule of backups and DrillSchedule of restore drills in cron form
	// (minute hour day month weekday, time zone of the machine); empty means never.
	Schedule      string `yaml:"schedule"`
	DrillSchedule string `yaml:"drillSchedule"`
	// RecoveryTimeout is how long a recovery may go without replaying WAL.
	RecoveryTimeout time.Duration `yaml:"recoveryTimeout"`
	// AdminListen is the host:port of /metrics, /livez and /readyz of the
	// scheduler; empty for none.
	AdminListen string `yaml:"adminListen"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"logLevel"`
}

// S3 is a bucket of an S3 service.
type S3 struct {
	Bucket string `yaml:"bucket"`
	// Endpoint is the host or host:port of the service, which is always called
	// over TLS.
	Endpoint string `yaml:"endpoint"`
	Region   string `yaml:"region"`
	// Prefix is the folder in the bucket; empty means its top.
	Prefix string `yaml:"prefix"`
	// PathStyle puts the bucket into the path instead of the host name.
	PathStyle bool `yaml:"pathStyle"`
	// AccessKeyFile and SecretKeyFile are files of mode 0600.
	AccessKeyFile string `yaml:"accessKeyFile"`
	SecretKeyFile string `yaml:"secretKeyFile"`
	// Timeout is how long the service may take for a step of a request. One that
	// does not answer is asked again for about four times as long, then the
	// operation fails. 0 means 15 s.
	Timeout time.Duration `yaml:"timeout"`
	// CAFile has the certificates that vouch for the service; empty means the
	// machine's own.
	CAFile string `yaml:"caFile"`
}

// defaultS3Timeout is S3.Timeout where that is zero.
const defaultS3Timeout = 15 * time.Second

func (s *S3) timeout() time.Duration {
	if s.Timeout == 0 {
		return defaultS3Timeout
	}
	return s.Timeout
}

func (s *S3) prefix() string { return "/" + strings.Trim(s.Prefix, "/") }

// Node is one PostgreSQL server.
type Node struct {
	Name string `yaml:"name"`
	// DataDir is its data directory, SocketDir the directory of its Unix socket.
	DataDir   string `yaml:"dataDir"`
	SocketDir string `yaml:"socketDir"`
	Port      int    `yaml:"port"`
}

// DefaultPgBackRest is where Debian installs the program.
const DefaultPgBackRest = "/usr/bin/pgbackrest"

// Default is the configuration before a file is read.
func Default() Config {
	return Config{
		KeepDays: 7, FullEvery: 1, Processes: 1, ArchiveTimeout: time.Minute, User: "postgres",
		BinDir: "/usr/lib/postgresql/15/bin", PgBackRest: DefaultPgBackRest,
		Schedule: "0 2 * * *", RecoveryTimeout: 5 * time.Minute, LogLevel: "info",
	}
}

// LoadConfig reads and checks the file at path. Every mistake in it is part of
// the error, with its line and field.
func LoadConfig(path string) (Config, error) {
	cfg := Default()
	data, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := strictyaml.UnmarshalValid(path, data, &cfg); err != nil {
		return cfg, err
	}
	return cfg, nil
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,46}$`)

// Validate reports every mistake; each names its field.
func (c *Config) Validate() error {
	var errs []error
	add := func(path, hint, format string, args ...any) {
		errs = append(errs, strictyaml.Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	absolute := func(path, value string, needed bool) {
		switch {
		case value == "" && needed:
			add(path, "write an absolute path", "is missing")
		case value != "" && !filepath.IsAbs(value):
			add(path, "write it from the root", "%q is not an absolute path", value)
		case strings.ContainsAny(value, "\n\x00"):
			add(path, "", "has a line break")
		}
	}
	between := func(path string, value, least, most int) {
		if value < least || value > most {
			add(path, "", "%d is not within %d to %d", value, least, most)
		}
	}
	if !nameForm.MatchString(c.Name) {
		add("name", "", "%q: want at most 47 lower-case letters, digits and dashes, starting with a letter", c.Name)
	}
	absolute("stateDir", c.StateDir, true)
	absolute("folder", c.Folder, c.S3 == nil)
	if c.Folder != "" && c.S3 != nil {
		add("s3", "remove one of them", "folder is set as well: a set of backups has one target")
	}
	if c.Folder == "/" {
		add("folder", "name a directory of its own", "the root directory cannot be the target")
	}
	if s := c.S3; s != nil {
		for _, f := range []struct{ name, value string }{{"bucket", s.Bucket}, {"endpoint", s.Endpoint}, {"region", s.Region}} {
			if f.value == "" {
				add("s3."+f.name, "", "is missing")
			}
		}
		if strings.Contains(s.Endpoint, "/") {
			add("s3.endpoint", "write the host alone, like s3.eu-central-1.amazonaws.com", "%q is a URL", s.Endpoint)
		}
		absolute("s3.accessKeyFile", s.AccessKeyFile, true)
		absolute("s3.secretKeyFile", s.SecretKeyFile, true)
		absolute("s3.caFile", s.CAFile, false)
		if s.Timeout < 0 || s.Timeout > time.Hour {
			add("s3.timeout", "leave it out for 15s", "%v is not within 0s to 1h", s.Timeout)
		}
	}
	absolute("cipherPassFile", c.CipherPassFile, false)
	absolute("passwordFile", c.PasswordFile, false)
	absolute("binDir", c.BinDir, true)
	absolute("pgbackrest", c.PgBackRest, true)
	between("keepDays", c.KeepDays, 1, 3650)
	between("fullEvery", c.FullEvery, 1, 365)
	between("processes", c.Processes, 1, 64)
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"archiveTimeout", c.ArchiveTimeout}, {"recoveryTimeout", c.RecoveryTimeout}} {
		if d.value < time.Second || d.value > 24*time.Hour {
			add(d.name, "", "%v is not within 1s to 24h", d.value)
		}
	}
	if c.WALLimit != 0 && c.WALLimit < walSegmentSize || c.WALLimit < 0 {
		add("walLimit", "leave it out to drop nothing, or give bytes", "%d is less than a WAL segment of %d bytes", c.WALLimit, walSegmentSize)
	}
	if c.User == "" {
		add("user", "", "is missing")
	}
	if len(c.Nodes) == 0 {
		add("nodes", "list name, dataDir, socketDir and port of each server", "is empty")
	}
	seen := map[string]bool{}
	for i, n := range c.Nodes {
		at := fmt.Sprintf("nodes[%d].", i)
		if n.Name == "" || seen[n.Name] {
			add(at+"name", "give each node a name of its own", "%q is empty or there twice", n.Name)
		}
		seen[n.Name] = true
		absolute(at+"dataDir", n.DataDir, true)
		absolute(at+"socketDir", n.SocketDir, true)
		between(at+"port", n.Port, 1, 65535)
	}
	for _, s := range []struct{ name, value string }{{"schedule", c.Schedule}, {"drillSchedule", c.DrillSchedule}} {
		if s.value == "" {
			continue
		}
		if _, err := cron.Parse(s.value); err != nil {
			add(s.name, `write minute, hour, day, month and weekday, like "0 2 * * *" for 02:00 every day`, "%q: %v", s.value, err)
		}
	}
	return errors.Join(errs...)
}
