package zonenet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName  = "br0"  // in the hub
	hubHostPort = "host" // in the hub, the way to the host
	zoneDevice  = "eth0" // in each zone
)

// lockPath serialises the changes of all stacks of the machine, so that two
// that start at once do not choose the same range.
const lockPath = "/run/fournines-zonenet.lock"

// Probe tells why zones cannot be network namespaces here; nil means they
// can. It tries: what it makes is gone when it returns.
func Probe() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				return errors.New("this root may not make network namespaces (a container without CAP_SYS_ADMIN?)")
			}
			return fmt.Errorf("the kernel makes no network namespaces: %w", err)
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("probe0")}); err != nil {
			return fmt.Errorf("the kernel makes no bridge (module \"bridge\"): %w", err)
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("probe1"), PeerName: "probe2"}); err != nil {
			return fmt.Errorf("the kernel makes no veth pair (module \"veth\"): %w", err)
		}
		if _, err := os.Stat("/proc/self/ns/net"); err != nil {
			return fmt.Errorf("/proc is needed for network namespaces: %w", err)
		}
		return nil
	})
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func markLoopback(marker string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetAlias(lo, marker); err != nil {
		return fmt.Errorf("mark the network namespace: %w", err)
	}
	return nil
}

// lockMachine waits for the lock of all stacks of this machine.
func lockMachine(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(lockPath, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the zone networks: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock the zone networks: %w", err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another stack is changing its zones (lock %s): %w", lockPath, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// space is an open namespace: a handle for its links and a descriptor to move
// links into it.
type space struct {
	*netlink.Handle
	ns netns.NsHandle
}

func openSpace(name string) (*space, error) {
	ns, err := netns.GetFromPath(namespacePath(name))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("open netlink in network namespace %s: %w", name, err)
	}
	return &space{Handle: h, ns: ns}, nil
}

func (s *space) close() {
	s.Close()
	_ = s.ns.Close()
}

// find returns nil without an error when there is no such link.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return l, nil
}

func (n *Network) ensureNamespaces(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	unlock, err := lockMachine(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	if err := n.settleNumber(host); err != nil {
		return err
	}
	hub, err := n.ensureSpace(n.hubNamespace())
	if err != nil {
		return err
	}
	defer hub.close()
	bridge, err := ensureBridge(hub)
	if err != nil {
		return err
	}
	if err := n.ensureHost(host, hub, bridge); err != nil {
		return err
	}
	for i, zone := range n.cfg.Zones {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := n.ensureZone(hub, bridge, i+1, zone); err != nil {
			return fmt.Errorf("zone %s: %w", zone, err)
		}
	}
	if n.cfg.Delay > 0 {
		if shaper, _ := n.Shaper(); shaper == Netem {
			return n.applyNetemLocked(n.DefaultLinks())
		}
	}
	return nil
}

// settleNumber finds the N of the subnet: the configured one, that of a
// network which is already there, or a free one.
func (n *Network) settleNumber(host *netlink.Handle) error {
	mine, err := find(host, n.hostInterface())
	if err != nil {
		return err
	}
	if mine != nil {
		if mine.Attrs().Alias != n.marker() && mine.Attrs().Alias != "" {
			return fmt.Errorf("interface %s exists and is not of this stack (alias %q): give the stack another name", n.hostInterface(), mine.Attrs().Alias)
		}
		if n.number == 0 {
			addrs, err := host.AddrList(mine, netlink.FAMILY_V4)
			if err != nil {
				return fmt.Errorf("list addresses of %s: %w", n.hostInterface(), err)
			}
			for _, a := range addrs {
				if b := a.IP.To4(); b != nil && b[0] == 10 && b[2] == 0 {
					n.number = int(b[1])
					return nil
				}
			}
		}
	}
	if n.number != 0 && mine != nil {
		return nil
	}
	used, err := usedPrefixes(host)
	if err != nil {
		return err
	}
	if n.number != 0 {
		want := netip.PrefixFrom(n.addr(0, 0), 16)
		for _, u := range used {
			if u.Bits() >= 16 && u.Overlaps(want) {
				return fmt.Errorf("subnet %s is in use on this machine (%s): choose another one or \"auto\"", want, u)
			}
		}
		return nil
	}
	number, within, err := chooseNumber(n.cfg.ID, 10, used)
	if err != nil {
		return err
	}
	n.number = number
	if within.IsValid() {
		n.logger.Warn("the zones take a part of a range that this machine has a route to", "subnet", n.addr(0, 0).String()+"/16", "route", within.String())
	}
	return nil
}

// usedPrefixes are the ranges of every address and every route of the host,
// in all tables, without default routes.
func usedPrefixes(host *netlink.Handle) ([]netip.Prefix, error) {
	var out []netip.Prefix
	add := func(ipn *net.IPNet) {
		if ipn == nil {
			return
		}
		ip, ok := netip.AddrFromSlice(ipn.IP.To4())
		ones, _ := ipn.Mask.Size()
		if !ok || ones == 0 {
			return
		}
		out = append(out, netip.PrefixFrom(ip, ones).Masked())
	}
	addrs, err := host.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this machine: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	routes, err := host.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the routes of this machine: %w", err)
	}
	for _, r := range routes {
		add(r.Dst)
	}
	return out, nil
}

// ensureSpace makes the namespace when it is missing and sets what must hold
// in each of them.
func (n *Network) ensureSpace(name string) (*space, error) {
	exists, err := namespaceExists(name)
	if err != nil {
		return nil, err
	}
	if !exists {
		if err := createNamespace(name, n.marker()); err != nil {
			return nil, err
		}
	}
	s, err := openSpace(name)
	if err != nil {
		return nil, err
	}
	lo, err := s.LinkByName("lo")
	if err == nil && lo.Attrs().Alias != n.marker() {
		err = fmt.Errorf("network namespace %s exists and is not of this stack: give the stack another name", name)
	}
	if err == nil {
		err = s.LinkSetUp(lo)
	}
	if err == nil {
		err = doIn(name, func() error {
			// Packets between two zones may come in by the bridge and leave by
			// the forwarder while the latter starts or ends. A new namespace
			// inherits the host's reverse path filter, which would drop them.
			return errors.Join(
				setNetSysctl("ipv4/conf/all/rp_filter", "0"),
				setNetSysctl("ipv4/conf/default/rp_filter", "0"),
				setNetSysctl("bridge/bridge-nf-call-iptables", "0"),
			)
		})
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func ensureBridge(hub *space) (netlink.Link, error) {
	br, err := find(hub.Handle, bridgeName)
	if err != nil {
		return nil, err
	}
	if br == nil {
		if err := hub.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(bridgeName)}); err != nil {
			return nil, fmt.Errorf("make bridge: %w", err)
		}
		if br, err = hub.LinkByName(bridgeName); err != nil {
			return nil, fmt.Errorf("look up bridge: %w", err)
		}
	}
	if err := hub.LinkSetUp(br); err != nil {
		return nil, fmt.Errorf("set bridge up: %w", err)
	}
	return br, nil
}

// ensurePair makes sure that port in the hub and device in far are the two
// ends of one veth pair, both up, and that port is on the bridge. The device
// has the given hardware address, so that it keeps it when the pair is made
// anew and no neighbour goes on sending to the old one.
func ensurePair(hub *space, bridge netlink.Link, port string, far *netlink.Handle, farNs netns.NsHandle, device string, mac net.HardwareAddr) (netlink.Link, error) {
	near, err := find(hub.Handle, port)
	if err != nil {
		return nil, err
	}
	end, err := find(far, device)
	if err != nil {
		return nil, err
	}
	paired := near != nil && end != nil &&
		near.Attrs().ParentIndex == end.Attrs().Index && end.Attrs().ParentIndex == near.Attrs().Index
	if !paired {
		// Half of a pair is of no use; deleting one end deletes the other.
		if near != nil {
			if err := hub.LinkDel(near); err != nil {
				return nil, fmt.Errorf("remove interface %s: %w", port, err)
			}
		}
		if end, err = find(far, device); err != nil {
			return nil, err
		}
		if end != nil {
			if err := far.LinkDel(end); err != nil {
				return nil, fmt.Errorf("remove interface %s: %w", device, err)
			}
		}
		veth := &netlink.Veth{LinkAttrs: attrs(port), PeerName: device, PeerNamespace: netlink.NsFd(int(farNs)), PeerHardwareAddr: mac}
		if err := hub.LinkAdd(veth); err != nil {
			return nil, fmt.Errorf("make veth pair %s-%s: %w", port, device, err)
		}
		if near, err = hub.LinkByName(port); err != nil {
			return nil, fmt.Errorf("look up interface %s: %w", port, err)
		}
		if end, err = far.LinkByName(device); err != nil {
			return nil, fmt.Errorf("look up interface %s: %w", device, err)
		}
	}
	if !bytes.Equal(end.Attrs().HardwareAddr, mac) {
		if err := far.LinkSetHardwareAddr(end, mac); err != nil {
			return nil, fmt.Errorf("set hardware address of %s: %w", device, err)
		}
	}
	if near.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := hub.LinkSetMaster(near, bridge); err != nil {
			return nil, fmt.Errorf("put %s on the bridge: %w", port, err)
		}
	}
	if err := hub.LinkSetUp(near); err != nil {
		return nil, fmt.Errorf("set interface %s up: %w", port, err)
	}
	if err := far.LinkSetUp(end); err != nil {
		return nil, fmt.Errorf("set interface %s up: %w", device, err)
	}
	return end, nil
}

// ensureAddresses gives the link exactly these addresses. The first has the
// whole subnet as its prefix and is thereby the default source; the others are
// /32, so that the kernel does not tie them to the first one's life.
func (n *Network) ensureAddresses(h *netlink.Handle, link netlink.Link, zone int, list []int) error {
	name := link.Attrs().Name
	have, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	want := map[string]bool{}
	for k, x := range numbers(list) {
		bits := 32
		if k == 0 {
			bits = 16
		}
		want[netip.PrefixFrom(n.addr(zone, x), bits).String()] = true
	}
	for _, a := range have {
		if want[a.IPNet.String()] {
			delete(want, a.IPNet.String())
			continue
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, name, err)
		}
	}
	for p := range want {
		a, err := netlink.ParseAddr(p)
		if err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
		if err := h.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return nil
}

// hardwareAddr is a locally administered address, the same for ever for the
// same place.
func (n *Network) hardwareAddr(zone int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'f', 'n', 10, byte(n.number), byte(zone)}
}

func (n *Network) ensureHost(host *netlink.Handle, hub *space, bridge netlink.Link) error {
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer home.Close()
	link, err := ensurePair(hub, bridge, hubHostPort, host, home, n.hostInterface(), n.hardwareAddr(0))
	if err != nil {
		return err
	}
	if link.Attrs().Alias != n.marker() {
		if err := host.LinkSetAlias(link, n.marker()); err != nil {
			return fmt.Errorf("mark interface %s: %w", n.hostInterface(), err)
		}
	}
	return n.ensureAddresses(host, link, 0, n.cfg.HostNumbers)
}

func (n *Network) ensureZone(hub *space, bridge netlink.Link, i int, zone string) error {
	s, err := n.ensureSpace(n.zoneNamespace(zone))
	if err != nil {
		return err
	}
	defer s.close()
	link, err := ensurePair(hub, bridge, portName(i), s.Handle, s.ns, zoneDevice, n.hardwareAddr(i))
	if err != nil {
		return err
	}
	return n.ensureAddresses(s.Handle, link, i, n.cfg.ZoneNumbers[zone])
}

func (n *Network) deleteNamespaces(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	unlock, err := lockMachine(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer host.Close()
	var errs []error
	// Every pair has one end in the hub. They are deleted by hand, because a
	// process that is still in a namespace keeps its links alive.
	if err := n.deleteHubLinks(); err != nil {
		errs = append(errs, err)
	}
	if link, err := find(host, n.hostInterface()); err != nil {
		errs = append(errs, err)
	} else if link != nil && link.Attrs().Alias == n.marker() {
		if err := host.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", n.hostInterface(), err))
		}
	}
	entries, err := os.ReadDir(namespaceDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list network namespaces: %w", err))
	}
	for _, e := range entries {
		name := e.Name()
		if name != n.hubNamespace() && !strings.HasPrefix(name, n.hostInterface()+"-") {
			continue
		}
		mine, err := n.ownsNamespace(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if mine {
			if err := removeNamespace(name); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// ownsNamespace tells whether this stack made what has the name. A plain file
// with one of our names is what an interrupted Ensure leaves.
func (n *Network) ownsNamespace(name string) (bool, error) {
	exists, err := namespaceExists(name)
	if err != nil {
		return false, err
	}
	if !exists {
		return true, nil
	}
	s, err := openSpace(name)
	if err != nil {
		return false, err
	}
	defer s.close()
	lo, err := s.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("look at network namespace %s: %w", name, err)
	}
	return lo.Attrs().Alias == n.marker(), nil
}

func (n *Network) deleteHubLinks() error {
	exists, err := namespaceExists(n.hubNamespace())
	if err != nil || !exists {
		return err
	}
	if mine, err := n.ownsNamespace(n.hubNamespace()); err != nil || !mine {
		return err
	}
	hub, err := openSpace(n.hubNamespace())
	if err != nil {
		return err
	}
	defer hub.close()
	links, err := hub.LinkList()
	if err != nil {
		return fmt.Errorf("list the links of the hub: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "veth" && l.Type() != "bridge" {
			continue
		}
		if err := hub.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s from the hub: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func (n *Network) withPort(zone int, f func(*space, netlink.Link) error) error {
	hub, err := openSpace(n.hubNamespace())
	if err != nil {
		return err
	}
	defer hub.close()
	port, err := hub.LinkByName(portName(zone))
	if err != nil {
		return fmt.Errorf("look up the link of zone %s: %w", n.cfg.Zones[zone-1], err)
	}
	return f(hub, port)
}

func (n *Network) setPort(zone int, up bool) error {
	return n.withPort(zone, func(hub *space, port netlink.Link) error {
		set := hub.LinkSetDown
		if up {
			set = hub.LinkSetUp
		}
		if err := set(port); err != nil {
			return fmt.Errorf("change the link of zone %s: %w", n.cfg.Zones[zone-1], err)
		}
		return nil
	})
}

func (n *Network) portUp(zone int) (up bool, err error) {
	err = n.withPort(zone, func(_ *space, port netlink.Link) error {
		up = port.Attrs().Flags&net.FlagUp != 0
		return nil
	})
	return up, err
}
