package availability

import (
	"errors"
	"fmt"

	"fournines/internal/strictyaml"
)

// Layout is how many of what run where.
type Layout struct {
	// Zones that fail independently, 1 to 9. Members of quorums are spread over all.
	Zones int `json:"zones" yaml:"zones"`
	// FullZones carry traffic; the rest hold members of quorums only.
	FullZones int `json:"fullZones" yaml:"fullZones"`
	// HostsPerZone, 1 to 9: a host that is lost takes its share of the zone.
	HostsPerZone int `json:"hostsPerZone" yaml:"hostsPerZone"`
	// Gateways and proxies per full zone.
	GatewaysPerZone int `json:"gatewaysPerZone" yaml:"gatewaysPerZone"`
	// APIPerZone is instances of Dify's API per full zone.
	APIPerZone int `json:"apiPerZone" yaml:"apiPerZone"`
	// APINeeded is how many instances carry the load; 0 is half of them.
	APINeeded int `json:"apiNeeded" yaml:"apiNeeded"`
	// Workers of Dify, over the full zones.
	Workers int `json:"workers" yaml:"workers"`
	// Postgres is servers, one of which is the primary.
	Postgres int `json:"postgres" yaml:"postgres"`
	// Quorum is members of etcd.
	Quorum int `json:"quorum" yaml:"quorum"`
	// RedisReplicas of each of the three masters.
	RedisReplicas int `json:"redisReplicas" yaml:"redisReplicas"`
	// Vectors is replicas of the vector database.
	Vectors int `json:"vectors" yaml:"vectors"`
	// PluginDaemons of Dify 1.x, which calls models through it; 0 for none.
	PluginDaemons int `json:"pluginDaemons" yaml:"pluginDaemons"`
	// WorkerShare and VectorShare of the requests, 0 to 1, need a worker and the
	// vector database.
	WorkerShare float64 `json:"workerShare" yaml:"workerShare"`
	VectorShare float64 `json:"vectorShare" yaml:"vectorShare"`
	// Reschedule: parts without data start on another host when theirs is lost.
	// Kubernetes does that, fixed machines do not.
	Reschedule bool `json:"reschedule" yaml:"reschedule"`
}

// DefaultLayout is what `fournines up` starts by default. The shares are assumed:
// one request in five asks the vector database, and every second one is a
// streaming workflow, which runs in a worker from Dify 1.13 on.
func DefaultLayout() Layout {
	return Layout{
		Zones: 3, FullZones: 2, HostsPerZone: 1, GatewaysPerZone: 1, APIPerZone: 2, Workers: 1,
		Postgres: 3, Quorum: 3, RedisReplicas: 1, Vectors: 1,
		WorkerShare: 0.5, VectorShare: 0.2,
	}
}

// Validate reports every field that is out of range.
func (l Layout) Validate() error {
	var errs []error
	check := func(field string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, strictyaml.Problem{Path: "layout." + field, Message: fmt.Sprintf("%d is not between %d and %d", v, low, high)})
		}
	}
	check("zones", l.Zones, 1, 9)
	check("fullZones", l.FullZones, 1, max(1, l.Zones))
	check("hostsPerZone", l.HostsPerZone, 1, 9)
	check("gatewaysPerZone", l.GatewaysPerZone, 1, 9)
	check("apiPerZone", l.APIPerZone, 1, 99)
	check("apiNeeded", l.APINeeded, 0, max(0, l.APIPerZone*l.FullZones))
	check("workers", l.Workers, 0, 99)
	check("postgres", l.Postgres, 1, 9)
	check("quorum", l.Quorum, 1, 9)
	check("redisReplicas", l.RedisReplicas, 0, 5)
	check("vectors", l.Vectors, 0, 9)
	check("pluginDaemons", l.PluginDaemons, 0, 9)
	for field, v := range map[string]float64{"workerShare": l.WorkerShare, "vectorShare": l.VectorShare} {
		if !(v >= 0 && v <= 1) {
			errs = append(errs, strictyaml.Problem{Path: "layout." + field, Message: fmt.Sprintf("%g is not between 0 and 1", v)})
		}
	}
	return errors.Join(errs...)
}

// The groups of parts, as faults and prices name them.
const (
	groupGateway = "gateway"
	groupAPI     = "api"
	groupWorker  = "worker"
	groupPgproxy = "pgproxy"
	groupRedisPx = "redisproxy"
	groupPG      = "postgres"
	groupEtcd    = "etcd"
	groupRedis   = "redis"
	groupVectors = "vectors"
	groupPlugins = "plugin-daemon"
)

// Groups lists the names of the groups of parts.
func Groups() []string {
	return []string{groupGateway, groupAPI, groupWorker, groupPgproxy, groupRedisPx, groupPG, groupEtcd, groupRedis, groupVectors, groupPlugins}
}

// stateless tells whether a part keeps no data and may start anywhere.
func stateless(kind string) bool {
	switch kind {
	case groupGateway, groupAPI, groupWorker, groupPgproxy, groupRedisPx, groupPlugins:
		return true
	}
	return false
}

// group is parts of which need have to be up, for the share of the requests
// that need the group.
type group struct {
	name  string
	need  int
	share float64
	units []int
}

// unit is one part. It stands on a host of a zone.
type unit struct {
	kind       string
	zone, host int
}

// groups lays the parts out. A part may stand in two groups: the masters of
// Redis are a quorum and each is one of its shard.
func (l Layout) groups() ([]group, []unit) {
	var groups []group
	var units []unit
	onHost := map[[2]int]int{} // parts of a kind in a zone so far, by kind and zone
	place := func(kind, zone int, name string) int {
		at := [2]int{kind, zone}
		units = append(units, unit{kind: name, zone: zone, host: onHost[at] % l.HostsPerZone})
		onHost[at]++
		return len(units) - 1
	}
	spread := func(name string, n, zones, need int, share float64) {
		if n == 0 {
			return
		}
		g := group{name: name, need: need, share: share}
		for i := range n {
			g.units = append(g.units, place(len(groups), i%zones, name))
		}
		groups = append(groups, g)
	}
	api := l.APIPerZone * l.FullZones
	needed := l.APINeeded
	if needed == 0 {
		needed = (api + 1) / 2
	}
	edge := l.GatewaysPerZone * l.FullZones
	spread(groupGateway, edge, l.FullZones, 1, 1)
	spread(groupAPI, api, l.FullZones, needed, 1)
	spread(groupWorker, l.Workers, l.FullZones, 1, l.WorkerShare)
	spread(groupPgproxy, edge, l.FullZones, 1, 1)
	spread(groupRedisPx, edge, l.FullZones, 1, 1)
	// Data of one server is enough, but without a quorum there is no primary.
	spread(groupPG, l.Postgres, l.Zones, 1, 1)
	spread(groupEtcd, l.Quorum, l.Zones, l.Quorum/2+1, 1)
	spread(groupVectors, l.Vectors, l.FullZones, 1, l.VectorShare)
	spread(groupPlugins, l.PluginDaemons, l.FullZones, 1, 1)
	masters := group{name: groupRedis, need: 2, share: 1}
	for shard := range 3 {
		g := group{name: groupRedis, need: 1, share: 1}
		for i := range 1 + l.RedisReplicas {
			u := place(-1, (shard+i)%l.Zones, groupRedis)
			if i == 0 {
				masters.units = append(masters.units, u)
			}
			g.units = append(g.units, u)
		}
		groups = append(groups, g)
	}
	groups = append(groups, masters)
	return groups, units
}

// Counts is how many parts of each group a layout has.
func (l Layout) Counts() map[string]int {
	_, units := l.groups()
	out := map[string]int{}
	for _, u := range units {
		out[u.kind]++
	}
	return out
}
