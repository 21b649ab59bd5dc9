package postgres

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// Ports and sizes of a node unless the configuration says otherwise.
const (
	DefaultPort             = 5432
	DefaultRESTPort         = 8008
	DefaultMaxConnections   = 200
	DefaultSharedBuffersMiB = 64
	DefaultBinDir           = "/usr/lib/postgresql/15/bin"
)

// BinDir is where Debian puts the programs of a major version.
func BinDir(version int) string { return fmt.Sprintf("/usr/lib/postgresql/%d/bin", version) }

// Config describes one node: a Patroni agent and the PostgreSQL it manages.
type Config struct {
	// Name is the node's name in Patroni, unique in the cluster, "postgres-a".
	Name string
	// Zone the node runs in.
	Zone string
	// Cluster is Patroni's scope: the nodes with the same scope in the same
	// etcd form one cluster.
	Cluster string
	// Host is the IP address of the node.
	Host string
	// Port of PostgreSQL; 0 means DefaultPort.
	Port int
	// RESTPort of Patroni; 0 means DefaultRESTPort.
	RESTPort int
	// Etcd are the client addresses (host:port) of all etcd members.
	Etcd []string
	// Networks are the networks that may log in, always with SCRAM.
	Networks []netip.Prefix
	// DataDir is the directory for everything the node keeps.
	DataDir string
	// MaxConnections is PostgreSQL's limit; 0 means DefaultMaxConnections. All
	// nodes of a cluster must have the same.
	MaxConnections int
	// SharedBuffersMiB is PostgreSQL's page cache; 0 means DefaultSharedBuffersMiB.
	SharedBuffersMiB int
	// TTL is how long the leader's lease lasts without renewal; 0 means 7 s. It
	// bounds how long a lost node stays primary, and has to be at least
	// LoopWait + 2*RetryTimeout.
	TTL time.Duration
	// LoopWait is the pause between Patroni's rounds; 0 means 1 s.
	LoopWait time.Duration
	// RetryTimeout is how long Patroni retries etcd and PostgreSQL before it
	// gives up the lease; 0 means 3 s, the least newer Patroni releases accept.
	RetryTimeout time.Duration
	// Asynchronous lets commits return before a standby has them; the loss of the
	// primary may then lose the last ones.
	Asynchronous bool
	// ArchiveCommand is PostgreSQL's archive_command; empty leaves archiving off.
	ArchiveCommand string
	// Passwords are the files of the accounts the node itself uses.
	Passwords NodePasswords
	// BinDir has PostgreSQL's programs; empty means DefaultBinDir.
	BinDir string
	// Patroni is the path of Patroni's Python script; empty looks it up.
	Patroni string
	// LogLevel is Patroni's: DEBUG, INFO, WARNING, ERROR; empty means INFO.
	LogLevel string
	// Owner is the account the node runs as. PostgreSQL refuses to run as root.
	Owner process.Owner
}

// NodePasswords are files with one password each.
type NodePasswords struct {
	// Superuser is for the role postgres, with which Patroni manages the server.
	Superuser string
	// Replicator is for the role standbys stream with.
	Replicator string
	// Rewind is for the role pg_rewind reads another node's files with.
	Rewind string
	// REST is for the user "patroni" of Patroni's REST interface; it guards
	// everything that changes the cluster.
	REST string
}

func (c *Config) setDefaults() {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.RESTPort == 0 {
		c.RESTPort = DefaultRESTPort
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = DefaultMaxConnections
	}
	if c.SharedBuffersMiB == 0 {
		c.SharedBuffersMiB = DefaultSharedBuffersMiB
	}
	if c.TTL == 0 {
		c.TTL = 7 * time.Second
	}
	if c.LoopWait == 0 {
		c.LoopWait = time.Second
	}
	if c.RetryTimeout == 0 {
		c.RetryTimeout = 3 * time.Second
	}
	if c.BinDir == "" {
		c.BinDir = DefaultBinDir
	}
	if c.LogLevel == "" {
		c.LogLevel = "INFO"
	}
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.NotEmpty("Name", c.Name)
	f.NotEmpty("Cluster", c.Cluster)
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Port("RESTPort", c.RESTPort)
	f.Path("DataDir", c.DataDir)
	f.Path("BinDir", c.BinDir)
	f.Check(len(c.Etcd) > 0, "Etcd", "needs at least one address")
	for i, e := range c.Etcd {
		f.HostPort(fmt.Sprintf("Etcd[%d]", i), e)
	}
	f.Check(len(c.Networks) > 0, "Networks", "needs at least one network, or nobody can log in")
	f.Check(c.MaxConnections >= 20, "MaxConnections", "must be at least 20")
	f.Check(c.SharedBuffersMiB >= 16, "SharedBuffersMiB", "must be at least 16")
	f.Check(c.TTL >= c.LoopWait+2*c.RetryTimeout, "TTL", "must be at least LoopWait + 2*RetryTimeout, or a slow etcd demotes a healthy primary")
	f.Path("Passwords.Superuser", c.Passwords.Superuser)
	f.Path("Passwords.Replicator", c.Passwords.Replicator)
	f.Path("Passwords.Rewind", c.Passwords.Rewind)
	f.Path("Passwords.REST", c.Passwords.REST)
	return f.Err("postgres")
}

func (c *Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

func (c *Config) restAddress() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.RESTPort)) }

func (c *Config) path(name string) string { return filepath.Join(c.DataDir, name) }

// DatabaseDir is PostgreSQL's own data directory.
func (c *Config) DatabaseDir() string { return c.path("data") }

// SocketDir is the directory of PostgreSQL's Unix socket; empty when its path
// would be too long for one, so that the server has none.
func (c *Config) SocketDir() string { return c.socketDir() }

// socketDir is PostgreSQL's Unix socket directory, or empty when its path would
// not fit into a socket address; Patroni then uses TCP.
func (c *Config) socketDir() string {
	const longest = 107 - len("/.s.PGSQL.65535.lock")
	if dir := c.path("run"); len(dir) <= longest {
		return dir
	}
	return ""
}
