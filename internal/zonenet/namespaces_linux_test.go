package zonenet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"fournines/internal/eventually"
)

const (
	patience = 30 * time.Second
	echoPort = "7007"
)

// testNetwork makes a network with a name of its own and removes it at the end.
func testNetwork(tb testing.TB, change func(*Config)) *Network {
	tb.Helper()
	if err := Probe(); err != nil {
		tb.Skip(err)
	}
	cfg := Config{
		ID: fmt.Sprintf("t%04x", rand.N(0x10000)), Mode: Namespaces, Zones: []string{"a", "b", "c"},
		HostNumbers:   []int{2},
		ZoneNumbers:   map[string][]int{"a": {10, 20}, "b": {10, 20}, "c": {10}},
		ControlSocket: tb.TempDir() + "/zonelink.sock",
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := n.Delete(context.Background()); err != nil {
			tb.Errorf("delete: %v", err)
		}
		if left := leftovers(tb, cfg.ID); left != "" {
			tb.Errorf("delete left %s", left)
		}
	})
	if err := n.Ensure(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return n
}

// leftovers lists what a network has on the machine.
func leftovers(tb testing.TB, id string) string {
	tb.Helper()
	var out []string
	entries, _ := os.ReadDir(namespaceDir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "fn"+id) {
			out = append(out, "namespace "+e.Name())
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "fn"+id) {
			out = append(out, "link "+l.Attrs().Name)
		}
	}
	return strings.Join(out, ", ")
}

func address(t testing.TB, n *Network, zone string, x int) string {
	t.Helper()
	a, err := n.Address(zone, x)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(a, echoPort)
}

// listen opens a listener in a zone that is closed at the end of the test.
func listen(t testing.TB, n *Network, zone, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	if err := n.Do(zone, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// echoServer serves an echo in a zone.
func echoServer(t testing.TB, n *Network, zone, addr string) {
	t.Helper()
	ln := listen(t, n, zone, addr)
	var group sync.WaitGroup
	conns := make(chan net.Conn, 1024)
	group.Go(func() {
		defer close(conns)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- c
			group.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		for c := range conns {
			_ = c.Close()
		}
		group.Wait()
	})
}

// dial connects from inside a zone.
func dial(n *Network, zone, addr string, timeout time.Duration) (c net.Conn, err error) {
	err = n.Do(zone, func() (err error) {
		c, err = net.DialTimeout("tcp", addr, timeout)
		return err
	})
	return c, err
}

// ask makes one connection from a zone and one echo over it.
func ask(n *Network, zone, addr string, timeout time.Duration) error {
	c, err := dial(n, zone, addr, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	return ping(c, timeout)
}

func ping(c net.Conn, timeout time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if string(b[:]) != "ping" {
		return fmt.Errorf("got %q", b)
	}
	return nil
}

func TestNamespacesReachEveryAddress(t *testing.T) {
	n := testNetwork(t, nil)
	all := []struct {
		zone string
		x    int
	}{{"", 1}, {"", 2}, {"a", 1}, {"a", 10}, {"a", 20}, {"b", 10}, {"b", 20}, {"c", 10}}
	for _, to := range all {
		echoServer(t, n, to.zone, address(t, n, to.zone, to.x))
	}
	for _, from := range []string{"", "a", "b", "c"} {
		for _, to := range all {
			if err := ask(n, from, address(t, n, to.zone, to.x), patience); err != nil {
				t.Errorf("from %q to %q %d: %v", from, to.zone, to.x, err)
			}
		}
	}
	// The caller's zone is known by the source address.
	ln := listen(t, n, "", strings.Replace(address(t, n, "", 1), echoPort, "7008", 1))
	c, err := dial(n, "b", ln.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want, _ := n.Address("b", 1)
	if got, _, _ := net.SplitHostPort(c.LocalAddr().String()); got != want {
		t.Errorf("source address in b is %s, want %s", got, want)
	}
}

func TestEnsureRepairs(t *testing.T) {
	n := testNetwork(t, nil)
	subnet := n.Subnet()
	works := func(t *testing.T) {
		t.Helper()
		if err := n.Ensure(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, zone := range []string{"a", "b"} {
			ln := listen(t, n, zone, address(t, n, zone, 10))
			for _, from := range []string{"", "c"} {
				c, err := dial(n, from, ln.Addr().String(), patience)
				if err != nil {
					t.Fatalf("from %q to %s: %v", from, zone, err)
				}
				_ = c.Close()
			}
			_ = ln.Close()
		}
	}
	damage := map[string]func() error{
		"nothing":  func() error { return nil },
		"hub gone": func() error { return removeNamespace(n.hubNamespace()) },
		"zone gone, name left": func() error {
			if err := removeNamespace(n.zoneNamespace("a")); err != nil {
				return err
			}
			return os.WriteFile(namespacePath(n.zoneNamespace("a")), nil, 0o444)
		},
		"host interface gone": func() error {
			l, err := netlink.LinkByName(n.hostInterface())
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		},
		"link of a zone gone": func() error {
			return doIn(n.zoneNamespace("b"), func() error {
				l, err := netlink.LinkByName(zoneDevice)
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			})
		},
		"address gone and a foreign one there": func() error {
			return doIn(n.zoneNamespace("a"), func() error {
				l, err := netlink.LinkByName(zoneDevice)
				if err != nil {
					return err
				}
				addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				for _, a := range addrs {
					if err := netlink.AddrDel(l, &a); err != nil {
						return err
					}
				}
				a, err := netlink.ParseAddr("192.0.2.77/24")
				if err != nil {
					return err
				}
				return netlink.AddrAdd(l, a)
			})
		},
		"bridge gone": func() error {
			return doIn(n.hubNamespace(), func() error {
				l, err := netlink.LinkByName(bridgeName)
				if err != nil {
					return err
				}
				return netlink.LinkDel(l)
			})
		},
		"zone cut": func() error { return n.Cut("a") },
	}
	for name, damageIt := range damage {
		t.Run(name, func(t *testing.T) {
			if err := damageIt(); err != nil {
				t.Fatal(err)
			}
			works(t)
		})
	}
	if n.Subnet() != subnet {
		t.Errorf("subnet changed from %s to %s", subnet, n.Subnet())
	}
	// A new process finds the subnet of the network that is there.
	again, err := New(n.cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Ensure(t.Context()); err != nil || again.Subnet() != subnet {
		t.Errorf("second process: subnet %s, %v; want %s", again.Subnet(), err, subnet)
	}
}

func TestDeleteRemovesOldZonesAndNothingElse(t *testing.T) {
	n := testNetwork(t, nil)
	other := testNetwork(t, nil)
	if n.Subnet() == other.Subnet() {
		t.Errorf("two networks share %s", n.Subnet())
	}
	// A namespace with one of our names that we did not make.
	foreign := n.zoneNamespace("foreign")
	if err := createNamespace(foreign, "of somebody else"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = removeNamespace(foreign) })
	cfg := n.cfg
	cfg.Zones, cfg.ZoneNumbers = []string{"x"}, nil
	renamed, err := New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := renamed.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := leftovers(t, n.cfg.ID), "namespace "+foreign; got != want {
		t.Errorf("left %q, want %q", got, want)
	}
	if err := removeNamespace(foreign); err != nil {
		t.Fatal(err)
	}
	if err := renamed.Delete(t.Context()); err != nil {
		t.Errorf("second delete: %v", err)
	}
	echoServer(t, other, "a", address(t, other, "a", 10))
	if err := ask(other, "b", address(t, other, "a", 10), patience); err != nil {
		t.Errorf("the other network is broken: %v", err)
	}
}

func TestStacksStartAtOnce(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skip(err)
	}
	// The same first candidate for all of them.
	base := fmt.Sprintf("t%03x", rand.N(0x1000))
	networks := make([]*Network, 3)
	errs := make([]error, len(networks))
	var group sync.WaitGroup
	for i := range networks {
		n, err := New(Config{ID: fmt.Sprintf("%s%d", base, i), Mode: Namespaces, Zones: []string{"a", "b"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		networks[i] = n
		t.Cleanup(func() {
			if err := n.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() { errs[i] = n.Ensure(t.Context()) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, n := range networks {
		if seen[n.Subnet()] {
			t.Errorf("subnet %s twice", n.Subnet())
		}
		seen[n.Subnet()] = true
	}
	clash, err := New(Config{ID: base + "x", Mode: Namespaces, Zones: []string{"a"}, Subnet: networks[0].Subnet()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := clash.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use on this machine") {
		t.Errorf("a subnet in use: %v", err)
	}
	if left := leftovers(t, base+"x"); left != "" {
		t.Errorf("a refused network left %s", left)
	}
}

func TestCutAndHeal(t *testing.T) {
	n := testNetwork(t, nil)
	target := address(t, n, "a", 10)
	echoServer(t, n, "a", target)
	echoServer(t, n, "b", address(t, n, "b", 10))
	conn, err := dial(n, "b", target, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ping(conn, patience); err != nil {
		t.Fatal(err)
	}
	if err := n.Cut("a"); err != nil {
		t.Fatal(err)
	}
	if s, err := n.LinkState("a"); err != nil || s != LinkDown {
		t.Errorf("LinkState = %q, %v", s, err)
	}
	for _, from := range []string{"", "b"} {
		if err := ask(n, from, target, 300*time.Millisecond); err == nil {
			t.Errorf("zone a answers %q while it is cut off", from)
		}
	}
	if err := ask(n, "a", address(t, n, "b", 10), 300*time.Millisecond); err == nil {
		t.Error("zone a reaches b while it is cut off")
	}
	if err := ask(n, "a", target, patience); err != nil {
		t.Errorf("inside of the zone: %v", err)
	}
	if err := ask(n, "c", address(t, n, "b", 10), patience); err != nil {
		t.Errorf("between the other zones: %v", err)
	}
	if err := n.Heal("a"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for _, from := range []string{"", "b"} {
		eventually.Nil(t, patience, func() error { return ask(n, from, target, 200*time.Millisecond) })
	}
	eventually.Nil(t, patience, func() error { return ask(n, "a", address(t, n, "b", 10), 200*time.Millisecond) })
	t.Logf("all directions work %v after Heal", time.Since(start))
	if s, err := n.LinkState("a"); err != nil || s != LinkUp {
		t.Errorf("LinkState = %q, %v", s, err)
	}
	// The connection from before goes on.
	if err := ping(conn, patience); err != nil {
		t.Errorf("connection from before the cut: %v", err)
	}
}

func TestNetemTreeSortsByDestination(t *testing.T) {
	if err := probeNetem(); err == nil {
		t.Skip("the kernel has netem: the delay test covers this")
	}
	n := testNetwork(t, nil)
	// The classes and filters need no netem; count what they sort.
	s, err := openSpace(n.zoneNamespace("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	link, err := s.LinkByName(zoneDevice)
	if err != nil {
		t.Fatal(err)
	}
	if err := setShapingRoot(s.Handle, link); err != nil {
		t.Skip(err)
	}
	dst := &net.IPNet{IP: n.addr(2, 0).AsSlice(), Mask: net.CIDRMask(24, 32)}
	for range 2 { // idempotent
		if err := setShapingClass(s.Handle, link, 2, dst); err != nil {
			t.Skip(err)
		}
	}
	count := func() uint32 {
		classes, err := s.ClassList(link, 0)
		if err != nil || len(classes) != 1 {
			t.Fatalf("classes: %v, %v", classes, err)
		}
		return classes[0].Attrs().Statistics.Basic.Packets
	}
	echoServer(t, n, "", address(t, n, "", 1))
	echoServer(t, n, "b", address(t, n, "b", 10))
	if err := ask(n, "a", address(t, n, "", 1), patience); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 0 {
		t.Errorf("%d packets to the host went through the class of zone b", got)
	}
	if err := ask(n, "a", address(t, n, "b", 10), patience); err != nil {
		t.Fatal(err)
	}
	if got := count(); got < 4 {
		t.Errorf("%d packets to zone b went through its class", got)
	}
}
