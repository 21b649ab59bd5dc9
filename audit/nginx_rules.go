package audit

import (
	"strings"
	"time"
)

// longest is how long a proxy in front of Dify should wait for the next byte:
// Dify 0.6.9 ends a generation after 600 s.
const longest = 600 * time.Second

// proxied are the locations that pass to Dify's api: those with proxy_pass,
// but to the web front end.
func (n *nginxFile) proxied() []*directive {
	var out []*directive
	for _, d := range n.all {
		if d.name == "proxy_pass" && d.inside != nil && !strings.Contains(d.arg(0), "web") && !strings.Contains(d.arg(0), ":3000") {
			out = append(out, d)
		}
	}
	return out
}

// setting finds a directive for a location: there, around it, in a file that it
// includes, or at the top of a file that holds nothing but settings.
func (in *Inventory) nginxSetting(n *nginxFile, location *directive, name string) (*nginxFile, *directive) {
	if d := location.inherited(name); d != nil {
		return n, d
	}
	// What stands in no block of this file counts for all of it, and so does what
	// an included file says.
	for _, other := range in.nginx {
		for _, d := range other.all {
			if d.name == name && d.inside == nil && (other == n || includes(location, other.name)) {
				return other, d
			}
			if d.name == name && d.inside != nil && d.inside.name == "http" && other != n {
				return other, d
			}
		}
	}
	return nil, nil
}

// includes reports whether a location, or what is around it, includes a file.
func includes(location *directive, name string) bool {
	for b := location; b != nil; b = b.inside {
		for _, x := range b.block {
			if x.name == "include" && strings.HasSuffix(strings.TrimSuffix(name, ".template"), x.arg(0)[strings.LastIndexByte(x.arg(0), '/')+1:]) {
				return true
			}
		}
	}
	return false
}

// nginxTime reads 60s, 5m, 3600.
func nginxTime(s string) (time.Duration, bool) {
	if s == "" || strings.Contains(s, "$") {
		return 0, false
	}
	if last := s[len(s)-1]; last >= '0' && last <= '9' {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}

func nginxRules() []Rule {
	reads := []Kind{KindNginx}
	forLocations := func(check func(in *Inventory, n *nginxFile, pass *directive) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, n := range in.nginx {
				for _, d := range n.proxied() {
					out = append(out, check(in, n, d)...)
				}
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN420", Title: "nginx buffers the event stream", Severity: High, Reads: reads,
			Why:  "With proxy_buffering on, the default, answers arrive in bursts of 4 to 8 KB or at the end; users see a chat that hangs, and clients give up.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Write `proxy_buffering off;` in the locations of Dify's api, or let the gateway send `X-Accel-Buffering: no`.",
			check: forLocations(func(in *Inventory, n *nginxFile, pass *directive) []hit {
				where, d := in.nginxSetting(n, pass.inside, "proxy_buffering")
				switch {
				case d == nil:
					return []hit{found(n.at(pass.line), "%s: nothing sets proxy_buffering off", pass.arg(0))}
				case d.arg(0) == "on":
					return []hit{found(where.at(d.line), "proxy_buffering on for %s", pass.arg(0))}
				}
				return nil
			}),
		},
		{
			ID: "FN421", Title: "nginx gives up before Dify does", Severity: High, Reads: reads,
			Why:  "Timeouts in the wrong order: proxy_read_timeout is 60 s by default, a blocking call or a slow model is silent for longer, and Dify goes on working for nobody.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Set `proxy_read_timeout 3600s;` and `proxy_send_timeout 3600s;`.",
			check: forLocations(func(in *Inventory, n *nginxFile, pass *directive) []hit {
				where, d := in.nginxSetting(n, pass.inside, "proxy_read_timeout")
				if d == nil {
					return []hit{found(n.at(pass.line), "%s: the default of 60 s", pass.arg(0))}
				}
				if v, ok := nginxTime(d.arg(0)); ok && v < longest {
					return []hit{found(where.at(d.line), "proxy_read_timeout %s for %s", d.arg(0), pass.arg(0))}
				}
				return nil
			}),
		},
		{
			ID: "FN422", Title: "nginx looks a name up once", Severity: Medium, Reads: reads,
			Why:  "A name in proxy_pass is resolved when nginx starts. A container that comes back with another address gets no request until nginx is reloaded.",
			Cost: costs(perRelease, takesPerson, 0.1),
			Fix:  "Set `resolver` and a variable in proxy_pass, or an upstream with several addresses and `resolve`.",
			check: forLocations(func(in *Inventory, n *nginxFile, pass *directive) []hit {
				host := strings.TrimPrefix(strings.TrimPrefix(pass.arg(0), "http://"), "https://")
				host, _, _ = strings.Cut(strings.SplitN(host, "/", 2)[0], ":")
				if strings.Contains(pass.arg(0), "$") || host == "" || strings.Trim(host, "0123456789.") == "" || in.upstream(host) != nil {
					return nil
				}
				return []hit{found(n.at(pass.line), "%s", pass.arg(0))}
			}),
		},
		{
			ID: "FN423", Title: "nginx repeats what must happen once", Severity: High, Reads: reads,
			Why:  "With `non_idempotent` a chat message is sent again to the next instance though the first may have taken it: two answers, two bills, and one conversation written twice.",
			Cost: costs(perCrash, takesCut, 1),
			Fix:  "Remove `non_idempotent` from proxy_next_upstream.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, n := range in.nginx {
					for _, d := range n.all {
						if d.name == "proxy_next_upstream" && contains(d.args, "non_idempotent") {
							out = append(out, found(n.at(d.line), "proxy_next_upstream %s", strings.Join(d.args, " ")))
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN424", Title: "an upstream of one server", Severity: High, Reads: reads,
			Why:  "There is nobody to pass a request on to.",
			Cost: costs(perCrash, takesRestart, 1),
			Fix:  "Name at least two, in different zones.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, n := range in.nginx {
					for _, d := range n.all {
						if d.name != "upstream" {
							continue
						}
						servers := 0
						for _, x := range d.block {
							if x.name == "server" && !contains(x.args, "down") {
								servers++
								if contains(x.args, "resolve") {
									servers++ // a name with several addresses
								}
							}
						}
						if servers == 1 {
							out = append(out, found(n.at(d.line), "upstream %s has one server", d.arg(0)))
						}
					}
				}
				return out
			},
		},
		{
			ID: "FN425", Title: "gzip holds events back", Severity: Medium, Reads: reads,
			Why:  "Compression collects bytes before it lets them go; text/event-stream must not be in gzip_types.",
			Cost: costs(perPeak, takesPeak, 0.05),
			Fix:  "Remove text/event-stream (and `*`) from gzip_types.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, n := range in.nginx {
					for _, d := range n.all {
						if d.name == "gzip_types" && (contains(d.args, "text/event-stream") || contains(d.args, "*")) {
							out = append(out, found(n.at(d.line), "gzip_types %s", strings.Join(d.args, " ")))
						}
					}
				}
				return out
			},
		},
	}
}

// upstream finds an upstream block by name.
func (in *Inventory) upstream(name string) *directive {
	for _, n := range in.nginx {
		for _, d := range n.all {
			if d.name == "upstream" && d.arg(0) == name {
				return d
			}
		}
	}
	return nil
}
