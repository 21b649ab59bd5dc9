package zonenet

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
)

// DefaultForwarderMTU is the MTU of the forwarder's devices. It equals that of
// the bridge, so a TCP connection does not care which of the two carries it;
// the packets between the kernel and the forwarder are up to 64 KiB all the
// same, because segmentation is left to the receiving side.
const DefaultForwarderMTU = 1500

// ForwarderConfig is the configuration file of `fournines zonelink`.
type ForwarderConfig struct {
	// LogLevel is debug, info (the default), warn or error.
	LogLevel string `yaml:"logLevel,omitempty"`
	// Hub is the network namespace with the bridge. The forwarder watches the
	// zones' ports there: it carries nothing for a zone whose port is down.
	// Empty: no port is watched.
	Hub string `yaml:"hub,omitempty"`
	// Zones are the zones to connect, at least two.
	Zones []ForwarderZone `yaml:"zones"`
	// Links are the settings by sending and receiving zone. They can be
	// changed by SIGHUP and by the control socket.
	Links Links `yaml:"links,omitempty"`
	// Control is the path of the control socket, mode 0600, at most 90 bytes;
	// empty: none. It serves GET and PUT /links, and /metrics, /livez, /readyz.
	Control string `yaml:"control,omitempty"`
	// MTU of the devices in the zones, 576 to 65535; default 1500.
	MTU int `yaml:"mtu,omitempty"`
}

// ForwarderZone is one zone of a ForwarderConfig.
type ForwarderZone struct {
	// Name is the zone's name in Links.
	Name string `yaml:"name"`
	// Namespace is the name of the zone's network namespace.
	Namespace string `yaml:"namespace"`
	// Subnet is the IPv4 range of the zone, at least a /24.
	Subnet string `yaml:"subnet"`
	// Source is the zone's own address that its connections to other zones
	// come from when they choose none.
	Source string `yaml:"source"`
	// Port is the zone's interface in the hub.
	Port string `yaml:"port,omitempty"`
}

// Validate reports every problem, each with the name of its field.
func (c *ForwarderConfig) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Zones) < 2 || len(c.Zones) > maxZones {
		bad("zones: have %d, want 2 to %d", len(c.Zones), maxZones)
	}
	var names []string
	var subnets []netip.Prefix
	for i, z := range c.Zones {
		field := fmt.Sprintf("zones[%d]", i)
		if z.Name == "" {
			bad("%s.name is missing", field)
		}
		if z.Namespace == "" || filepath.Base(z.Namespace) != z.Namespace {
			bad("%s.namespace %q: want the name of a network namespace", field, z.Namespace)
		}
		p, err := netip.ParsePrefix(z.Subnet)
		if err != nil || !p.Addr().Is4() || p.Bits() < 16 {
			bad("%s.subnet %q: want an IPv4 range such as 10.7.1.0/24", field, z.Subnet)
		}
		if a, err := netip.ParseAddr(z.Source); err != nil || !p.IsValid() || !p.Contains(a) {
			bad("%s.source %q: want an address in %s", field, z.Source, z.Subnet)
		}
		if c.Hub != "" && z.Port == "" {
			bad("%s.port is missing: it is needed with hub", field)
		}
		for k, other := range subnets {
			if p.IsValid() && p.Overlaps(other) {
				bad("%s.subnet %s overlaps that of zone %s", field, p, c.Zones[k].Name)
			}
			if names[k] == z.Name {
				bad("%s.name %q is there twice", field, z.Name)
			}
		}
		names = append(names, z.Name)
		subnets = append(subnets, p)
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		bad("mtu %d: want 576 to 65535", c.MTU)
	}
	if len(c.Control) > 90 {
		bad("control: the path has %d bytes, a socket's may have 90", len(c.Control))
	}
	if err := c.Links.Validate(names); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
