package audit

import (
	"strings"
)

// forWorkloads makes a check of one that looks at Deployments and StatefulSets.
func forWorkloads(check func(in *Inventory, o *object) []hit) func(in *Inventory) []hit {
	return func(in *Inventory) []hit {
		var out []hit
		for _, o := range in.ofKind("Deployment", "StatefulSet") {
			out = append(out, check(in, o)...)
		}
		return out
	}
}

// roleOf is the role of a workload: that of its first container that has one.
func (in *Inventory) roleOf(o *object) role {
	for _, u := range in.units {
		if u.object == o && u.role != "" {
			return u.role
		}
	}
	return ""
}

// removedAPIs are API versions that current clusters no longer serve.
var removedAPIs = map[string]string{
	"extensions/v1beta1 Deployment": "apps/v1", "apps/v1beta1 Deployment": "apps/v1", "apps/v1beta2 Deployment": "apps/v1",
	"extensions/v1beta1 Ingress": "networking.k8s.io/v1", "networking.k8s.io/v1beta1 Ingress": "networking.k8s.io/v1",
	"autoscaling/v2beta1 HorizontalPodAutoscaler": "autoscaling/v2", "autoscaling/v2beta2 HorizontalPodAutoscaler": "autoscaling/v2",
	"policy/v1beta1 PodDisruptionBudget": "policy/v1", "batch/v1beta1 CronJob": "batch/v1",
}

func kubernetesRules() []Rule {
	reads := []Kind{KindKubernetes}
	return []Rule{
		{
			ID: "FN301", Title: "a manifest that no cluster takes", Severity: Critical, Reads: reads,
			Why:  "The kind is missing or misspelt, so the object does not exist, and nobody notices until it is needed.",
			Cost: costs(perRelease, takesPerson, 0.5),
			Fix:  "Correct `kind` and `apiVersion`; `kubectl apply --dry-run=server` finds such slips.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.objects {
					var h hit
					switch {
					case o.guessed && o.written != "":
						h = found(o.kindAt, "%q where kind: %s is meant", o.written, o.kind)
						h.edits = o.fix
					case o.guessed:
						h = found(o.kindAt, "no kind; it looks like a %s", orNone(o.kind))
					case o.apiVersion == "":
						h = found(o.kindAt, "%s has no apiVersion", o.title())
					default:
						continue
					}
					out = append(out, h)
				}
				return out
			},
		},
		{
			ID: "FN302", Title: "an API version that is gone", Severity: High, Reads: reads,
			Why:  "The next upgrade of the cluster, or the next cluster, refuses it: the restore after a disaster fails at the first file.",
			Cost: costs(perMistake, takesRestore, 0.5),
			Fix:  "Use the version that is served.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.objects {
					if now := removedAPIs[o.apiVersion+" "+o.kind]; now != "" {
						out = append(out, found(o.get("apiVersion").at(), "%s uses %s, which clusters no longer serve; %s is", o.title(), o.apiVersion, now))
					}
				}
				return out
			},
		},
		{
			ID: "FN303", Title: "a single replica", Severity: High, Reads: reads,
			Why:  "While its pod is moved, restarted or updated, nobody is served.",
			Cost: costs(perDrain, takesRestart, 1),
			Fix:  "Run at least two, three for what needs a majority.",
			check: forWorkloads(func(in *Inventory, o *object) []hit {
				r := in.roleOf(o)
				if in.leastReplicas(o) >= 2 || !r.serves() && r != roleWorker && r != rolePlugin || in.autoscaler(o) != nil {
					return nil
				}
				if r == rolePlugin {
					return nil // its makers do not support more than one
				}
				return []hit{found(o.get("spec", "replicas").atOr(o.get("metadata", "name"), o.node), "%s (%s) has %d replica", o.title(), r, o.replicas())}
			}),
		},
		{
			ID: "FN304", Title: "no CPU request, or no memory request", Severity: High, Reads: reads,
			Why:  "The scheduler packs such pods anywhere and the node kills them first. An HPA over CPU has nothing to compute from.",
			Cost: costs(perPeak, takesRestart, 0.3),
			Fix:  "Set `resources.requests.cpu` and `memory`; the article's instance has 1 CPU and 2Gi.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() || u.role == "" {
					return nil
				}
				var missing []string
				for _, r := range []string{"cpu", "memory"} {
					if !u.node.get("resources", "requests", r).ok() && !u.node.get("resources", "limits", r).ok() {
						missing = append(missing, r)
					}
				}
				if len(missing) == 0 {
					return nil
				}
				return []hit{found(u.node.get("resources").atOr(u.node.get("name"), u.node), "%s, container %s requests no %s", u.title(), u.name, strings.Join(missing, " and no "))}
			}),
		},
		{
			ID: "FN305", Title: "a database without anything that fails it over", Severity: Critical, Reads: reads,
			Why:  "A StatefulSet starts servers; it does not make a standby of the second one or promote it. Replicas of a plain postgres image are separate, empty databases.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Use CloudNativePG (`fournines` renders it), Patroni, or a managed database.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() || u.role != rolePostgres || strings.Contains(u.imageName(), "spilo") || strings.Contains(u.imageName(), "patroni") {
					return nil
				}
				for name := range u.env {
					if strings.HasPrefix(name, "PATRONI_") || strings.HasPrefix(name, "REPMGR_") {
						return nil
					}
				}
				return []hit{found(u.at, "%s runs %s", u.title(), u.image.text())}
			}),
		},
		{
			ID: "FN306", Title: "passwords in a ConfigMap or in the manifest", Severity: High, Reads: reads,
			Why:  "ConfigMaps and pod specs are readable to many accounts, stand in the repository and appear in logs of changes.",
			Cost: costs(perMistake, takesRestore, 0.5),
			Fix:  "Move it into a Secret and use `secretKeyRef`, or an operator for external secrets.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.ofKind("ConfigMap") {
					for _, p := range o.get("data").pairs() {
						if s := secretOf(p.name(), p.text()); s != "" && !placeholder(s) {
							out = append(out, found(p.at(), "%s: %s", o.title(), p.name()))
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN307", Title: "a Secret with its values beside the other files", Severity: Medium, Reads: reads,
			Why:  "base64 is no encryption: whoever reads the repository has them.",
			Cost: costs(perMistake, takesRestore, 0.3),
			Fix:  "Generate it in the cluster, or keep it encrypted (SOPS, Sealed Secrets, External Secrets).",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.ofKind("Secret") {
					for _, part := range []string{"data", "stringData"} {
						if d := o.get(part); len(d.pairs()) > 0 && o.get("type").text() != "kubernetes.io/service-account-token" {
							out = append(out, found(d.at(), "%s: %d in the file", o.title(), len(d.pairs())))
						}
					}
				}
				return out
			},
		},
	}
}
