package audit

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// gatewayRules look at a fournines gateway that runs.
func gatewayRules() []Rule {
	reads := []Kind{KindLiveGateway}
	forGateways := func(check func(g *Gateway) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for i := range in.Gateways {
				out = append(out, check(&in.Gateways[i])...)
			}
			return out
		}
	}
	ask := func(g *Gateway, path string) Place { return Place{File: g.Name, Query: "GET " + path} }
	return []Rule{
		{
			ID: "FN430", Title: "the gateway is not ready", Severity: Critical, Reads: reads,
			Why:  "The balancer in front has taken it out; the others carry its load, or nobody does.",
			Cost: costs(perCrash, takesPerson, 0.5),
			Fix:  "See the reason it gives, and its log.",
			check: forGateways(func(g *Gateway) []hit {
				if g.NotReady == "" {
					return nil
				}
				return []hit{found(ask(g, "/v1/status"), "not ready: %s", g.NotReady)}
			}),
		},
		{
			ID: "FN431", Title: "the gateway runs an old configuration", Severity: High, Reads: reads,
			Why:  "Its last reload was refused. After a restart it will not start at all.",
			Cost: costs(perRelease, takesPerson, 0.1),
			Fix:  "Correct the file and reload.",
			check: forGateways(func(g *Gateway) []hit {
				if g.ReloadError == "" {
					return nil
				}
				return []hit{found(ask(g, "/v1/status"), "last reload: %s", g.ReloadError)}
			}),
		},
		{
			ID: "FN432", Title: "api instances are out of service", Severity: High, Reads: reads,
			Why:  "What was planned as a reserve is in use: the next fault is an outage.",
			Cost: costs(perCrash, takesPerson, 0.3),
			Fix:  "Look at those instances; `fournines gateway endpoints` says why they are out.",
			check: forGateways(func(g *Gateway) []hit {
				var bad []string
				for _, e := range g.Endpoints {
					if e.State != "in service" {
						bad = append(bad, e.Name+" ("+e.State+")")
					}
				}
				if len(bad) == 0 {
					return nil
				}
				return []hit{found(ask(g, "/v1/endpoints"), "%d of %d: %s", len(bad), len(g.Endpoints), strings.Join(bad, ", "))}
			}),
		},
		{
			ID: "FN433", Title: "every api instance stands in one zone", Severity: Critical, Reads: reads,
			Why:  "The gateway has nowhere to go when that zone is lost.",
			Cost: costs(perZone, takesZone, 1),
			Fix:  "Start instances in a second zone and list them.",
			check: forGateways(func(g *Gateway) []hit {
				zones := map[string]bool{}
				for _, e := range g.Endpoints {
					zones[e.Zone] = true
				}
				if len(zones) > 1 {
					return nil
				}
				return []hit{found(ask(g, "/v1/endpoints"), "%d instances, zones: %s", len(g.Endpoints), orNone(strings.Join(slices.Sorted(maps.Keys(zones)), ", ")))}
			}),
		},
		{
			ID: "FN434", Title: "the gateway's own zone has no instance", Severity: Medium, Reads: reads,
			Why:  "Trap 2 of the article: every request leaves its zone.",
			Cost: costs(perPeak, takesPeak, 0.05),
			Fix:  "Start instances in the gateway's zone, or correct the zone in its configuration.",
			check: forGateways(func(g *Gateway) []hit {
				for _, e := range g.Endpoints {
					if e.Zone == g.Zone {
						return nil
					}
				}
				return []hit{found(ask(g, "/v1/endpoints"), "zone %s has none of the %d instances", orNone(g.Zone), len(g.Endpoints))}
			}),
		},
		{
			ID: "FN435", Title: "the certificate ends soon", Severity: High, Reads: reads,
			Why:  "At that minute every client refuses the connection.",
			Cost: costs(perMistake, takesUnseen, 1),
			Fix:  "Renew it; the gateway reads the new file without a restart.",
			check: forGateways(func(g *Gateway) []hit {
				if g.CertificateExpires.IsZero() {
					return nil
				}
				if left := g.CertificateExpires.Sub(g.Asked); left < 14*24*time.Hour {
					return []hit{found(ask(g, "/v1/status"), "ends on %s, in %d days", g.CertificateExpires.Format(time.DateOnly), int(left.Hours()/24))}
				}
				return nil
			}),
		},
	}
}
