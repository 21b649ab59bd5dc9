package audit

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// wasmFields are what the spec of a WasmPlugin may hold: Istio's fields and
// those that Higress adds.
var wasmFields = []string{
	"url", "sha256", "imagePullPolicy", "imagePullSecret", "verificationKey", "pluginName", "pluginConfig", "vmConfig", "phase", "priority",
	"failStrategy", "defaultConfig", "defaultConfigDisable", "matchRules", "selector", "targetRefs", "targetRef", "type", "match",
}

// windows are the fields of Higress's limiters, with their seconds.
var windows = map[string]float64{
	"query_per_second": 1, "query_per_minute": 60, "query_per_hour": 3600, "query_per_day": 86400,
}

// difyRoute reports whether an Ingress leads to Dify's api.
func (in *Inventory) difyRoute(o *object) bool {
	dify := false
	o.get("spec").walk(func(n node) {
		if n.name() == "name" && n.scalar() {
			if s := in.named("Service", n.text(), o.namespace); s != nil {
				for _, w := range in.ofKind("Deployment") {
					dify = dify || in.roleOf(w) == roleAPI && selects(s.get("spec", "selector"), w.podLabels())
				}
			}
			dify = dify || strings.Contains(n.text(), "dify-api") || n.text() == "dify" || strings.HasSuffix(n.text(), "-api")
		}
	})
	return dify
}

func higressRules() []Rule {
	reads := []Kind{KindKubernetes}
	forPlugins := func(check func(o *object) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, o := range in.ofKind("WasmPlugin") {
				out = append(out, check(o)...)
			}
			return out
		}
	}
	forRoutes := func(check func(annotations node) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, o := range in.ofKind("Ingress") {
				if in.difyRoute(o) {
					out = append(out, check(o.get("metadata", "annotations"))...)
				}
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN401", Title: "a gateway plugin that does nothing", Severity: Critical, Reads: reads,
			Why:  "A WasmPlugin has neither `plugin` nor `rateLimits`; those are Envoy's rate-limit actions, and no plugin is loaded without `url`. The limit that everybody relies on does not exist, and only the gateway's log says so.",
			Cost: costs(perPeak, takesPeak, 0.5),
			Fix:  "Use `url: oci://…/cluster-key-rate-limit`, `matchRules` with `global_threshold: {query_per_second: 100}` and `redis`; or the limits of the fournines gateway.",
			check: forPlugins(func(o *object) []hit {
				var out []hit
				for _, p := range o.get("spec").pairs() {
					if !contains(wasmFields, p.name()) {
						out = append(out, found(Place{File: p.file.name, Line: p.key.Line, Column: p.key.Column}, "%s: spec has no field %q", o.title(), p.name()))
					}
				}
				if !o.get("spec", "url").ok() {
					out = append(out, found(o.get("spec").atOr(o.node), "%s names no url, so no plugin is loaded", o.title()))
				}
				return out
			}),
		},
		{
			ID: "FN402", Title: "a limit that may be meant sixty times higher", Severity: Medium, Reads: reads,
			Why:  "The article calls `unit: minute, requests_per_unit: 100` \"100 QPS\". It is 1.67 requests a second, and refuses 98 of 100.",
			Cost: costs(perPeak, takesPeak, 0.98),
			Fix:  "Write `query_per_second: 100` when 100 a second are meant; or suppress this finding with the reason.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.ofKind("WasmPlugin", "ConfigMap", "EnvoyFilter") {
					o.walk(func(n node) {
						switch {
						case n.get("unit").ok() && n.get("requests_per_unit").ok():
							per := map[string]float64{"second": 1, "minute": 60, "hour": 3600, "day": 86400}[strings.ToLower(n.get("unit").text())]
							if r, ok := n.get("requests_per_unit").int(); ok && per > 1 && float64(r)/per < 10 {
								out = append(out, found(n.get("requests_per_unit").at(), "%s: %d per %s is %.2f per second", o.title(), r, n.get("unit").text(), float64(r)/per))
							}
						case n.name() == "global_threshold":
							for _, w := range n.pairs() {
								if v, ok := w.int(); ok && windows[w.name()] > 1 && float64(v)/windows[w.name()] < 10 {
									out = append(out, found(w.at(), "%s: %s %d for everybody together is %.2f per second", o.title(), w.name(), v, float64(v)/windows[w.name()]))
								}
							}
						}
					})
				}
				return out
			},
		},
		{
			ID: "FN403", Title: "a limiter that closes the gateway when it fails", Severity: High, Reads: reads,
			Why:  "failStrategy is FAIL_CLOSE by default: when the plugin cannot be fetched or crashes, every request is refused.",
			Cost: costs(perRelease, takesPerson, 0.1),
			Fix:  "Set `failStrategy: FAIL_OPEN` for limits and caches; keep FAIL_CLOSE for authentication.",
			check: forPlugins(func(o *object) []hit {
				name := o.name + o.get("spec", "url").text()
				f := o.get("spec", "failStrategy")
				if f.text() == "FAIL_OPEN" || !strings.Contains(name, "limit") && !strings.Contains(name, "cache") || !o.get("spec", "url").ok() {
					return nil
				}
				h := found(f.atOr(o.get("spec", "url")), "%s fails closed", o.title())
				if h.edits = f.replace("FAIL_OPEN"); h.edits == nil {
					h.edits = o.get("spec").insert("failStrategy: FAIL_OPEN")
				}
				return []hit{h}
			}),
		},
		{
			ID: "FN404", Title: "a cluster-wide limit without its counter", Severity: High, Reads: reads,
			Why:  "cluster-key-rate-limit counts in Redis and refuses a configuration without `redis`; the refusal is only in the gateway's log.",
			Cost: costs(perPeak, takesPeak, 0.5),
			Fix:  "Add `redis: {service_name: …, service_port: 6379, timeout: 50}` and an McpBridge entry with an Ingress for it.",
			check: forPlugins(func(o *object) []hit {
				if !strings.Contains(o.get("spec", "url").text(), "cluster-key-rate-limit") {
					return nil
				}
				var out []hit
				configs := []node{o.get("spec", "defaultConfig"), o.get("spec", "pluginConfig")}
				for _, m := range o.get("spec", "matchRules").items() {
					configs = append(configs, m.get("config"))
				}
				for _, c := range configs {
					if c.ok() && !c.get("redis").ok() {
						out = append(out, found(c.at(), "%s: %s has no redis", o.title(), c.name()))
					}
				}
				return out
			}),
		},
		{
			ID: "FN405", Title: "a route's timeout ends streams", Severity: High, Reads: reads,
			Why:  "Timeouts in the wrong order: higress.io/timeout counts the whole answer, nginx's proxy-read-timeout (60 s by default) each silence. Dify may take 600 s and more.",
			Cost: costs(perPeak, takesPeak, 0.1),
			Fix:  "Remove higress.io/timeout from streaming routes; set nginx.ingress.kubernetes.io/proxy-read-timeout and proxy-send-timeout to 3600.",
			check: forRoutes(func(a node) []hit {
				var out []hit
				for _, name := range []string{"higress.io/timeout", "nginx.ingress.kubernetes.io/proxy-read-timeout", "nginx.ingress.kubernetes.io/proxy-send-timeout"} {
					v := a.get(name)
					if n, ok := v.int(); ok && n > 0 && float64(n) < longest.Seconds() {
						h := found(v.at(), "%s is %d s", name, n)
						if v.y.Kind == yaml.ScalarNode && strings.HasPrefix(name, "nginx") {
							h.edits = v.replace(`"3600"`)
						}
						out = append(out, h)
					}
				}
				return out
			}),
		},
		{
			ID: "FN406", Title: "an Ingress that repeats chats or buffers streams", Severity: High, Reads: reads,
			Why:  "non_idempotent sends a chat message to a second instance though the first may have taken it; proxy-buffering collects events.",
			Cost: costs(perCrash, takesCut, 1),
			Fix:  "Remove `non_idempotent`; set proxy-buffering to \"off\".",
			check: forRoutes(func(a node) []hit {
				var out []hit
				for _, p := range a.pairs() {
					switch {
					case strings.HasSuffix(p.name(), "/proxy-next-upstream") && strings.Contains(p.text(), "non_idempotent"):
						out = append(out, found(p.at(), "%s: %s", p.name(), p.text()))
					case strings.HasSuffix(p.name(), "/proxy-buffering") && p.text() == "on":
						h := found(p.at(), "%s is on", p.name())
						h.edits = p.replace(`"off"`)
						out = append(out, h)
					}
				}
				return out
			}),
		},
		{
			ID: "FN407", Title: "Higress cuts streams that are silent", Severity: Medium, Reads: reads,
			Why:  "downstream.idleTimeout of higress-config, 180 s by default, is also the stream's idle timeout: a blocking call that is silent longer is cut.",
			Cost: costs(perPeak, takesPeak, 0.02),
			Fix:  "Set downstream.idleTimeout to 3600.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, o := range in.ofKind("ConfigMap") {
					if o.name != "higress-config" {
						continue
					}
					text := o.get("data", "higress")
					var conf struct {
						Downstream struct {
							IdleTimeout *int `yaml:"idleTimeout"`
						} `yaml:"downstream"`
					}
					if yaml.Unmarshal([]byte(text.text()), &conf) != nil {
						continue
					}
					v := 180
					if conf.Downstream.IdleTimeout != nil {
						v = *conf.Downstream.IdleTimeout
					}
					if float64(v) < longest.Seconds() && v > 0 {
						out = append(out, found(text.atOr(o.node), "%s: downstream.idleTimeout is %s s", o.title(), strconv.Itoa(v)))
					}
				}
				return out
			},
		},
	}
}
