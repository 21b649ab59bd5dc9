package audit

import (
	"time"

	"fournines/spec"
)

const year = 365 * 24 * time.Hour

// longestHold is the most that a spec allows a proxy to wait.
const longestHold = spec.Duration(5 * time.Minute)

func specTimingRules() []Rule {
	reads := []Kind{KindSpec}
	return []Rule{
		{
			ID: "FN120", Title: "failovers take longer than the objective allows", Severity: High, Reads: reads,
			Why:  "A dead primary is replaced after about postgres.patroni.ttl + loopWait. A dozen failovers a year of that length are more than the error budget.",
			Cost: costs(perFailover, takesRestart, 1),
			Fix:  "Lower `postgres.patroni.ttl`, or the objective.",
			check: forSpecs(func(s *specFile) []hit {
				p := s.spec.Postgres.Patroni
				one := (p.TTL + p.LoopWait).Std()
				all := time.Duration(perFailover.Value) * one
				budget := time.Duration((1 - s.spec.SLO.Objective) * float64(year)).Round(time.Second)
				if all <= budget {
					return nil
				}
				return []hit{found(s.at("postgres.patroni.ttl"), "%g failovers × %v = %v a year, slo.objective %v allows %v",
					perFailover.Value, one, all, s.spec.SLO.Objective, budget)}
			}),
		},
		{
			ID: "FN121", Title: "new work is not held as long as a failover takes", Severity: High, Reads: reads,
			Why:  "Timeouts in the wrong order: pgproxy gives up before Patroni has promoted a standby, so every failover of PostgreSQL becomes errors for users instead of a pause.",
			Cost: costs(perFailover, takesSwitch, 1),
			Fix:  "Set `postgres.proxy.holdTimeout` above ttl + loopWait, with a margin for the promotion.",
			check: forSpecs(func(s *specFile) []hit {
				p := s.spec.Postgres
				need := p.Patroni.TTL + p.Patroni.LoopWait + spec.Duration(5*time.Second)
				at := "postgres.proxy.holdTimeout"
				if p.Proxy.HoldTimeout >= need {
					return nil
				}
				h := found(s.at(at), "%s is %v, a failover takes about %v", at, p.Proxy.HoldTimeout, need)
				if twice := 2 * need; twice <= longestHold {
					h = s.fix(at, twice.String(), h)
				}
				return []hit{h}
			}),
		},
		{
			ID: "FN122", Title: "commands fail before a Redis failover has ended", Severity: High, Reads: reads,
			Why:  "Timeouts in the wrong order: a replica takes over about redis.nodeTimeout + 2 s after its master died; a proxy that waits less turns each failover into errors.",
			Cost: costs(perFailover, takesSwitch, 1),
			Fix:  "Set `redis.proxy.failoverTimeout` above nodeTimeout + 3 s.",
			check: forSpecs(func(s *specFile) []hit {
				need := s.spec.Redis.NodeTimeout + spec.Duration(3*time.Second)
				at := "redis.proxy.failoverTimeout"
				if s.spec.Redis.Proxy.FailoverTimeout >= need {
					return nil
				}
				h := found(s.at(at), "%s is %v, a failover takes about %v", at, s.spec.Redis.Proxy.FailoverTimeout, need)
				if twice := 2 * need; twice <= longestHold {
					h = s.fix(at, twice.String(), h)
				}
				return []hit{h}
			}),
		},
		{
			ID: "FN123", Title: "a dead Redis master is replaced late, or a slow one too early", Severity: Medium, Reads: reads,
			Why:  "Failover takes about nodeTimeout + 2 s, measured: 2.4 s with 1 s, 4.2 s with 2 s, 8.3 s with 5 s. Below 1 s a busy machine is taken for dead.",
			Cost: costs(perFailover, takesSwitch, 0.5),
			Fix:  "Set `redis.nodeTimeout` between 1s and 5s.",
			check: forSpecs(func(s *specFile) []hit {
				d := s.spec.Redis.NodeTimeout.Std()
				if d >= time.Second && d <= 5*time.Second {
					return nil
				}
				return []hit{s.fix("redis.nodeTimeout", "2s", found(s.at("redis.nodeTimeout"), "redis.nodeTimeout is %v", s.spec.Redis.NodeTimeout))}
			}),
		},
		{
			ID: "FN124", Title: "a dead api instance is noticed late", Severity: Medium, Reads: reads,
			Why:  "Until the active check has failed often enough, requests go to an instance that does not answer.",
			Cost: costs(perCrash, takesSwitch, 0.25),
			Fix:  "Keep `gateway.health.interval` × `unhealthyAfter` at 5 s or less.",
			check: forSpecs(func(s *specFile) []hit {
				h := s.spec.Gateway.Health
				if d := h.Interval.Std() * time.Duration(h.UnhealthyAfter); d > 5*time.Second {
					return []hit{found(s.at("gateway.health.interval"), "%v × %d = %v until an instance is out", h.Interval, h.UnhealthyAfter, d)}
				}
				return nil
			}),
		},
		{
			ID: "FN125", Title: "failing instances are not ejected, or all may be", Severity: Medium, Reads: reads,
			Why:  "With a maximum share of 0 an instance that answers health checks and fails requests stays in service; near 1 a fault of the database ejects every instance.",
			Cost: costs(perCrash, takesSwitch, 0.5),
			Fix:  "Set `gateway.ejection.maxShare` between 0.1 and 0.8.",
			check: forSpecs(func(s *specFile) []hit {
				at := "gateway.ejection.maxShare"
				if v := s.spec.Gateway.Ejection.MaxShare; v < 0.1 || v > 0.8 {
					return []hit{s.fix(at, "0.5", found(s.at(at), "%s is %v", at, v))}
				}
				return nil
			}),
		},
		{
			ID: "FN126", Title: "no retry where it is safe", Severity: Medium, Reads: reads,
			Why:  "A request that was refused by a restarting instance could be answered by another, and is not.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Set `gateway.retry.attempts` to 3.",
			check: forSpecs(func(s *specFile) []hit {
				at := "gateway.retry.attempts"
				if s.spec.Gateway.Retry.Attempts > 1 {
					return nil
				}
				return []hit{s.fix(at, "3", found(s.at(at), "%s is %d", at, s.spec.Gateway.Retry.Attempts))}
			}),
		},
		{
			ID: "FN127", Title: "retries can double an overload", Severity: Medium, Reads: reads,
			Why:  "When everything fails, every request is sent again: the overload that made them fail grows by that share.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Set `gateway.retry.budget` to 0.2.",
			check: forSpecs(func(s *specFile) []hit {
				at := "gateway.retry.budget"
				if v := s.spec.Gateway.Retry.Budget; v > 0.5 {
					return []hit{s.fix(at, "0.2", found(s.at(at), "%s is %v", at, v))}
				}
				return nil
			}),
		},
		{
			ID: "FN128", Title: "silent streams are cut by proxies in between", Severity: Medium, Reads: reads,
			Why:  "nginx and most load balancers take a connection for dead after 60 s without a byte; a model that thinks longer loses its answer.",
			Cost: costs(perPeak, takesCut, 1),
			Fix:  "Set `gateway.heartbeat` to 15s.",
			check: forSpecs(func(s *specFile) []hit {
				v := s.spec.Gateway.Heartbeat.Std()
				if v > 0 && v < time.Minute {
					return nil
				}
				return []hit{s.fix("gateway.heartbeat", "15s", found(s.at("gateway.heartbeat"), "gateway.heartbeat is %v", s.spec.Gateway.Heartbeat))}
			}),
		},
		{
			ID: "FN129", Title: "a restart of the gateway cuts streams", Severity: Medium, Reads: reads,
			Why:  "Answers of a language model take longer than the drain, so each release of the gateway cuts those under way.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Set `gateway.drainTimeout` to 30s or more.",
			check: forSpecs(func(s *specFile) []hit {
				at := "gateway.drainTimeout"
				if s.spec.Gateway.DrainTimeout.Std() >= 15*time.Second {
					return nil
				}
				return []hit{s.fix(at, "30s", found(s.at(at), "%s is %v", at, s.spec.Gateway.DrainTimeout))}
			}),
		},
		{
			ID: "FN130", Title: "faults are scraped late", Severity: Medium, Reads: reads,
			Why:  "An alert needs at least two scrapes. At 99.99% a total outage spends a month's budget in 4.3 minutes.",
			Cost: costs(perBlind, takesRestart, 1),
			Fix:  "Set `observability.scrapeInterval` to 15s or less.",
			check: forSpecs(func(s *specFile) []hit {
				at := "observability.scrapeInterval"
				if s.spec.Observability.ScrapeInterval.Std() <= 30*time.Second {
					return nil
				}
				return []hit{s.fix(at, "15s", found(s.at(at), "%s is %v", at, s.spec.Observability.ScrapeInterval))}
			}),
		},
		{
			ID: "FN131", Title: "requests leave their zone too easily", Severity: Medium, Reads: reads,
			Why:  "Trap 2 of the article. With a spill threshold near 1 a single unhealthy instance sends a share of all chats to other zones, and each event of a stream pays for the way.",
			Cost: costs(perPeak, takesPeak, 0.05),
			Fix:  "Set `gateway.spillThreshold` to 0.6.",
			check: forSpecs(func(s *specFile) []hit {
				at := "gateway.spillThreshold"
				if s.spec.Gateway.SpillThreshold <= 0.9 {
					return nil
				}
				return []hit{s.fix(at, "0.6", found(s.at(at), "%s is %v with %v between zones", at, s.spec.Gateway.SpillThreshold, s.spec.Local.CrossZoneDelay))}
			}),
		},
	}
}
