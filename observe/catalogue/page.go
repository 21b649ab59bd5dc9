package catalogue

import (
	"fmt"
	"strings"
)

// sections are the processes in the order of a request's way, with what the page
// says of them.
var sections = []struct{ process, title, intro string }{
	{Gateway, "Gateway", "What the users get. Operators' questions by topic: [gateway.md](gateway.md#metrics)."},
	{PGProxy, "pgproxy", "The way to PostgreSQL."},
	{RedisProxy, "redisproxy", "The way to the Redis Cluster."},
	{LoadBalancer, "Load balancer", "The stable addresses of the local engine."},
	{Backup, "Backups", "The scheduler of backups and restore drills."},
	{DifyAPI, "Simulator of Dify: api", "Only where `dify.source` is `simulator`; Dify itself exports nothing."},
	{DifyWorker, "Simulator of Dify: worker", "What it has beyond the api's."},
	{Zonelink, "Links between zones", "On the control socket of `fournines zonelink`, for kernels without netem; Prometheus does not read it."},
	{Every, "Every process", "Beside the Go runtime's own, `go_…`."},
}

// Page writes docs/metrics.md.
func Page(all []Metric) []byte {
	var b strings.Builder
	b.WriteString(`# Metrics

Every metric that a process of fournines exposes on ` + "`/metrics`" + `. This page is
generated from where they are registered (` + "`go generate ./observe/catalogue`" + `),
and a test compares it with a running stack, both ways. Labels are bounded: names
of the configuration, classes, reasons; never a path, a key or a user. Prometheus
adds ` + "`job`, `instance`, `component` and `zone`" + ` to each. A metric marked ` + "`*`" + ` appears
with the first event that it counts; all others are there from the start.

[observability.md](observability.md) says what is made of them.
`)
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n", s.title, s.intro)
		for _, m := range all {
			if m.Process != s.process || s.process == DifyWorker && sharedWithAPI(all, m.Name) {
				continue
			}
			late := ""
			if !m.Always {
				late = " *"
			}
			labels := make([]string, 0, len(m.Labels))
			for _, l := range m.Labels {
				labels = append(labels, "`"+l+"`")
			}
			help := strings.ReplaceAll(m.Help, "|", "\\|")
			if len(m.Buckets) > 0 {
				help += " Buckets: " + strings.Trim(fmt.Sprint(m.Buckets), "[]") + "."
			}
			fmt.Fprintf(&b, "| `%s`%s | %s | %s | %s | %s |\n", m.Name, late, m.Type, m.Unit, strings.Join(labels, ", "), help)
		}
	}
	b.WriteString(`
## Servers that are not ours

What rules and commands read of them; their own pages have the rest.

| job | metric | there |
| --- | --- | --- |
`)
	for _, e := range External() {
		there := "from the start"
		if e.When != "" {
			there = "after " + e.When
		}
		if e.Elsewhere != "" {
			there = e.Elsewhere
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", e.Job, e.Name, there)
	}
	return []byte(b.String())
}

func sharedWithAPI(all []Metric, name string) bool {
	for _, m := range all {
		if m.Process == DifyAPI && m.Name == name {
			return true
		}
	}
	return false
}
