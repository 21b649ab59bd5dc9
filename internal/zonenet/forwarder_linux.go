package zonenet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tunName is the forwarder's device in each zone.
const tunName = "zonelink"

// Forwarder carries the packets between the zones of a stack through this
// process, to give each direction of each link its delay, loss and rate.
//
// It has one TUN device in each zone, with routes to the other zones that are
// more specific than the bridge's. The devices and routes vanish with the
// process, whatever ended it: traffic then takes the bridge, without delay or
// faults, and connections live on because no address has changed. The next
// forwarder inserts itself in the same way.
type Forwarder struct {
	cfg     ForwarderConfig
	logger  *slog.Logger
	bufs    *buffers
	pipes   [][]*pipe // by sending and receiving zone; nil for a zone to itself
	zones   []*forwarderZone
	subnets []netip.Prefix
	ready   chan struct{}

	mu    sync.Mutex // serialises SetLinks
	links Links
}

type forwarderZone struct {
	ForwarderZone
	down    atomic.Bool // its port in the hub is down
	tun     *os.File
	running bool // tun may be used; guarded by Forwarder.mu
}

// NewForwarder checks cfg and prepares everything that needs no rights.
func NewForwarder(cfg ForwarderConfig, logger *slog.Logger, reg prometheus.Registerer) (*Forwarder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("zonelink: %w", err)
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultForwarderMTU
	}
	f := &Forwarder{cfg: cfg, logger: logger, bufs: newBuffers(), ready: make(chan struct{})}
	labels := []string{"from", "to"}
	packets := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fournines_zonelink_packets_total", Help: "Packets delivered to another zone.",
	}, labels)
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fournines_zonelink_bytes_total", Help: "Bytes of the packets delivered to another zone.",
	}, labels)
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fournines_zonelink_dropped_packets_total",
		Help: "Packets that did not arrive: lost or dropped by the link's settings, cut with a zone, overflow of the queue, refused by the kernel.",
	}, append(labels, "reason"))
	for _, c := range []prometheus.Collector{packets, bytes, dropped} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("zonelink: register metrics: %w", err)
		}
	}
	clock := time.Now()
	for _, z := range cfg.Zones {
		f.zones = append(f.zones, &forwarderZone{ForwarderZone: z})
		f.subnets = append(f.subnets, netip.MustParsePrefix(z.Subnet).Masked())
	}
	for i, from := range f.zones {
		row := make([]*pipe, len(f.zones))
		for j, to := range f.zones {
			if i == j {
				continue
			}
			reason := func(r string) prometheus.Counter { return dropped.WithLabelValues(from.Name, to.Name, r) }
			row[j] = newPipe(clock, f.bufs, pipeStats{
				packets: packets.WithLabelValues(from.Name, to.Name),
				bytes:   bytes.WithLabelValues(from.Name, to.Name),
				lost:    reason("loss"), dropped: reason("drop"), cut: reason("cut"),
				overflow: reason("overflow"), writeError: reason("write"),
			}, func() bool { return from.down.Load() || to.down.Load() },
				func(b []byte) error { _, err := to.tun.Write(b); return err })
		}
		f.pipes = append(f.pipes, row)
	}
	if err := f.SetLinks(cfg.Links); err != nil {
		return nil, err
	}
	return f, nil
}

// Ready is closed when the forwarder carries the traffic of all zones.
func (f *Forwarder) Ready() <-chan struct{} { return f.ready }

// Links returns the settings in force.
func (f *Forwarder) Links() Links {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.links.Clone()
}

// SetLinks replaces the settings of all links, or none when one is wrong. A
// packet that already waits keeps its time.
func (f *Forwarder) SetLinks(links Links) error {
	names := make([]string, 0, len(f.zones))
	for _, z := range f.zones {
		names = append(names, z.Name)
	}
	if err := links.Validate(names); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.links = links.Clone()
	for i, from := range f.zones {
		for j, to := range f.zones {
			if i != j {
				link := links.Get(from.Name, to.Name)
				f.pipes[i][j].link.Store(&link)
			}
		}
		if from.running {
			if err := f.setOffload(from); err != nil {
				return err
			}
		}
	}
	return nil
}

// setOffload lets the kernel hand over segments of up to 64 KiB, except where
// packets get lost or are rate limited: there one packet is one packet.
// Needs f.mu.
func (f *Forwarder) setOffload(z *forwarderZone) error {
	offload := unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
	for _, l := range f.links[z.Name] {
		if l.Loss > 0 || l.Rate > 0 {
			offload = unix.TUN_F_CSUM
		}
	}
	raw, err := z.tun.SyscallConn()
	if err != nil {
		return fmt.Errorf("zone %s: device: %w", z.Name, err)
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offload)
	}); err != nil {
		ioctlErr = err
	}
	if ioctlErr != nil {
		return fmt.Errorf("zone %s: set offload: %w", z.Name, ioctlErr)
	}
	return nil
}

// ProbeTUN tells why the forwarder cannot run here; nil means it can.
func ProbeTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return errors.New("there is no /dev/net/tun (load the module \"tun\", or give the container that device)")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errors.New("/dev/net/tun may not be opened (it needs root, or a container with that device)")
	case err != nil:
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	return unix.Close(fd)
}

// Run carries packets until ctx ends. It fails when a zone is missing, or when
// another forwarder is in place.
func (f *Forwarder) Run(ctx context.Context) error {
	if err := ProbeTUN(); err != nil {
		return fmt.Errorf("zonelink: %w", err)
	}
	namespaces, err := f.namespaceIDs()
	if err != nil {
		return fmt.Errorf("zonelink: %w", err)
	}
	for _, z := range f.zones {
		tun, err := openTUN(z.Namespace, f.cfg.MTU)
		if err != nil {
			f.closeTUNs()
			return fmt.Errorf("zonelink: zone %s: %w", z.Name, err)
		}
		z.tun = tun
	}
	var group sync.WaitGroup
	asked := ctx
	ctx, cancel := context.WithCancelCause(asked)
	defer func() {
		cancel(nil)
		f.closeTUNs() // ends the readers
		group.Wait()
	}()
	f.mu.Lock()
	for _, z := range f.zones {
		z.running = true
		if err := f.setOffload(z); err != nil {
			f.mu.Unlock()
			return fmt.Errorf("zonelink: %w", err)
		}
	}
	f.mu.Unlock()
	if f.cfg.Hub != "" {
		stop, err := f.watchPorts(&group, cancel)
		if err != nil {
			return fmt.Errorf("zonelink: %w", err)
		}
		defer stop()
	}
	for i := range f.zones {
		group.Go(func() {
			if err := f.read(ctx, i); err != nil {
				cancel(fmt.Errorf("zonelink: zone %s: %w", f.zones[i].Name, err))
			}
		})
		for j := range f.zones {
			if i != j {
				group.Go(func() { f.pipes[i][j].run(ctx) })
			}
		}
	}
	// The routes come last: from here on the devices are in use.
	for i, z := range f.zones {
		if err := f.addRoutes(i); err != nil {
			return fmt.Errorf("zonelink: zone %s: %w", z.Name, err)
		}
	}
	f.logger.Info("zones are connected", "zones", len(f.zones), "mtu", f.cfg.MTU)
	close(f.ready)
	check := time.NewTicker(time.Second)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			if asked.Err() != nil {
				return nil
			}
			return context.Cause(ctx)
		case <-check.C:
			if err := f.sameNamespaces(namespaces); err != nil {
				return fmt.Errorf("zonelink: %w", err)
			}
		}
	}
}

// namespaceIDs identifies the namespaces that the forwarder works in.
func (f *Forwarder) namespaceIDs() (map[string]uint64, error) {
	names := []string{}
	if f.cfg.Hub != "" {
		names = append(names, f.cfg.Hub)
	}
	for _, z := range f.zones {
		names = append(names, z.Namespace)
	}
	ids := map[string]uint64{}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(namespacePath(name), &st); err != nil {
			return nil, fmt.Errorf("look at network namespace %s: %w", name, err)
		}
		ids[name] = st.Ino
	}
	return ids, nil
}

// sameNamespaces fails when a zone was deleted or made anew: the devices of
// this forwarder are in the old one, and only a new start gets to the new one.
func (f *Forwarder) sameNamespaces(want map[string]uint64) error {
	got, err := f.namespaceIDs()
	if err != nil {
		return err
	}
	for name, id := range want {
		if got[name] != id {
			return fmt.Errorf("network namespace %s was made anew", name)
		}
	}
	return nil
}

func (f *Forwarder) closeTUNs() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, z := range f.zones {
		z.running = false
		if z.tun != nil {
			_ = z.tun.Close()
		}
	}
}

// openTUN makes the device in a zone and sets it up.
func openTUN(namespace string, mtu int) (tun *os.File, err error) {
	err = doIn(namespace, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq(tunName)
		if err == nil {
			ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			_ = unix.Close(fd)
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("device %s is in use: another forwarder serves this stack", tunName)
			}
			return fmt.Errorf("make device %s: %w", tunName, err)
		}
		// Only now may the descriptor meet the poller: before TUNSETIFF it
		// cannot be polled.
		tun = os.NewFile(uintptr(fd), tunName)
		if err := errors.Join(
			setNetSysctl("ipv6/conf/"+tunName+"/disable_ipv6", "1"),
			setNetSysctl("ipv4/conf/"+tunName+"/rp_filter", "0"),
		); err != nil {
			return err
		}
		link, err := netlink.LinkByName(tunName)
		if err != nil {
			return fmt.Errorf("look up device: %w", err)
		}
		return errors.Join(
			netlink.LinkSetMTU(link, mtu),
			netlink.LinkSetTxQLen(link, 2000),
			netlink.LinkSetUp(link),
		)
	})
	if err != nil && tun != nil {
		_ = tun.Close()
	}
	return tun, err
}

func (f *Forwarder) addRoutes(i int) error {
	z := f.zones[i]
	return doIn(z.Namespace, func() error {
		link, err := netlink.LinkByName(tunName)
		if err != nil {
			return fmt.Errorf("look up device: %w", err)
		}
		for j, subnet := range f.subnets {
			if i == j {
				continue
			}
			route := &netlink.Route{
				LinkIndex: link.Attrs().Index,
				Scope:     netlink.SCOPE_LINK,
				Dst:       &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)},
				Src:       net.ParseIP(z.Source),
			}
			if err := netlink.RouteReplace(route); err != nil {
				return fmt.Errorf("add route to %s: %w", subnet, err)
			}
		}
		return nil
	})
}

// read takes the packets that zone i sends.
func (f *Forwarder) read(ctx context.Context, i int) error {
	z := f.zones[i]
	scratch := f.bufs.large.Get().(*[]byte)
	defer func() { f.bufs.put(scratch) }()
	for {
		n, err := z.tun.Read(*scratch)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EIO) { // the device is administratively down
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("read from device (was the zone deleted?): %w", err)
		}
		j, ok := f.destination((*scratch)[:n])
		if !ok || j == i {
			continue
		}
		kept, next := f.bufs.keep(scratch, n)
		scratch = next
		f.pipes[i][j].send(kept, n)
	}
}

// destination finds the zone of an IPv4 packet behind its vnet header.
func (f *Forwarder) destination(b []byte) (int, bool) {
	const ipv4Header = 20
	if len(b) < vnetHeaderLen+ipv4Header || b[vnetHeaderLen]>>4 != 4 {
		return 0, false
	}
	dst := netip.AddrFrom4([4]byte(b[vnetHeaderLen+16 : vnetHeaderLen+20]))
	for j, p := range f.subnets {
		if p.Contains(dst) {
			return j, true
		}
	}
	return 0, false
}

// watchPorts follows the state of the zones' ports in the hub, from which Cut
// takes a zone away.
func (f *Forwarder) watchPorts(group *sync.WaitGroup, fail context.CancelCauseFunc) (stop func(), err error) {
	hub, err := netns.GetFromPath(namespacePath(f.cfg.Hub))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", f.cfg.Hub, err)
	}
	defer hub.Close()
	updates := make(chan netlink.LinkUpdate)
	done := make(chan struct{})
	stopping := make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		Namespace: &hub, ListExisting: true,
		ErrorCallback: func(err error) {
			select {
			case <-stopping: // the end of the watch is reported as an error
			default:
				f.logger.Warn("watch of the zones' ports", "err", err)
			}
		},
	}); err != nil {
		return nil, fmt.Errorf("watch the ports of the zones: %w", err)
	}
	byPort := map[string]*forwarderZone{}
	for _, z := range f.zones {
		byPort[z.Port] = z
	}
	group.Go(func() {
		for u := range updates {
			z := byPort[u.Attrs().Name]
			if z == nil {
				continue
			}
			down := u.Attrs().Flags&net.FlagUp == 0 || u.Header.Type == unix.RTM_DELLINK
			if z.down.Swap(down) != down {
				f.logger.Info("the link of a zone changed", "zone", z.Name, "down", down)
			}
		}
		select {
		case <-stopping:
		default:
			fail(errors.New("zonelink: the watch of the zones' ports ended"))
		}
	})
	return func() { close(stopping); close(done) }, nil
}
