package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"fournines/internal/cron"
	"fournines/internal/strictyaml"
)

// Validate checks everything that the types do not say. It reports every
// problem; each is a strictyaml.Problem that names the field.
func (s *Spec) Validate() error {
	c := &checker{spec: s, problems: checkLimits("", reflect.ValueOf(*s))}
	c.zones()
	c.dify()
	c.gateway()
	c.postgres()
	c.data()
	c.slo()
	c.backup()
	c.local()
	c.kubernetes()
	errs := make([]error, len(c.problems))
	for i, p := range c.problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

type checker struct {
	spec     *Spec
	problems []strictyaml.Problem
}

func (c *checker) add(path, hint, format string, args ...any) {
	c.problems = append(c.problems, strictyaml.Problem{Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (c *checker) zones() {
	zones := c.spec.Zones
	if len(zones) != 3 {
		// The general message says how many; here it matters why.
		for i, p := range c.problems {
			if p.Path == "zones" {
				c.problems[i].Hint = quorumHint(len(zones))
			}
		}
	}
	quorum := 0
	first := map[string]int{}
	for i, z := range zones {
		if before, twice := first[z.Name]; twice {
			c.add(fmt.Sprintf("zones[%d].name", i), "give each zone its own name", "%q is the name of zones[%d] already", z.Name, before)
		} else {
			first[z.Name] = i
		}
		if z.Role == RoleQuorum {
			quorum++
		}
	}
	if len(zones) == 3 && quorum > 1 {
		c.add("zones", "make at least two zones full", "%d of 3 zones have role quorum: Dify and the proxies would be lost with one zone", quorum)
	}
}

func quorumHint(zones int) string {
	switch {
	case zones < 2:
		return "one zone is a single point of failure: everything is lost with it; write three, the third may have role quorum"
	case zones == 2:
		return "with two zones one of them holds the majority of etcd and of the Redis masters, and losing that zone stops both; add a third zone with role quorum, which runs only the members that a majority needs"
	}
	return "more than three zones are not supported yet"
}

// fullZone checks that name is the name of a full zone.
func (c *checker) fullZone(path, name string) {
	full := c.spec.FullZones()
	if slices.Contains(full, name) {
		return
	}
	for _, z := range c.spec.Zones {
		if z.Name == name {
			c.add(path, strictyaml.Suggest("", full), "zone %q has role %s, want a full zone", name, z.Role)
			return
		}
	}
	c.add(path, strictyaml.Suggest(name, full), "%q is not the name of a zone", name)
}

func (c *checker) dify() {
	d := &c.spec.Dify
	if older(d.Version, 0, 6, 9) {
		c.add("dify.version", "", "%q is older than 0.6.9, the first supported version", d.Version)
	}
	switch d.Source {
	case SourceCommand:
		if len(d.Command.API) == 0 {
			c.add("dify.command.api", `for example ["gunicorn", "--bind", "{host}:{port}", "app:app"]`, "needed because dify.source is command")
		}
		if len(d.Command.Worker) == 0 && d.Workers > 0 {
			c.add("dify.command.worker", "or set dify.workers to 0", "needed because dify.source is command and dify.workers is %d", d.Workers)
		}
		if d.Command.WorkDir == "" {
			c.add("dify.command.workDir", "the api folder of the checkout, like /srv/dify/api", "needed because dify.source is command")
		}
	case SourceExternal:
		if len(d.External) == 0 {
			c.add("dify.external", "list url and zone of each api instance", "needed because dify.source is external")
		}
	}
	for _, cmd := range []struct {
		name string
		args []string
	}{{"api", d.Command.API}, {"worker", d.Command.Worker}, {"migrate", d.Command.Migrate}} {
		if len(cmd.args) > 0 && cmd.args[0] == "" {
			c.add("dify.command."+cmd.name+"[0]", "", "the name of the program is empty")
		}
	}
	c.absolute("dify.command.workDir", d.Command.WorkDir)
	c.absolute("dify.command.storageDir", d.Command.StorageDir)
	envName := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	for name := range d.Command.Env {
		if !envName.MatchString(name) {
			c.add("dify.command.env."+name, "", "not the name of an environment variable")
		}
	}
	seen := map[string]int{}
	for i, e := range d.External {
		at := fmt.Sprintf("dify.external[%d]", i)
		if why := badInstanceURL(e.URL); why != "" {
			c.add(at+".url", "write it like http://10.0.0.7:5001", "%s", why)
		} else if before, twice := seen[strings.TrimSuffix(e.URL, "/")]; twice {
			c.add(at+".url", "", "is listed in dify.external[%d] already", before)
		} else {
			seen[strings.TrimSuffix(e.URL, "/")] = i
		}
		c.fullZone(at+".zone", e.Zone)
	}
}

// older reports whether version comes before the given one. A version that its
// pattern refuses is not compared.
func older(version string, want ...int) bool {
	core, _, _ := strings.Cut(version, "-")
	parts := strings.Split(core, ".")
	if len(parts) != len(want) {
		return false
	}
	got := make([]int, len(parts))
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil {
			return false
		}
		got[i] = n
	}
	return slices.Compare(got, want) < 0
}

// badInstanceURL says what is wrong with the URL of a Dify instance. It never
// repeats the URL, which may carry a password.
func badInstanceURL(raw string) string {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return "the URL is missing"
	case err != nil:
		return "not a URL"
	case u.Scheme != "http" && u.Scheme != "https":
		return "the URL must start with http:// or https://"
	case u.Hostname() == "":
		return "the URL has no host"
	case u.User != nil:
		return "the URL carries a user or password, which the gateway does not use"
	case u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/"):
		return "the URL has a path or query; give the address alone"
	}
	return ""
}

func (c *checker) gateway() {
	g := &c.spec.Gateway
	c.atMost("gateway.health.timeout", g.Health.Timeout, "interval", g.Health.Interval)
	c.atMost("gateway.ejection.baseTime", g.Ejection.BaseTime, "maxTime", g.Ejection.MaxTime)
	c.rateLimits()
	c.gatewayApps()
	c.gatewayCache()
	c.gatewayJobs()
}

// atMost reports a field that exceeds its neighbour.
func (c *checker) atMost(path string, value Duration, neighbour string, limit Duration) {
	if value > limit {
		c.add(path, "lower it, or raise "+neighbour, "%v exceeds %s, which is %v", value, neighbour, limit)
	}
}

func (c *checker) postgres() {
	p := &c.spec.Postgres
	for _, d := range []struct {
		name  string
		value Duration
	}{{"ttl", p.Patroni.TTL}, {"loopWait", p.Patroni.LoopWait}, {"retryTimeout", p.Patroni.RetryTimeout}} {
		if d.value%Duration(second) != 0 {
			c.add("postgres.patroni."+d.name, "", "%v is not a whole number of seconds, which is all that Patroni knows", d.value)
		}
	}
	if need := p.Patroni.LoopWait + 2*p.Patroni.RetryTimeout; need > p.Patroni.TTL {
		c.add("postgres.patroni.ttl", "raise ttl or lower the others: a primary whose etcd answers slowly would lose its key",
			"%v is less than loopWait + 2 × retryTimeout, which is %v", p.Patroni.TTL, need)
	}
	proxies := len(c.spec.FullZones())
	if used, free := proxies*p.Proxy.PoolSize, p.MaxConnections-ReservedConnections; used > free && len(c.spec.Zones) == 3 {
		c.add("postgres.proxy.poolSize", fmt.Sprintf("use at most %d, or raise postgres.maxConnections to %d", max(free/max(proxies, 1), 1), used+ReservedConnections),
			"%d proxies × %d connections exceed the %d that postgres.maxConnections leaves", proxies, p.Proxy.PoolSize, free)
	}
}

func (c *checker) data() {
	if v := c.spec.Vectors.Zone; v != "" {
		c.fullZone("vectors.zone", v)
	}
	if a := c.spec.Autoscale; a.MinReplicas > a.MaxReplicas {
		c.add("autoscale.minReplicas", "lower it, or raise maxReplicas", "%d exceeds maxReplicas, which is %d", a.MinReplicas, a.MaxReplicas)
	}
	if hook := c.spec.Observability.AlertWebhook; hook != "" {
		u, err := url.Parse(hook.Reveal())
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
			c.add("observability.alertWebhook", "write it like https://hooks.example.com/alerts", "not an http or https URL")
		}
	}
}

// absolute reports a path that would depend on where a command is started.
func (c *checker) absolute(path, value string) {
	if value != "" && !filepath.IsAbs(value) {
		c.add(path, "write it from the root", "%q is not an absolute path", value)
	}
}

func (c *checker) backup() {
	b := &c.spec.Backup
	c.absolute("backup.directory", b.Directory)
	if filepath.Clean(b.Directory) == "/" {
		c.add("backup.directory", "name a directory of its own", "the root directory cannot be the target")
	}
	for _, s := range []struct {
		field, value string
		optional     bool
	}{{"backup.schedule", b.Schedule, false}, {"backup.drillSchedule", b.DrillSchedule, true}} {
		if s.optional && s.value == "" {
			continue
		}
		if _, err := cron.Parse(s.value); err != nil {
			c.add(s.field, `write minute, hour, day, month and weekday, like "0 2 * * *" for 02:00 every day`, "%q: %v", s.value, err)
		}
	}
}

func (c *checker) local() {
	l := &c.spec.Local
	if _, err := netip.ParseAddr(l.Address); err != nil {
		c.add("local.address", "write 127.0.0.1, or 0.0.0.0 for all addresses", "%q is not an IP address", l.Address)
	}
	c.ports()
	c.subnet()
	if l.Network == NetworkLoopback && l.CrossZoneDelay > 0 {
		c.add("local.crossZoneDelay", "set local.network to auto, or the delay to 0s", "zones on loopback addresses cannot be slowed down")
	}
	c.atMost("local.restartBackoff.min", l.RestartBackoff.Min, "max", l.RestartBackoff.Max)
}

func (c *checker) ports() {
	p := c.spec.Local.Ports
	shifted := p.Effective()
	taken := map[int]string{}
	for _, port := range []struct {
		name    string
		written int
		used    int
	}{
		{"gateway", p.Gateway, shifted.Gateway},
		{"postgres", p.Postgres, shifted.Postgres},
		{"redis", p.Redis, shifted.Redis},
		{"milvus", p.Milvus, shifted.Milvus},
		{"prometheus", p.Prometheus, shifted.Prometheus},
		{"alertmanager", p.Alertmanager, shifted.Alertmanager},
		{"console", p.Console, shifted.Console},
	} {
		at := "local.ports." + port.name
		if other, twice := taken[port.used]; twice {
			c.add(at, "give each service its own port", "%d is the port of %s already", port.written, other)
			continue
		}
		taken[port.used] = port.name
		if port.written <= 65535 && port.used > 65535 {
			c.add(at, "lower one of them", "%d + portOffset %d is more than 65535", port.written, p.PortOffset)
		}
	}
}

func (c *checker) subnet() {
	l := &c.spec.Local
	if l.Subnet == SubnetAuto {
		return
	}
	const hint = "write auto, 10.N.0.0/16 for network namespaces or 127.N.0.0/16 for loopback"
	prefix, err := netip.ParsePrefix(l.Subnet)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() != 16 || prefix.Masked() != prefix {
		c.add("local.subnet", hint, "%q is not a /16 subnet", l.Subnet)
		return
	}
	switch first := prefix.Addr().As4()[0]; {
	case first != 10 && first != 127:
		c.add("local.subnet", hint, "%s is outside 10.0.0.0/8 and 127.0.0.0/8", l.Subnet)
	case first == 10 && l.Network == NetworkLoopback:
		c.add("local.subnet", hint, "%s are not loopback addresses, but local.network is loopback", l.Subnet)
	case first == 127 && l.Network == NetworkNamespaces:
		c.add("local.subnet", hint, "%s are loopback addresses, but local.network is namespaces", l.Subnet)
	case l.Subnet == "127.0.0.0/16":
		c.add("local.subnet", hint, "127.0.0.0/16 holds localhost itself")
	}
}
