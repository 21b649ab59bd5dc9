package zonenet

import (
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tree on a zone's eth0: an HTB root that lets everything pass unshaped
// (class 0 is "direct"), one class per other zone that a u32 filter on the
// destination leads to, and a netem leaf below it. So packets to and from the
// host are never touched.
const (
	htbMajor     = 1
	netemLimit   = 50_000 // packets; 10 s at 5000 packets/s, 1.6 GB/s of 64 KiB packets at 15 ms
	unshapedRate = 40_000_000_000
)

// probeNetem tells why netem cannot be used. It tries the whole tree on an
// interface that is gone when it returns.
func probeNetem() error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs("probe1"), PeerName: "probe2"}); err != nil {
			return fmt.Errorf("make veth pair: %w", err)
		}
		link, err := netlink.LinkByName("probe1")
		if err != nil {
			return fmt.Errorf("look up veth: %w", err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		if err := setShapingRoot(h, link); err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR("10.1.2.0/24")
		if err := setShapingClass(h, link, 2, dst); err != nil {
			return err
		}
		return setNetem(h, link, 2, Link{Delay: Duration(time.Millisecond)})
	})
}

func (n *Network) applyNetem(links Links) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applyNetemLocked(links)
}

func (n *Network) applyNetemLocked(links Links) error {
	for _, from := range n.cfg.Zones {
		if err := n.applyNetemZone(from, links[from]); err != nil {
			return fmt.Errorf("zone %s: %w", from, err)
		}
	}
	return nil
}

func (n *Network) applyNetemZone(from string, row map[string]Link) error {
	s, err := openSpace(n.zoneNamespace(from))
	if err != nil {
		return err
	}
	defer s.close()
	link, err := s.LinkByName(zoneDevice)
	if err != nil {
		return fmt.Errorf("look up %s: %w", zoneDevice, err)
	}
	qdiscs, err := s.QdiscList(link)
	if err != nil {
		return fmt.Errorf("list queueing disciplines: %w", err)
	}
	shaped := false
	for _, q := range qdiscs {
		shaped = shaped || q.Type() == "htb"
	}
	if !shaped {
		if err := setShapingRoot(s.Handle, link); err != nil {
			return err
		}
		for j, to := range n.cfg.Zones {
			if to == from {
				continue
			}
			dst := &net.IPNet{IP: n.addr(j+1, 0).AsSlice(), Mask: net.CIDRMask(24, 32)}
			if err := setShapingClass(s.Handle, link, j+1, dst); err != nil {
				return err
			}
		}
	}
	for j, to := range n.cfg.Zones {
		if to == from {
			continue
		}
		if err := setNetem(s.Handle, link, j+1, row[to]); err != nil {
			return err
		}
	}
	return nil
}

func setShapingRoot(h *netlink.Handle, link netlink.Link) error {
	root := netlink.NewHtb(netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(htbMajor, 0), Parent: netlink.HANDLE_ROOT,
	})
	if err := h.QdiscReplace(root); err != nil {
		return fmt.Errorf("add htb (module \"sch_htb\"): %w", err)
	}
	return nil
}

// setShapingClass makes class zone+1, since minor number 0 is the root.
func setShapingClass(h *netlink.Handle, link netlink.Link, zone int, dst *net.IPNet) error {
	class := netlink.NewHtbClass(netlink.ClassAttrs{
		LinkIndex: link.Attrs().Index,
		Parent:    netlink.MakeHandle(htbMajor, 0),
		Handle:    netlink.MakeHandle(htbMajor, uint16(zone)+1),
	}, netlink.HtbClassAttrs{Rate: unshapedRate, Quantum: 200_000})
	if err := h.ClassReplace(class); err != nil {
		return fmt.Errorf("add htb class: %w", err)
	}
	ip := dst.IP.To4()
	ones, _ := dst.Mask.Size()
	const destinationOffset = 16 // in the IPv4 header
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.MakeHandle(htbMajor, 0),
			Priority: uint16(zone), Protocol: unix.ETH_P_IP,
		},
		ClassId: netlink.MakeHandle(htbMajor, uint16(zone)+1),
		Sel: &netlink.TcU32Sel{
			Flags: netlink.TC_U32_TERMINAL, Nkeys: 1,
			Keys: []netlink.TcU32Key{{
				Mask: ^uint32(0) << (32 - ones),
				Val:  uint32(ip[0])<<24 | uint32(ip[1])<<16 | uint32(ip[2])<<8 | uint32(ip[3]),
				Off:  destinationOffset,
			}},
		},
	}
	if err := h.FilterAdd(filter); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add u32 filter (module \"cls_u32\"): %w", err)
	}
	return nil
}

func setNetem(h *netlink.Handle, link netlink.Link, zone int, l Link) error {
	loss := float32(l.Loss * 100)
	if l.Drop {
		loss = 100
	}
	q := netlink.NewNetem(netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Parent:    netlink.MakeHandle(htbMajor, uint16(zone)+1),
		Handle:    netlink.MakeHandle(uint16(zone)+100, 0),
	}, netlink.NetemQdiscAttrs{
		Latency: microseconds(l.Delay), Jitter: microseconds(l.Jitter), Loss: loss, Limit: netemLimit,
	})
	q.Rate64 = uint64(l.Rate)
	if err := h.QdiscReplace(q); err != nil {
		return fmt.Errorf("add netem (module \"sch_netem\"): %w", err)
	}
	return nil
}

func microseconds(d Duration) uint32 {
	return uint32(min(time.Duration(d).Microseconds(), math.MaxUint32))
}
