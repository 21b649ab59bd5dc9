package pgproxy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"fournines/internal/adminhttp"
	"fournines/internal/strictyaml"
	"fournines/topology"
)

// Pooling modes.
const (
	// ModeTransaction lends a server connection for the time of a transaction.
	ModeTransaction = "transaction"
	// ModeSession lends a server connection until the client leaves.
	ModeSession = "session"
)

// Config is the whole configuration of one proxy. Start from DefaultConfig.
type Config struct {
	// Listen is the host:port that clients connect to. Required by the CLI.
	Listen string `yaml:"listen"`
	// AdminListen is the host:port of /metrics, /livez, /readyz and the admin
	// API; empty is none.
	AdminListen string `yaml:"adminListen"`
	// Admin is the admin API.
	Admin adminhttp.Config `yaml:"admin"`
	// Zone is the failure domain that this proxy stands in; empty is unknown.
	Zone string `yaml:"zone"`
	// LogLevel is debug, info (default), warn or error.
	LogLevel string `yaml:"logLevel"`
	// Backends are all PostgreSQL servers, whatever their present role. At least one.
	Backends []topology.Endpoint `yaml:"backends"`
	// Users are the roles that may log in. At least one.
	Users []User `yaml:"users"`
	// Console is the admin console.
	Console Console `yaml:"console"`
	// Probe is how the primary is found.
	Probe Probe `yaml:"probe"`
	// Pool bounds connections.
	Pool Pool `yaml:"pool"`
	// Hold is what happens to new work while there is no primary.
	Hold Hold `yaml:"hold"`
	// Splitting sends reads to standbys.
	Splitting Splitting `yaml:"splitting"`
	// TLS is for connections from clients.
	TLS ClientTLS `yaml:"tls"`
	// ServerTLS is for connections to the backends.
	ServerTLS ServerTLS `yaml:"serverTLS"`
	// Limits bound what a client may take.
	Limits Limits `yaml:"limits"`
	// DrainTimeout is how long running transactions may go on after the proxy
	// was asked to stop; default 30s, 0 cuts at once.
	DrainTimeout time.Duration `yaml:"drainTimeout"`
}

// User is a role that clients and the proxy log in as; the proxy uses the same
// name and password towards the servers.
type User struct {
	// Name is the role's name.
	Name string `yaml:"name"`
	// PasswordFile holds the password; one newline at its end is ignored. The
	// file must not be readable by others.
	PasswordFile string `yaml:"passwordFile"`
}

// Probe configures the search for the primary.
type Probe struct {
	// User needs no right but LOGIN; default pgproxy.
	User string `yaml:"user"`
	// PasswordFile holds its password.
	PasswordFile string `yaml:"passwordFile"`
	// Database to connect to; default postgres.
	Database string `yaml:"database"`
	// Interval between two probes of one server; default 500ms, 50ms to 1m.
	Interval time.Duration `yaml:"interval"`
	// Timeout of one probe; default 1s, 50ms to 1m.
	Timeout time.Duration `yaml:"timeout"`
	// Misses in a row until a silent server counts as down; default 3, 1 to 100.
	// A server that refuses connections counts as down at once.
	Misses int `yaml:"misses"`
}

// Pool bounds the server connections of each pair of database and user.
type Pool struct {
	// Mode is "transaction" (default) or "session".
	Mode string `yaml:"mode"`
	// Size is the largest number of server connections per pair; default 20, 1 to 10000.
	Size int `yaml:"size"`
	// Sizes are other sizes for some pairs; the first that fits counts.
	Sizes []PoolSize `yaml:"sizes"`
	// Queue is how many clients per pair may wait for one; default 5000, 0 to 1000000.
	Queue int `yaml:"queue"`
	// QueueTimeout is how long they wait; default 30s.
	QueueTimeout time.Duration `yaml:"queueTimeout"`
	// MaxClientConnections over all pairs; default 5000.
	MaxClientConnections int `yaml:"maxClientConnections"`
	// IdleTimeout closes server connections that nobody used for so long; default 10m, 0 never.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// MaxPrepared is how many prepared statements one server connection keeps;
	// default 200, 1 to 100000. The least recently used one goes first.
	MaxPrepared int `yaml:"maxPrepared"`
}

// PoolSize is the size of the pools of a database, a user or one pair.
type PoolSize struct {
	// Database and User that it is for; empty is any. At least one is set.
	Database string `yaml:"database"`
	User     string `yaml:"user"`
	// Size is the largest number of server connections per pair; 1 to 10000.
	Size int `yaml:"size"`
}

// sizeOf returns the size of a pair's pool.
func (p *Pool) sizeOf(k poolKey) int {
	for _, s := range p.Sizes {
		if (s.Database == "" || s.Database == k.database) && (s.User == "" || s.User == k.user) {
			return s.Size
		}
	}
	return p.Size
}

// Hold bounds the work that waits for a new primary.
type Hold struct {
	// Timeout after which waiting work gets an error; default 30s, 0 holds nothing.
	Timeout time.Duration `yaml:"timeout"`
	// Max is how many clients may be held at once; default 1000.
	Max int `yaml:"max"`
}

// What a read on a standby may miss.
const (
	// SplittingOff sends everything to the primary.
	SplittingOff = "off"
	// SplittingFence misses nothing that was acknowledged to any client of any
	// proxy before the read was sent.
	SplittingFence = "fence"
	// SplittingSession misses nothing that the same client has written or read.
	SplittingSession = "session"
	// SplittingBounded misses at most what is younger than MaxStaleness.
	SplittingBounded = "bounded"
)

// Splitting configures which reads run on standbys.
type Splitting struct {
	// Mode is "off", "fence", "session" or "bounded"; default fence, and off with
	// Pool.Mode "session".
	Mode string `yaml:"mode"`
	// MaxStaleness is for bounded; default 100ms, 1ms to 1m.
	MaxStaleness time.Duration `yaml:"maxStaleness"`
	// MaxAddedLatency is how much longer than on the primary a read may take on a
	// standby of another zone, by the round trips to both; default 5ms, 0 to 1m.
	// It needs Zone.
	MaxAddedLatency time.Duration `yaml:"maxAddedLatency"`
}

// ClientTLS configures TLS towards clients.
type ClientTLS struct {
	// CertFile and KeyFile (PEM) switch TLS on.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	// Required refuses clients that do not use TLS; default false.
	Required bool `yaml:"required"`
	// Poll is how often the files of TLS and of ServerTLS are looked at. What is
	// new in them is for connections from then on; a file that is broken, or does
	// not fit the other one yet, changes nothing. Default 5s, up to 1h; 0 looks
	// only at a reload.
	Poll time.Duration `yaml:"poll"`
}

// ServerTLS configures TLS towards the backends.
type ServerTLS struct {
	// Mode is "disable" (default), "require", "verify-ca" or "verify-full", as in libpq.
	Mode string `yaml:"mode"`
	// CAFile (PEM) is needed for the two verifying modes.
	CAFile string `yaml:"caFile"`
}

// Limits bound what one client may take.
type Limits struct {
	// LoginTimeout is for TLS, startup and authentication; default 15s.
	LoginTimeout time.Duration `yaml:"loginTimeout"`
	// AuthFailureDelay is waited before a wrong password is answered; default
	// 1s. Each further one from the same address doubles it.
	AuthFailureDelay time.Duration `yaml:"authFailureDelay"`
	// AuthFailureMaxDelay bounds its growth; default 10s.
	AuthFailureMaxDelay time.Duration `yaml:"authFailureMaxDelay"`
	// StatementBytes is the longest text of a prepared statement; default 4 MiB.
	StatementBytes int `yaml:"statementBytes"`
	// Statements is how many named prepared statements a client may have; default 10000.
	Statements int `yaml:"statements"`
}

// DefaultConfig returns all defaults; Listen, Backends, Users and
// Probe.PasswordFile have none.
func DefaultConfig() Config {
	return Config{
		LogLevel: "info",
		Probe:    Probe{User: "pgproxy", Database: "postgres", Interval: 500 * time.Millisecond, Timeout: time.Second, Misses: 3},
		Pool: Pool{Mode: ModeTransaction, Size: 20, Queue: 5000, QueueTimeout: 30 * time.Second, MaxClientConnections: 5000,
			IdleTimeout: 10 * time.Minute, MaxPrepared: 200},
		Admin:        adminhttp.Config{API: true},
		Console:      Console{Database: "pgproxy"},
		Hold:         Hold{Timeout: 30 * time.Second, Max: 1000},
		Splitting:    Splitting{Mode: SplittingFence, MaxStaleness: 100 * time.Millisecond, MaxAddedLatency: 5 * time.Millisecond},
		TLS:          ClientTLS{Poll: 5 * time.Second},
		ServerTLS:    ServerTLS{Mode: "disable"},
		Limits:       Limits{LoginTimeout: 15 * time.Second, AuthFailureDelay: time.Second, AuthFailureMaxDelay: 10 * time.Second, StatementBytes: 4 << 20, Statements: 10000},
		DrainTimeout: 30 * time.Second,
	}
}

// LoadConfig reads, defaults and validates the file at path.
func LoadConfig(path string) (Config, error) {
	c := DefaultConfig()
	mode := c.Splitting.Mode
	c.Splitting.Mode = ""
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := strictyaml.Unmarshal(path, data, &c); err != nil {
		return c, err
	}
	switch {
	case c.Splitting.Mode != "":
	case c.Pool.Mode == ModeSession:
		c.Splitting.Mode = SplittingOff
	default:
		c.Splitting.Mode = mode
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Validate reports every problem, each with its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	hostPort := func(field, s string) {
		if _, _, err := net.SplitHostPort(s); err != nil {
			bad(field, "%q is not host:port", s)
		}
	}
	duration := func(field string, d, low, high time.Duration) {
		if d < low || d > high {
			bad(field, "%v is outside of %v to %v", d, low, high)
		}
	}
	number := func(field string, n, low, high int) {
		if n < low || n > high {
			bad(field, "%d is outside of %d to %d", n, low, high)
		}
	}
	if c.Listen != "" {
		hostPort("listen", c.Listen)
	}
	if c.AdminListen != "" {
		hostPort("adminListen", c.AdminListen)
	}
	c.Admin.Validate(c.AdminListen, bad)
	if len(c.Backends) == 0 {
		bad("backends", "at least one is needed")
	}
	seen := make(map[string]bool)
	for i := range c.Backends {
		b := &c.Backends[i]
		hostPort(fmt.Sprintf("backends[%d].address", i), b.Address)
		if b.Name == "" {
			b.Name = b.Address
		}
		if seen[b.Address] {
			bad(fmt.Sprintf("backends[%d].address", i), "%q appears twice", b.Address)
		}
		seen[b.Address] = true
	}
	if len(c.Users) == 0 {
		bad("users", "at least one is needed")
	}
	validateUsers("users", c.Users, bad)
	validateUsers("console.users", c.Console.Users, bad)
	if c.Console.Database == "" {
		bad("console.database", "must not be empty; without console.users there is no console")
	}
	if c.Probe.User == "" {
		bad("probe.user", "must not be empty")
	}
	if c.Probe.PasswordFile == "" {
		bad("probe.passwordFile", "must name a file")
	}
	if c.Probe.Database == "" {
		bad("probe.database", "must not be empty")
	}
	duration("probe.interval", c.Probe.Interval, 50*time.Millisecond, time.Minute)
	duration("probe.timeout", c.Probe.Timeout, 50*time.Millisecond, time.Minute)
	number("probe.misses", c.Probe.Misses, 1, 100)
	if c.Pool.Mode != ModeTransaction && c.Pool.Mode != ModeSession {
		bad("pool.mode", "%q is not \"transaction\" or \"session\"", c.Pool.Mode)
	}
	number("pool.size", c.Pool.Size, 1, 10000)
	for i, s := range c.Pool.Sizes {
		if s.Database == "" && s.User == "" {
			bad(fmt.Sprintf("pool.sizes[%d]", i), "names neither a database nor a user; pool.size is for all")
		}
		number(fmt.Sprintf("pool.sizes[%d].size", i), s.Size, 1, 10000)
	}
	number("pool.queue", c.Pool.Queue, 0, 1000000)
	duration("pool.queueTimeout", c.Pool.QueueTimeout, 0, time.Hour)
	number("pool.maxClientConnections", c.Pool.MaxClientConnections, 1, 1000000)
	duration("pool.idleTimeout", c.Pool.IdleTimeout, 0, 24*time.Hour)
	number("pool.maxPrepared", c.Pool.MaxPrepared, 1, 100000)
	duration("hold.timeout", c.Hold.Timeout, 0, time.Hour)
	number("hold.max", c.Hold.Max, 0, 1000000)
	switch c.Splitting.Mode {
	case SplittingOff:
	case SplittingFence, SplittingSession, SplittingBounded:
		if c.Pool.Mode == ModeSession {
			bad("splitting.mode", "%s needs pool.mode %s", c.Splitting.Mode, ModeTransaction)
		}
	default:
		bad("splitting.mode", "%q is not off, fence, session or bounded", c.Splitting.Mode)
	}
	duration("splitting.maxStaleness", c.Splitting.MaxStaleness, time.Millisecond, time.Minute)
	duration("splitting.maxAddedLatency", c.Splitting.MaxAddedLatency, 0, time.Minute)
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls", "certFile and keyFile go together")
	}
	if c.TLS.Required && c.TLS.CertFile == "" {
		bad("tls.required", "needs certFile and keyFile")
	}
	duration("tls.poll", c.TLS.Poll, 0, time.Hour)
	switch c.ServerTLS.Mode {
	case "disable", "require":
	case "verify-ca", "verify-full":
		if c.ServerTLS.CAFile == "" {
			bad("serverTLS.caFile", "mode %s needs it", c.ServerTLS.Mode)
		}
	default:
		bad("serverTLS.mode", "%q is not disable, require, verify-ca or verify-full", c.ServerTLS.Mode)
	}
	duration("limits.loginTimeout", c.Limits.LoginTimeout, time.Second, 10*time.Minute)
	duration("limits.authFailureDelay", c.Limits.AuthFailureDelay, 0, time.Minute)
	duration("limits.authFailureMaxDelay", c.Limits.AuthFailureMaxDelay, c.Limits.AuthFailureDelay, 10*time.Minute)
	number("limits.statementBytes", c.Limits.StatementBytes, 1<<10, 1<<29)
	number("limits.statements", c.Limits.Statements, 1, 1000000)
	duration("drainTimeout", c.DrainTimeout, 0, time.Hour)
	return errors.Join(errs...)
}

func validateUsers(field string, users []User, bad func(field, format string, args ...any)) {
	names := make(map[string]bool)
	for i, u := range users {
		if u.Name == "" || strings.ContainsRune(u.Name, 0) {
			bad(fmt.Sprintf("%s[%d].name", field, i), "must not be empty")
		}
		if names[u.Name] {
			bad(fmt.Sprintf("%s[%d].name", field, i), "%q appears twice", u.Name)
		}
		names[u.Name] = true
		if u.PasswordFile == "" {
			bad(fmt.Sprintf("%s[%d].passwordFile", field, i), "must name a file")
		}
	}
}

// readPassword reads a password file and refuses one that others can read.
func readPassword(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("password file %s is accessible by everybody; run chmod o= on it", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	pw := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if pw == "" {
		return "", fmt.Errorf("password file %s is empty", path)
	}
	return pw, nil
}
