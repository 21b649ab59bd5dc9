package postgresdrill

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"go.yaml.in/yaml/v3"

	"fournines/component/etcd"
	"fournines/component/postgres"
	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/internal/zonenet"
	"fournines/pgproxy"
	"fournines/topology"
)

// patience bounds every wait for servers; the machine may be busy.
const patience = 3 * time.Minute

// Last octets of addresses in a zone, and ports.
const (
	numberEtcd     = 10
	numberPostgres = 20
	numberProxy    = 51

	postgresPort   = 5432
	restPort       = 8008
	proxyAdminPort = 9102
)

// proxyZones have a pgproxy; the third zone is the light one.
var (
	allZones   = []string{"a", "b", "c"}
	proxyZones = []string{"a", "b"}
)

// smallDisk is the room of a data directory where disks are to be filled.
const smallDisk = 512 << 20

// Options describe a cluster.
type Options struct {
	// Binary is the fournines program.
	Binary string
	// Owner runs the servers when the caller is root.
	Owner process.Owner
	// TTL, LoopWait and RetryTimeout are Patroni's; zero is a stack's default.
	TTL, LoopWait, RetryTimeout time.Duration
	// Splitting is the mode in which pgproxy sends reads to standbys; empty is its
	// default.
	Splitting string
	// SmallDisks gives each PostgreSQL a file system of its own that can be
	// filled (in memory). It needs root.
	SmallDisks bool
	// Keep leaves configurations and logs where they are.
	Keep bool
	// Log is told what happens; nil tells nobody.
	Log *slog.Logger
}

// Cluster is the database layer of a stack.
type Cluster struct {
	o         Options
	dir       string
	net       *zonenet.Network
	units     []*unit
	nodes     map[string]*unit // PostgreSQL by zone
	proxies   map[string]*unit // pgproxy by zone
	addresses []string         // of PostgreSQL
	etcd      []etcd.Member
	secrets   map[string]string
	bootstrap process.Unit
	mounted   []string
}

// New makes a cluster that does not run. Close removes what it made.
func New(o Options) (*Cluster, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp("/tmp", "fournines-test-pgdrill-")
	if err != nil {
		return nil, err
	}
	cfg := zonenet.Config{
		ID: fmt.Sprintf("pd%04x", mathrand.N(1<<16)), Zones: allZones, ZoneNumbers: map[string][]int{},
		ControlSocket: filepath.Join(dir, "links.sock"),
	}
	for _, z := range allZones {
		cfg.ZoneNumbers[z] = []int{numberEtcd, numberPostgres, numberProxy}
	}
	network, err := zonenet.New(cfg, o.Log)
	if err == nil {
		err = os.Chmod(dir, 0o755) //nolint:gosec // the servers' own account must reach it
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Cluster{o: o, dir: dir, net: network, nodes: map[string]*unit{}, proxies: map[string]*unit{}, secrets: map[string]string{}}, nil
}

// Dir is where configurations and logs are.
func (c *Cluster) Dir() string { return c.dir }

// Namespaces tells whether zones can be cut, and if not, why.
func (c *Cluster) Namespaces() (yes bool, why string) {
	return c.net.Mode() == zonenet.Namespaces, c.net.Reason()
}

// Close stops everything and removes what New and Start made.
func (c *Cluster) Close() error {
	errs := []error{c.stop()}
	if !c.o.Keep {
		defer os.RemoveAll(c.dir)
	}
	for _, dir := range c.mounted {
		errs = append(errs, syscall.Unmount(dir, syscall.MNT_DETACH))
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(append(errs, c.net.Delete(ctx))...)
}

func (c *Cluster) stop() error {
	var errs []error
	for i := len(c.units) - 1; i >= 0; i-- {
		errs = append(errs, c.units[i].off())
	}
	return errors.Join(errs...)
}

// Start starts all servers, makes the tables of the load and returns in the
// steady state.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.net.Ensure(ctx); err != nil {
		return err
	}
	if err := c.describe(); err != nil {
		return err
	}
	for _, u := range c.units {
		if err := u.start(ctx); err != nil {
			return err
		}
	}
	if err := c.bootstrap.Task(ctx); err != nil {
		return fmt.Errorf("%w; logs are in %s", err, c.dir)
	}
	if err := c.AwaitSteady(ctx); err != nil {
		return err
	}
	conn, err := c.connect(ctx, proxyZones[0], "")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	_, err = conn.Exec(ctx, `CREATE TABLE ledger (run int, id bigint, PRIMARY KEY (run, id));
		CREATE TABLE register (run int, key int, value bigint, PRIMARY KEY (run, key));
		CREATE TABLE list (run int, key int, items bigint[], PRIMARY KEY (run, key))`)
	return err
}

// describe makes the units, once.
func (c *Cluster) describe() error {
	if c.units != nil {
		return nil
	}
	for _, name := range []string{"postgres", "replicator", "rewind", "rest", "dify", "monitor", "pgproxy", "admin"} {
		secret := make([]byte, 16)
		if _, err := rand.Read(secret); err != nil {
			return err
		}
		c.secrets[name] = hex.EncodeToString(secret)
		if err := process.WriteFile(c.secretFile(name), []byte(c.secrets[name]+"\n"), 0o600, c.o.Owner); err != nil {
			return err
		}
	}
	var etcds []string
	networks := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for _, z := range allZones {
		host, err := c.net.Address(z, numberEtcd)
		if err != nil {
			return err
		}
		subnet, err := c.net.ZoneSubnet(z)
		if err != nil {
			return err
		}
		prefix, err := netip.ParsePrefix(subnet)
		if err != nil {
			return err
		}
		networks = append(networks, prefix)
		c.etcd = append(c.etcd, etcd.Member{Name: "etcd-" + z, Host: host})
		etcds = append(etcds, net.JoinHostPort(host, strconv.Itoa(etcd.DefaultClientPort)))
	}
	if own, err := c.net.Address("", 1); err == nil { // the drill's own connections
		networks = append(networks, netip.MustParsePrefix(own+"/32"))
	}
	for _, m := range c.etcd {
		def, err := etcd.Unit(etcd.Config{
			Name: m.Name, Zone: strings.TrimPrefix(m.Name, "etcd-"), Members: c.etcd, Cluster: "drill",
			DataDir: filepath.Join(c.dir, m.Name), Owner: c.o.Owner,
		})
		if err != nil {
			return err
		}
		c.add(def)
	}
	var names []string
	var backends []topology.Endpoint
	for _, z := range allZones {
		host, err := c.net.Address(z, numberPostgres)
		if err != nil {
			return err
		}
		name := "postgres-" + z
		if c.o.SmallDisks {
			if err := c.mountSmall(filepath.Join(c.dir, name)); err != nil {
				return err
			}
		}
		def, err := postgres.Unit(postgres.Config{
			Name: name, Zone: z, Cluster: "drill", Host: host, Etcd: etcds, Networks: networks,
			DataDir: filepath.Join(c.dir, name), Owner: c.o.Owner, MaxConnections: 100,
			TTL: c.o.TTL, LoopWait: c.o.LoopWait, RetryTimeout: c.o.RetryTimeout,
			Passwords: postgres.NodePasswords{
				Superuser: c.secretFile("postgres"), Replicator: c.secretFile("replicator"),
				Rewind: c.secretFile("rewind"), REST: c.secretFile("rest"),
			},
		})
		if err != nil {
			return err
		}
		c.nodes[z] = c.add(def)
		names = append(names, name)
		c.addresses = append(c.addresses, def.Address)
		backends = append(backends, topology.Endpoint{Name: name, Zone: z, Address: def.Address})
	}
	var err error
	c.bootstrap, err = postgres.BootstrapTask(postgres.BootstrapConfig{
		Nodes: c.addresses, After: names, Superuser: c.secretFile("postgres"), Dify: c.secretFile("dify"),
		Monitor: c.secretFile("monitor"), PGProxy: c.secretFile("pgproxy"), Timeout: patience,
	})
	if err != nil {
		return err
	}
	for _, z := range proxyZones {
		if err := c.addProxy(z, backends); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) addProxy(zone string, backends []topology.Endpoint) error {
	host, err := c.net.Address(zone, numberProxy)
	if err != nil {
		return err
	}
	cfg := pgproxy.DefaultConfig()
	cfg.Zone, cfg.Backends = zone, backends
	cfg.Admin.TokenFile = c.secretFile("admin")
	if c.o.Splitting != "" {
		cfg.Splitting.Mode = c.o.Splitting
	}
	cfg.Listen = net.JoinHostPort(host, strconv.Itoa(postgresPort))
	cfg.AdminListen = net.JoinHostPort(host, strconv.Itoa(proxyAdminPort))
	cfg.Users = []pgproxy.User{{Name: "dify", PasswordFile: c.secretFile("dify")}}
	cfg.Probe.PasswordFile = c.secretFile("pgproxy")
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	file := filepath.Join(c.dir, "pgproxy-"+zone+".yaml")
	if err := process.WriteFile(file, text, 0o600, c.o.Owner); err != nil {
		return err
	}
	c.proxies[zone] = c.add(process.Unit{
		Name: "pgproxy-" + zone, Zone: zone, Address: cfg.Listen,
		Process: &process.Spec{
			Path: c.o.Binary, Args: []string{"pgproxy", "--config", file}, Dir: c.dir,
			Env: []string{"PATH=/usr/bin:/bin", "HOME=" + c.dir, "GOMAXPROCS=2"},
		},
		Ready: func(ctx context.Context) error { return readyz(ctx, cfg.AdminListen) },
	})
	return nil
}

func readyz(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+admin+"/readyz", nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: not ready: %s", admin, resp.Status)
	}
	return nil
}

func (c *Cluster) add(def process.Unit) *unit {
	def.Process.NetNS = c.net.NamespacePath(def.Zone)
	u := newUnit(def, c.dir, c.o.Owner)
	c.units = append(c.units, u)
	return u
}

func (c *Cluster) secretFile(name string) string { return filepath.Join(c.dir, name+".password") }

// mountSmall puts a small file system in memory at dir.
func (c *Cluster) mountSmall(dir string) error {
	if err := process.MkdirAll(dir, 0o700, c.o.Owner); err != nil {
		return err
	}
	options := fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", smallDisk, c.o.Owner.UID, c.o.Owner.GID)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		return fmt.Errorf("mount a small file system at %s: %w", dir, err)
	}
	c.mounted = append(c.mounted, dir)
	return nil
}

// inZone lists the units of a zone.
func (c *Cluster) inZone(zone string) []*unit {
	var out []*unit
	for _, u := range c.units {
		if u.Zone == zone {
			out = append(out, u)
		}
	}
	return out
}

// AwaitSteady waits until every server is ready and the primary has a
// synchronous standby.
func (c *Cluster) AwaitSteady(ctx context.Context) error {
	if err := eventually.Within(ctx, patience, 250*time.Millisecond, c.steady); err != nil {
		return fmt.Errorf("no steady state: %w; logs are in %s", err, c.dir)
	}
	return nil
}

func (c *Cluster) steady(ctx context.Context) error {
	for _, u := range c.units {
		if err := u.Ready(ctx); err != nil {
			return fmt.Errorf("%s: %w", u.Name, err)
		}
	}
	zone, err := c.primary(ctx)
	if err != nil {
		return err
	}
	// A stack's supervisor does this every few seconds.
	if moved, err := etcd.LeadElsewhere(ctx, c.etcd, "etcd-"+zone); err != nil || moved {
		return errors.Join(err, errors.New("etcd is led in the zone of the primary"))
	}
	for _, u := range c.nodes {
		if role, err := u.Role(ctx); err == nil && role == postgres.RoleSyncStandby {
			return nil
		}
	}
	return errors.New("no synchronous standby")
}

// primary is the zone of the PostgreSQL primary.
func (c *Cluster) primary(ctx context.Context) (string, error) {
	address, err := postgres.FindPrimary(ctx, c.addresses, c.secretFile("postgres"))
	if err != nil {
		return "", err
	}
	for zone, u := range c.nodes {
		if u.Address == address {
			return zone, nil
		}
	}
	return "", fmt.Errorf("nobody has the primary's address %s", address)
}

// connect logs in to a zone's pgproxy from within the zone, as the application
// there does. mode is a default_query_exec_mode of pgx.
func (c *Cluster) connect(ctx context.Context, zone, mode string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("postgres://" + c.proxies[zone].Address + "/dify?sslmode=disable&connect_timeout=10")
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = "dify", c.secrets["dify"]
	if mode == modeSimple {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	cfg.DialFunc = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = c.net.Do(zone, func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// modeSimple asks for the simple protocol, which psycopg2 speaks; otherwise
// statements are prepared.
const modeSimple = "simple"
