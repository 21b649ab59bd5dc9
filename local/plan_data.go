package local

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"fournines/component/etcd"
	"fournines/component/milvus"
	"fournines/component/postgres"
	"fournines/component/rediscluster"
	"fournines/internal/process"
	"fournines/internal/zonenet"
)

// How often the placement of the Redis masters is looked at, and how long
// bringing them home may take.
const (
	masterHomeInterval = 3 * time.Second
	masterHomeTimeout  = 20 * time.Second
)

// etcdPlacementInterval is how often the zone of etcd's leader is compared with
// that of the PostgreSQL primary.
const etcdPlacementInterval = 3 * time.Second

func (p *planner) addEtcd() error {
	var members []etcd.Member
	for _, zone := range p.net.Zones() {
		host, err := p.ip(zone, zoneEtcd)
		if err != nil {
			return err
		}
		members = append(members, etcd.Member{Name: "etcd-" + zone, Host: host})
	}
	p.etcdMembers = members
	for i, zone := range p.net.Zones() {
		err := p.add(etcd.Unit(etcd.Config{
			Name: members[i].Name, Zone: zone, Members: members, Cluster: p.Spec.Name,
			DataDir: filepath.Join(p.Dir, members[i].Name), Owner: p.Owner,
		}))
		if err != nil {
			return err
		}
		p.scrape("etcd", members[i].Name, zone, members[i].Host+":2379", "/metrics")
	}
	return nil
}

func (p *planner) addPostgres() error {
	prefix, err := p.prefix()
	if err != nil {
		return err
	}
	var etcds, nodes []string
	for _, zone := range p.net.Zones() {
		address, err := p.addr(zone, zoneEtcd, etcd.DefaultClientPort)
		if err != nil {
			return err
		}
		etcds = append(etcds, address)
	}
	networks := []netip.Prefix{prefix}
	if p.net.Mode() == zonenet.Loopback {
		// Whoever does not choose its own address comes from this one.
		networks = append(networks, netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 32))
	}
	s := p.Spec.Postgres
	var configs []postgres.Config
	for _, zone := range p.net.Zones() {
		host, err := p.ip(zone, zonePostgres)
		if err != nil {
			return err
		}
		name := "postgres-" + zone
		configs = append(configs, postgres.Config{
			Name: name, Zone: zone, Cluster: p.Spec.Name, Host: host, Etcd: etcds,
			Networks:         networks,
			DataDir:          filepath.Join(p.Dir, name),
			BinDir:           postgres.BinDir(s.Version),
			MaxConnections:   s.MaxConnections,
			SharedBuffersMiB: int(s.SharedBuffers >> 20),
			TTL:              s.Patroni.TTL.Std(), LoopWait: s.Patroni.LoopWait.Std(), RetryTimeout: s.Patroni.RetryTimeout.Std(),
			Asynchronous:   !s.Synchronous,
			ArchiveCommand: p.archiveCommand(),
			Passwords: postgres.NodePasswords{
				Superuser:  p.secrets.Path("postgres-superuser"),
				Replicator: p.secrets.Path("postgres-replicator"),
				Rewind:     p.secrets.Path("postgres-rewind"),
				REST:       p.secrets.Path("postgres-rest"),
			},
			Owner: p.Owner,
		})
	}
	var scheduler process.Unit
	if p.Spec.Backup.Enabled {
		if scheduler, err = p.planBackup(configs); err != nil {
			return err
		}
	}
	if err := p.add(postgres.RecoveryTask(postgres.RecoveryConfig{Nodes: configs, After: p.names("etcd")})); err != nil {
		return err
	}
	for _, cfg := range configs {
		u, err := postgres.Unit(cfg)
		u.After = append(u.After, p.names("etcd", "postgres-recovery", "backup-setup")...)
		if err := p.add(u, err); err != nil {
			return err
		}
		nodes = append(nodes, u.Address)
		p.scrape("patroni", cfg.Name, cfg.Zone, cfg.Host+":8008", "/metrics")
	}
	p.plan.Reconcilers = append(p.plan.Reconcilers, Reconciler{
		Name: "etcd-placement", Every: etcdPlacementInterval,
		Do: func(ctx context.Context) error {
			leader, err := postgres.Leader(ctx, etcds, p.Spec.Name)
			if err != nil {
				return err
			}
			for i := range configs {
				if configs[i].Name == leader {
					_, err = etcd.LeadElsewhere(ctx, p.etcdMembers, "etcd-"+configs[i].Zone)
				}
			}
			return err
		},
	})
	err = p.add(postgres.BootstrapTask(postgres.BootstrapConfig{
		Nodes: nodes, After: p.names("postgres"),
		Superuser: p.secrets.Path("postgres-superuser"), Dify: p.secrets.Path("postgres-dify"),
		Monitor: p.secrets.Path("postgres-monitor"), PGProxy: p.secrets.Path("postgres-pgproxy"),
	}))
	if err != nil || scheduler.Process == nil {
		return err
	}
	return p.add(scheduler, nil)
}

func (p *planner) redisNodes() ([]rediscluster.Node, error) {
	var failed error
	nodes := rediscluster.Place(p.net.Zones(), func(zone int, replica bool) string {
		x := zoneRedisMaster
		if replica {
			x = zoneRedisOther
		}
		host, err := p.ip(p.net.Zones()[zone], x)
		if err != nil {
			failed = err
		}
		return host
	})
	return nodes, failed
}

func (p *planner) addRedis() error {
	nodes, err := p.redisNodes()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		err := p.add(rediscluster.Unit(rediscluster.Config{
			Node: n, DataDir: filepath.Join(p.Dir, n.Name), NodeTimeout: p.Spec.Redis.NodeTimeout.Std(),
			MaxMemoryMiB: int(p.Spec.Redis.MaxMemory >> 20),
			AppendOnly:   string(p.Spec.Redis.AppendOnly),
			Passwords: rediscluster.Passwords{
				Admin: p.secrets.Path("redis-admin"), Replica: p.secrets.Path("redis-replica"),
				Dify: p.secrets.Path("redis-dify"), Monitor: p.secrets.Path("redis-monitor"),
				RedisProxy: p.secrets.Path("redis-redisproxy"), Gateway: p.secrets.Path("redis-gateway"),
			},
			Owner: p.Owner,
		}))
		if err != nil {
			return err
		}
	}
	form := rediscluster.FormConfig{Nodes: nodes, After: p.names("redis"), AdminPassword: p.secrets.Path("redis-admin")}
	// After the loss of a zone another one has two masters of three. Losing
	// that one next would leave no majority, so masters go home when they can.
	home := form
	home.Timeout = masterHomeTimeout
	p.plan.Reconcilers = append(p.plan.Reconcilers, Reconciler{
		Name: "redis-placement", Every: masterHomeInterval,
		Do: func(ctx context.Context) error {
			if _, err := rediscluster.Placement(ctx, home); err == nil {
				return nil
			}
			return rediscluster.Rebalance(ctx, home)
		},
	})
	return p.add(rediscluster.FormTask(form))
}

func (p *planner) addMilvus() error {
	zone := p.Spec.VectorsZone()
	host, err := p.ip(zone, zoneMilvus)
	if err != nil {
		return err
	}
	ports, err := p.milvusPorts()
	if err != nil {
		return err
	}
	cfg := milvus.Config{
		Name: "milvus-" + zone, Zone: zone, Host: host, DataDir: filepath.Join(p.Dir, "milvus-"+zone),
		Port: ports.client, MetricsPort: ports.metrics, InternalPort: ports.internal,
		PasswordFile: p.secrets.Path("milvus-root"), Owner: p.Owner,
	}
	u, err := milvus.Unit(cfg)
	if err := p.add(u, err); err != nil {
		return err
	}
	p.plan.Leftovers = append(p.plan.Leftovers, milvus.LockFiles(cfg)...)
	p.scrape("milvus", u.Name, zone, net.JoinHostPort(host, strconv.Itoa(ports.metrics)), "/metrics")
	return p.add(milvus.AccountTask(milvus.AccountConfig{
		Address: u.Address, PasswordFile: p.secrets.Path("milvus-root"), After: []string{u.Name},
	}))
}

// milvusPorts are the ports of the vector database; internal is the first of
// those its parts use among themselves.
type milvusPorts struct{ client, metrics, internal int }

// milvusPorts chooses them. Milvus listens on every address of its network,
// whatever it is told; without a network of its own it gets ports that no other
// component of this or another stack has.
func (p *planner) milvusPorts() (milvusPorts, error) {
	if p.net.Mode() == zonenet.Namespaces {
		return milvusPorts{milvus.DefaultPort, milvus.DefaultMetricsPort, milvus.DefaultInternalPort}, nil
	}
	prefix, err := p.prefix()
	if err != nil {
		return milvusPorts{}, err
	}
	base := 20000 + 10*int(prefix.Addr().As4()[1])
	return milvusPorts{base, base + 1, base + 2}, nil
}
