package audit

import "fournines/internal/strictyaml"

// scalableKinds are what an autoscaler may point at.
var scalableKinds = []string{"Deployment", "StatefulSet", "ReplicaSet"}

// targetOf is the workload that an autoscaler scales, nil when it is not here.
func (in *Inventory) targetOf(a *object) *object {
	ref := a.get("spec", "scaleTargetRef")
	for _, o := range in.ofKind(scalableKinds...) {
		if o.name == ref.get("name").text() && o.namespace == a.namespace {
			return o
		}
	}
	return nil
}

func scalingRules() []Rule {
	reads := []Kind{KindKubernetes}
	forScalers := func(kind string, check func(in *Inventory, a *object) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, a := range in.ofKind(kind) {
				out = append(out, check(in, a)...)
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN330", Title: "an autoscaler whose target does not exist", Severity: Critical, Reads: reads,
			Why:  "The HPA is accepted and scales nothing; at the evening peak the replicas stay as they are.",
			Cost: costs(perPeak, takesPeak, 0.5),
			Fix:  "Correct `scaleTargetRef`: kind, apiVersion and name of the workload.",
			check: forScalers("HorizontalPodAutoscaler", func(in *Inventory, a *object) []hit {
				ref := a.get("spec", "scaleTargetRef")
				kind, known := ref.get("kind"), contains(scalableKinds, ref.get("kind").text())
				switch {
				case !kind.ok():
					return []hit{found(ref.atOr(a.node), "%s: scaleTargetRef has no kind", a.title())}
				case !known && strictyaml.Nearest(kind.text(), scalableKinds) != "":
					h := found(kind.at(), "%s: kind %q; %s", a.title(), kind.text(), strictyaml.Suggest(kind.text(), scalableKinds))
					h.edits = kind.replace(strictyaml.Nearest(kind.text(), scalableKinds))
					return []hit{h}
				case known && in.targetOf(a) == nil && len(in.ofKind(scalableKinds...)) > 0:
					return []hit{found(ref.get("name").at(), "%s: there is no %s %s", a.title(), kind.text(), ref.get("name").text())}
				}
				return nil
			}),
		},
		{
			ID: "FN331", Title: "an autoscaler over CPU without a CPU request", Severity: Critical, Reads: reads,
			Why:  "Utilisation is a percentage of the request. Without one the HPA says `failed to get cpu utilization` and never scales.",
			Cost: costs(perPeak, takesPeak, 0.5),
			Fix:  "Set `resources.requests.cpu` on every container of the pod.",
			check: forScalers("HorizontalPodAutoscaler", func(in *Inventory, a *object) []hit {
				target := in.targetOf(a)
				if target == nil {
					return nil
				}
				var out []hit
				for _, m := range a.get("spec", "metrics").items() {
					name := m.get("resource", "name").text()
					if m.get("type").text() != "Resource" || m.get("resource", "target", "type").text() != "Utilization" {
						continue
					}
					for _, c := range target.podSpec().get("containers").items() {
						if !c.get("resources", "requests", name).ok() && !c.get("resources", "limits", name).ok() {
							out = append(out, found(m.get("resource", "name").at(), "%s: container %s of %s requests no %s", a.title(), c.get("name").text(), target.title(), name))
						}
					}
				}
				return out
			}),
		},
		{
			ID: "FN332", Title: "an autoscaler that may go down to one", Severity: High, Reads: reads,
			Why:  "At night one pod is left, and its restart is an outage.",
			Cost: costs(perDrain, takesRestart, 1),
			Fix:  "Set `minReplicas` to 3: one for each zone.",
			check: forScalers("HorizontalPodAutoscaler", func(in *Inventory, a *object) []hit {
				n := a.get("spec", "minReplicas")
				if t := in.targetOf(a); n.intOr(1) >= 2 || t != nil && !in.roleOf(t).serves() {
					return nil
				}
				h := found(n.atOr(a.get("spec")), "%s has minReplicas %d", a.title(), n.intOr(1))
				h.edits = n.replace("3")
				return []hit{h}
			}),
		},
		{
			ID: "FN333", Title: "an autoscaler that cannot scale", Severity: High, Reads: reads,
			Why:  "The largest number is the smallest one: a peak meets a fixed size.",
			Cost: costs(perPeak, takesPeak, 0.3),
			Fix:  "Raise `maxReplicas`; the article scales from 3 to 10.",
			check: forScalers("HorizontalPodAutoscaler", func(_ *Inventory, a *object) []hit {
				least, most := a.get("spec", "minReplicas").intOr(1), a.get("spec", "maxReplicas")
				if n, ok := most.int(); ok && n <= least {
					return []hit{found(most.at(), "%s: %d to %d", a.title(), least, n)}
				}
				return nil
			}),
		},
		{
			ID: "FN334", Title: "each release resets what the autoscaler set", Severity: High, Reads: reads,
			Why:  "`spec.replicas` in the manifest of a scaled workload sets the count back at every apply: at a peak, from ten to three.",
			Cost: costs(perRelease, takesPeak, 0.1),
			Fix:  "Remove `spec.replicas`.",
			check: forScalers("HorizontalPodAutoscaler", func(in *Inventory, a *object) []hit {
				t := in.targetOf(a)
				if t == nil || !t.get("spec", "replicas").ok() {
					return nil
				}
				n := t.get("spec", "replicas")
				h := found(n.at(), "%s sets replicas and %s scales it", t.title(), a.title())
				h.edits = n.remove()
				return []hit{h}
			}),
		},
		{
			ID: "FN335", Title: "scaling down at once", Severity: Medium, Reads: reads,
			Why:  "A window of 0 follows each dip of the load, and every pod that goes cuts its streams.",
			Cost: costs(perPeak, takesCut, 0.5),
			Fix:  "Set `behavior.scaleDown.stabilizationWindowSeconds` to 300 or more.",
			check: forScalers("HorizontalPodAutoscaler", func(_ *Inventory, a *object) []hit {
				w := a.get("spec", "behavior", "scaleDown", "stabilizationWindowSeconds")
				if n, ok := w.int(); ok && n < 60 {
					h := found(w.at(), "%s waits %d s before it scales down", a.title(), n)
					h.edits = w.replace("300")
					return []hit{h}
				}
				return nil
			}),
		},
		{
			ID: "FN336", Title: "a scaler by queue length without a fallback", Severity: Medium, Reads: reads,
			Why:  "While Redis fails over, KEDA reads no length and shrinks the workers to the minimum just when work waits.",
			Cost: costs(perFailover, takesPeak, 0.1),
			Fix:  "Set `fallback: {failureThreshold: 3, replicas: …, behavior: currentReplicasIfHigher}`.",
			check: forScalers("ScaledObject", func(_ *Inventory, a *object) []hit {
				if a.get("spec", "fallback").ok() {
					return nil
				}
				return []hit{found(a.place(), "%s has none", a.title())}
			}),
		},
		{
			ID: "FN337", Title: "workers may be scaled to none", Severity: Medium, Reads: reads,
			Why:  "The first task waits for a pod to be scheduled, pulled and started; from Dify 1.13 on that task may be a chat.",
			Cost: costs(perPeak, takesRestart, 0.3),
			Fix:  "Set `minReplicaCount` to 2 or more.",
			check: forScalers("ScaledObject", func(_ *Inventory, a *object) []hit {
				n := a.get("spec", "minReplicaCount")
				if n.intOr(0) >= 2 {
					return nil
				}
				h := found(n.atOr(a.get("metadata", "name")), "%s has minReplicaCount %d", a.title(), n.intOr(0))
				h.edits = n.replace("2")
				return []hit{h}
			}),
		},
	}
}
