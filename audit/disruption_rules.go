package audit

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// budgetsOf returns the PodDisruptionBudgets that select a workload.
func (in *Inventory) budgetsOf(o *object) []*object {
	var out []*object
	for _, b := range in.ofKind("PodDisruptionBudget") {
		if b.namespace == o.namespace && selects(b.get("spec", "selector", "matchLabels"), o.podLabels()) {
			out = append(out, b)
		}
	}
	return out
}

// disruptionRules look at what happens when pods are moved or replaced.
func disruptionRules() []Rule {
	reads := []Kind{KindKubernetes}
	return []Rule{
		{
			ID: "FN310", Title: "no PodDisruptionBudget", Severity: High, Reads: reads,
			Why:  "A drain of two nodes, or an upgrade of the cluster, may stop all replicas at once.",
			Cost: costs(perDrain, takesRestart, 0.5),
			Fix:  "Add one with `maxUnavailable: 1` and `unhealthyPodEvictionPolicy: AlwaysAllow`.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				r := in.roleOf(o)
				if in.leastReplicas(o) < 2 || r == "" || r == roleBeat || len(in.budgetsOf(o)) > 0 {
					return nil
				}
				return []hit{found(o.place(), "%s (%s) with %d replicas has none", o.title(), r, in.leastReplicas(o))}
			}),
		},
		{
			ID: "FN311", Title: "a PodDisruptionBudget that forbids every eviction", Severity: Medium, Reads: reads,
			Why:  "Nodes cannot be drained, so upgrades wait until somebody deletes the budget or the node by force.",
			Cost: costs(perDrain, takesPerson, 0.1),
			Fix:  "Use `maxUnavailable: 1`.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, b := range in.ofKind("PodDisruptionBudget") {
					most, least := b.get("spec", "maxUnavailable"), b.get("spec", "minAvailable")
					switch {
					case most.text() == "0" || most.text() == "0%":
						h := found(most.at(), "%s allows maxUnavailable %s", b.title(), most.text())
						h.edits = most.replace("1")
						out = append(out, h)
					case least.text() == "100%":
						out = append(out, found(least.at(), "%s wants minAvailable 100%%", b.title()))
					case least.ok():
						for _, o := range in.ofKind("Deployment", "StatefulSet") {
							n, ok := least.int()
							if ok && n >= in.leastReplicas(o) && o.namespace == b.namespace && selects(b.get("spec", "selector", "matchLabels"), o.podLabels()) {
								out = append(out, found(least.at(), "%s wants %d of the %d pods of %s", b.title(), n, in.leastReplicas(o), o.title()))
							}
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN312", Title: "a PodDisruptionBudget that protects nothing", Severity: High, Reads: reads,
			Why:  "Its selector matches no pod of the workloads here, so drains go on as if it did not exist.",
			Cost: costs(perDrain, takesRestart, 0.5),
			Fix:  "Take the selector from the pod template's labels.",
			check: func(in *Inventory) []hit {
				var out []hit
				workloads := in.ofKind("Deployment", "StatefulSet")
				for _, b := range in.ofKind("PodDisruptionBudget") {
					labels := b.get("spec", "selector", "matchLabels")
					matched := !labels.ok() // expressions are not judged
					for _, o := range workloads {
						matched = matched || o.namespace == b.namespace && selects(labels, o.podLabels())
					}
					if !matched && len(workloads) > 0 {
						out = append(out, found(labels.at(), "%s selects none of the %d workloads", b.title(), len(workloads)))
					}
				}
				return out
			},
		},
		{
			ID: "FN313", Title: "pods are killed before their streams end", Severity: High, Reads: reads,
			Why:  "A pod gets 30 s by default, from SIGTERM to SIGKILL, and answers of a language model take longer. A worker that is killed loses its tasks: Celery acknowledged them when it took them.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Set `terminationGracePeriodSeconds` above the longest answer plus the preStop pause, for example 630.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				r := in.roleOf(o)
				if r != roleAPI && r != roleWorker && r != roleEntry {
					return nil
				}
				g := o.podSpec().get("terminationGracePeriodSeconds")
				seconds := g.intOr(30)
				if seconds >= 60 {
					return nil
				}
				if g.ok() {
					h := found(g.at(), "%s (%s) has %d s", o.title(), r, seconds)
					h.edits = g.replace("630")
					return []hit{h}
				}
				h := found(o.podSpec().atOr(o.node), "%s (%s) has the default of 30 s", o.title(), r)
				h.edits = o.podSpec().insert("terminationGracePeriodSeconds: 630")
				return []hit{h}
			}),
		},
		{
			ID: "FN314", Title: "no pause before a pod stops", Severity: Medium, Reads: reads,
			Why:  "A pod is told to stop at the same time as the proxies are told to forget it. For a second or more they still send it requests, which are refused.",
			Cost: costs(perRelease, takesCut, 0.3),
			Fix:  "Add `lifecycle.preStop.sleep.seconds: 20`.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() || !u.role.serves() || u.node.get("lifecycle", "preStop").ok() {
					return nil
				}
				return []hit{found(u.at, "%s, container %s has no preStop", u.title(), u.name)}
			}),
		},
		{
			ID: "FN315", Title: "the grace period ends before the work may", Severity: High, Reads: reads,
			Why:  "Timeouts in the wrong order: preStop and gunicorn's --graceful-timeout together are longer than what the pod gets, so the end is SIGKILL.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Make `terminationGracePeriodSeconds` larger than preStop + graceful timeout.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() {
					return nil
				}
				grace := u.workload.get("terminationGracePeriodSeconds")
				pause := u.preStop()
				drain := 0
				if m := gracefulTimeout.FindStringSubmatch(u.env["GUNICORN_CMD_ARGS"].value + " " + strings.Join(u.args, " ")); m != nil {
					drain, _ = strconv.Atoi(m[1]) // digits; 0 for a number too large
				}
				if need := pause + drain; need > 0 && grace.intOr(30) <= need {
					h := found(grace.atOr(u.workload), "%s: %d s for a preStop of %d s and a drain of %d s", u.title(), grace.intOr(30), pause, drain)
					h.edits = grace.replace(strconv.Itoa(need + 10))
					return []hit{h}
				}
				return nil
			}),
		},
		{
			ID: "FN316", Title: "an update stops every replica", Severity: High, Reads: reads,
			Why:  "`Recreate`, or a rolling update with maxUnavailable of all, ends the old pods before new ones answer.",
			Cost: costs(perRelease, takesRestart, 1),
			Fix:  "Use RollingUpdate with `maxUnavailable: 0` and `maxSurge: 1`.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				if r := in.roleOf(o); !r.serves() && r != roleWorker {
					return nil
				}
				s := o.get("spec", "strategy")
				u := s.get("rollingUpdate", "maxUnavailable")
				n, isNumber := u.int()
				switch {
				case s.get("type").text() == "Recreate":
					h := found(s.get("type").at(), "%s uses Recreate", o.title())
					h.edits = s.get("type").replace("RollingUpdate")
					return []hit{h}
				case u.text() == "100%", isNumber && n >= in.leastReplicas(o) && n > 0:
					h := found(u.at(), "%s may stop %s of its %d pods", o.title(), u.text(), in.leastReplicas(o))
					h.edits = u.replace("1")
					if in.leastReplicas(o) <= 1 {
						h.edits = u.replace("0")
					}
					return []hit{h}
				}
				return nil
			}),
		},
	}
}

var gracefulTimeout = regexp.MustCompile(`--graceful-timeout[= ](\d+)`)

var sleepSeconds = regexp.MustCompile(`sleep (\d+)`)

// preStop is how long a container waits before it is told to stop, in seconds.
func (u *unit) preStop() int {
	p := u.node.get("lifecycle", "preStop")
	if n, ok := p.get("sleep", "seconds").int(); ok {
		return n
	}
	if m := sleepSeconds.FindStringSubmatch(strings.Join(p.get("exec", "command").texts(), " ")); m != nil {
		var n int
		if _, err := fmt.Sscan(m[1], &n); err == nil {
			return n
		}
	}
	return 0
}
