package audit

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// forUnits makes a check of one that looks at containers, one by one.
func forUnits(check func(u *unit) []hit) func(in *Inventory) []hit {
	return func(in *Inventory) []hit {
		var out []hit
		for _, u := range in.units {
			out = append(out, check(u)...)
		}
		return out
	}
}

// forServices is forUnits for services of compose files.
func forServices(check func(u *unit) []hit) func(in *Inventory) []hit {
	return forUnits(func(u *unit) []hit {
		if u.compose == nil {
			return nil
		}
		return check(u)
	})
}

// oneShot reports whether a service is to run once and end.
func (u *unit) oneShot() bool {
	return u.role == roleMigrate || u.node.get("profiles").ok() || strings.Contains(u.name, "init")
}

// spreadOverHosts reports whether a swarm puts the replicas on different hosts.
func (u *unit) spreadOverHosts() bool {
	p := u.node.get("deploy", "placement")
	return p.get("preferences").ok() || p.get("max_replicas_per_node").text() == "1" || p.get("constraints").ok() || u.node.get("deploy", "mode").text() == "global"
}

func composeRules() []Rule {
	reads := []Kind{KindCompose}
	return []Rule{
		{
			ID: "FN201", Title: "everything stands on one host", Severity: High, Reads: reads,
			Why:  "docker compose runs all services on one machine; a reboot, a full disk or a dead power supply takes all of Dify.",
			Cost: costs(perHost, takesZone, 1),
			Fix:  "Put a second machine beside it: `fournines gateway` in front of two, or the Kubernetes engine; in a swarm spread the replicas with `deploy.placement.preferences`.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, c := range in.composes {
					serving, spread := 0, false
					for _, u := range in.units {
						if u.compose == c && (u.role.serves() || u.role.keeps()) {
							serving++
							spread = spread || u.spreadOverHosts()
						}
					}
					if serving > 1 && !spread {
						out = append(out, found(c.root.get("services").at(), "%d services that every request needs, and nothing spreads them over hosts", serving))
					}
				}
				return out
			},
		},
		{
			ID: "FN202", Title: "one replica of a service that every request needs", Severity: High, Reads: reads,
			Why:  "While the only one restarts, after a crash or for a release, nobody is served.",
			Cost: costs(perRelease, takesRestart, 1),
			Fix:  "Set `deploy.replicas: 2` and put a balancer that checks them in front.",
			check: forServices(func(u *unit) []hit {
				if u.role.serves() && u.replicas < 2 {
					return []hit{found(u.at, "%s (%s) has %d replica", u.title(), u.role, u.replicas)}
				}
				if v, ok := u.difyVersion(); ok && u.role == roleWorker && u.replicas < 2 && (v[0] > 1 || v[0] == 1 && v[1] >= 13) {
					return []hit{found(u.at, "%s: from Dify 1.13 on chats run in the workers, and there is one", u.title())}
				}
				return nil
			}),
		},
		{
			ID: "FN203", Title: "no restart policy", Severity: High, Reads: reads,
			Why:  "A process that ends stays away until a person starts it, also after a reboot of the host.",
			Cost: costs(perCrash, takesPerson, 1),
			Fix:  "Set `restart: unless-stopped`.",
			check: forServices(func(u *unit) []hit {
				policy := u.node.get("restart")
				inSwarm := u.node.get("deploy", "restart_policy").ok()
				switch {
				case u.oneShot() || inSwarm || u.role == "" && policy.ok():
				case !policy.ok():
					h := found(u.at, "%s has no restart policy", u.title())
					h.edits = u.node.insert("restart: unless-stopped")
					return []hit{h}
				case policy.text() == "no" || policy.text() == "false":
					h := found(policy.at(), "%s has restart: %q", u.title(), policy.text())
					h.edits = policy.replace("unless-stopped")
					return []hit{h}
				}
				return nil
			}),
		},
		{
			ID: "FN204", Title: "ten seconds to stop", Severity: High, Reads: reads,
			Why:  "docker kills a container 10 s after it asked it to stop. A stream takes longer, and a worker that is killed loses its tasks: Celery acknowledged them when it took them.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Set `stop_grace_period` to what the longest answer takes, for example 10m for the worker and 2m for the rest.",
			check: forServices(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker && u.role != roleEntry {
					return nil
				}
				grace := u.node.get("stop_grace_period")
				d, err := time.ParseDuration(grace.text())
				switch {
				case !grace.ok():
					h := found(u.at, "%s has no stop_grace_period, so it gets 10 s", u.title())
					h.edits = u.node.insert("stop_grace_period: 2m")
					return []hit{h}
				case err == nil && d < 30*time.Second:
					h := found(grace.at(), "%s has %v to stop", u.title(), d)
					h.edits = grace.replace("2m")
					return []hit{h}
				}
				return nil
			}),
		},
		{
			ID: "FN205", Title: "dependencies are not waited for", Severity: Medium, Reads: reads,
			Why:  "Without `condition: service_healthy` Dify starts before the database answers, fails its migration and serves on an old schema, or ends.",
			Cost: costs(perRelease, takesRestart, 0.5),
			Fix:  "Write `depends_on` as a mapping with `condition: service_healthy`, and give the service a health check.",
			check: forServices(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker {
					return nil
				}
				var out []hit
				deps := u.node.get("depends_on")
				if deps.isList() {
					out = append(out, found(deps.at(), "%s only waits until %s have been started", u.title(), strings.Join(deps.texts(), ", ")))
				}
				for _, d := range deps.pairs() {
					if c := d.get("condition"); c.text() == "service_started" {
						out = append(out, found(c.at(), "%s only waits until %s has been started", u.title(), d.name()))
					}
				}
				return out
			}),
		},
		{
			ID: "FN206", Title: "a service may take the host's whole memory", Severity: Medium, Reads: reads,
			Why:  "The kernel kills the largest process of the host when memory ends, and that is often the database.",
			Cost: costs(perCrash, takesRestart, 0.5),
			Fix:  "Set `deploy.resources.limits.memory` (or `mem_limit`).",
			check: forServices(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker && !u.role.keeps() || u.node.get("mem_limit").ok() || u.node.get("deploy", "resources", "limits", "memory").ok() {
					return nil
				}
				return []hit{found(u.at, "%s has no memory limit", u.title())}
			}),
		},
		{
			ID: "FN207", Title: "logs grow until the disk is full", Severity: Medium, Reads: reads,
			Why:  "The default driver json-file never rotates. A full disk stops PostgreSQL and Redis.",
			Cost: costs(perMistake, takesPerson, 1),
			Fix:  "Set `logging.options.max-size` and `max-file`, once in an `x-logging` anchor.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, c := range in.composes {
					bare := []string{}
					for _, u := range in.units {
						l := u.node.get("logging")
						if u.compose == c && u.role != "" && !u.oneShot() && !l.get("options", "max-size").ok() && (!l.ok() || l.get("driver").text() == "json-file") {
							bare = append(bare, u.name)
						}
					}
					if len(bare) > 0 {
						out = append(out, found(c.root.get("services").at(), "no limit for the logs of %s", strings.Join(bare, ", ")))
					}
				}
				return out
			},
		},
		{
			ID: "FN208", Title: "data in the container itself", Severity: Critical, Reads: reads,
			Why:  "Without a volume, recreating the container (a new image, `compose down`) deletes what it holds.",
			Cost: costs(perMistake, takesRecreate, 1),
			Fix:  "Mount a named volume at the server's data directory.",
			check: forServices(func(u *unit) []hit {
				if !u.role.keeps() || u.role == roleRedis || len(u.node.get("volumes").items()) > 0 {
					return nil
				}
				return []hit{found(u.at, "%s (%s) has no volume", u.title(), u.role)}
			}),
		},
		{
			ID: "FN209", Title: "a data port open to the network", Severity: High, Reads: reads,
			Why:  "Published ports pass docker's own firewall rules before those of the host. Scanners try the default passwords of Dify's compose file within hours.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Remove `ports`, or publish on loopback: `127.0.0.1:5432:5432`.",
			check: forServices(func(u *unit) []hit {
				if !u.role.keeps() {
					return nil
				}
				var out []hit
				for _, p := range u.node.get("ports").items() {
					host := p.text()
					if p.isMap() {
						host = p.get("host_ip").text() + ":" + p.get("published").text() + ":"
						if p.get("published").ok() && p.get("host_ip").text() == "" {
							host = p.get("published").text() + ":"
						}
					}
					if strings.HasPrefix(host, "127.") || strings.HasPrefix(host, "localhost:") || strings.HasPrefix(host, "[::1]") {
						continue
					}
					out = append(out, found(p.at(), "%s (%s) publishes %s on every address", u.title(), u.role, strings.TrimSuffix(host, ":")))
				}
				return out
			}),
		},
		{
			ID: "FN210", Title: "one database server", Severity: Critical, Reads: reads,
			Why:  "No standby takes over, and none holds a second copy: a lost disk is a restore from backup.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Run Patroni, CloudNativePG or a managed database with a standby in another zone, and point `DB_HOST` at pgproxy.",
			check: forServices(func(u *unit) []hit {
				if u.role != rolePostgres || len(u.compose.peers(u)) > 0 || strings.Contains(u.imageName(), "spilo") || strings.Contains(u.imageName(), "patroni") {
					return nil
				}
				return []hit{found(u.at, "%s is the only PostgreSQL", u.title())}
			}),
		},
		{
			ID: "FN211", Title: "one Redis", Severity: High, Reads: reads,
			Why:  "Redis is on the path of every chat (stop flags, locks, from 1.13 the events themselves) and holds the queue.",
			Cost: costs(perCrash, takesRestart, 1),
			Fix:  "Run a Redis Cluster or Sentinel over three zones; redisproxy shows a cluster to Dify as the one Redis that it knows.",
			check: forServices(func(u *unit) []hit {
				if u.role != roleRedis || len(u.compose.peers(u)) > 0 {
					return nil
				}
				return []hit{found(u.at, "%s is the only Redis", u.title())}
			}),
		},
		{
			ID: "FN212", Title: "one vector database", Severity: Medium, Reads: reads,
			Why:  "While it restarts, every answer that needs a knowledge base fails.",
			Cost: costs(perCrash, takesRestart, 0.5),
			Fix:  "Run it replicated (Milvus cluster with in-memory replicas, Qdrant with a replication factor of 2), and let the gateway's retrieval cache answer while it is away.",
			check: forServices(func(u *unit) []hit {
				if u.role != roleVector || len(u.compose.peers(u)) > 0 || u.replicas > 1 {
					return nil
				}
				return []hit{found(u.at, "%s is the only vector database", u.title())}
			}),
		},
		{
			ID: "FN213", Title: "a cluster whose nodes share a host", Severity: Critical, Reads: reads,
			Why:  "Six nodes of a Redis Cluster, or three of etcd, on one machine survive the death of a process, and nothing else: the majority goes with the host.",
			Cost: costs(perHost, takesZone, 1),
			Fix:  "Give each zone one master and the replica of another zone's master.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, c := range in.composes {
					for _, r := range []role{roleRedis, roleQuorum} {
						var nodes []*unit
						for _, u := range in.units {
							clustered := r == roleQuorum || u.settingsOf().get("cluster-enabled") == "yes"
							if u.compose == c && u.role == r && clustered && !u.spreadOverHosts() {
								nodes = append(nodes, u)
							}
						}
						if len(nodes) >= 3 {
							out = append(out, found(nodes[0].at, "%d nodes of a %s cluster in one compose file", len(nodes), r))
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN214", Title: "GPUs are reserved and nothing queues in front of them", Severity: Medium, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "Trap 1 of the article: eight cards at 30% use. Without a queue each card must be bought for the peak; with one, work waits seconds and the same cards do three times as much.",
			Cost: costs(perPeak, takesPeak, 0.2),
			Fix:  "Put the async lane (`gateway.jobs`), or a Celery queue with KEDA, in front; shorten prompts; add cards when the queue is long at high use.",
			check: func(in *Inventory) []hit {
				var gpus []*unit
				total := 0
				for _, u := range in.units {
					n := u.gpus()
					if n > 0 {
						gpus = append(gpus, u)
						total += n * max(u.replicas, 1)
					}
				}
				queue := len(in.ofKind("ScaledObject")) > 0 || len(in.withRole(roleWorker)) > 0
				for _, s := range in.specs {
					queue = queue || s.spec.Gateway.Jobs.Enabled
				}
				if total < 2 || queue {
					return nil
				}
				return []hit{found(gpus[0].at, "%d GPUs, and neither a worker nor a scaler by queue length beside them", total)}
			},
		},
	}
}

// peers are the other services of the same role that run beside u.
func (c *composeFile) peers(u *unit) []string {
	var out []string
	for _, other := range c.units() {
		if other.role == u.role && other.name != u.name && !other.oneShot() {
			out = append(out, other.name)
		}
	}
	return out
}

// gpus is how many GPUs one replica reserves.
func (u *unit) gpus() int {
	n := 0
	for _, d := range u.node.get("deploy", "resources", "reservations", "devices").items() {
		if slices.Contains(d.get("capabilities").texts(), "gpu") {
			n += max(d.get("count").intOr(1), len(d.get("device_ids").items()))
		}
	}
	for _, p := range u.node.get("resources", "limits").pairs() {
		if strings.HasSuffix(p.name(), "/gpu") {
			v, err := strconv.Atoi(p.text())
			if err == nil {
				n += v
			}
		}
	}
	return n
}
