package audit

import (
	"slices"
	"strings"
)

const (
	zoneLabel = "topology.kubernetes.io/zone"
	hostLabel = "kubernetes.io/hostname"
)

// spreadOver reports whether a pod's spec spreads over a topology, by
// constraints or by anti-affinity.
func spreadOver(pod node, key string) bool {
	for _, c := range pod.get("topologySpreadConstraints").items() {
		if c.get("topologyKey").text() == key {
			return true
		}
	}
	anti := pod.get("affinity", "podAntiAffinity")
	for _, t := range anti.get("requiredDuringSchedulingIgnoredDuringExecution").items() {
		if t.get("topologyKey").text() == key {
			return true
		}
	}
	for _, t := range anti.get("preferredDuringSchedulingIgnoredDuringExecution").items() {
		if t.get("podAffinityTerm", "topologyKey").text() == key {
			return true
		}
	}
	return false
}

// zonesOf returns the zones that a pod's spec is restricted to; nil for any.
func zonesOf(pod node) ([]string, node) {
	if z := pod.get("nodeSelector", zoneLabel); z.ok() {
		return []string{z.text()}, z
	}
	for _, term := range pod.get("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").items() {
		for _, e := range term.get("matchExpressions").items() {
			if e.get("key").text() == zoneLabel && e.get("operator").text() == "In" {
				return e.get("values").texts(), e.get("values")
			}
		}
	}
	return nil, node{}
}

// spreadRules look at where pods run and where requests go.
func spreadRules() []Rule {
	reads := []Kind{KindKubernetes}
	return []Rule{
		{
			ID: "FN320", Title: "replicas may all stand in one zone", Severity: High, Reads: reads,
			Why:  "Nothing spreads the pods over zones, so the loss of one may take all of them.",
			Cost: costs(perZone, takesRestart, 1),
			Fix:  "Add `topologySpreadConstraints` over " + zoneLabel + " with `maxSkew: 1`, `whenUnsatisfiable: DoNotSchedule` and `nodeTaintsPolicy: Honor`.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				r := in.roleOf(o)
				if r == "" || r == roleBeat || in.leastReplicas(o) < 2 || spreadOver(o.podSpec(), zoneLabel) {
					return nil
				}
				return []hit{found(o.place(), "%s (%s): %d replicas without spread over zones", o.title(), r, in.leastReplicas(o))}
			}),
		},
		{
			ID: "FN321", Title: "replicas may all stand on one node", Severity: High, Reads: reads,
			Why:  "Without any spread the scheduler may put every replica on the node with the most room.",
			Cost: costs(perDrain, takesRestart, 0.5),
			Fix:  "Add a spread over " + hostLabel + " too, with `whenUnsatisfiable: ScheduleAnyway`.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				pod := o.podSpec()
				r := in.roleOf(o)
				if r == "" || r == roleBeat || in.leastReplicas(o) < 2 || spreadOver(pod, zoneLabel) || spreadOver(pod, hostLabel) {
					return nil
				}
				return []hit{found(o.place(), "%s: %d replicas without spread over nodes", o.title(), in.leastReplicas(o))}
			}),
		},
		{
			ID: "FN322", Title: "a spread that keeps pods pending when a zone is lost", Severity: Medium, Reads: reads,
			Why:  "With DoNotSchedule and the default nodeTaintsPolicy Ignore, the nodes of a lost zone still count: measured with a real scheduler, replacements stay pending until the nodes are deleted; with minDomains for ever.",
			Cost: costs(perZone, takesZone, 0.3),
			Fix:  "Set `nodeTaintsPolicy: Honor` and no `minDomains`.",
			check: forWorkloads(func(_ *Inventory, o *object) []hit {
				var out []hit
				for _, c := range o.podSpec().get("topologySpreadConstraints").items() {
					if c.get("whenUnsatisfiable").text() != "DoNotSchedule" || c.get("topologyKey").text() != zoneLabel {
						continue
					}
					if m := c.get("minDomains"); m.ok() {
						h := found(m.at(), "%s has minDomains %s", o.title(), m.text())
						h.edits = m.remove()
						out = append(out, h)
					}
					if p := c.get("nodeTaintsPolicy"); p.text() != "Honor" {
						h := found(p.atOr(c.get("topologyKey")), "%s: nodeTaintsPolicy is not Honor", o.title())
						if h.edits = p.replace("Honor"); h.edits == nil {
							h.edits = c.insert("nodeTaintsPolicy: Honor")
						}
						out = append(out, h)
					}
				}
				return out
			}),
		},
		{
			ID: "FN323", Title: "a majority over two zones", Severity: Critical, Reads: reads,
			Why:  "etcd, the masters of a Redis Cluster and the instances of a database cluster decide by majority. Of two zones one holds it; its loss stops the other.",
			Cost: costs(perZone, takesZone, 1),
			Fix:  "Let a third zone take members; it may be small.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.objects {
					pod := o.podSpec()
					decides := in.roleOf(o) == roleQuorum
					switch o.kind {
					case "Cluster", "RedisCluster", "RedisReplication", "RedisSentinel", "Milvus":
						pod, decides = o.get("spec"), true
					}
					if !decides {
						continue
					}
					if zones, at := zonesOf(pod); len(zones) > 0 && len(zones) < 3 {
						out = append(out, found(at.at(), "%s runs in %s only", o.title(), strings.Join(zones, " and ")))
					}
				}
				return out
			},
		},
		{
			ID: "FN324", Title: "an even or too small number of voters", Severity: High, Reads: reads,
			Why:  "Two members survive the loss of none, four of one, as three do: the even one adds a fault and no safety.",
			Cost: costs(perDrain, takesRestart, 1),
			Fix:  "Run 3 or 5.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				if n := o.replicas(); in.roleOf(o) == roleQuorum && (n < 3 || n%2 == 0) {
					return []hit{found(o.get("spec", "replicas").atOr(o.get("metadata", "name")), "%s has %d members", o.title(), n)}
				}
				return nil
			}),
		},
		{
			ID: "FN325", Title: "requests cross zones without need", Severity: Medium, Reads: reads,
			Why:  "Trap 2 of the article. A Service sends two thirds of the requests to other zones; at 30 ms a way, chats stutter. With local preference the article's delay fell from 30 to 8 ms.",
			Cost: costs(perPeak, takesPeak, 0.05),
			Fix:  "Set `trafficDistribution: PreferSameZone` in the Service, or a DestinationRule with localityLbSetting and outlierDetection.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, s := range in.ofKind("Service") {
					if s.get("spec", "trafficDistribution").ok() || in.localityRule(s) || s.get("spec", "clusterIP").text() == "None" {
						continue
					}
					for _, o := range in.ofKind("Deployment") {
						if r := in.roleOf(o); r == roleAPI && o.namespace == s.namespace && selects(s.get("spec", "selector"), o.podLabels()) {
							h := found(s.place(), "%s of %s does not prefer the client's zone", s.title(), o.title())
							h.edits = s.get("spec").insert("trafficDistribution: PreferSameZone")
							out = append(out, h)
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN326", Title: "locality rules that never engage", Severity: High, Reads: reads,
			Why:  "Without outlierDetection Istio and Higress do not see that a zone is ill, so locality failover stays off: when the zone's instances fail, its users get errors.",
			Cost: costs(perZone, takesZone, 0.5),
			Fix:  "Add `outlierDetection` with consecutive5xxErrors, interval, baseEjectionTime and maxEjectionPercent.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, d := range in.ofKind("DestinationRule") {
					p := d.get("spec", "trafficPolicy")
					if l := p.get("loadBalancer", "localityLbSetting"); l.ok() && !p.get("outlierDetection").ok() {
						out = append(out, found(l.at(), "%s has localityLbSetting and no outlierDetection", d.title()))
					}
				}
				return out
			},
		},
	}
}

// localityRule reports whether a DestinationRule of a service prefers the zone.
func (in *Inventory) localityRule(s *object) bool {
	return slices.ContainsFunc(in.ofKind("DestinationRule"), func(d *object) bool {
		host, _, _ := strings.Cut(d.get("spec", "host").text(), ".")
		return host == s.name && d.get("spec", "trafficPolicy", "loadBalancer", "localityLbSetting").ok()
	})
}
