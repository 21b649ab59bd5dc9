package local

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"fournines/gateway"
	"fournines/internal/process"
	"fournines/loadbalancer"
	"fournines/pgproxy"
	"fournines/proxyconfig"
	"fournines/redisproxy"
	"fournines/topology"
)

func (p *planner) addProxies() error {
	for _, zone := range p.Spec.FullZones() {
		if err := p.addPGProxy(zone); err != nil {
			return err
		}
		if err := p.addRedisProxy(zone); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) addGateways() error {
	for _, zone := range p.Spec.FullZones() {
		if err := p.addGateway(zone); err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) addPGProxy(zone string) error {
	listen, err := p.addr(zone, zonePGProxy, postgresPort)
	if err != nil {
		return err
	}
	admin, err := p.addr(zone, zonePGProxy, pgproxyAdminPort)
	if err != nil {
		return err
	}
	cfg := pgproxy.DefaultConfig()
	proxyconfig.PGProxy(&cfg, p.Spec)
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen, admin, zone
	for _, z := range p.net.Zones() {
		e, err := p.endpoint("postgres-"+z, z, zonePostgres, postgresPort)
		if err != nil {
			return err
		}
		cfg.Backends = append(cfg.Backends, e)
	}
	cfg.Users = []pgproxy.User{{Name: "dify", PasswordFile: p.secrets.Path("postgres-dify")}}
	cfg.Probe.PasswordFile = p.secrets.Path("postgres-pgproxy")
	cfg.Admin.TokenFile = p.secrets.Path("pgproxy-admin")
	cfg.DrainTimeout = 10 * time.Second
	u := p.own(process.Unit{
		Name: "pgproxy-" + zone, Kind: "pgproxy", Zone: zone, Address: listen,
		After: p.names("postgres-bootstrap"), Ready: httpReady(admin),
	}, []string{"pgproxy"}, cfg)
	u.Process.StopTimeout = stopGrace(cfg.DrainTimeout)
	p.scrape("pgproxy", u.Name, zone, admin, "/metrics")
	return p.add(u, nil)
}

func (p *planner) addRedisProxy(zone string) error {
	listen, err := p.addr(zone, zoneRedisProxy, redisPort)
	if err != nil {
		return err
	}
	admin, err := p.addr(zone, zoneRedisProxy, redisproxyAdminPort)
	if err != nil {
		return err
	}
	nodes, err := p.redisNodes()
	if err != nil {
		return err
	}
	cfg := redisproxy.DefaultConfig()
	proxyconfig.Redisproxy(&cfg, p.Spec)
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen, admin, zone
	for _, n := range nodes {
		cfg.Nodes = append(cfg.Nodes, topology.Endpoint{Name: n.Name, Zone: n.Zone, Address: n.Address()})
	}
	cfg.Upstream = redisproxy.Upstream{User: "redisproxy", PasswordFile: p.secrets.Path("redis-redisproxy")}
	cfg.Users = []redisproxy.User{{Name: "dify", PasswordFile: p.secrets.Path("redis-dify")}}
	u := p.own(process.Unit{
		Name: "redisproxy-" + zone, Kind: "redisproxy", Zone: zone, Address: listen,
		After: p.names("redis-cluster"), Ready: httpReady(admin),
	}, []string{"redisproxy"}, cfg)
	u.Process.StopTimeout = stopGrace(cfg.Timeouts.Drain)
	p.scrape("redisproxy", u.Name, zone, admin, "/metrics")
	return p.add(u, nil)
}

func (p *planner) addGateway(zone string) error {
	listen, err := p.addr(zone, zoneGateway, p.Spec.Gateway.Port)
	if err != nil {
		return err
	}
	admin, err := p.addr(zone, zoneGateway, gatewayAdminPort)
	if err != nil {
		return err
	}
	cfg := gateway.DefaultConfig()
	cfg.Listen, cfg.AdminListen, cfg.Zone = listen, admin, zone
	if cfg.Upstreams, err = p.difyInstances(); err != nil {
		return err
	}
	redisNodes, err := p.redisNodes()
	if err != nil {
		return err
	}
	for _, n := range redisNodes {
		cfg.Redis.Nodes = append(cfg.Redis.Nodes, n.Address())
	}
	cfg.Redis.User, cfg.Redis.PasswordFile = "gateway", p.secrets.Path("redis-gateway")
	p.gatewaySettings(&cfg)
	name := "gateway-" + zone
	if cfg.ProxyProtocol, err = p.balancerSource(); err != nil {
		return err
	}
	cfg.Admin.TokenFile = p.secrets.Path("gateway-admin")
	cfg.Handover = filepath.Join(p.Dir, name, "handover.sock")
	u := p.own(process.Unit{
		Name: name, Kind: "gateway", Zone: zone, Address: listen,
		After: p.names("dify-api"), Ready: httpReady(admin),
	}, []string{"gateway"}, cfg)
	u.Process.StopTimeout = stopGrace(cfg.Drain.Announce + cfg.Drain.Timeout)
	u.Process.Handover = cfg.Handover
	p.scrape("gateway", u.Name, zone, admin, "/metrics")
	return p.add(u, nil)
}

// gatewaySettings carries over what the spec says about any gateway.
func (p *planner) gatewaySettings(cfg *gateway.Config) {
	proxyconfig.Gateway(cfg, p.Spec, len(p.Spec.FullZones()))
	// A master may be in another zone.
	cfg.RateLimitSharing.Timeout = min(cfg.RateLimitSharing.Timeout+p.Spec.Local.CrossZoneDelay.Std(), 10*time.Second)
	if p.Spec.Gateway.Jobs.Enabled {
		cfg.Jobs.KeyFile = p.secrets.Path("gateway-jobs")
		cfg.Jobs.Webhook.SecretFile = p.secrets.Path(webhookSecret)
	}
}

// balancerSource is where the load balancer's connections come from: the
// host's range, or any loopback address.
func (p *planner) balancerSource() (gateway.ProxyProtocol, error) {
	host, err := p.balancerHost()
	if err != nil {
		return gateway.ProxyProtocol{}, err
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return gateway.ProxyProtocol{}, fmt.Errorf("address of the load balancer: %w", err)
	}
	bits := 24
	if a.IsLoopback() {
		bits = 8
	}
	from, err := a.Prefix(bits)
	if err != nil {
		return gateway.ProxyProtocol{}, fmt.Errorf("address of the load balancer: %w", err)
	}
	return gateway.ProxyProtocol{Mode: gateway.ProxyProtocolAccept, From: []string{from.String()}}, nil
}

// addBalancer gives each service its stable address: one for the zones, one
// for the users of this machine.
func (p *planner) addBalancer() error {
	milvus, err := p.milvusPorts()
	if err != nil {
		return err
	}
	ports := p.Spec.Local.Ports.Effective()
	public := func(port int) string { return net.JoinHostPort(p.Spec.Local.Address, strconv.Itoa(port)) }
	admin, err := p.addr("", hostBalancer, balancerAdminPort)
	if err != nil {
		return err
	}
	cfg := loadbalancer.Config{Admin: admin}
	for _, zone := range p.net.Zones() {
		cidr, err := p.net.ZoneSubnet(zone)
		if err != nil {
			return err
		}
		cfg.ZoneOf = append(cfg.ZoneOf, loadbalancer.ZoneRange{CIDR: cidr, Zone: zone})
	}
	for _, s := range []struct {
		name, kind string
		// public and inside are the ports of the stable addresses, port and
		// admin those of the backends; admin is 0 where only the connection
		// itself can be checked.
		public, inside, x, port, admin int
	}{
		{"gateway", "gateway", ports.Gateway, p.Spec.Gateway.Port, zoneGateway, p.Spec.Gateway.Port, gatewayAdminPort},
		{"postgres", "pgproxy", ports.Postgres, postgresPort, zonePGProxy, postgresPort, pgproxyAdminPort},
		{"redis", "redisproxy", ports.Redis, redisPort, zoneRedisProxy, redisPort, redisproxyAdminPort},
		{"milvus", "milvus", ports.Milvus, milvusPort, zoneMilvus, milvus.client, 0},
	} {
		inside, err := p.addr("", hostBalancer, s.inside)
		if err != nil {
			return err
		}
		service := loadbalancer.Service{Name: s.name, Listen: []string{inside, public(s.public)}}
		zones := p.Spec.FullZones()
		if s.admin == 0 {
			zones = []string{p.Spec.VectorsZone()}
		} else {
			service.Check.Kind = loadbalancer.CheckHTTP
			service.ProxyProtocol = s.name == "gateway" // limits by address need it
		}
		for _, zone := range zones {
			e, err := p.endpoint(s.kind+"-"+zone, zone, s.x, s.port)
			if err != nil {
				return err
			}
			b := loadbalancer.Backend{Endpoint: e}
			if s.admin != 0 {
				if b.CheckAddress, err = p.addr(zone, s.x, s.admin); err != nil {
					return err
				}
			}
			service.Backends = append(service.Backends, b)
		}
		cfg.Services = append(cfg.Services, service)
	}
	for _, s := range []struct {
		name            string
		public, x, port int
	}{
		{"prometheus", ports.Prometheus, hostPrometheus, prometheusPort},
		{"alertmanager", ports.Alertmanager, hostAlertmanager, alertmanagerPort},
	} {
		e, err := p.endpoint(s.name, "", s.x, s.port)
		if err != nil {
			return err
		}
		cfg.Services = append(cfg.Services, loadbalancer.Service{
			Name: s.name, Listen: []string{public(s.public)}, Backends: []loadbalancer.Backend{{Endpoint: e}},
		})
	}
	p.plan.Ports = append(p.plan.Ports,
		Port{public(ports.Gateway), "local.ports.gateway"}, Port{public(ports.Postgres), "local.ports.postgres"},
		Port{public(ports.Redis), "local.ports.redis"}, Port{public(ports.Milvus), "local.ports.milvus"},
		Port{public(ports.Prometheus), "local.ports.prometheus"}, Port{public(ports.Alertmanager), "local.ports.alertmanager"})
	u := p.own(process.Unit{
		Name: "loadbalancer", Kind: "loadbalancer", Address: public(ports.Gateway), Ready: httpReady(admin),
	}, []string{"loadbalancer"}, cfg)
	p.scrape("loadbalancer", u.Name, "", admin, "/metrics")
	return p.add(u, nil)
}
