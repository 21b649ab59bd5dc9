// Package etcd runs one member of the etcd cluster that holds Patroni's leader
// lease. Three members in three zones survive the loss of any zone.
package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Ports of a member unless the configuration says otherwise.
const (
	DefaultClientPort = 2379
	DefaultPeerPort   = 2380
)

// DefaultQuotaMiB bounds a member's database. Patroni keeps a few kilobytes;
// the bound stops a stranger from filling the disk.
const DefaultQuotaMiB = 128

// Member is one member as its peers see it.
type Member struct {
	// Name is unique in the cluster, "etcd-a".
	Name string
	// Host is the IP address of the member.
	Host string
	// PeerPort is where other members connect; 0 means DefaultPeerPort.
	PeerPort int
}

// Config describes one member.
type Config struct {
	// Name of this member; Members has it too.
	Name string
	// Zone the member runs in.
	Zone string
	// ClientPort on the member's host; 0 means DefaultClientPort.
	ClientPort int
	// Members is the whole cluster, this member included, always in full: a
	// member that starts alone waits for a majority of it.
	Members []Member
	// Cluster keeps members of different stacks from joining each other.
	Cluster string
	// DataDir is the directory for everything the member keeps.
	DataDir string
	// Executable is etcd's path; empty looks it up.
	Executable string
	// LogLevel is debug, info, warn or error; empty means warn.
	LogLevel string
	// QuotaMiB bounds the database in MiB; 0 means DefaultQuotaMiB.
	QuotaMiB int
	// Heartbeat is the leader's interval; 0 means 100 ms. It must be well above
	// the round trip between zones.
	Heartbeat time.Duration
	// Election is how long followers wait for a heartbeat before they elect a
	// new leader; 0 means 1 s. etcd wants at least five heartbeats.
	Election time.Duration
	// Owner is the account the member runs as.
	Owner process.Owner
}

func (c *Config) setDefaults() {
	if c.ClientPort == 0 {
		c.ClientPort = DefaultClientPort
	}
	if c.LogLevel == "" {
		c.LogLevel = "warn"
	}
	if c.QuotaMiB == 0 {
		c.QuotaMiB = DefaultQuotaMiB
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 100 * time.Millisecond
	}
	if c.Election == 0 {
		c.Election = time.Second
	}
	members := make([]Member, len(c.Members))
	copy(members, c.Members)
	for i := range members {
		if members[i].PeerPort == 0 {
			members[i].PeerPort = DefaultPeerPort
		}
	}
	c.Members = members
}

func (c *Config) self() (Member, bool) {
	for _, m := range c.Members {
		if m.Name == c.Name {
			return m, true
		}
	}
	return Member{}, false
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.NotEmpty("Name", c.Name)
	f.NotEmpty("Cluster", c.Cluster)
	f.Path("DataDir", c.DataDir)
	f.Port("ClientPort", c.ClientPort)
	f.Check(len(c.Members)%2 == 1, "Members", fmt.Sprintf("%d members; an odd number keeps a majority with the fewest", len(c.Members)))
	_, ok := c.self()
	f.Check(ok, "Members", "does not have "+c.Name)
	for i, m := range c.Members {
		f.IP(fmt.Sprintf("Members[%d].Host", i), m.Host)
		f.Port(fmt.Sprintf("Members[%d].PeerPort", i), m.PeerPort)
	}
	f.Check(c.Election >= 5*c.Heartbeat, "Election", "must be at least five heartbeats")
	return f.Err("etcd")
}

// Unit returns the plan's line for the member.
func Unit(cfg Config) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	path, err := prepare.Executable(cfg.Executable, "etcd")
	if err != nil {
		return process.Unit{}, err
	}
	self, _ := cfg.self()
	address := net.JoinHostPort(self.Host, strconv.Itoa(cfg.ClientPort))
	file := filepath.Join(cfg.DataDir, "etcd.yaml")
	return process.Unit{
		Name: cfg.Name, Kind: "etcd", Zone: cfg.Zone, Address: address,
		Process: &process.Spec{
			Path: path,
			Args: []string{"--config-file", file},
			// The memory of a member is mostly garbage of its keep-alives.
			Env: prepare.Env(cfg.DataDir, "GOGC=50", "GOMAXPROCS=1"),
			Dir: cfg.DataDir,
			// A leader first looks for a successor, for seven seconds when the
			// whole stack stops and there is none. It has written every
			// acknowledged change, so being killed costs it nothing.
			StopTimeout: 2 * time.Second,
		},
		Prepare: func(context.Context) error {
			if err := prepare.Dirs(cfg.Owner, cfg.DataDir); err != nil {
				return err
			}
			content, err := cfg.file(self)
			if err != nil {
				return err
			}
			return prepare.File(file, content, cfg.Owner)
		},
		Ready:        func(ctx context.Context) error { return ready(ctx, address) },
		ReadyTimeout: 60 * time.Second,
		Role:         func(ctx context.Context) (string, error) { return role(ctx, address) },
	}, nil
}

// file renders etcd's configuration. JSON is valid YAML, and its quoting needs
// no thought.
func (c *Config) file(self Member) ([]byte, error) {
	peer := func(m Member) string {
		return "http://" + net.JoinHostPort(m.Host, strconv.Itoa(m.PeerPort))
	}
	cluster := make([]string, len(c.Members))
	for i, m := range c.Members {
		cluster[i] = m.Name + "=" + peer(m)
	}
	client := "http://" + net.JoinHostPort(self.Host, strconv.Itoa(c.ClientPort))
	return json.MarshalIndent(map[string]any{
		"name":                        c.Name,
		"data-dir":                    filepath.Join(c.DataDir, "member"),
		"listen-client-urls":          client,
		"advertise-client-urls":       client,
		"listen-peer-urls":            peer(self),
		"initial-advertise-peer-urls": peer(self),
		"initial-cluster":             strings.Join(cluster, ","),
		"initial-cluster-token":       c.Cluster,
		// etcd ignores the initial-* settings once its data directory exists,
		// so this line is right for every start.
		"initial-cluster-state":     "new",
		"heartbeat-interval":        c.Heartbeat.Milliseconds(),
		"election-timeout":          c.Election.Milliseconds(),
		"auto-compaction-mode":      "periodic",
		"auto-compaction-retention": "5m",
		"quota-backend-bytes":       c.QuotaMiB << 20,
		"snapshot-count":            5000,
		"max-snapshots":             2,
		"max-wals":                  2,
		"strict-reconfig-check":     true,
		// Patroni speaks to etcd through its HTTP gateway, which etcd 3.4 leaves
		// off when it is configured by a file.
		"enable-grpc-gateway": true,
		"logger":              "zap",
		"log-level":           c.LogLevel,
		"log-outputs":         []string{"stderr"},
	}, "", "  ")
}

// ready asks the member for its health, for which etcd runs a linearizable
// read: it is true only while the member belongs to a majority with a leader.
func ready(ctx context.Context, address string) error {
	status, body, err := prepare.Get(ctx, "http://"+address+"/health")
	if err != nil {
		return err
	}
	var health struct {
		Health string `json:"health"`
	}
	if err := json.Unmarshal(body, &health); err != nil && status == http.StatusOK {
		return fmt.Errorf("read health: %w", err)
	}
	if status != http.StatusOK || health.Health != "true" {
		return fmt.Errorf("no quorum yet (health %q, status %d)", health.Health, status)
	}
	return nil
}

// role reads the member's own gauge of who leads.
func role(ctx context.Context, address string) (string, error) {
	_, body, err := prepare.Get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, "etcd_server_is_leader "); ok {
			if strings.TrimSpace(value) == "1" {
				return "leader", nil
			}
			return "follower", nil
		}
	}
	return "", fmt.Errorf("%s does not tell who leads", address)
}
