package audit

import (
	"regexp"
	"strings"
)

// probe is a health check, as words of a command or an HTTP path.
type probe struct {
	node    node
	command string
	path    string
}

// healthcheck of a compose service; false when there is none.
func (u *unit) healthcheck() (probe, bool) {
	h := u.node.get("healthcheck")
	if !h.ok() || isTrue(h.get("disable").text()) {
		return probe{}, false
	}
	test := h.get("test")
	words := test.texts()
	if len(words) > 0 && (words[0] == "CMD" || words[0] == "CMD-SHELL") {
		words = words[1:]
	}
	command := strings.Join(words, " ")
	if command == "NONE" {
		return probe{}, false
	}
	return probe{node: test, command: command, path: httpPath.FindString(command)}, true
}

var httpPath = regexp.MustCompile(`/(health|healthz|livez|ready|readyz)\b[^\s'"]*`)

// probes of a container, by name: readinessProbe and so on.
func (u *unit) probe(name string) (probe, bool) {
	p := u.node.get(name)
	if !p.ok() {
		return probe{}, false
	}
	if h := p.get("httpGet"); h.ok() {
		return probe{node: h.get("path"), path: h.get("path").text()}, true
	}
	return probe{node: p, command: strings.Join(p.get("exec", "command").texts(), " ")}, true
}

// checks are all probes that decide whether work is sent to a unit.
func (u *unit) checks() []probe {
	var out []probe
	if u.compose != nil {
		if p, ok := u.healthcheck(); ok {
			out = append(out, p)
		}
	}
	if u.object != nil {
		if p, ok := u.probe("readinessProbe"); ok {
			out = append(out, p)
		}
	}
	return out
}

var alwaysTrue = regexp.MustCompile(`\|\|\s*(true|exit 0|:)\s*$|;\s*(true|exit 0)\s*$|^(/bin/)?true$|^exit 0$|^echo\b[^|&;]*$`)

func probeRules() []Rule {
	both := []Kind{KindCompose, KindKubernetes}
	forChecks := func(check func(u *unit, p probe) []hit) func(in *Inventory) []hit {
		return forUnits(func(u *unit) []hit {
			var out []hit
			for _, p := range u.checks() {
				out = append(out, check(u, p)...)
			}
			return out
		})
	}
	return []Rule{
		{
			ID: "FN240", Title: "no health check", Severity: Medium, Reads: []Kind{KindCompose},
			Why:  "A process that hangs keeps its place: nothing restarts it and nothing waits for it.",
			Cost: costs(perCrash, takesPerson, 0.1),
			Fix:  "Give the service a `healthcheck` that does what a user does.",
			check: forServices(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker && !u.role.keeps() {
					return nil
				}
				if _, ok := u.healthcheck(); ok {
					return nil
				}
				return []hit{found(u.at, "%s (%s) has no health check", u.title(), u.role)}
			}),
		},
		{
			ID: "FN241", Title: "a probe that cannot fail", Severity: Critical, Reads: both,
			Why:  "It says healthy whatever happens, so traffic goes to the dead.",
			Cost: costs(perCrash, takesUnseen, 0.5),
			Fix:  "Let the command end with the status of the check itself.",
			check: forChecks(func(u *unit, p probe) []hit {
				if p.command == "" || !alwaysTrue.MatchString(p.command) {
					return nil
				}
				return []hit{found(p.node.at(), "%s: %q always succeeds", u.title(), p.command)}
			}),
		},
		{
			ID: "FN242", Title: "`redis-cli ping` succeeds on errors", Severity: High, Reads: both,
			Why:  "redis-cli ends with 0 when Redis answers with an error: NOAUTH, LOADING, MASTERDOWN. The check has never failed and never will while the port is open.",
			Cost: costs(perCrash, takesUnseen, 0.2),
			Fix:  "Compare the answer: `redis-cli ping | grep -q PONG`, with the password in REDISCLI_AUTH.",
			check: forChecks(func(u *unit, p probe) []hit {
				if !strings.Contains(p.command, "redis-cli") || !strings.Contains(strings.ToLower(p.command), "ping") || strings.Contains(strings.ToUpper(p.command), "PONG") || strings.Contains(p.command, " -e") {
					return nil
				}
				return []hit{found(p.node.at(), "%s: %q", u.title(), p.command)}
			}),
		},
		{
			ID: "FN243", Title: "readiness asks a page that needs nothing", Severity: Medium, Reads: both,
			Why:  "Dify's /health touches neither the database nor Redis. An instance that has lost either stays in service and fails every request.",
			Cost: costs(perCrash, takesPerson, 0.1),
			Fix:  "Keep /health for liveness; ask `/console/api/system-features` (reads the database) for readiness, or let the gateway's passive checks take the instance out.",
			check: forChecks(func(u *unit, p probe) []hit {
				if u.role != roleAPI || p.path != "/health" {
					return nil
				}
				return []hit{found(p.node.at(), "%s is ready when /health answers", u.title())}
			}),
		},
		{
			ID: "FN244", Title: "`pg_isready` for a database that must be writable", Severity: Low, Reads: both,
			Why:  "It succeeds on a standby, on a server that is read-only or out of connections.",
			Cost: costs(perFailover, takesCut, 0.5),
			Fix:  "Ask it to do something: `psql -qAtc 'select 1'`, and `pg_is_in_recovery()` where the primary is wanted.",
			check: forChecks(func(u *unit, p probe) []hit {
				if u.role != rolePostgres || !strings.Contains(p.command, "pg_isready") {
					return nil
				}
				return []hit{found(p.node.at(), "%s: %q", u.title(), p.command)}
			}),
		},
		{
			ID: "FN245", Title: "no readiness probe", Severity: High, Reads: []Kind{KindKubernetes},
			Why:  "A pod gets requests as soon as its process exists. Each rollout and each scale-up sends users to instances that are still loading.",
			Cost: costs(perRelease, takesRestart, 0.33),
			Fix:  "Add a readinessProbe.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() || !u.role.serves() && !u.role.keeps() {
					return nil
				}
				if _, ok := u.probe("readinessProbe"); ok {
					return nil
				}
				return []hit{found(u.at, "%s, container %s (%s) has no readinessProbe", u.title(), u.name, u.role)}
			}),
		},
		{
			ID: "FN246", Title: "no liveness probe", Severity: Medium, Reads: []Kind{KindKubernetes},
			Why:  "A process that hangs is never restarted.",
			Cost: costs(perCrash, takesPerson, 0.1),
			Fix:  "Add a livenessProbe that asks the process alone, with a startupProbe while it loads.",
			check: forUnits(func(u *unit) []hit {
				if u.object == nil || !u.object.longRunning() || !u.role.serves() && u.role != roleWorker {
					return nil
				}
				if _, ok := u.probe("livenessProbe"); ok {
					return nil
				}
				return []hit{found(u.at, "%s, container %s (%s) has no livenessProbe", u.title(), u.name, u.role)}
			}),
		},
		{
			ID: "FN247", Title: "liveness depends on something else", Severity: High, Reads: []Kind{KindKubernetes},
			Why:  "When the database is away, a liveness probe that asks for it restarts every instance, and what was a pause becomes a cold start of all.",
			Cost: costs(perFailover, takesRestart, 0.5),
			Fix:  "Let liveness ask /health and readiness the deep page.",
			check: forUnits(func(u *unit) []hit {
				p, ok := u.probe("livenessProbe")
				if !ok || u.role != roleAPI {
					return nil
				}
				if strings.HasPrefix(p.path, "/console") || strings.HasPrefix(p.path, "/v1") || strings.Contains(p.command, "psql") || strings.Contains(p.command, "redis-cli") {
					return []hit{found(p.node.at(), "%s lives only while %s%s works", u.title(), p.path, p.command)}
				}
				return nil
			}),
		},
		{
			ID: "FN248", Title: "liveness kills a busy process", Severity: Medium, Reads: []Kind{KindKubernetes},
			Why:  "Under load a Python process answers late. A probe that gives up after a few seconds restarts instance after instance, and the rest get their load.",
			Cost: costs(perPeak, takesRestart, 0.2),
			Fix:  "Allow at least 30 s: timeoutSeconds 5, periodSeconds 10, failureThreshold 3.",
			check: forUnits(func(u *unit) []hit {
				p := u.node.get("livenessProbe")
				if u.object == nil || !p.ok() || u.role != roleAPI && u.role != roleWorker {
					return nil
				}
				period, failures, timeout := p.get("periodSeconds").intOr(10), p.get("failureThreshold").intOr(3), p.get("timeoutSeconds").intOr(1)
				if period*failures >= 30 && timeout > 1 {
					return nil
				}
				return []hit{found(p.at(), "%s is killed after %d checks of %d s, every %d s", u.title(), failures, timeout, period)}
			}),
		},
	}
}
