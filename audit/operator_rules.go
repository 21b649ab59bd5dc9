package audit

import (
	"strconv"
	"strings"
)

// operatorRules look at the objects of CloudNativePG, the Redis operator and the
// Milvus operator.
func operatorRules() []Rule {
	reads := []Kind{KindKubernetes}
	forKind := func(check func(in *Inventory, o *object) []hit, kinds ...string) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, o := range in.ofKind(kinds...) {
				if o.kind == "Cluster" && !strings.HasPrefix(o.apiVersion, "postgresql.cnpg.io/") {
					continue
				}
				out = append(out, check(in, o)...)
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN340", Title: "fewer than three PostgreSQL instances", Severity: High, Reads: reads,
			Why:  "With one there is no standby; with two the loss of one leaves a primary alone, and with required synchronous replication it takes no more writes.",
			Cost: costs(perFailover, takesRestart, 1),
			Fix:  "Set `instances: 3`.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				n := o.get("spec", "instances")
				if n.intOr(1) >= 3 {
					return nil
				}
				h := found(n.atOr(o.get("spec")), "%s has %d", o.title(), n.intOr(1))
				h.edits = n.replace("3")
				return []hit{h}
			}, "Cluster"),
		},
		{
			ID: "FN341", Title: "PostgreSQL instances may share a zone", Severity: High, Reads: reads,
			Why:  "CloudNativePG keeps instances apart by node, not by zone, unless it is told.",
			Cost: costs(perZone, takesZone, 1),
			Fix:  "Set `affinity.topologyKey: " + zoneLabel + "` with `podAntiAffinityType: required`, or topologySpreadConstraints over it.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				if o.get("spec", "affinity", "topologyKey").text() == zoneLabel || spreadOver(o.get("spec"), zoneLabel) {
					return nil
				}
				return []hit{found(o.get("spec", "affinity", "topologyKey").atOr(o.get("metadata", "name")), "%s is not spread over zones", o.title())}
			}, "Cluster"),
		},
		{
			ID: "FN342", Title: "a failover may wait an hour", Severity: High, Reads: reads,
			Why:  "`switchoverDelay` is 3600 s by default and also bounds how long the old primary may take to stop during a failover; with `stopDelay` it is how long writes wait.",
			Cost: costs(perFailover, takesPerson, 0.2),
			Fix:  "Set `switchoverDelay: 40` (and `stopDelay: 60`).",
			check: forKind(func(_ *Inventory, o *object) []hit {
				d := o.get("spec", "switchoverDelay")
				if d.intOr(3600) <= 300 {
					return nil
				}
				h := found(d.atOr(o.get("metadata", "name")), "%s: switchoverDelay is %d s", o.title(), d.intOr(3600))
				if h.edits = d.replace("40"); h.edits == nil {
					h.edits = o.get("spec").insert("switchoverDelay: 40")
				}
				return []hit{h}
			}, "Cluster"),
		},
		{
			ID: "FN343", Title: "no synchronous standby", Severity: High, Reads: reads,
			Why:  "A failover loses the last commits that users saw accepted.",
			Cost: costs(perFailover, takesPerson, 0.1),
			Fix:  "Set `postgresql.synchronous: {method: any, number: 1, dataDurability: preferred}`, or `required` for no loss at all.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				if o.get("spec", "postgresql", "synchronous").ok() || o.get("spec", "minSyncReplicas").intOr(0) > 0 {
					return nil
				}
				return []hit{found(o.get("spec", "postgresql").atOr(o.get("metadata", "name")), "%s replicates asynchronously", o.title())}
			}, "Cluster"),
		},
		{
			ID: "FN344", Title: "a database cluster that is never backed up", Severity: Critical, Reads: reads,
			Why:  "Replication copies a DROP TABLE within milliseconds. Only a backup with its WAL goes back to before it.",
			Cost: costs(perMistake, takesRecreate, 1),
			Fix:  "Add a WAL archive (plugin barman-cloud) and a ScheduledBackup, and restore it on a schedule.",
			check: forKind(func(in *Inventory, o *object) []hit {
				for _, b := range in.ofKind("ScheduledBackup") {
					if b.get("spec", "cluster", "name").text() == o.name && b.namespace == o.namespace {
						return nil
					}
				}
				return []hit{found(o.place(), "no ScheduledBackup names %s", o.title())}
			}, "Cluster"),
		},
		{
			ID: "FN345", Title: "a backup schedule with five fields", Severity: High, Reads: reads,
			Why:  "ScheduledBackup counts six, seconds first. What looks like daily at 02:00 is refused, or means another time.",
			Cost: costs(perMistake, takesRecreate, 0.5),
			Fix:  "Put the seconds before it: `0 0 2 * * *`.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				s := o.get("spec", "schedule")
				if len(strings.Fields(s.text())) != 5 {
					return nil
				}
				h := found(s.at(), "%s: %q", o.title(), s.text())
				h.edits = s.replace(strconv.Quote("0 " + s.text()))
				return []hit{h}
			}, "ScheduledBackup"),
		},
		{
			ID: "FN346", Title: "a Redis Cluster too small, or without budget", Severity: High, Reads: reads,
			Why:  "Fewer than three masters have no majority when one goes. Without a budget a drain may take two masters at once, and then nobody fails over.",
			Cost: costs(perDrain, takesRestart, 1),
			Fix:  "Set `clusterSize: 3` and `pdb: {enabled: true, maxUnavailable: 1}` for leaders and followers.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				var out []hit
				if n := o.get("spec", "clusterSize"); n.intOr(3) < 3 {
					out = append(out, found(n.at(), "%s has %d masters", o.title(), n.intOr(3)))
				}
				if o.kind == "RedisCluster" {
					for _, part := range []string{"redisLeader", "redisFollower"} {
						if !isTrue(o.get("spec", part, "pdb", "enabled").text()) {
							out = append(out, found(o.get("spec", part).atOr(o.get("metadata", "name")), "%s: %s has no pdb", o.title(), part))
						}
					}
				}
				if q := o.get("spec", "sentinel", "quorum"); q.ok() && q.text() == "1" {
					out = append(out, found(q.at(), "%s: one sentinel alone decides", o.title()))
				}
				return out
			}, "RedisCluster", "RedisReplication"),
		},
		{
			ID: "FN347", Title: "Redis without persistence", Severity: High, Reads: reads,
			Why:  "The queue of Celery is gone when the pods are.",
			Cost: costs(perHost, takesUnseen, 0.5),
			Fix:  "Set `persistenceEnabled: true` and a storage claim.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				p := o.get("spec", "persistenceEnabled")
				if o.get("spec", "storage").ok() && (!p.ok() || isTrue(p.text())) {
					return nil
				}
				return []hit{found(p.atOr(o.get("metadata", "name")), "%s keeps nothing on disk", o.title())}
			}, "RedisCluster", "RedisReplication"),
		},
		{
			ID: "FN348", Title: "Milvus alone", Severity: High, Reads: reads,
			Why:  "A standalone Milvus, or one query node, is away until it has loaded its segments again: seconds to minutes without retrieval.",
			Cost: costs(perCrash, takesRestart, 0.5),
			Fix:  "Set `mode: cluster`, two of proxy, queryNode and mixCoord, and load collections with replica_number 2.",
			check: forKind(func(_ *Inventory, o *object) []hit {
				mode := o.get("spec", "mode")
				if mode.text() != "cluster" {
					return []hit{found(mode.atOr(o.get("metadata", "name")), "%s runs standalone", o.title())}
				}
				var out []hit
				for _, part := range []string{"proxy", "queryNode", "mixCoord"} {
					c := o.get("spec", "components", part)
					if n, ok := c.get("replicas").int(); c.ok() && ok && n == 1 {
						out = append(out, found(c.get("replicas").at(), "%s: one %s", o.title(), part))
					}
				}
				return out
			}, "Milvus"),
		},
	}
}
