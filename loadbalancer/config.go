package loadbalancer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"fournines/topology"
)

// The defaults of a configuration.
const (
	DefaultConnectTimeout = 300 * time.Millisecond
	DefaultCheckInterval  = 500 * time.Millisecond
	DefaultCheckTimeout   = time.Second
	DefaultRise           = 2
	DefaultFall           = 3
	DefaultCheckPath      = "/readyz"
	DefaultDeadAfter      = 5 * time.Second
	DefaultDrain          = time.Second
)

// Config is the configuration file of `fournines loadbalancer`.
type Config struct {
	// LogLevel is debug, info (the default), warn or error.
	LogLevel string `yaml:"logLevel,omitempty"`
	// Admin is the host:port of /metrics, /livez and /readyz; empty: none.
	// A reload does not change it.
	Admin string `yaml:"admin,omitempty"`
	// Services are the stable addresses, at least one.
	Services []Service `yaml:"services"`
	// ZoneOf tells the zone of a caller by its source address. The longest
	// range that holds the address wins; callers outside of all have no zone.
	ZoneOf []ZoneRange `yaml:"zoneOf,omitempty"`
	// DeadAfter is how long a peer may leave data unacknowledged before its
	// connection is cut, 1 s to 10 min; default 5 s. A peer that answers but
	// does not read is left alone.
	DeadAfter time.Duration `yaml:"deadAfter,omitempty"`
	// Drain is how long connections may go on after the order to stop, 0 to
	// 1 h; default 1 s. Then they are cut.
	Drain *time.Duration `yaml:"drain,omitempty"`
}

// Service is one stable address and what stands behind it.
type Service struct {
	// Name of the service, unique; it appears in logs and metrics.
	Name string `yaml:"name"`
	// Listen are the host:port addresses to accept on, at least one. A reload
	// does not change them.
	Listen []string `yaml:"listen"`
	// Backends serve the service, at least one.
	Backends []Backend `yaml:"backends"`
	// Check says how backends are checked.
	Check Check `yaml:"check,omitempty"`
	// ProxyProtocol tells the backend who the client is: each connection to it
	// begins with a PROXY header, version 2. The backend must expect that.
	ProxyProtocol bool `yaml:"proxyProtocol,omitempty"`
	// ConnectTimeout bounds the attempt to connect to one backend before the
	// next one is tried, 10 ms to 1 min; default 300 ms. The kernel of a backend
	// answers, not the backend, so being busy is no reason to be later. Who is
	// tried last gets a second if that is more: there is nobody after it.
	ConnectTimeout time.Duration `yaml:"connectTimeout,omitempty"`
}

// Backend is one server of a service.
type Backend struct {
	topology.Endpoint `yaml:",inline"`
	// CheckAddress is the host:port that is checked; default: the address.
	CheckAddress string `yaml:"checkAddress,omitempty"`
}

// CheckKind says what a check does.
type CheckKind string

// The kinds of checks.
const (
	// CheckTCP is passed by a server that accepts a connection.
	CheckTCP CheckKind = "tcp"
	// CheckHTTP is passed by a server that answers GET with a status of 2xx.
	CheckHTTP CheckKind = "http"
)

// Check says how the backends of a service are checked.
type Check struct {
	// Kind is tcp (the default) or http.
	Kind CheckKind `yaml:"kind,omitempty"`
	// Path is requested by http checks; default /readyz.
	Path string `yaml:"path,omitempty"`
	// Interval between two checks of one backend, 50 ms to 1 h; default 500 ms.
	Interval time.Duration `yaml:"interval,omitempty"`
	// Timeout of one check, 10 ms to 1 min; default 1 s.
	Timeout time.Duration `yaml:"timeout,omitempty"`
	// Rise is how many checks in a row must pass before a backend that was
	// down gets connections again, 1 to 100; default 2. The very first check
	// decides alone.
	Rise int `yaml:"rise,omitempty"`
	// Fall is how many checks in a row must get no answer before a backend is
	// down, 1 to 100; default 3. One is enough when the backend answers "not
	// ready", and when data to it is being sent again without an answer.
	Fall int `yaml:"fall,omitempty"`
	// KeepConnections leaves the connections to a backend alone when its
	// checks get no answer any more. By default they are reset, so that
	// clients notice at once. A backend that answers "not ready" keeps its
	// connections in any case: it may be draining.
	KeepConnections bool `yaml:"keepConnections,omitempty"`
}

// ZoneRange says that the addresses in a range are in a zone.
type ZoneRange struct {
	// CIDR is the range, such as 10.7.1.0/24.
	CIDR string `yaml:"cidr"`
	// Zone is the zone's name.
	Zone string `yaml:"zone"`
}

// withDefaults returns a copy with every default filled in.
func (c Config) withDefaults() Config {
	c.DeadAfter = or(c.DeadAfter, DefaultDeadAfter)
	if c.Drain == nil {
		drain := DefaultDrain
		c.Drain = &drain
	}
	c.Services = slices.Clone(c.Services)
	for i := range c.Services {
		s := &c.Services[i]
		s.ConnectTimeout = or(s.ConnectTimeout, DefaultConnectTimeout)
		s.Check.Kind = or(s.Check.Kind, CheckTCP)
		s.Check.Path = or(s.Check.Path, DefaultCheckPath)
		s.Check.Interval = or(s.Check.Interval, DefaultCheckInterval)
		s.Check.Timeout = or(s.Check.Timeout, DefaultCheckTimeout)
		s.Check.Rise = or(s.Check.Rise, DefaultRise)
		s.Check.Fall = or(s.Check.Fall, DefaultFall)
		s.Backends = slices.Clone(s.Backends)
		for j := range s.Backends {
			b := &s.Backends[j]
			b.Name = or(b.Name, b.Address)
			b.CheckAddress = or(b.CheckAddress, b.Address)
		}
	}
	return c
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Validate reports every problem, each with the name of its field.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	between := func(field string, v, low, high time.Duration) {
		if v < low || v > high {
			bad("%s: %v is out of range %v to %v", field, v, low, high)
		}
	}
	address := func(field, v string) {
		if host, port, err := net.SplitHostPort(v); err != nil || host == "" || port == "" {
			bad("%s: %q: want host:port", field, v)
		}
	}
	c = c.withDefaults()
	if c.Admin != "" {
		address("admin", c.Admin)
	}
	between("deadAfter", c.DeadAfter, time.Second, 10*time.Minute)
	between("drain", *c.Drain, 0, time.Hour)
	if len(c.Services) == 0 {
		bad("services: at least one is needed")
	}
	names, listens := map[string]bool{}, map[string]string{}
	for i, s := range c.Services {
		field := fmt.Sprintf("services[%d]", i)
		switch {
		case s.Name == "":
			bad("%s.name is missing", field)
		case names[s.Name]:
			bad("%s.name: %q is there twice", field, s.Name)
		}
		names[s.Name] = true
		if len(s.Listen) == 0 {
			bad("%s.listen: at least one address is needed", field)
		}
		for j, a := range s.Listen {
			lf := fmt.Sprintf("%s.listen[%d]", field, j)
			address(lf, a)
			if other := listens[a]; other != "" && !strings.HasSuffix(a, ":0") {
				bad("%s: %s is taken by %s", lf, a, other)
			}
			listens[a] = lf
		}
		if len(s.Backends) == 0 {
			bad("%s.backends: at least one is needed", field)
		}
		backends := map[string]bool{}
		for j, b := range s.Backends {
			bf := fmt.Sprintf("%s.backends[%d]", field, j)
			address(bf+".address", b.Address)
			if b.CheckAddress != b.Address {
				address(bf+".checkAddress", b.CheckAddress)
			}
			if backends[b.Name] {
				bad("%s.name: %q is there twice", bf, b.Name)
			}
			backends[b.Name] = true
		}
		if k := s.Check.Kind; k != CheckTCP && k != CheckHTTP {
			bad("%s.check.kind: %q: want tcp or http", field, k)
		}
		if !strings.HasPrefix(s.Check.Path, "/") {
			bad("%s.check.path: %q: want a path that starts with \"/\"", field, s.Check.Path)
		}
		between(field+".check.interval", s.Check.Interval, 50*time.Millisecond, time.Hour)
		between(field+".check.timeout", s.Check.Timeout, 10*time.Millisecond, time.Minute)
		between(field+".connectTimeout", s.ConnectTimeout, 10*time.Millisecond, time.Minute)
		for _, n := range []struct {
			name  string
			value int
		}{{"rise", s.Check.Rise}, {"fall", s.Check.Fall}} {
			if n.value < 1 || n.value > 100 {
				bad("%s.check.%s: %d is out of range 1 to 100", field, n.name, n.value)
			}
		}
	}
	for i, z := range c.ZoneOf {
		if p, err := netip.ParsePrefix(z.CIDR); err != nil {
			bad("zoneOf[%d].cidr: %q: want a range such as 10.7.1.0/24", i, z.CIDR)
		} else if p.Masked() != p {
			bad("zoneOf[%d].cidr: %q has bits behind its length: want %s", i, z.CIDR, p.Masked())
		}
		if z.Zone == "" {
			bad("zoneOf[%d].zone is missing", i)
		}
	}
	return errors.Join(errs...)
}

// zoneTable finds the zone of an address: the ranges, longest first.
type zoneTable []zoneEntry

type zoneEntry struct {
	prefix netip.Prefix
	zone   string
}

// newZoneTable needs validated ranges.
func newZoneTable(ranges []ZoneRange) zoneTable {
	var t zoneTable
	for _, r := range ranges {
		t = append(t, zoneEntry{netip.MustParsePrefix(r.CIDR), r.Zone})
	}
	slices.SortStableFunc(t, func(a, b zoneEntry) int { return b.prefix.Bits() - a.prefix.Bits() })
	return t
}

// zoneOf is empty for an address without a zone.
func (t zoneTable) zoneOf(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	addr := tcp.AddrPort().Addr().Unmap()
	for _, e := range t {
		if e.prefix.Contains(addr) {
			return e.zone
		}
	}
	return ""
}
