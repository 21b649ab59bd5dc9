package audit

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// redisSettings are the settings of every Redis in the inputs whose defaults
// are known too.
func (in *Inventory) redisSettings() []settings {
	var out []settings
	for _, c := range in.redisConfs {
		out = append(out, c.settings)
	}
	for _, u := range in.withRole(roleRedis) {
		if s := u.settingsOf(); !s.partial {
			out = append(out, s)
		}
	}
	for i := range in.Redis {
		r := &in.Redis[i]
		if len(r.Settings) == 0 {
			continue // CONFIG is not allowed
		}
		s := settings{name: r.Name, at: Place{File: r.Name, Query: "CONFIG GET *"}, values: map[string]setting{}}
		for name, v := range r.Settings {
			s.values[name] = setting{value: v, place: Place{File: r.Name, Query: "CONFIG GET " + name}}
		}
		out = append(out, s)
	}
	return out
}

func redisRules() []Rule {
	static := []Kind{KindRedisConf, KindCompose, KindKubernetes, KindLiveRedis}
	reads := []Kind{KindLiveRedis}
	everywhere := func(check func(s settings) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, s := range in.redisSettings() {
				out = append(out, check(s)...)
			}
			return out
		}
	}
	running := func(check func(r *Redis) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for i := range in.Redis {
				out = append(out, check(&in.Redis[i])...)
			}
			return out
		}
	}
	ask := func(r *Redis, query string) Place { return Place{File: r.Name, Query: query} }
	return []Rule{
		{
			ID: "FN601", Title: "Redis keeps no log", Severity: Medium, Reads: static,
			Why:  "appendonly is off by default. A restart loses what came since the last snapshot: up to an hour of tasks in Celery's queue, documents that stay `queuing` for ever.",
			Cost: costs(perCrash, takesUnseen, 0.05),
			Fix:  "Set `appendonly yes` (`appendfsync everysec`).",
			check: everywhere(func(s settings) []hit {
				if s.get("appendonly") == "yes" {
					return nil
				}
				return []hit{found(s.place("appendonly"), "%s: appendonly is %s", s.name, orDefault(s.get("appendonly"), "no"))}
			}),
		},
		{
			ID: "FN602", Title: "Redis may throw tasks away", Severity: High, Reads: static,
			Why:  "An eviction policy removes keys when memory is full, and a key may be the queue, a lock or a stop flag.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Set `maxmemory-policy noeviction` and give it enough memory; put caches into another Redis.",
			check: everywhere(func(s settings) []hit {
				if v := s.get("maxmemory-policy"); strings.HasPrefix(v, "allkeys") || strings.HasPrefix(v, "volatile") {
					return []hit{found(s.place("maxmemory-policy"), "%s: maxmemory-policy is %s", s.name, v)}
				}
				return nil
			}),
		},
		{
			ID: "FN603", Title: "one lost shard stops the whole cluster", Severity: High, Reads: static,
			Why:  "cluster-require-full-coverage is yes by default: when one master and its replica are gone, the other two thirds refuse too.",
			Cost: costs(perHost, takesPerson, 0.67),
			Fix:  "Set `cluster-require-full-coverage no`, and alert on redis_cluster_slots_ok < 16384.",
			check: everywhere(func(s settings) []hit {
				if s.get("cluster-enabled") != "yes" || s.get("cluster-require-full-coverage") == "no" {
					return nil
				}
				return []hit{found(s.place("cluster-require-full-coverage"), "%s: cluster-require-full-coverage is %s", s.name, orDefault(s.get("cluster-require-full-coverage"), "yes"))}
			}),
		},
		{
			ID: "FN604", Title: "a dead master is replaced after 15 seconds", Severity: Medium, Reads: static,
			Why:  "cluster-node-timeout is 15000 ms by default, and a failover takes that and a second or two more.",
			Cost: costs(perFailover, takesSwitch, 0.33),
			Fix:  "Set `cluster-node-timeout 2000` (measured: 4 s to fail over); below 1000 a busy machine is taken for dead.",
			check: everywhere(func(s settings) []hit {
				v := s.get("cluster-node-timeout")
				n, err := strconv.Atoi(orDefault(v, "15000"))
				if s.get("cluster-enabled") != "yes" || err == nil && n <= 5000 {
					return nil
				}
				return []hit{found(s.place("cluster-node-timeout"), "%s: cluster-node-timeout is %s ms", s.name, orDefault(v, "15000"))}
			}),
		},
		{
			ID: "FN605", Title: "a master that is cut off goes on taking writes", Severity: Low, Reads: static,
			Why:  "Until it notices that it has lost the majority, it accepts tasks that the new master never sees.",
			Cost: costs(perFailover, takesCut, 0.33),
			Fix:  "Set `min-replicas-to-write 1` and `min-replicas-max-lag 10`.",
			check: everywhere(func(s settings) []hit {
				if v := s.get("min-replicas-to-write"); s.get("cluster-enabled") != "yes" || v != "" && v != "0" {
					return nil
				}
				return []hit{found(s.place("min-replicas-to-write"), "%s: min-replicas-to-write is 0", s.name)}
			}),
		},
		{
			ID: "FN606", Title: "the nodes of a cluster differ by their port only", Severity: Critical, Reads: []Kind{KindRedisConf},
			Why:  "Ports 7000 to 7005 are six processes of one machine: the cluster survives a kill, and nothing that happens to the machine.",
			Cost: costs(perHost, takesZone, 1),
			Fix:  "Run one master and one replica on each of three machines in three zones.",
			check: func(in *Inventory) []hit {
				hosts, ports := map[string]bool{}, map[string]bool{}
				var first *settingsFile
				nodes := 0
				for _, c := range in.redisConfs {
					if c.get("cluster-enabled") != "yes" {
						continue
					}
					if first == nil {
						first = c
					}
					nodes++
					hosts[c.get("cluster-announce-ip")+c.get("cluster-announce-hostname")+strings.Replace(c.get("bind"), "0.0.0.0", "", 1)] = true
					ports[orDefault(c.get("port"), "6379")] = true
				}
				if nodes < 3 || len(hosts) > 1 || len(ports) < nodes {
					return nil
				}
				return []hit{found(first.place("port"), "%d nodes on ports %s of one address", nodes, strings.Join(slices.Sorted(maps.Keys(ports)), ", "))}
			},
		},
		{
			ID: "FN610", Title: "the cluster does not serve every slot", Severity: Critical, Reads: reads,
			Why:  "Keys of the missing slots fail now.",
			Cost: costs(perCrash, takesPerson, 0.33),
			Fix:  "`CLUSTER NODES` shows what is missing; bring it back or fail over by hand.",
			check: running(func(r *Redis) []hit {
				if len(r.ClusterInfo) == 0 {
					return nil
				}
				state, ok := r.ClusterInfo["cluster_state"], r.ClusterInfo["cluster_slots_ok"]
				if state == "ok" && ok == "16384" {
					return nil
				}
				return []hit{found(ask(r, "CLUSTER INFO"), "state %s, %s of 16384 slots", state, ok)}
			}),
		},
		{
			ID: "FN611", Title: "a master without a replica", Severity: Critical, Reads: reads,
			Why:  "When it dies, its slots and what is in them are gone until it is back.",
			Cost: costs(perHost, takesPerson, 0.33),
			Fix:  "Add a replica in another zone (`redis-cli --cluster add-node --cluster-slave`).",
			check: running(func(r *Redis) []hit {
				replicas := map[string]int{}
				for _, n := range r.Nodes {
					if n.MasterID != "" && !n.Failed {
						replicas[n.MasterID]++
					}
				}
				var out []hit
				for _, n := range r.Nodes {
					if n.MasterID == "" && n.Slots > 0 && replicas[n.ID] == 0 {
						out = append(out, found(ask(r, "CLUSTER NODES"), "%s has %d slots and no replica", n.Address, n.Slots))
					}
				}
				return out
			}),
		},
		{
			ID: "FN612", Title: "one host holds the majority of the masters", Severity: Critical, Reads: reads,
			Why:  "Failover needs a majority of masters. When that host goes, nobody is promoted and the cluster stands still.",
			Cost: costs(perHost, takesPerson, 1),
			Fix:  "Move masters (`CLUSTER FAILOVER` on a replica elsewhere) until no host or zone has half of them.",
			check: running(func(r *Redis) []hit {
				hosts, masters := map[string]int{}, 0
				for _, n := range r.Nodes {
					if n.MasterID == "" && n.Slots > 0 {
						hosts[n.Host]++
						masters++
					}
				}
				var out []hit
				for _, h := range slices.Sorted(maps.Keys(hosts)) {
					if 2*hosts[h] > masters {
						out = append(out, found(ask(r, "CLUSTER NODES"), "%s has %d of %d masters", h, hosts[h], masters))
					}
				}
				return out
			}),
		},
		{
			ID: "FN613", Title: "a replica beside its master", Severity: High, Reads: reads,
			Why:  "Both go with their host.",
			Cost: costs(perHost, takesPerson, 0.33),
			Fix:  "Let it follow a master of another host: `CLUSTER REPLICATE`.",
			check: running(func(r *Redis) []hit {
				hosts := map[string]string{}
				for _, n := range r.Nodes {
					hosts[n.ID] = n.Host
				}
				var out []hit
				for _, n := range r.Nodes {
					if n.MasterID != "" && n.Host == hosts[n.MasterID] {
						out = append(out, found(ask(r, "CLUSTER NODES"), "%s stands on the host of its master", n.Address))
					}
				}
				return out
			}),
		},
		{
			ID: "FN614", Title: "Redis has no replica", Severity: High, Reads: reads,
			Why:  "While it restarts, every chat waits or fails; when its disk is lost, the queue is too.",
			Cost: costs(perCrash, takesRestart, 1),
			Fix:  "Run a Redis Cluster behind redisproxy, or a replica with Sentinel.",
			check: running(func(r *Redis) []hit {
				if r.Info["role"] != "master" || len(r.ClusterInfo) > 0 || r.Info["connected_slaves"] != "0" {
					return nil
				}
				return []hit{found(ask(r, "INFO replication"), "role master, connected_slaves 0")}
			}),
		},
		{
			ID: "FN615", Title: "Redis cannot write to its disk", Severity: Critical, Reads: reads,
			Why:  "It refuses writes (MISCONF) or loses what it took at the next restart.",
			Cost: costs(perMistake, takesUnseen, 1),
			Fix:  "Free the disk, mend its rights, and see the log.",
			check: running(func(r *Redis) []hit {
				var out []hit
				for _, name := range []string{"rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"} {
					if v := r.Info[name]; v != "" && v != "ok" {
						out = append(out, found(ask(r, "INFO persistence"), "%s is %s", name, v))
					}
				}
				return out
			}),
		},
		{
			ID: "FN616", Title: "a replica that has lost its master", Severity: High, Reads: reads,
			Why:  "It serves old data, and after a while it may not be promoted any more.",
			Cost: costs(perFailover, takesPerson, 0.1),
			Fix:  "See the network and `masterauth` between them.",
			check: running(func(r *Redis) []hit {
				if r.Info["master_link_status"] != "down" {
					return nil
				}
				return []hit{found(ask(r, "INFO replication"), "master_link_status down")}
			}),
		},
		{
			ID: "FN617", Title: "keys have been evicted", Severity: High, Reads: reads,
			Why:  "Among them may have been tasks, locks and stop flags.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Raise maxmemory and set `maxmemory-policy noeviction`.",
			check: running(func(r *Redis) []hit {
				if n, err := strconv.Atoi(r.Info["evicted_keys"]); err == nil && n > 0 {
					return []hit{found(ask(r, "INFO stats"), "evicted_keys %d", n)}
				}
				return nil
			}),
		},
	}
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
