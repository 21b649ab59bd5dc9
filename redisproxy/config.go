package redisproxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"fournines/topology"
)

// Config is the configuration of one proxy process. DefaultConfig holds the
// defaults.
type Config struct {
	// Listen is the address for clients, host:port.
	Listen string `yaml:"listen"`
	// AdminListen is the address of /metrics, /livez and /readyz; empty for none.
	AdminListen string `yaml:"adminListen"`
	// Zone is where the proxy runs; reads from replicas prefer those in it.
	Zone string `yaml:"zone"`
	// Nodes are members of the cluster to ask first; the others are discovered.
	Nodes []topology.Endpoint `yaml:"nodes"`
	// Upstream is the proxy's own account at the nodes.
	Upstream Upstream `yaml:"upstream"`
	// Users are the accounts of clients.
	Users []User `yaml:"users"`
	// DefaultUser is the account that AUTH with a password alone means, as the
	// user "default" does in Redis; empty means the first of Users.
	DefaultUser string `yaml:"defaultUser"`
	// TLS encrypts the clients' side when certFile is set.
	TLS TLS `yaml:"tls"`
	// Timeouts bound waiting.
	Timeouts Timeouts `yaml:"timeouts"`
	// Limits bound what clients may make the proxy hold.
	Limits Limits `yaml:"limits"`
	// Reads says which nodes answer reads.
	Reads Reads `yaml:"reads"`
	// Writes says when a write is answered.
	Writes Writes `yaml:"writes"`
	// OnLost is what a client gets when the connection to a master breaks after
	// a command was sent that must not run twice: "close" (default) closes the
	// client's connection, as a dying Redis would, which every client library
	// handles; "error" answers -ERR and keeps it.
	OnLost string `yaml:"onLost"`
	// ConnectionsPerNode is the number of shared connections to each node and
	// protocol version, 1 to 64, default 2.
	ConnectionsPerNode int `yaml:"connectionsPerNode"`
}

// Upstream is how the proxy connects to the nodes.
type Upstream struct {
	// User is the ACL user; empty means the default user.
	User string `yaml:"user"`
	// PasswordFile holds its password; empty means no authentication.
	PasswordFile string `yaml:"passwordFile"`
	// TLS encrypts when enabled.
	TLS TLS `yaml:"tls"`
}

// User is an account of clients.
type User struct {
	// Name is what AUTH name password gives.
	Name string `yaml:"name"`
	// PasswordFile holds the password.
	PasswordFile string `yaml:"passwordFile"`
}

// TLS names certificate files in PEM form.
type TLS struct {
	// Enabled turns TLS on.
	Enabled bool `yaml:"enabled"`
	// CertFile and KeyFile are the own certificate: required towards clients,
	// optional towards nodes.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	// CAFile verifies the other side. Towards nodes, empty means the system's
	// roots; towards clients, empty means that they need no certificate.
	CAFile string `yaml:"caFile"`
	// ServerName is expected in the nodes' certificates; empty means the host
	// of the node's address.
	ServerName string `yaml:"serverName"`
}

// Reads says which nodes answer reads.
type Reads struct {
	// From is "master" (default) or "replica": then a read of one key may be
	// answered by a replica, in the proxy's zone where nodes have zones, with a
	// value that is older than the master's. What a replica does not have is
	// asked of the master.
	From string `yaml:"from"`
	// MaxLag is how long a replica may have heard nothing from its master, 1s to
	// 10m, default 5s; others are not asked. It is looked at every
	// timeouts.refresh.
	MaxLag time.Duration `yaml:"maxLag"`
	// AfterWrite is how long a client's reads go to the master after it has
	// written, 0s to 10m, default 1s.
	AfterWrite time.Duration `yaml:"afterWrite"`
}

// Writes says when a write is answered.
type Writes struct {
	// Replicas is how many replicas must have a write before the client gets its
	// answer, 0 to 5, default 0. Then a failover loses no write that was
	// answered. A write that they do not confirm in time ends as onLost says. A
	// master that has no replica at all answers alone, which is counted.
	Replicas int `yaml:"replicas"`
	// Wait is how long replicas may take, 10ms to 1m and at most half of
	// timeouts.silence, default 1s.
	Wait time.Duration `yaml:"wait"`
}

// Timeouts bound waiting.
type Timeouts struct {
	// Hold is how long a command that no node has executed is kept and tried
	// again, for example during a failover: 100ms to 5m, default 8s, which is a
	// cluster-node-timeout of 5s and 3s for the election.
	Hold time.Duration `yaml:"hold"`
	// Dial bounds connecting to a node, 10ms to 1m, default 1s.
	Dial time.Duration `yaml:"dial"`
	// Silence is how long a node may leave requests without an answer before its
	// connections are closed, 100ms to 10m, default 3s. It must exceed the
	// longest script or command.
	Silence time.Duration `yaml:"silence"`
	// Refresh is the pause between looks at the cluster while nothing goes
	// wrong, 100ms to 10m, default 5s.
	Refresh time.Duration `yaml:"refresh"`
	// ClientWrite is how long a client may leave an answer unread, 100ms to 1h,
	// default 30s.
	ClientWrite time.Duration `yaml:"clientWrite"`
	// Drain is how long clients may finish at shutdown, 0s to 1h, default 10s.
	Drain time.Duration `yaml:"drain"`
}

// Limits bound what clients may make the proxy hold.
type Limits struct {
	// MaxClients is the number of connected clients, 1 to 1000000, default 10000.
	MaxClients int `yaml:"maxClients"`
	// MaxBulkBytes is the largest argument, 1 to 512 MiB, default 64 MiB.
	MaxBulkBytes int `yaml:"maxBulkBytes"`
	// MaxRequestBytes is the largest request, default twice MaxBulkBytes.
	MaxRequestBytes int `yaml:"maxRequestBytes"`
	// MaxPipelined is how many commands of one client are under way at a time,
	// 1 to 100000, default 512. More wait unread.
	MaxPipelined int `yaml:"maxPipelined"`
	// MaxKeysPerCommand is the largest number of keys, 1 to 1000000, default 10000.
	MaxKeysPerCommand int `yaml:"maxKeysPerCommand"`
	// OutputBufferBytes is what one client's unread answers may take, 64 KiB to
	// 2 GiB, default 256 MiB. A client over it is disconnected.
	OutputBufferBytes int `yaml:"outputBufferBytes"`
	// MaxBlocked is the number of blocking and watching clients per node, 1 to
	// 100000, default 4000.
	MaxBlocked int `yaml:"maxBlocked"`
}

// DefaultConfig returns the defaults; Listen, Nodes and Users have none.
func DefaultConfig() Config {
	return Config{
		OnLost:             "close",
		Reads:              Reads{From: "master", MaxLag: 5 * time.Second, AfterWrite: time.Second},
		Writes:             Writes{Wait: time.Second},
		ConnectionsPerNode: 2,
		Timeouts: Timeouts{
			Hold: 8 * time.Second, Dial: time.Second, Silence: 3 * time.Second, Refresh: 5 * time.Second,
			ClientWrite: 30 * time.Second, Drain: 10 * time.Second,
		},
		Limits: Limits{
			MaxClients: 10000, MaxBulkBytes: 64 << 20, MaxPipelined: 512, MaxKeysPerCommand: 10000,
			OutputBufferBytes: 256 << 20, MaxBlocked: 4000,
		},
	}
}

// Validate reports every problem, each with its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	address := func(field, value string) {
		if host, port, err := net.SplitHostPort(value); err != nil || port == "" {
			bad(field, "want host:port, got %q", value)
		} else if strings.ContainsAny(host, " /") {
			bad(field, "want host:port without a scheme, got %q", value)
		}
	}
	address("listen", c.Listen)
	if c.AdminListen != "" {
		address("adminListen", c.AdminListen)
	}
	if len(c.Nodes) == 0 {
		bad("nodes", "name at least one member of the cluster")
	}
	for i, n := range c.Nodes {
		address(fmt.Sprintf("nodes[%d].address", i), n.Address)
	}
	if c.Upstream.User != "" && c.Upstream.PasswordFile == "" {
		bad("upstream.passwordFile", "user %q needs a password file", c.Upstream.User)
	}
	names := make(map[string]bool)
	for i, u := range c.Users {
		if u.Name == "" || strings.ContainsAny(u.Name, " \r\n\t") {
			bad(fmt.Sprintf("users[%d].name", i), "want a name without spaces, got %q", u.Name)
		}
		if names[u.Name] {
			bad(fmt.Sprintf("users[%d].name", i), "%q is there twice", u.Name)
		}
		names[u.Name] = true
		if u.PasswordFile == "" {
			bad(fmt.Sprintf("users[%d].passwordFile", i), "required: nobody connects without a password")
		}
	}
	if len(c.Users) == 0 {
		bad("users", "name at least one user: nobody connects without a password")
	}
	if c.DefaultUser != "" && !names[c.DefaultUser] {
		bad("defaultUser", "%q is not among users", c.DefaultUser)
	}
	if c.TLS.Enabled && (c.TLS.CertFile == "" || c.TLS.KeyFile == "") {
		bad("tls", "certFile and keyFile are required when enabled")
	}
	if (c.Upstream.TLS.CertFile == "") != (c.Upstream.TLS.KeyFile == "") {
		bad("upstream.tls", "certFile and keyFile go together")
	}
	if c.OnLost != "close" && c.OnLost != "error" {
		bad("onLost", "want close or error, got %q", c.OnLost)
	}
	between := func(field string, got, low, high int) {
		if got < low || got > high {
			bad(field, "want %d to %d, got %d", low, high, got)
		}
	}
	if c.Reads.From != "master" && c.Reads.From != "replica" {
		bad("reads.from", "want master or replica, got %q", c.Reads.From)
	}
	between("writes.replicas", c.Writes.Replicas, 0, 5)
	between("connectionsPerNode", c.ConnectionsPerNode, 1, 64)
	between("limits.maxClients", c.Limits.MaxClients, 1, 1000000)
	between("limits.maxBulkBytes", c.Limits.MaxBulkBytes, 1, 512<<20)
	if c.Limits.MaxRequestBytes != 0 && c.Limits.MaxRequestBytes < c.Limits.MaxBulkBytes {
		bad("limits.maxRequestBytes", "want at least maxBulkBytes (%d), got %d", c.Limits.MaxBulkBytes, c.Limits.MaxRequestBytes)
	}
	between("limits.maxPipelined", c.Limits.MaxPipelined, 1, 100000)
	between("limits.maxKeysPerCommand", c.Limits.MaxKeysPerCommand, 1, 1000000)
	between("limits.outputBufferBytes", c.Limits.OutputBufferBytes, 64<<10, 2<<30)
	between("limits.maxBlocked", c.Limits.MaxBlocked, 1, 100000)
	span := func(field string, got, low, high time.Duration) {
		if got < low || got > high {
			bad(field, "want %v to %v, got %v", low, high, got)
		}
	}
	span("reads.maxLag", c.Reads.MaxLag, time.Second, 10*time.Minute)
	span("reads.afterWrite", c.Reads.AfterWrite, 0, 10*time.Minute)
	span("writes.wait", c.Writes.Wait, 10*time.Millisecond, time.Minute)
	if c.Writes.Replicas > 0 && c.Writes.Wait > c.Timeouts.Silence/2 {
		bad("writes.wait", "want at most half of timeouts.silence (%v), got %v", c.Timeouts.Silence, c.Writes.Wait)
	}
	span("timeouts.hold", c.Timeouts.Hold, 100*time.Millisecond, 5*time.Minute)
	span("timeouts.dial", c.Timeouts.Dial, 10*time.Millisecond, time.Minute)
	span("timeouts.silence", c.Timeouts.Silence, 100*time.Millisecond, 10*time.Minute)
	span("timeouts.refresh", c.Timeouts.Refresh, 100*time.Millisecond, 10*time.Minute)
	span("timeouts.clientWrite", c.Timeouts.ClientWrite, 100*time.Millisecond, time.Hour)
	span("timeouts.drain", c.Timeouts.Drain, 0, time.Hour)
	return errors.Join(errs...)
}

func (c *Config) maxRequest() int {
	if c.Limits.MaxRequestBytes > 0 {
		return c.Limits.MaxRequestBytes
	}
	return 2 * c.Limits.MaxBulkBytes
}

// readSecret reads a password file; a line end at its end is not part of it.
func readSecret(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read password file: %w", err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("password file %s is empty", path)
	}
	return secret, nil
}

// certPool reads the CA file; nil when there is none.
func certPool(t TLS) (*x509.CertPool, error) {
	if t.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in CA file %s", t.CAFile)
	}
	return pool, nil
}

// ServerTLS returns the configuration for the clients' listener, or nil when
// TLS is off. Certificates are read anew for each handshake, so that renewed
// files are used without a restart.
func (c *Config) ServerTLS() (*tls.Config, error) {
	if !c.TLS.Enabled {
		return nil, nil
	}
	t := c.TLS
	if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		return &cert, err
	}}
	pool, err := certPool(t)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if pool != nil {
		out.ClientCAs, out.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return out, nil
}

func (u Upstream) clientTLS() (*tls.Config, error) {
	t := u.TLS
	if !t.Enabled {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	pool, err := certPool(t)
	if err != nil {
		return nil, fmt.Errorf("upstream.tls: %w", err)
	}
	out.RootCAs = pool
	if t.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, fmt.Errorf("upstream.tls: %w", err)
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &cert, err
		}
	}
	return out, nil
}
