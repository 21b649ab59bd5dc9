// Package milvus runs the vector store.
//
// PyPI has two servers for it, and this package runs the real one: the Milvus
// 2.3.5 binary in the wheel "milvus", in standalone mode with its embedded etcd,
// local storage and RocksMQ log. The other, "milvus-lite" 3.2.2, is a new
// implementation in Python. Both were tried with pymilvus 2.3.7 and 2.4.9, the
// clients of Dify 0.6.9's time, doing what Dify does: the real server passes
// all of it; milvus-lite refuses the filter Dify deletes documents with
// (metadata["doc_id"] in [...]) and lets everybody in with any password.
// Measured on two cores: first start 2 to 3 s, 210 to 290 MiB resident, 2 % of a
// core idle, search 1.3 ms in the median.
//
// What to know about the server:
//   - It keeps a lock file outside its data, see LockFiles.
//   - It listens on every address whatever its configuration says, also with its
//     internal ports, which have no accounts. A network namespace confines it;
//     without one give each stack its own ports and keep the machine's firewall on.
//   - Its graceful stop hands segments to other nodes, which a standalone server
//     does not have; it can hang for minutes. It is safe to kill: its log is on
//     disk. StopTimeout is short for that reason.
//   - After a kill the next start waits for the leases of the dead session, about
//     ten seconds, before collections can be searched again. Ready tells.
package milvus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Ports of the server unless the configuration says otherwise.
const (
	DefaultPort        = 19530
	DefaultMetricsPort = 9091
	// DefaultInternalPort is the first of internalPorts consecutive ports.
	DefaultInternalPort = 19501
	internalPorts       = 7
)

// Dirs are where `make setup` unpacks the server: for everybody, or, without
// root, below the home directory.
func Dirs(home string) []string {
	return []string{"/opt/fournines/milvus", filepath.Join(home, ".local/lib/fournines/milvus")}
}

// Config describes the server.
type Config struct {
	// Name is unique in the stack, "milvus-a".
	Name string
	// Zone the server runs in.
	Zone string
	// Host is the IP address of the server, by which its parts find each other.
	Host string
	// Port for clients (gRPC); 0 means DefaultPort.
	Port int
	// MetricsPort serves health and metrics over HTTP; 0 means DefaultMetricsPort.
	MetricsPort int
	// InternalPort is the first of seven consecutive ports the server's parts
	// use among themselves; 0 means DefaultInternalPort.
	InternalPort int
	// DataDir is the directory for everything the server keeps.
	DataDir string
	// PasswordFile has the password of the account root, 6 to 72 characters.
	PasswordFile string
	// Dir is where the server was unpacked; empty looks in Dirs.
	Dir string
	// LogLevel is debug, info, warn or error; empty means warn.
	LogLevel string
	// RetentionMiB bounds the log of changes; 0 means 256.
	RetentionMiB int
	// Owner is the account the server runs as.
	Owner process.Owner
}

func (c *Config) setDefaults() error {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.MetricsPort == 0 {
		c.MetricsPort = DefaultMetricsPort
	}
	if c.InternalPort == 0 {
		c.InternalPort = DefaultInternalPort
	}
	if c.LogLevel == "" {
		c.LogLevel = "warn"
	}
	if c.RetentionMiB == 0 {
		c.RetentionMiB = 256
	}
	if c.Dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root"
		}
		for _, dir := range Dirs(home) {
			if _, err := os.Stat(filepath.Join(dir, "milvus")); err == nil {
				c.Dir = dir
				return nil
			}
		}
		return fmt.Errorf("milvus is not installed (looked for %v); run `make setup` to install it", Dirs(home))
	}
	return nil
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.NotEmpty("Name", c.Name)
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Port("MetricsPort", c.MetricsPort)
	f.Port("InternalPort", c.InternalPort)
	f.Port("InternalPort", c.InternalPort+internalPorts-1)
	// The server binds its ports on every address, which fails whenever the
	// kernel has given the number to any outgoing connection of the machine.
	const firstEphemeral = 32768
	for _, port := range []int{c.Port, c.MetricsPort, c.InternalPort + internalPorts - 1} {
		f.Check(port < firstEphemeral, "Port, MetricsPort, InternalPort",
			fmt.Sprintf("%d is in the range of outgoing connections; take one below %d", port, firstEphemeral))
	}
	for _, port := range []int{c.Port, c.MetricsPort} {
		f.Check(port < c.InternalPort || port >= c.InternalPort+internalPorts, "InternalPort",
			fmt.Sprintf("%d to %d include port %d", c.InternalPort, c.InternalPort+internalPorts-1, port))
	}
	f.Path("DataDir", c.DataDir)
	f.Path("PasswordFile", c.PasswordFile)
	f.Check(c.RetentionMiB >= 64, "RetentionMiB", "must be at least 64")
	return f.Err("milvus")
}

func (c *Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

func (c *Config) path(name string) string { return filepath.Join(c.DataDir, name) }

// alias keeps the lock files of several servers on one machine apart.
func (c *Config) alias() string {
	sum := sha256.Sum256([]byte(c.DataDir))
	return c.Name + "-" + hex.EncodeToString(sum[:4])
}

// LockFiles are where a killed server may have left its lock, outside DataDir:
// the server decides that itself. Remove them together with the data.
func LockFiles(cfg Config) []string {
	name := "standalone-" + cfg.alias() + ".pid"
	return []string{filepath.Join(runtimeDir, name), filepath.Join(fallbackDir, name)}
}

// Unit returns the plan's line for the server.
func Unit(cfg Config) (process.Unit, error) {
	if err := cfg.setDefaults(); err != nil {
		return process.Unit{}, err
	}
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	path, err := prepare.Executable(filepath.Join(cfg.Dir, "milvus"), "Milvus")
	if err != nil {
		return process.Unit{}, err
	}
	// Once all collections of before the start are loaded, loading a new one
	// does not make the server unready.
	var settled atomic.Bool
	return process.Unit{
		Name: cfg.Name, Kind: "milvus", Zone: cfg.Zone, Address: cfg.address(),
		Process: &process.Spec{
			Path: path,
			Args: []string{"run", "standalone", "-alias", cfg.alias()},
			Env: prepare.Env(cfg.DataDir,
				"DEPLOY_MODE=STANDALONE",
				"MILVUSCONF="+cfg.path("config"),
				"METRICS_PORT="+strconv.Itoa(cfg.MetricsPort),
				"LD_LIBRARY_PATH="+cfg.Dir),
			Dir:         cfg.DataDir,
			StopSignal:  syscall.SIGTERM,
			StopTimeout: 5 * time.Second,
		},
		Prepare: func(context.Context) error {
			settled.Store(false)
			return cfg.prepare()
		},
		Ready: func(ctx context.Context) error {
			return cfg.ready(ctx, &settled)
		},
		ReadyTimeout: 2 * time.Minute,
	}, nil
}

func (c *Config) prepare() error {
	if err := prepareRuntimeDir(); err != nil {
		return err
	}
	if err := prepare.Dirs(c.Owner, c.DataDir, c.path("config"), c.path("data")); err != nil {
		return err
	}
	server, err := c.serverFile()
	if err != nil {
		return err
	}
	etcd, err := c.etcdFile()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"milvus.yaml": server,
		"etcd.yaml":   etcd,
		// The C++ half of the server has its own log settings.
		"glog.conf": []byte("--logtostderr=true\n--minloglevel=2\n"),
	} {
		if err := prepare.File(filepath.Join(c.path("config"), name), content, c.Owner); err != nil {
			return err
		}
	}
	// The embedded etcd does not replace the socket of a killed predecessor.
	if err := os.Remove(c.path(peerSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old socket: %w", err)
	}
	return nil
}

// runtimeDir is where the server keeps its lock, and fallbackDir where it does
// when it cannot write there. Neither can be configured.
const (
	runtimeDir  = "/run/milvus"
	fallbackDir = "/tmp/milvus"
)

// prepareRuntimeDir makes runtimeDir as root, for servers of any account, or else
// sees that one of the two can be used.
func prepareRuntimeDir() error {
	if os.Geteuid() == 0 {
		if err := os.Mkdir(runtimeDir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("create %s: %w", runtimeDir, err)
		}
		if err := os.Chmod(runtimeDir, 0o777|os.ModeSticky); err != nil { //nolint:gosec // like /tmp: each account locks its own server
			return fmt.Errorf("set mode of %s: %w", runtimeDir, err)
		}
		return nil
	}
	const writable = 2 // W_OK
	if syscall.Access(runtimeDir, writable) == nil {
		return nil
	}
	if err := os.Mkdir(fallbackDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create %s: %w", fallbackDir, err)
	}
	if err := syscall.Access(fallbackDir, writable); err != nil {
		return fmt.Errorf("%s belongs to another account: %w; remove it or ask its owner to", fallbackDir, err)
	}
	return nil
}

// peerSocket is the embedded etcd's peer "address": a socket in the data
// directory, so that no other account can reach it. Its client side needs no
// listener, the server calls it in its own process.
const peerSocket = "etcd.sock:0"

// etcdFile renders the configuration of the embedded etcd. JSON is valid YAML.
func (c *Config) etcdFile() ([]byte, error) {
	return json.MarshalIndent(map[string]any{
		"name":                        "milvus",
		"data-dir":                    filepath.Join(c.path("data"), "etcd"),
		"listen-client-urls":          "unix://client.sock:0",
		"advertise-client-urls":       "unix://client.sock:0",
		"listen-peer-urls":            "unix://" + peerSocket,
		"initial-advertise-peer-urls": "unix://" + peerSocket,
		"initial-cluster":             "milvus=unix://" + peerSocket,
		"auto-compaction-mode":        "revision",
		"auto-compaction-retention":   "1000",
		"quota-backend-bytes":         512 << 20,
		"logger":                      "zap",
		"log-level":                   "error",
		"log-outputs":                 []string{"stderr"},
	}, "", "  ")
}

// serverFile renders milvus.yaml: what differs from the server's own defaults.
func (c *Config) serverFile() ([]byte, error) {
	part := func(offset int, more ...any) map[string]any {
		m := map[string]any{"ip": c.Host, "port": c.InternalPort + offset}
		for i := 0; i+1 < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	data := c.path("data")
	return json.MarshalIndent(map[string]any{
		"etcd": map[string]any{
			"rootPath": "fournines",
			"use":      map[string]any{"embed": true},
			"data":     map[string]any{"dir": filepath.Join(data, "etcd")},
			"config":   map[string]any{"path": filepath.Join(c.path("config"), "etcd.yaml")},
			"log":      map[string]any{"level": "error", "path": "stderr"},
		},
		"localStorage": map[string]any{"path": filepath.Join(data, "storage")},
		"mq":           map[string]any{"type": "rocksmq"},
		"rocksmq": map[string]any{
			"path":                   filepath.Join(data, "rocksmq"),
			"lrucacheratio":          0.02,
			"retentionSizeInMB":      c.RetentionMiB,
			"retentionTimeInMinutes": 1440,
		},
		"common": map[string]any{
			"storageType":         "local",
			"gracefulStopTimeout": 2,
			"security":            map[string]any{"authorizationEnabled": true},
			// A killed server's parts count as alive this long, seconds.
			"session": map[string]any{"ttl": 5, "retryTimes": 30},
		},
		"log": map[string]any{
			"level": c.LogLevel, "format": "json", "stdout": true,
			"file": map[string]any{"rootPath": ""},
		},
		"grpc": map[string]any{"log": map[string]any{"level": "ERROR"}},
		"proxy": map[string]any{
			"ip": c.Host, "port": c.Port, "internalPort": c.InternalPort,
			"http": map[string]any{"enabled": false},
		},
		"rootCoord":  part(1, "dmlChannelNum", 4),
		"queryCoord": part(2, "checkInterval", 500),
		"dataCoord":  part(3),
		"queryNode":  part(4),
		"indexNode":  part(5),
		"dataNode":   part(6),
	}, "", "  ")
}

// ready asks the server's own health, then a real question through the door the
// clients use.
func (c *Config) ready(ctx context.Context, settled *atomic.Bool) error {
	health := "http://" + net.JoinHostPort(c.Host, strconv.Itoa(c.MetricsPort)) + "/healthz"
	status, body, err := prepare.Get(ctx, health)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("starting: %.200s", body)
	}
	password, err := prepare.Secret(c.PasswordFile)
	if err != nil {
		return err
	}
	loading, err := showLoaded(ctx, c.address(), password)
	if errors.Is(err, errDenied) {
		// Before its task has run the server knows its factory password only.
		loading, err = showLoaded(ctx, c.address(), factoryPassword)
	}
	if err != nil {
		return err
	}
	if loading != "" && !settled.Load() {
		return errors.New(loading)
	}
	settled.Store(true)
	return nil
}
