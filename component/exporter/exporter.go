// Package exporter runs the Prometheus exporters of the servers that have no
// metrics of their own: PostgreSQL, Redis and the machine.
package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Ports of the exporters unless the configuration says otherwise.
const (
	DefaultPostgresPort = 9187
	DefaultRedisPort    = 9121
	DefaultNodePort     = 9100
)

// Config is what all exporters have in common.
type Config struct {
	// Name is unique in the stack, "postgres-exporter-a".
	Name string
	// Zone is empty for an exporter outside all zones.
	Zone string
	// Host is the IP address to listen on.
	Host string
	// Port to listen on; 0 means the exporter's own.
	Port int
	// DataDir is the directory for the exporter's files.
	DataDir string
	// Executable is the exporter's path; empty looks up Debian's name.
	Executable string
	// Owner is the account the exporter runs as.
	Owner process.Owner
}

// PostgresConfig describes the exporter of one PostgreSQL node.
type PostgresConfig struct {
	Config
	// Target is the node's host:port.
	Target string
	// PasswordFile has the password of the role monitor.
	PasswordFile string
}

// RedisConfig describes the one exporter of all Redis nodes: Prometheus asks
// /scrape?target=redis://host:port.
type RedisConfig struct {
	Config
	// Targets are the host:port of all Redis nodes.
	Targets []string
	// PasswordFile has the password of the account monitor.
	PasswordFile string
}

func (c *Config) validate(what string, more func(*prepare.Fields)) error {
	var f prepare.Fields
	f.NotEmpty("Name", c.Name)
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Path("DataDir", c.DataDir)
	if more != nil {
		more(&f)
	}
	return f.Err(what)
}

func (c *Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

// unit fills in what all exporters have in common.
func (c *Config) unit(kind, executable string, args, env []string, files func() error) (process.Unit, error) {
	path, err := prepare.Executable(c.Executable, executable)
	if err != nil {
		return process.Unit{}, err
	}
	address := c.address()
	return process.Unit{
		Name: c.Name, Kind: kind, Zone: c.Zone, Address: address,
		Process: &process.Spec{
			Path: path, Args: args, Dir: c.DataDir,
			Env:         prepare.Env(c.DataDir, append([]string{"GOGC=50", "GOMAXPROCS=1"}, env...)...),
			StopTimeout: 5 * time.Second,
		},
		Prepare: func(context.Context) error {
			if err := prepare.Dirs(c.Owner, c.DataDir); err != nil {
				return err
			}
			if files != nil {
				return files()
			}
			return nil
		},
		Ready:        func(ctx context.Context) error { return prepare.OK(ctx, "http://"+address+"/metrics") },
		ReadyTimeout: 60 * time.Second,
	}, nil
}

// Postgres returns the plan's line for a PostgreSQL exporter. It is ready when
// its login to the node works.
func Postgres(cfg PostgresConfig) (process.Unit, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultPostgresPort
	}
	err := cfg.validate("postgres exporter", func(f *prepare.Fields) {
		f.HostPort("Target", cfg.Target)
		f.Path("PasswordFile", cfg.PasswordFile)
	})
	if err != nil {
		return process.Unit{}, err
	}
	// The exporter reads user and password from files, so that they are in no
	// argument and in no environment.
	user, password := filepath.Join(cfg.DataDir, "user"), filepath.Join(cfg.DataDir, "password")
	queries := filepath.Join(cfg.DataDir, "queries.yaml")
	unit, err := cfg.unit("postgres-exporter", "prometheus-postgres-exporter",
		[]string{
			"--web.listen-address=" + cfg.address(),
			"--no-collector.database", // the size of each database, a full walk of its files
			"--extend.query-path=" + queries,
			"--log.level=error", "--log.format=json",
		},
		[]string{
			"DATA_SOURCE_URI=" + cfg.Target + "/postgres?sslmode=disable&connect_timeout=2&application_name=exporter",
			"DATA_SOURCE_USER_FILE=" + user, "DATA_SOURCE_PASS_FILE=" + password,
		},
		func() error {
			secret, err := prepare.Secret(cfg.PasswordFile)
			if err != nil {
				return err
			}
			if err := prepare.File(user, []byte("monitor"), cfg.Owner); err != nil {
				return err
			}
			if err := prepare.File(queries, []byte(replicationQuery), cfg.Owner); err != nil {
				return err
			}
			return prepare.File(password, []byte(secret), cfg.Owner)
		})
	if err != nil {
		return process.Unit{}, err
	}
	address := cfg.address()
	unit.Ready = func(ctx context.Context) error {
		return metricIsOne(ctx, "http://"+address+"/metrics", "pg_up", cfg.Target)
	}
	return unit, nil
}

// replicationQuery asks a primary how long ago it wrote what each standby has
// replayed last. The lag that the exporter itself has is measured on the
// standby, where it is 0 when the standby is cut off. A standby that has replayed
// everything has no lag, for which PostgreSQL says nothing.
const replicationQuery = `fournines_postgres_replication:
  query: |
    SELECT application_name, sync_state,
           coalesce(extract(epoch FROM replay_lag), 0)::float8 AS lag_seconds,
           coalesce(pg_wal_lsn_diff(sent_lsn, replay_lsn), 0)::float8 AS lag_bytes
    FROM pg_stat_replication WHERE state = 'streaming'
  metrics:
    - application_name:
        usage: LABEL
        description: Name of the standby.
    - sync_state:
        usage: LABEL
        description: sync, quorum, potential or async.
    - lag_seconds:
        usage: GAUGE
        description: How long ago the primary wrote what the standby has replayed last; 0 when nothing is missing.
    - lag_bytes:
        usage: GAUGE
        description: WAL that was sent to the standby and that it has not replayed.
`

// Redis returns the plan's line for the Redis exporter. It is ready when its
// login to at least one node works.
func Redis(cfg RedisConfig) (process.Unit, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultRedisPort
	}
	err := cfg.validate("redis exporter", func(f *prepare.Fields) {
		f.Check(len(cfg.Targets) > 0, "Targets", "needs at least one address")
		for i, t := range cfg.Targets {
			f.HostPort(fmt.Sprintf("Targets[%d]", i), t)
		}
		f.Path("PasswordFile", cfg.PasswordFile)
	})
	if err != nil {
		return process.Unit{}, err
	}
	passwords := filepath.Join(cfg.DataDir, "passwords.json")
	unit, err := cfg.unit("redis-exporter", "prometheus-redis-exporter",
		[]string{
			"-web.listen-address=" + cfg.address(),
			"-redis.addr=", // no node of its own, only those Prometheus names
			"-redis.user=monitor", "-redis.password-file=" + passwords,
			"-connection-timeout=2s", "-log-format=json",
		}, nil,
		func() error {
			secret, err := prepare.Secret(cfg.PasswordFile)
			if err != nil {
				return err
			}
			// The exporter looks the password up by the address, and passes the
			// user by URL or by flag.
			byAddress := make(map[string]string, len(cfg.Targets))
			for _, t := range cfg.Targets {
				byAddress["redis://"+t] = secret
				byAddress["redis://monitor@"+t] = secret
			}
			content, err := json.MarshalIndent(byAddress, "", "  ")
			if err != nil {
				return err
			}
			return prepare.File(passwords, content, cfg.Owner)
		})
	if err != nil {
		return process.Unit{}, err
	}
	address := cfg.address()
	unit.Ready = func(ctx context.Context) error {
		var last error
		for _, t := range cfg.Targets {
			if last = metricIsOne(ctx, "http://"+address+"/scrape?target=redis://"+t, "redis_up", t); last == nil {
				return nil
			}
		}
		return last
	}
	return unit, nil
}

// Node returns the plan's line for the machine's exporter, with the collectors
// that tell about load, memory, disks and network.
func Node(cfg Config) (process.Unit, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultNodePort
	}
	if err := cfg.validate("node exporter", nil); err != nil {
		return process.Unit{}, err
	}
	args := []string{
		"--web.listen-address=" + cfg.address(),
		"--collector.disable-defaults", "--log.level=error", "--log.format=json",
	}
	for _, c := range []string{"cpu", "loadavg", "meminfo", "filesystem", "diskstats", "netdev", "stat", "filefd", "time", "uname", "vmstat"} {
		args = append(args, "--collector."+c)
	}
	return cfg.unit("node-exporter", "prometheus-node-exporter", args, nil, nil)
}

// metricIsOne asks an exporter and checks that a gauge without labels is 1.
func metricIsOne(ctx context.Context, url, metric, target string) error {
	status, body, err := prepare.Get(ctx, url)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, metric+" "); ok {
			if strings.TrimSpace(value) == "1" {
				return nil
			}
			return fmt.Errorf("the exporter cannot log in to %s", target)
		}
	}
	return fmt.Errorf("the exporter answers %d without %s", status, metric)
}
