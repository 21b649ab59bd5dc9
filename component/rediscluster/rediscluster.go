// Package rediscluster runs the nodes of a Redis Cluster: three masters and
// three replicas over three zones, one of each per zone, a replica never in the
// zone of its master. Losing any zone leaves two masters, which are a majority,
// and a replica of the third.
package rediscluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Defaults of a node.
const (
	DefaultPort = 6379
	// DefaultNodeTimeout makes a lost master replaced in about 4 s. Much less
	// takes a busy machine's pauses for failures.
	DefaultNodeTimeout  = 2 * time.Second
	DefaultMaxMemoryMiB = 256
)

// The values of Config.AppendOnly.
const (
	AppendAlways      = "always"
	AppendEverySecond = "everysec"
	AppendOff         = "off"
)

// busOffset is between a node's port and its cluster bus port.
const busOffset = 10000

// Node says where one node runs and what it is meant to be.
type Node struct {
	// Name is unique in the cluster, "redis-a-master".
	Name string
	// Zone the node runs in.
	Zone string
	// Host is the IP address of the node.
	Host string
	// Port for clients; 0 means DefaultPort. The bus takes Port+10000.
	Port int
	// Shard is the third of the slots the node is for, counted from 0.
	Shard int
	// Replica is set for the node that starts as the shard's replica. After a
	// failover the two have changed places until Rebalance.
	Replica bool
}

// Address is the node's host:port.
func (n Node) Address() string {
	port := n.Port
	if port == 0 {
		port = DefaultPort
	}
	return net.JoinHostPort(n.Host, strconv.Itoa(port))
}

// Place spreads one master and one replica per zone: the replica of zone i's
// master runs in zone i+1. The host function gives each its address.
func Place(zones []string, host func(zone int, replica bool) string) []Node {
	nodes := make([]Node, 0, 2*len(zones))
	for i, zone := range zones {
		nodes = append(nodes, Node{Name: "redis-" + zone + "-1", Zone: zone, Host: host(i, false), Shard: i})
	}
	for i := range zones {
		at := (i + 1) % len(zones)
		nodes = append(nodes, Node{Name: "redis-" + zones[at] + "-2", Zone: zones[at], Host: host(at, true), Shard: i, Replica: true})
	}
	return nodes
}

// Passwords are files with one password each, one per Redis account.
type Passwords struct {
	// Admin forms the cluster and is the operator's.
	Admin string
	// Replica is what replicas log in to their master with.
	Replica string
	// Dify is the application's: every key, no administration.
	Dify string
	// Monitor is the exporter's: figures, no keys.
	Monitor string
	// RedisProxy is the proxy's.
	RedisProxy string
	// Gateway is the gateways': their own keys and those of their job queue.
	Gateway string
}

// Config describes one node.
type Config struct {
	Node
	// DataDir is the directory for everything the node keeps.
	DataDir string
	// Passwords are the accounts; all nodes of a cluster have the same.
	Passwords Passwords
	// NodeTimeout is how long a node may be silent before it counts as lost;
	// 0 means DefaultNodeTimeout.
	NodeTimeout time.Duration
	// MaxMemoryMiB bounds the data; 0 means DefaultMaxMemoryMiB. A full node
	// refuses writes instead of dropping keys: queues and locks live in it.
	MaxMemoryMiB int
	// AppendOnly is when a write reaches the disk: AppendAlways, AppendEverySecond
	// or AppendOff; empty means AppendEverySecond.
	AppendOnly string
	// Executable is redis-server's path; empty looks it up.
	Executable string
	// LogLevel is debug, verbose, notice or warning; empty means notice.
	LogLevel string
	// Owner is the account the node runs as.
	Owner process.Owner
}

func (c *Config) setDefaults() {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.NodeTimeout == 0 {
		c.NodeTimeout = DefaultNodeTimeout
	}
	if c.MaxMemoryMiB == 0 {
		c.MaxMemoryMiB = DefaultMaxMemoryMiB
	}
	if c.LogLevel == "" {
		c.LogLevel = "notice"
	}
	if c.AppendOnly == "" {
		c.AppendOnly = AppendEverySecond
	}
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.NotEmpty("Name", c.Name)
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Check(c.Port+busOffset < 65536, "Port", "must be below 55536: the cluster bus takes the port plus 10000")
	f.Path("DataDir", c.DataDir)
	f.Check(!strings.ContainsAny(c.DataDir, "\"\n\\"), "DataDir", "must not contain quotes, backslashes or line breaks")
	f.Check(c.NodeTimeout >= 500*time.Millisecond, "NodeTimeout", "must be at least 500ms")
	switch c.AppendOnly {
	case AppendAlways, AppendEverySecond, AppendOff:
	default:
		f.Check(false, "AppendOnly", fmt.Sprintf("%q is none of always, everysec, off", c.AppendOnly))
	}
	f.Check(c.MaxMemoryMiB >= 16, "MaxMemoryMiB", "must be at least 16")
	for _, a := range c.accounts() {
		f.Path("Passwords, user "+a.name, a.file)
	}
	return f.Err("rediscluster")
}

type account struct{ name, file, rules string }

// accounts lists who may do what. "default" is off.
func (c *Config) accounts() []account {
	return []account{
		{"admin", c.Passwords.Admin, "~* &* +@all"},
		{"replica", c.Passwords.Replica, "resetkeys resetchannels -@all +psync +replconf +ping"},
		{"dify", c.Passwords.Dify, "~* &* +@all -@admin -@dangerous +info +keys +cluster|slots +cluster|shards +cluster|nodes +cluster|myid"},
		{"monitor", c.Passwords.Monitor, "resetkeys resetchannels -@all +@connection +info +cluster|info +cluster|nodes +cluster|slots +config|get +slowlog|get +slowlog|len +latency|latest +dbsize +ping"},
		{"redisproxy", c.Passwords.RedisProxy, "~* &* +@all -@admin -@dangerous +cluster|nodes +cluster|slots +cluster|shards +cluster|info +cluster|getkeysinslot +cluster|countkeysinslot +info +keys +sort +sort_ro +flushall +restore +config|get +client|unblock +role"},
		// Reading, writing and scripts, on keys of its own; asynq is the
		// library of the job queue.
		{"gateway", c.Passwords.Gateway, "resetkeys ~fournines:gw:* ~asynq:* resetchannels &fournines:gw:* &asynq:* -@all +@connection +@read +@write +@pubsub +@transaction -@admin -@dangerous +eval +evalsha +script|load +script|exists +time +cluster|slots +cluster|shards +cluster|nodes +cluster|keyslot +info"},
	}
}

// Unit returns the plan's line for one node. The node is ready when it serves;
// the cluster is when the task of FormTask has run.
func Unit(cfg Config) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	path, err := prepare.Executable(cfg.Executable, "redis-server")
	if err != nil {
		return process.Unit{}, err
	}
	conf := filepath.Join(cfg.DataDir, "redis.conf")
	return process.Unit{
		Name: cfg.Name, Kind: "redis", Zone: cfg.Zone, Address: cfg.Address(),
		Process: &process.Spec{
			Path:        path,
			Args:        []string{conf},
			Env:         prepare.Env(cfg.DataDir),
			Dir:         cfg.DataDir,
			StopTimeout: 15 * time.Second, // it writes its last second to disk
		},
		Prepare:      func(context.Context) error { return cfg.prepare(conf) },
		Ready:        cfg.ready,
		ReadyTimeout: 60 * time.Second,
		Role:         cfg.role,
	}, nil
}

func (c *Config) prepare(conf string) error {
	if err := prepare.Dirs(c.Owner, c.DataDir); err != nil {
		return err
	}
	acl := []string{"user default off sanitize-payload resetchannels -@all"}
	for _, a := range c.accounts() {
		secret, err := prepare.Secret(a.file)
		if err != nil {
			return err
		}
		// The file holds the password's hash, in the form Redis itself writes.
		sum := sha256.Sum256([]byte(secret))
		acl = append(acl, fmt.Sprintf("user %s on #%s %s", a.name, hex.EncodeToString(sum[:]), a.rules))
	}
	if err := prepare.File(c.aclFile(), []byte(strings.Join(acl, "\n")+"\n"), c.Owner); err != nil {
		return err
	}
	masterauth, err := prepare.Secret(c.Passwords.Replica)
	if err != nil {
		return err
	}
	return prepare.File(conf, []byte(c.file(masterauth)), c.Owner)
}

func (c *Config) aclFile() string { return filepath.Join(c.DataDir, "users.acl") }

// file renders redis.conf.
func (c *Config) file(masterauth string) string {
	lines := []string{
		"bind " + c.Host,
		// Connections to other nodes come from the node's own address; on
		// loopback they would all come from 127.0.0.1, which peers believe.
		"bind-source-addr " + c.Host,
		"port " + strconv.Itoa(c.Port),
		"dir " + quote(c.DataDir),
		"daemonize no",
		"supervised no",
		"pidfile \"\"",
		"logfile \"\"",
		"loglevel " + c.LogLevel,
		"always-show-logo no",
		"set-proc-title no",
		"tcp-backlog 511",
		"tcp-keepalive 15",
		"timeout 0",
		"databases 1",
		"aclfile " + quote(c.aclFile()),
		"masteruser replica",
		"masterauth " + quote(masterauth),
		"maxmemory " + strconv.Itoa(c.MaxMemoryMiB) + "mb",
		"maxmemory-policy noeviction",
		"appendonly " + onOff(c.AppendOnly != AppendOff),
		"appendfsync " + c.appendFsync(),
		"aof-load-truncated yes",
		"save \"\"",
		"cluster-enabled yes",
		"cluster-config-file nodes.conf",
		"cluster-node-timeout " + strconv.FormatInt(c.NodeTimeout.Milliseconds(), 10),
		"cluster-announce-ip " + c.Host,
		"cluster-announce-port " + strconv.Itoa(c.Port),
		"cluster-announce-bus-port " + strconv.Itoa(c.Port+busOffset),
		// Losing one shard must not stop the other two.
		"cluster-require-full-coverage no",
		// A replica always stands for election: with replicas in other zones the
		// alternative to a little loss is no shard at all.
		"cluster-replica-validity-factor 0",
		// Replicas stay where they were placed.
		"cluster-allow-replica-migration no",
		"replica-serve-stale-data yes",
		// Redis waits 5 s for more replicas before the first full copy; a replica
		// without its first copy cannot be promoted.
		"repl-diskless-sync-delay 0",
		"repl-ping-replica-period 1",
		"repl-timeout 15",
		"repl-backlog-size 16mb",
		"slowlog-log-slower-than 100000",
		"latency-monitor-threshold 100",
	}
	return strings.Join(lines, "\n") + "\n"
}

// quote makes one argument of redis.conf out of any text.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		if c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			fmt.Fprintf(&b, `\x%02x`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// ready asks for the node's place in the replication as the monitor account: a
// node that is still loading its data, or a replica without its master, is not
// ready.
func (c *Config) ready(ctx context.Context) error {
	info, err := c.replication(ctx)
	if err != nil {
		return err
	}
	if info["role"] == "slave" && info["master_link_status"] != "up" {
		return errors.New("replica is not connected to its master yet")
	}
	return nil
}

func (c *Config) role(ctx context.Context) (string, error) {
	info, err := c.replication(ctx)
	if err != nil {
		return "", err
	}
	if info["role"] == "slave" {
		return "replica", nil
	}
	return "master", nil
}

func (c *Config) replication(ctx context.Context) (map[string]string, error) {
	password, err := prepare.Secret(c.Passwords.Monitor)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, prepare.ProbeTimeout)
	defer cancel()
	if err := reachable(ctx, c.Address()); err != nil {
		return nil, err
	}
	client := dial(c.Address(), "monitor", password)
	defer func() { _ = client.Close() }()
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, err // LOADING is an error too
	}
	text, err := client.Info(ctx, "replication").Result()
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}

// reachable tries a connection. Redis' client prints every node that it cannot
// reach, and here a node that is down is nothing remarkable.
func reachable(ctx context.Context, address string) error {
	d := net.Dialer{Timeout: prepare.ProbeTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial makes a client for one short conversation.
func dial(address, user, password string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: address, Username: user, Password: password,
		Protocol: 2, DisableIdentity: true, PoolSize: 1, MaxRetries: -1,
		DialTimeout: prepare.ProbeTimeout, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second,
		DialerRetries: 1,
	})
}

func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[key] = value
		}
	}
	return info
}

func onOff(on bool) string {
	if on {
		return "yes"
	}
	return "no"
}

// appendFsync is what Redis wants to hear also when the log is off.
func (c *Config) appendFsync() string {
	if c.AppendOnly == AppendAlways {
		return AppendAlways
	}
	return AppendEverySecond
}
