package gatewaydrill

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"fournines/difysim"
	"fournines/gateway"
	"fournines/internal/eventually"
	"fournines/internal/zonenet"
	"fournines/loadbalancer"
	"fournines/topology"
)

// patience bounds every wait for processes; the machine may be busy.
const patience = time.Minute

// Ports within a zone, the same for all; each process has an address of its own.
const (
	apiPort, apiAdminPort         = 5001, 5002
	gatewayPort, gatewayAdminPort = 8480, 9101
	balancerPort                  = 8480
	balancerAdminPort             = 9102
)

// stubCost makes instances that are seldom busy: what is drilled is the way to
// them.
var stubCost = []string{"--cost", "2ms", "--light-cost", "200us"}

// Last octets of addresses in a zone.
const (
	numberGateway  = 21
	numberInstance = 31 // and on
	numberBalancer = 11 // on the host
)

// Options describe a cluster.
type Options struct {
	// Binary is the fournines program.
	Binary string
	// Zones have a gateway and Instances each; default a and b. A third zone, c,
	// is always there and empty.
	Zones []string
	// Instances per zone; default 2.
	Instances int
	// Delay is the round trip between two zones; default none.
	Delay time.Duration
	// Gateway changes the configuration of a zone's gateway; nil changes nothing.
	Gateway func(zone string, cfg *gateway.Config)
	// Log is told what happens; nil tells nobody.
	Log *slog.Logger
}

// Cluster is what stands between a client and Dify.
type Cluster struct {
	o   Options
	dir string
	net *zonenet.Network
	log *slog.Logger

	procs     map[string]*proc
	order     []*proc // in which they are started
	instances []string
	gateways  []string
	admin     map[string]string // host:port of a process's admin address
	url       string
	client    *http.Client // for admin addresses
	prepared  bool
}

// New makes a cluster that does not run. Close removes what it made.
func New(o Options) (*Cluster, error) {
	if len(o.Zones) == 0 {
		o.Zones = []string{"a", "b"}
	}
	if o.Instances == 0 {
		o.Instances = 2
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := os.MkdirTemp("", "fournines-test-drill-")
	if err != nil {
		return nil, err
	}
	cfg := zonenet.Config{
		ID: fmt.Sprintf("gd%04x", rand.N(1<<16)), Zones: append(append([]string{}, o.Zones...), "c"),
		HostNumbers: []int{numberBalancer}, ZoneNumbers: map[string][]int{}, Delay: o.Delay,
		ControlSocket: filepath.Join(dir, "links.sock"),
	}
	for _, z := range o.Zones {
		cfg.ZoneNumbers[z] = []int{numberGateway}
		for i := range o.Instances {
			cfg.ZoneNumbers[z] = append(cfg.ZoneNumbers[z], numberInstance+i)
		}
	}
	network, err := zonenet.New(cfg, o.Log)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return &Cluster{
		o: o, dir: dir, net: network, log: o.Log, procs: map[string]*proc{}, admin: map[string]string{},
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}, nil
}

// Close stops everything and removes what New and Start made.
func (c *Cluster) Close() error {
	err := c.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(err, c.net.Delete(ctx), os.RemoveAll(c.dir))
}

// Dir is where configurations and logs are.
func (c *Cluster) Dir() string { return c.dir }

// URL is where clients ask.
func (c *Cluster) URL() string { return c.url }

// Namespaces tells whether zones can be cut, and if not, why.
func (c *Cluster) Namespaces() (yes bool, why string) {
	return c.net.Mode() == zonenet.Namespaces, c.net.Reason()
}

// Start starts all processes and returns when every gateway sees every
// instance and the load balancer sees every gateway.
func (c *Cluster) Start(ctx context.Context) error {
	if !c.prepared {
		if err := c.prepare(ctx); err != nil {
			return err
		}
		c.prepared = true
	}
	for _, p := range c.order {
		if err := p.start(); err != nil {
			return err
		}
	}
	return c.AwaitReady(ctx)
}

// Stop kills all processes.
func (c *Cluster) Stop() error {
	var errs []error
	for i := len(c.order) - 1; i >= 0; i-- {
		p := c.order[i]
		if p.cmd != nil {
			errs = append(errs, p.signal(syscall.SIGCONT), p.kill())
		}
	}
	return errors.Join(errs...)
}

// prepare makes the network and writes every configuration.
func (c *Cluster) prepare(ctx context.Context) error {
	if err := c.net.Ensure(ctx); err != nil {
		return err
	}
	if c.o.Delay > 0 {
		if shaper, why := c.net.Shaper(); shaper == zonenet.NoShaper {
			return fmt.Errorf("no delay between zones: %s", why)
		} else if shaper == zonenet.Zonelink {
			cfg, err := c.net.ForwarderConfig()
			if err != nil {
				return err
			}
			cfg.LogLevel = "warn"
			if err := c.add("zonelink", "", []string{"zonelink"}, cfg); err != nil {
				return err
			}
		} else if err := c.net.SetLinks(ctx, c.net.DefaultLinks()); err != nil {
			return err
		}
	}
	var upstreams []gateway.Upstream
	for _, z := range c.o.Zones {
		for i := range c.o.Instances {
			name := fmt.Sprintf("%s%d", z, i+1)
			listen, err := c.address(z, numberInstance+i, apiPort)
			if err != nil {
				return err
			}
			admin, err := c.address(z, numberInstance+i, apiAdminPort)
			if err != nil {
				return err
			}
			args := append([]string{"difysim", "stub", "--listen", listen, "--admin", admin, "--instance", name, "--log-level", "warn"}, stubCost...)
			c.addArgs(name, z, args)
			c.admin[name] = admin
			c.instances = append(c.instances, name)
			upstreams = append(upstreams, gateway.Upstream{Endpoint: topology.Endpoint{Name: name, Zone: z, Address: listen}})
		}
	}
	public, err := c.address("", numberBalancer, balancerPort)
	if err != nil {
		return err
	}
	admin, err := c.address("", numberBalancer, balancerAdminPort)
	if err != nil {
		return err
	}
	c.url = "http://" + public
	// The settings of the stack that `fournines up` makes.
	service := loadbalancer.Service{Name: "gateway", Listen: []string{public}, Check: loadbalancer.Check{Kind: loadbalancer.CheckHTTP}}
	for _, z := range c.o.Zones {
		cfg := gateway.DefaultConfig()
		cfg.Zone, cfg.Upstreams = z, upstreams
		cfg.Admin.API = false // would need a token on a zone's address
		if cfg.Listen, err = c.address(z, numberGateway, gatewayPort); err != nil {
			return err
		}
		if cfg.AdminListen, err = c.address(z, numberGateway, gatewayAdminPort); err != nil {
			return err
		}
		if c.o.Gateway != nil {
			c.o.Gateway(z, &cfg)
		}
		name := "gateway-" + z
		cfg.Handover = filepath.Join(c.dir, name+".sock")
		if err := c.add(name, z, []string{"gateway"}, cfg); err != nil {
			return err
		}
		c.admin[name] = cfg.AdminListen
		c.gateways = append(c.gateways, name)
		service.Backends = append(service.Backends, loadbalancer.Backend{
			Endpoint: topology.Endpoint{Name: name, Zone: z, Address: cfg.Listen}, CheckAddress: cfg.AdminListen,
		})
	}
	c.admin["loadbalancer"] = admin
	return c.add("loadbalancer", "", []string{"loadbalancer"}, loadbalancer.Config{Admin: admin, Services: []loadbalancer.Service{service}})
}

func (c *Cluster) address(zone string, number, port int) (string, error) {
	host, err := c.net.Address(zone, number)
	return net.JoinHostPort(host, strconv.Itoa(port)), err
}

func (c *Cluster) add(name, zone string, command []string, cfg any) error {
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", name, err)
	}
	file := filepath.Join(c.dir, name+".yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	c.addArgs(name, zone, append(command, "--config", file))
	return nil
}

func (c *Cluster) addArgs(name, zone string, args []string) {
	p := &proc{name: name, zone: zone, binary: c.o.Binary, args: args, dir: c.dir, net: c.net}
	c.procs[name] = p
	c.order = append(c.order, p)
}

// AwaitReady waits until all processes see all others.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	if err := eventually.Within(ctx, patience, eventually.Poll, c.ready); err != nil {
		return fmt.Errorf("the cluster did not become ready: %w; logs are in %s", err, c.dir)
	}
	return nil
}

func (c *Cluster) ready(ctx context.Context) error {
	for _, g := range c.gateways {
		m, err := c.Metrics(ctx, g)
		if err != nil {
			return err
		}
		if n := m.Sum("fournines_gateway_endpoint_healthy"); n != float64(len(c.instances)) {
			return fmt.Errorf("%s sees %v of %d instances", g, n, len(c.instances))
		}
	}
	m, err := c.Metrics(ctx, "loadbalancer")
	if err != nil {
		return err
	}
	if n := m.Sum("fournines_loadbalancer_backend_up"); n != float64(len(c.gateways)) {
		return fmt.Errorf("the load balancer sees %v of %d gateways", n, len(c.gateways))
	}
	return nil
}

// Metrics asks a process for what it measures of itself.
func (c *Cluster) Metrics(ctx context.Context, name string) (Metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.admin[name]+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", name, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", name, err)
	}
	return parseMetrics(string(text)), nil
}

// SetFaults changes what an instance does wrong.
func (c *Cluster) SetFaults(ctx context.Context, instance string, f difysim.Faults) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+c.admin[instance]+"/faults", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Host = "localhost" // the admin face wants to hear that nobody was led there by a name
	resp, err := c.client.Do(req)
	if err != nil {
		return fmt.Errorf("faults of %s: %w", instance, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("faults of %s: status %d", instance, resp.StatusCode)
	}
	return nil
}

// inZone lists the processes of a zone.
func (c *Cluster) inZone(zone string) []*proc {
	var out []*proc
	for _, p := range c.order {
		if p.zone == zone {
			out = append(out, p)
		}
	}
	return out
}

// Metrics are the series of one process by name with labels.
type Metrics map[string]float64

func parseMetrics(text string) Metrics {
	m := Metrics{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
				m[line[:i]] = v
			}
		}
	}
	return m
}

// Sum adds up all series of a name.
func (m Metrics) Sum(name string) float64 {
	sum := 0.0
	for series, v := range m {
		if rest, ok := strings.CutPrefix(series, name); ok && (rest == "" || rest[0] == '{') {
			sum += v
		}
	}
	return sum
}
