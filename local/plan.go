package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"

	"fournines/component/etcd"
	"fournines/internal/process"
	"fournines/internal/zonenet"
	"fournines/spec"
	"fournines/topology"
)

// The last octet of the address of each kind of component: 10.N.zone.X with
// network namespaces, 127.N.zone.X on loopback. Everything keeps its standard
// port, because everything has an address of its own.
const (
	hostBalancer     = 1
	hostPrometheus   = 2
	hostAlertmanager = 3
	hostNode         = 4
	hostRedisMetrics = 5
	hostBackup       = 6
	hostConsole      = 7

	zoneEtcd        = 10
	zonePostgres    = 20
	zonePGMetrics   = 21
	zoneRedisMaster = 30
	zoneRedisOther  = 31
	zoneMilvus      = 40
	zoneGateway     = 50
	zonePGProxy     = 51
	zoneRedisProxy  = 52
	zoneAPI         = 61 // the first of apiReplicasPerZone
	zoneWorker      = 71 // the first of workers
)

// Ports inside the stack.
const (
	gatewayAdminPort    = 9101
	pgproxyAdminPort    = 9102
	redisproxyAdminPort = 9103
	balancerAdminPort   = 9104
	backupAdminPort     = 9105
	consoleAdminPort    = 9106
	postgresPort        = 5432
	redisPort           = 6379
	milvusPort          = 19530
	difyPort            = 5001
	workerPort          = 5002
)

// networkFile remembers which addresses a stack was given.
const networkFile = "network.json"

// PlanConfig is what a plan is made from.
type PlanConfig struct {
	// Spec says what is to run.
	Spec *spec.Spec
	// Dir is the data directory.
	Dir string
	// Owner runs the processes when the supervisor is root.
	Owner process.Owner
	// Executable is the fournines binary that proxies are started from. It is
	// copied into Dir, so that building a new one disturbs nothing that runs.
	Executable string
	// Logger receives what the network has to say.
	Logger *slog.Logger
}

// planner holds what the parts of a plan share while it is made.
type planner struct {
	PlanConfig
	net     *zonenet.Network
	secrets *Secrets
	plan    *Plan
	targets []scrapeTarget
	// etcdMembers are known once etcd is planned.
	etcdMembers []etcd.Member
}

// BuildPlan turns a spec into everything that runs on this machine. It chooses
// the stack's addresses, generates its secrets and writes the credentials file;
// it starts nothing. A plan that comes with an error is good for its Teardown
// alone.
func BuildPlan(ctx context.Context, cfg PlanConfig) (*Plan, error) {
	p := &planner{PlanConfig: cfg, secrets: OpenSecrets(cfg.Dir, cfg.Owner)}
	if err := p.secrets.Ensure(secretNames()...); err != nil {
		return nil, err
	}
	if err := p.network(ctx); err != nil {
		return nil, err
	}
	p.plan = &Plan{
		Name:    cfg.Spec.Name,
		Zones:   p.net.Zones(),
		Network: p.net,
		Setup: func(ctx context.Context) error {
			if err := p.copyExecutable(); err != nil {
				return err
			}
			return p.net.Ensure(ctx)
		},
		Teardown: p.teardown,
	}
	p.addRequirements()
	for _, add := range []func() error{
		p.addZonelink, p.addEtcd, p.addPostgres, p.addRedis, p.addMilvus,
		p.addProxies, p.addBalancer, p.addDify, p.addGateways, p.addConsole, p.addObservers, p.addEndpoints,
	} {
		if err := add(); err != nil {
			return p.plan, err
		}
	}
	return p.plan, p.plan.Validate()
}

// teardown removes what lies outside the data directory.
func (p *planner) teardown(ctx context.Context) error {
	var errs []error
	for _, path := range p.plan.Leftovers {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.net.Delete(ctx))...)
}

// secretNames lists every secret that a stack has.
func secretNames() []string {
	return []string{
		"postgres-superuser", "postgres-replicator", "postgres-rewind", "postgres-rest",
		"postgres-dify", "postgres-monitor", "postgres-pgproxy", "pgproxy-admin",
		"redis-admin", "redis-replica", "redis-dify", "redis-monitor", "redis-redisproxy", "redis-gateway", "gateway-admin", "gateway-jobs", webhookSecret, consoleSecret,
		"milvus-root", "dify-secret-key", "dify-app-key", "dify-workflow-key", "dify-dataset-key",
	}
}

// network chooses the addresses of the stack, once for its life.
func (p *planner) network(ctx context.Context) error {
	var saved struct{ Mode, Subnet string }
	path := filepath.Join(p.Dir, networkFile)
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		saved.Mode, saved.Subnet = string(p.Spec.Local.Network), p.Spec.Local.Subnet
	case err != nil:
		return fmt.Errorf("read the stack's addresses: %w", err)
	default:
		if err := json.Unmarshal(text, &saved); err != nil {
			return fmt.Errorf("read the stack's addresses in %s: %w", path, err)
		}
	}
	sum := sha256.Sum256([]byte(p.Dir))
	cfg := zonenet.Config{
		ID:            hex.EncodeToString(sum[:4]),
		Mode:          zonenet.Mode(saved.Mode),
		Subnet:        saved.Subnet,
		HostNumbers:   []int{hostBalancer, hostPrometheus, hostAlertmanager, hostNode, hostRedisMetrics, hostBackup, hostConsole},
		ZoneNumbers:   map[string][]int{},
		Delay:         p.Spec.Local.CrossZoneDelay.Std(),
		ControlSocket: filepath.Join(os.TempDir(), "fournines-"+hex.EncodeToString(sum[:4])+"-zonelink.sock"),
	}
	for _, z := range p.Spec.Zones {
		cfg.Zones = append(cfg.Zones, z.Name)
		numbers := []int{zoneEtcd, zonePostgres, zonePGMetrics, zoneRedisMaster, zoneRedisOther}
		if z.Name == p.Spec.VectorsZone() {
			numbers = append(numbers, zoneMilvus)
		}
		if z.Role == spec.RoleFull {
			numbers = append(numbers, zoneGateway, zonePGProxy, zoneRedisProxy)
			for i := range p.Spec.Dify.APIReplicasPerZone {
				numbers = append(numbers, zoneAPI+i)
			}
			for i := range p.Spec.Dify.Workers {
				numbers = append(numbers, zoneWorker+i)
			}
		}
		cfg.ZoneNumbers[z.Name] = numbers
	}
	if p.net, err = zonenet.New(cfg, p.Logger); err != nil {
		return fmt.Errorf("network of the zones: %w", err)
	}
	if text != nil {
		return nil
	}
	// Only making the network shows which addresses are free.
	if err := p.net.Ensure(ctx); err != nil {
		return fmt.Errorf("network of the zones: %w", err)
	}
	saved.Mode, saved.Subnet = string(p.net.Mode()), p.net.Subnet()
	if text, err = json.Marshal(saved); err != nil {
		return err
	}
	return process.WriteFile(path, append(text, '\n'), 0o644, process.Owner{})
}

// copyExecutable puts the binary where the unprivileged account can reach it,
// unless the same bytes are there already.
func (p *planner) copyExecutable() error {
	want, err := os.ReadFile(p.Executable)
	if err != nil {
		return fmt.Errorf("read the own executable: %w", err)
	}
	if have, err := os.ReadFile(p.binary()); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := process.MkdirAll(filepath.Dir(p.binary()), 0o755, process.Owner{}); err != nil {
		return err
	}
	return process.WriteFile(p.binary(), want, 0o755, process.Owner{})
}

func (p *planner) binary() string { return filepath.Join(p.Dir, "bin", "fournines") }

// ip is the address with the last octet x in a zone, or outside all zones.
func (p *planner) ip(zone string, x int) (string, error) { return p.net.Address(zone, x) }

// addr is host:port of a component.
func (p *planner) addr(zone string, x, port int) (string, error) {
	host, err := p.ip(zone, x)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// endpoint is a component as others know it.
func (p *planner) endpoint(name, zone string, x, port int) (topology.Endpoint, error) {
	address, err := p.addr(zone, x, port)
	return topology.Endpoint{Name: name, Zone: zone, Address: address}, err
}

// prefix is the range of all addresses of the stack.
func (p *planner) prefix() (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(p.net.Subnet())
	if err != nil {
		return prefix, fmt.Errorf("subnet of the stack: %w", err)
	}
	return prefix, nil
}

// add puts a unit into the plan, in the network of its zone.
func (p *planner) add(u process.Unit, err error) error {
	if err != nil {
		return err
	}
	if u.Process != nil && u.Zone != "" {
		u.Process.NetNS = p.net.NamespacePath(u.Zone)
	}
	p.plan.Units = append(p.plan.Units, u)
	return nil
}

// own makes the unit of one of our own subcommands, which reads cfg as YAML
// from a file that only its account can read.
func (p *planner) own(u process.Unit, command []string, cfg any) process.Unit {
	dir := filepath.Join(p.Dir, u.Name)
	file := filepath.Join(dir, "config.yaml")
	u.Process = &process.Spec{
		Path: p.binary(), Args: append(command, "--config", file), Dir: dir,
		Env: []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "GOMEMLIMIT=256MiB", "GOMAXPROCS=2"},
	}
	owner := p.Owner
	u.Prepare = func(context.Context) error {
		text, err := yaml.Marshal(cfg)
		if err != nil {
			return fmt.Errorf("render %s: %w", file, err)
		}
		if err := process.MkdirAll(dir, 0o700, owner); err != nil {
			return err
		}
		return process.WriteFile(file, text, 0o600, owner)
	}
	return u
}

// names returns the names of the units of one kind, in plan order.
func (p *planner) names(kinds ...string) []string {
	var names []string
	for _, u := range p.plan.Units {
		for _, k := range kinds {
			if u.Kind == k {
				names = append(names, u.Name)
			}
		}
	}
	return names
}

// addZonelink carries the packets between zones where the kernel itself
// cannot delay them.
func (p *planner) addZonelink() error {
	if p.Spec.Local.CrossZoneDelay == 0 {
		return nil
	}
	shaper, why := p.net.Shaper()
	switch shaper {
	case zonenet.Netem:
		return nil
	case zonenet.NoShaper:
		return fmt.Errorf("local.crossZoneDelay: a delay between zones is not possible here: %s; set it to 0s", why)
	}
	cfg, err := p.net.ForwarderConfig()
	if err != nil {
		return err
	}
	u := p.own(process.Unit{Name: "zonelink", Kind: "zonelink"}, []string{"zonelink"}, cfg)
	u.Process.Root = true
	u.Ready = func(ctx context.Context) error { return zonenet.AskConnected(ctx, cfg.Control) }
	return p.add(u, nil)
}

// httpReady asks a process of our own whether it serves.
func httpReady(address string) func(context.Context) error {
	return func(ctx context.Context) error { return getOK(ctx, "http://"+address+"/readyz") }
}

// stopGrace is how long a drain may take before the supervisor kills: the
// process's own limit and a little for its end.
func stopGrace(drain time.Duration) time.Duration { return drain + 5*time.Second }
