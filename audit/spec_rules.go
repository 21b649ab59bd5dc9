package audit

import (
	"fmt"
	"net/url"
	"strings"

	"fournines/spec"
)

// forSpecs makes a check of one that looks at one spec.
func forSpecs(check func(s *specFile) []hit) func(in *Inventory) []hit {
	return func(in *Inventory) []hit {
		var out []hit
		for _, s := range in.specs {
			out = append(out, check(s)...)
		}
		return out
	}
}

// value returns the place of a field and the edit that gives it another value:
// where the file has it, in place.
func (s *specFile) fix(path, value string, h hit) hit {
	n := s.root.get(strings.Split(path, ".")...)
	h.edits = n.replace(value)
	return h
}

func specRules() []Rule {
	reads := []Kind{KindSpec}
	return []Rule{
		{
			ID: "FN101", Title: "the spec is not valid", Severity: High, Reads: reads,
			Why:  "No command accepts it, so what it describes cannot be started again after a fault.",
			Cost: costs(perRelease, takesPerson, 0.05),
			Fix:  "Correct the field; `fournines config validate` says the same.",
			check: forSpecs(func(s *specFile) []hit {
				var out []hit
				for _, e := range s.wrong {
					if e.Path == "zones" {
						continue // FN102
					}
					text := e.Message
					if e.Path != "" {
						text = e.Path + ": " + text
					}
					if e.Hint != "" {
						text += "; " + e.Hint
					}
					out = append(out, found(Place{File: s.name, Line: e.Line, Column: e.Column}, "%s", text))
				}
				return out
			}),
		},
		{
			ID: "FN102", Title: "quorum over fewer than three zones", Severity: Critical, Reads: reads,
			Why:  "etcd and the masters of a Redis Cluster decide by majority. Of two zones one holds it, and when that zone goes the other, healthy one stops as well.",
			Cost: costs(perZone, takesZone, 1),
			Fix:  "Add a third zone with `role: quorum`; it runs only the members that a majority needs.",
			check: forSpecs(func(s *specFile) []hit {
				if n := len(s.spec.Zones); n != 3 {
					return []hit{found(s.at("zones"), "%d zones: losing the one with the majority stops the others too", n)}
				}
				return nil
			}),
		},
		{
			ID: "FN103", Title: "Dify runs in one zone only", Severity: Critical, Reads: reads,
			Why:  "With one full zone all api instances and proxies are lost together with it.",
			Cost: costs(perZone, takesZone, 1),
			Fix:  "Make at least two zones `role: full`.",
			check: forSpecs(func(s *specFile) []hit {
				if n := len(s.spec.FullZones()); n < 2 && len(s.spec.Zones) >= 2 {
					return []hit{found(s.at("zones"), "%d full zone among %d", n, len(s.spec.Zones))}
				}
				return nil
			}),
		},
		{
			ID: "FN104", Title: "one api instance in each zone", Severity: Medium, Reads: reads,
			Why:  "When an instance restarts, its zone has none, and every request crosses zones until it is back; when a zone is lost, one instance carries everything.",
			Cost: costs(perCrash, takesRestart, 0.5),
			Fix:  "Set `dify.apiReplicasPerZone` to 2 or more.",
			check: forSpecs(func(s *specFile) []hit {
				d := s.spec.Dify
				if d.Source == spec.SourceExternal || d.APIReplicasPerZone >= 2 {
					return nil
				}
				at := "dify.apiReplicasPerZone"
				return []hit{s.fix(at, "2", found(s.at(at), "%s is %d", at, d.APIReplicasPerZone))}
			}),
		},
		{
			ID: "FN105", Title: "external instances stand in one zone or on one host", Severity: High, Reads: reads,
			Why:  "The gateways have nowhere to go when that zone or host is lost.",
			Cost: costs(perHost, takesPerson, 1),
			Fix:  "List instances of at least two zones, on hosts of their own.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Dify.Source != spec.SourceExternal || len(s.spec.Dify.External) == 0 {
					return nil
				}
				zones, hosts := map[string]bool{}, map[string]bool{}
				for _, e := range s.spec.Dify.External {
					zones[e.Zone] = true
					if u, err := url.Parse(e.URL); err == nil {
						hosts[u.Hostname()] = true
					}
				}
				if len(zones) > 1 && len(hosts) > 1 {
					return nil
				}
				return []hit{found(s.at("dify.external"), "%d instances on %d host(s) in %d zone(s)", len(s.spec.Dify.External), len(hosts), len(zones))}
			}),
		},
		{
			ID: "FN106", Title: "one worker carries the chats", Severity: High, Reads: reads,
			Why:  "From Dify 1.13 on, streaming workflows and chatflows run in the Celery workers. Celery acknowledges a task when it takes it, so the runs of a worker that dies stay `running` for ever.",
			Cost: costs(perCrash, takesRestart, 1),
			Fix:  "Set `dify.workers` to at least 2.",
			check: forSpecs(func(s *specFile) []hit {
				d := s.spec.Dify
				if d.Source == spec.SourceExternal || d.Workers >= 2 || !atLeast(d.Version, 1, 13) {
					return nil
				}
				return []hit{s.fix("dify.workers", "2", found(s.at("dify.workers"), "dify.workers is %d for Dify %s", d.Workers, d.Version))}
			}),
		},
		{
			ID: "FN107", Title: "commits do not wait for a standby", Severity: High, Reads: reads,
			Why:  "A failover loses what the old primary had acknowledged and not yet sent: conversations, uploads and keys that users saw accepted.",
			Cost: costs(perFailover, takesPerson, 0.1),
			Fix:  "Set `postgres.synchronous: true`.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Postgres.Synchronous {
					return nil
				}
				return []hit{s.fix("postgres.synchronous", "true", found(s.at("postgres.synchronous"), "postgres.synchronous is false"))}
			}),
		},
		{
			ID: "FN108", Title: "Redis keeps no log on disk", Severity: High, Reads: reads,
			Why:  "Redis holds the queue of Celery and the gateway's jobs. Without a log a restart of a master and its replica loses every task that waits.",
			Cost: costs(perHost, takesUnseen, 0.5),
			Fix:  "Set `redis.appendOnly: everysec`.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Redis.AppendOnly != spec.AppendOff {
					return nil
				}
				return []hit{s.fix("redis.appendOnly", "everysec", found(s.at("redis.appendOnly"), "redis.appendOnly is off"))}
			}),
		},
		{
			ID: "FN109", Title: "reads may miss what was just written", Severity: Medium, Reads: reads,
			Why:  "Dify writes on one connection and reads on another: a document that a worker does not find, a conversation that does not exist yet. Only `fence` sees what was acknowledged to anybody.",
			Cost: costs(perPeak, takesCut, 1),
			Fix:  "Set `postgres.proxy.splitting` to `fence`, or to `off`.",
			check: forSpecs(func(s *specFile) []hit {
				at := "postgres.proxy.splitting"
				switch mode := s.spec.Postgres.Proxy.Splitting; mode {
				case "session", "bounded":
					return []hit{s.fix(at, "fence", found(s.at(at), "%s is %s", at, mode))}
				}
				return nil
			}),
		},
		{
			ID: "FN110", Title: "a shared limit that may be meant sixty times higher", Severity: Medium, Reads: reads,
			Why:  "\"100 per minute\" is 1.67 requests a second. Written where 100 a second was meant, it refuses 98 of 100 requests.",
			Cost: costs(perPeak, takesPeak, 0.98),
			Fix:  "Write the window that is meant: `100 per second`; or suppress this finding with the reason.",
			check: forSpecs(func(s *specFile) []hit {
				var out []hit
				for i, l := range s.spec.Gateway.RateLimits {
					var n float64
					var window string
					if _, err := fmt.Sscanf(strings.Replace(l.Rate, "/", " per ", 1), "%f per %s", &n, &window); err != nil {
						continue
					}
					if window == "minute" && n >= 10 && n < 600 && (l.By == "all" || l.By == "route") && l.Unit == "requests" {
						at := fmt.Sprintf("gateway.rateLimits[%d].rate", i)
						out = append(out, found(s.at(at), "%q for everybody together is %.2f per second", l.Rate, n/60))
					}
				}
				return out
			}),
		},
		{
			ID: "FN111", Title: "alerts reach nobody", Severity: Medium, Reads: reads,
			Why:  "Alertmanager shows alerts on a page that nobody watches at night. At 99.99% a month has 4.3 minutes.",
			Cost: costs(perBlind, takesUnseen, 1),
			Fix:  "Set `observability.alertWebhook` to what pages a person.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Observability.AlertWebhook != "" {
					return nil
				}
				return []hit{found(s.at("observability.alertWebhook"), "observability.alertWebhook is not set")}
			}),
		},
		{
			ID: "FN112", Title: "metrics are kept shorter than the objective's window", Severity: Low, Reads: reads,
			Why:  "Whether the objective was met over its window cannot be answered from data that is gone.",
			Cost: costs(perBlind, takesPerson, 0.1),
			Fix:  "Set `observability.retention` to `slo.window` or more.",
			check: forSpecs(func(s *specFile) []hit {
				keep, window := s.spec.Observability.Retention, s.spec.SLO.Window
				if keep >= window {
					return nil
				}
				at := "observability.retention"
				return []hit{s.fix(at, window.String(), found(s.at(at), "%s is %v, slo.window is %v", at, keep, window))}
			}),
		},
		{
			ID: "FN113", Title: "backups stand beside the data", Severity: Medium, Reads: reads,
			Why:  "The disk that takes the database with it takes the backups too.",
			Cost: costs(perMistake, takesRecreate, 0.1),
			Fix:  "Set `backup.directory` to another disk, better another machine or zone.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Backup.Directory != "" {
					return nil
				}
				return []hit{found(s.at("backup.directory"), "backup.directory is not set, so backups go into the data directory")}
			}),
		},
		{
			ID: "FN114", Title: "backups are kept for less than a week", Severity: Medium, Reads: reads,
			Why:  "A fault in the data is often seen days later, when the last good backup is gone.",
			Cost: costs(perMistake, takesRecreate, 0.1),
			Fix:  "Set `backup.keepDays` to 7 or more.",
			check: forSpecs(func(s *specFile) []hit {
				if s.spec.Backup.KeepDays >= 7 {
					return nil
				}
				return []hit{s.fix("backup.keepDays", "7", found(s.at("backup.keepDays"), "backup.keepDays is %d", s.spec.Backup.KeepDays))}
			}),
		},
		{
			ID: "FN115", Title: "open to the network without TLS", Severity: High, Reads: reads,
			Why:  "API keys and passwords of the databases pass in clear text; whoever reads them can delete what they open.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Keep `local.address` on loopback and put a TLS terminator in front.",
			check: forSpecs(func(s *specFile) []hit {
				a := s.spec.Local.Address
				if strings.HasPrefix(a, "127.") || a == "::1" || s.spec.Security.TLS != spec.TLSOff {
					return nil
				}
				return []hit{found(s.at("local.address"), "local.address is %s and security.tls is off", a)}
			}),
		},
	}
}

// atLeast compares a version with major and minor.
func atLeast(version string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(version, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
