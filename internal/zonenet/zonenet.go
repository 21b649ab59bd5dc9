// Package zonenet makes the network of a local stack: zones that can be cut
// off, slowed down and made lossy, on one machine. As root on Linux a zone is a
// network namespace behind a bridge; without root it is a range of loopback
// addresses, and the faults say that they need root.
//
// A namespace network looks like this; everything but the interface fn<id>
// lives in namespaces of its own, so no firewall rule, forwarding setting or
// bridge filter of the host comes between two zones:
//
//	host                hub (fn<id>.hub)              zone (fn<id>-<zone>)
//	fn<id> ── veth ──── host ┐
//	10.N.0.x                 ├ br0 ── z1 ── veth ──── eth0  10.N.1.x
//	                         └ br0 ── z2 ── veth ──── eth0  10.N.2.x
package zonenet

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Mode says what a zone is made of.
type Mode string

// The modes of a network. Auto takes Namespaces where the machine allows it
// and Loopback elsewhere.
const (
	Auto       Mode = "auto"
	Namespaces Mode = "namespaces"
	Loopback   Mode = "loopback"
)

// Shaper says what delays and drops the packets between zones.
type Shaper string

// The shapers of a network. NoShaper means that links between zones cannot be
// given delay or loss here.
const (
	NoShaper Shaper = "none"
	Netem    Shaper = "netem"
	Zonelink Shaper = "zonelink"
)

// The states that LinkState reports.
const (
	LinkUp   = "up"
	LinkDown = "down"
)

// ErrNeedsNamespaces is returned by the network faults of a loopback network.
var ErrNeedsNamespaces = errors.New("needs network namespaces (run as root)")

// zoneHost is the host number that every zone and the host always have. It is
// the default source address of a zone.
const zoneHost = 1

const maxZones = 250

// Config describes the network of one stack.
type Config struct {
	// ID tells the stacks of one machine apart. It is a part of interface
	// names: 1 to 8 characters of [a-z0-9].
	ID string
	// Mode is Auto when empty.
	Mode Mode
	// Zones are the names in order; the first has number 1. Each is 1 to 40
	// characters of [a-z0-9-].
	Zones []string
	// Subnet is "10.N.0.0/16" (namespaces), "127.N.0.0/16" (loopback), or
	// "auto" or empty to take a free one. The subnet that was taken is told
	// by Subnet after Ensure; store it and set it here from then on.
	Subnet string
	// HostNumbers are the last octets (1 to 254) of the addresses 10.N.0.X
	// outside all zones. 1 is always there.
	HostNumbers []int
	// ZoneNumbers are the last octets (1 to 254) of the addresses 10.N.i.X of
	// each zone. 1 is always there; it is the zone's default source address.
	ZoneNumbers map[string][]int
	// Delay is the round trip that is added between two zones, half of it on
	// each way; 0 to 10 s. Zero adds nothing.
	Delay time.Duration
	// ControlSocket is the path of the forwarder's control socket, for
	// SetLinks and Links where the shaper is Zonelink.
	ControlSocket string
}

var (
	idPattern   = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
	zonePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
)

// Validate reports every problem, each with the name of its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !idPattern.MatchString(c.ID) {
		bad("id %q: want 1 to 8 characters of a-z and 0-9", c.ID)
	}
	switch c.Mode {
	case "", Auto, Namespaces, Loopback:
	default:
		bad("mode %q: want auto, namespaces or loopback", c.Mode)
	}
	if len(c.Zones) == 0 || len(c.Zones) > maxZones {
		bad("zones: have %d, want 1 to %d", len(c.Zones), maxZones)
	}
	seen := map[string]bool{}
	for _, z := range c.Zones {
		if !zonePattern.MatchString(z) {
			bad("zones: name %q: want 1 to 40 characters of a-z, 0-9 and \"-\"", z)
		}
		if seen[z] {
			bad("zones: %q is listed twice", z)
		}
		seen[z] = true
	}
	checkNumbers := func(field string, numbers []int) {
		for _, x := range numbers {
			if x < 1 || x > 254 {
				bad("%s: %d is out of range 1 to 254", field, x)
			}
		}
	}
	checkNumbers("hostNumbers", c.HostNumbers)
	for z, numbers := range c.ZoneNumbers {
		if !seen[z] {
			bad("zoneNumbers: unknown zone %q", z)
		}
		checkNumbers("zoneNumbers."+z, numbers)
	}
	if c.Delay < 0 || c.Delay > MaxDelay {
		bad("delay %v: want 0 to %v", c.Delay, MaxDelay)
	}
	return errors.Join(errs...)
}

// Network is the network of one stack. Its methods may be called from several
// goroutines.
type Network struct {
	cfg    Config
	logger *slog.Logger
	mode   Mode
	reason string

	shaperOnce sync.Once
	shaper     Shaper
	shaperWhy  string

	mu     sync.Mutex
	number int // N of the subnet, 0 as long as it is not known
}

// New checks cfg and decides on the mode. It changes nothing on the machine
// (the check for namespaces makes one that is gone when New returns).
func New(cfg Config, logger *slog.Logger) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("zone network: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	n := &Network{cfg: cfg, logger: logger, mode: cfg.Mode}
	switch cfg.Mode {
	case "", Auto:
		n.mode = Namespaces
		if err := Probe(); err != nil {
			n.mode, n.reason = Loopback, err.Error()
		}
	case Namespaces:
		if err := Probe(); err != nil {
			return nil, fmt.Errorf("zone network: %w; run as root on a machine that allows it, or use loopback addresses", err)
		}
	case Loopback:
		n.reason = "loopback addresses were asked for"
	}
	if s := cfg.Subnet; s != "" && s != "auto" {
		number, err := parseSubnet(s, n.firstOctet())
		if err != nil {
			return nil, fmt.Errorf("zone network: %w", err)
		}
		n.number = number
	}
	return n, nil
}

func parseSubnet(s string, first byte) (int, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Bits() != 16 || p.Masked() != p {
		return 0, fmt.Errorf("subnet %q: want \"auto\" or %d.N.0.0/16 with N from 1 to 254", s, first)
	}
	b := p.Addr().As4()
	if b[0] != first || b[1] < 1 || b[1] > 254 {
		return 0, fmt.Errorf("subnet %q: want \"auto\" or %d.N.0.0/16 with N from 1 to 254", s, first)
	}
	return int(b[1]), nil
}

func (n *Network) firstOctet() byte {
	if n.mode == Loopback {
		return 127
	}
	return 10
}

// Mode is Namespaces or Loopback.
func (n *Network) Mode() Mode { return n.mode }

// Reason says why the mode is Loopback; it is empty for Namespaces.
func (n *Network) Reason() string { return n.reason }

// Zones returns the names in order.
func (n *Network) Zones() []string { return slices.Clone(n.cfg.Zones) }

// Subnet is the network's range, "10.7.0.0/16". It is empty before the first
// Ensure when the configuration says "auto".
func (n *Network) Subnet() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.number == 0 {
		return ""
	}
	return netip.PrefixFrom(n.addr(0, 0), 16).String()
}

// addr needs n.mu, or a number that no longer changes.
func (n *Network) addr(zone, x int) netip.Addr {
	return netip.AddrFrom4([4]byte{n.firstOctet(), byte(n.number), byte(zone), byte(x)})
}

// Address is the address with the last octet x in zone; the empty zone is the
// host. The subnet must be known: call Ensure first, or configure it.
func (n *Network) Address(zone string, x int) (string, error) {
	i := 0
	if zone != "" {
		var err error
		if i, err = n.zoneNumber(zone); err != nil {
			return "", err
		}
	}
	if x < 1 || x > 254 {
		return "", fmt.Errorf("host number %d: want 1 to 254", x)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.number == 0 {
		return "", errors.New("the subnet is not known before the network has been made")
	}
	return n.addr(i, x).String(), nil
}

// ZoneSubnet is the range of one zone, "10.7.1.0/24".
func (n *Network) ZoneSubnet(zone string) (string, error) {
	s, err := n.Address(zone, zoneHost)
	if err != nil {
		return "", err
	}
	p, err := netip.MustParseAddr(s).Prefix(24)
	return p.String(), err
}

// zoneNumber is the number of a zone, from 1.
func (n *Network) zoneNumber(zone string) (int, error) {
	i := slices.Index(n.cfg.Zones, zone)
	if i < 0 {
		return 0, fmt.Errorf("unknown zone %q (the zones are %s)", zone, strings.Join(n.cfg.Zones, ", "))
	}
	return i + 1, nil
}

// Ensure makes the network, or what is missing of it; it also heals zones that
// were cut. It may be called at any time and any number of times, also after a
// crash in the middle of an earlier call.
func (n *Network) Ensure(ctx context.Context) error {
	if n.mode == Loopback {
		return n.ensureLoopback()
	}
	return n.ensureNamespaces(ctx)
}

// Delete removes all that Ensure made, also what an earlier configuration with
// other zones left, and nothing else. It is no error when nothing is there.
func (n *Network) Delete(ctx context.Context) error {
	if n.mode == Loopback {
		return nil
	}
	return n.deleteNamespaces(ctx)
}

// Cut takes the link of a zone down: no packet enters or leaves it any more,
// neither from other zones nor from the host.
func (n *Network) Cut(zone string) error { return n.setLink(zone, false) }

// Heal undoes Cut.
func (n *Network) Heal(zone string) error { return n.setLink(zone, true) }

func (n *Network) setLink(zone string, up bool) error {
	i, err := n.zoneNumber(zone)
	if err != nil {
		return err
	}
	if n.mode == Loopback {
		return fmt.Errorf("cutting the link of zone %s %w", zone, ErrNeedsNamespaces)
	}
	return n.setPort(i, up)
}

// LinkState is LinkUp or LinkDown. Zones on loopback addresses are always up.
func (n *Network) LinkState(zone string) (string, error) {
	i, err := n.zoneNumber(zone)
	if err != nil {
		return "", err
	}
	if n.mode == Loopback {
		return LinkUp, nil
	}
	up, err := n.portUp(i)
	if err != nil {
		return "", err
	}
	if up {
		return LinkUp, nil
	}
	return LinkDown, nil
}

// Do calls f on a thread that is inside the zone: sockets that f opens and
// processes that it starts belong to the zone. Goroutines that f starts do
// not. The empty zone, and every zone on loopback addresses, is the host.
func (n *Network) Do(zone string, f func() error) error {
	if zone == "" {
		return f()
	}
	if _, err := n.zoneNumber(zone); err != nil {
		return err
	}
	if n.mode == Loopback {
		return f()
	}
	return doIn(n.zoneNamespace(zone), f)
}

// NamespacePath is the file of a zone's network namespace; it is empty for the
// host and on loopback addresses.
func (n *Network) NamespacePath(zone string) string {
	if zone == "" || n.mode == Loopback {
		return ""
	}
	return namespacePath(n.zoneNamespace(zone))
}

// Shaper tells what gives links between zones delay and loss here, and why
// there is none when it is NoShaper. With Zonelink, a process that runs
// `fournines zonelink` with ForwarderConfig must be kept running while links
// have settings.
func (n *Network) Shaper() (Shaper, string) {
	n.shaperOnce.Do(func() {
		switch {
		case n.mode == Loopback:
			n.shaper, n.shaperWhy = NoShaper, ErrNeedsNamespaces.Error()
		case probeNetem() == nil:
			n.shaper = Netem
		default:
			n.shaper = Zonelink
			if err := ProbeTUN(); err != nil {
				n.shaper, n.shaperWhy = NoShaper, err.Error()
			}
		}
	})
	return n.shaper, n.shaperWhy
}

// ForwarderConfig is the configuration of the forwarder for this network, for
// `fournines zonelink --config`. The subnet must be known.
func (n *Network) ForwarderConfig() (ForwarderConfig, error) {
	if n.mode == Loopback {
		return ForwarderConfig{}, fmt.Errorf("a delay between zones %w", ErrNeedsNamespaces)
	}
	cfg := ForwarderConfig{
		Hub:     n.hubNamespace(),
		Control: n.cfg.ControlSocket,
		Links:   UniformLinks(n.cfg.Zones, n.cfg.Delay),
	}
	for i, z := range n.cfg.Zones {
		subnet, err := n.ZoneSubnet(z)
		if err != nil {
			return ForwarderConfig{}, err
		}
		source, err := n.Address(z, zoneHost)
		if err != nil {
			return ForwarderConfig{}, err
		}
		cfg.Zones = append(cfg.Zones, ForwarderZone{
			Name: z, Namespace: n.zoneNamespace(z), Subnet: subnet, Source: source, Port: portName(i + 1),
		})
	}
	return cfg, nil
}

// DefaultLinks are the settings that the configured delay amounts to.
func (n *Network) DefaultLinks() Links { return UniformLinks(n.cfg.Zones, n.cfg.Delay) }

// SetLinks replaces the settings of all links between zones. A link that is
// not named has no delay and no fault.
func (n *Network) SetLinks(ctx context.Context, links Links) error {
	if err := links.Validate(n.cfg.Zones); err != nil {
		return err
	}
	switch shaper, why := n.Shaper(); shaper {
	case Netem:
		return n.applyNetem(links)
	case Zonelink:
		return PutLinks(ctx, n.cfg.ControlSocket, links)
	default:
		return fmt.Errorf("settings of the links between zones are not possible here: %s", why)
	}
}

func (n *Network) zoneNamespace(zone string) string { return n.hostInterface() + "-" + zone }
func (n *Network) hubNamespace() string             { return n.hostInterface() + ".hub" }
func (n *Network) hostInterface() string            { return "fn" + n.cfg.ID }
func (n *Network) marker() string                   { return "fournines " + n.cfg.ID }
func portName(zone int) string                      { return "z" + strconv.Itoa(zone) }

// numbers are the last octets to be there, without repeats, zoneHost first.
func numbers(list []int) []int {
	out := []int{zoneHost}
	for _, x := range list {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// candidates are the values of N in the order in which they are tried. The
// start depends on the ID, so that stacks seldom meet; low numbers and those
// that common software uses come last.
func candidates(id string) []int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	start := int(h.Sum32() % 254)
	var out, last []int
	for k := range 254 {
		x := (start+k)%254 + 1
		switch {
		case x < 16, x == 42, x == 43, x == 88, x == 96, x == 100, x == 152, x == 244:
			last = append(last, x)
		default:
			out = append(out, x)
		}
	}
	return append(out, last...)
}

// chooseNumber takes the first candidate whose range meets none of used. When
// only wide ranges (a VPN that claims all of 10.0.0.0/8) are in the way, it
// takes one inside of them and says so.
func chooseNumber(id string, first byte, used []netip.Prefix) (number int, within netip.Prefix, err error) {
	for _, narrowOnly := range []bool{false, true} {
		for _, x := range candidates(id) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{first, byte(x)}), 16)
			var wide netip.Prefix
			if !slices.ContainsFunc(used, func(u netip.Prefix) bool {
				if !u.Overlaps(p) {
					return false
				}
				if narrowOnly && u.Bits() < 16 {
					wide = u
					return false
				}
				return true
			}) {
				return x, wide, nil
			}
		}
	}
	return 0, netip.Prefix{}, fmt.Errorf("no free range %d.N.0.0/16 for the zones: every one is in use by an address or route of this machine", first)
}
