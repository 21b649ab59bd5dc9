package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/internal/eventually"
	"fournines/internal/zonenet"
	"fournines/topology"
)

// zones makes two zones that can be cut off.
func zones(t *testing.T) *zonenet.Network {
	t.Helper()
	if err := zonenet.Probe(); err != nil {
		t.Skip(err)
	}
	n, err := zonenet.New(zonenet.Config{
		ID: fmt.Sprintf("l%04x", rand.N(0x10000)), Mode: zonenet.Namespaces, Zones: []string{"a", "b"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := n.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func zoneAddress(t *testing.T, n *zonenet.Network, zone string) string {
	t.Helper()
	a, err := n.Address(zone, 1)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serverIn is a server inside of a zone.
func serverIn(t *testing.T, n *zonenet.Network, zone string) *server {
	t.Helper()
	s := &server{name: zone}
	if err := n.Do(zone, func() error {
		s.start(t, net.JoinHostPort(zoneAddress(t, n, zone), "0"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// TestLossOfAZone cuts off a zone that holds a backend and a caller, each with
// connections into the other zone.
func TestLossOfAZone(t *testing.T) {
	n := zones(t)
	a, b := serverIn(t, n, "a"), serverIn(t, n, "b")
	cfg := config(a.backend("a"), b.backend("b"))
	cfg.Services[0].Listen = []string{net.JoinHostPort(zoneAddress(t, n, ""), "0")}
	cfg.Services[0].ConnectTimeout = 300 * time.Millisecond
	cfg.Services[0].Check.Timeout = 300 * time.Millisecond
	cfg.Services[0].Check.Fall = 2
	cfg.DeadAfter = time.Second
	for _, zone := range n.Zones() {
		subnet, err := n.ZoneSubnet(zone)
		if err != nil {
			t.Fatal(err)
		}
		cfg.ZoneOf = append(cfg.ZoneOf, ZoneRange{subnet, zone})
	}
	r := start(t, cfg)
	r.waitUp(t, 2)
	from := func(zone string) (c *client, err error) {
		err = n.Do(zone, func() (err error) {
			c, err = connect(r.addr, "")
			return err
		})
		if c != nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
	for _, zone := range []string{"a", "b"} {
		c, err := from(zone)
		if err != nil || c.server != zone {
			t.Fatalf("from zone %s: %v, %v", zone, c, err)
		}
	}
	// From the host to the backend in a: its client must learn of the loss.
	var hostToA *client
	for hostToA == nil {
		c := mustConnect(t, r.addr, "")
		if c.server == "a" {
			hostToA = c
		}
	}
	if err := n.Cut("a"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	// At once: no caller outside of the zone is refused, no check has run yet.
	for range 5 {
		c, err := from("b")
		if err != nil || c.server != "b" {
			t.Fatalf("after the cut, from zone b: %v, %v", c, err)
		}
		if c := mustConnect(t, r.addr, ""); c.server != "b" {
			t.Fatalf("after the cut, from the host: server %s", c.server)
		}
	}
	if _, err := hostToA.r.ReadString('\n'); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connection into the lost zone: %v", err)
	}
	t.Logf("connection into the lost zone ended after %v", time.Since(start))
	if err := n.Heal("a"); err != nil {
		t.Fatal(err)
	}
	r.waitUp(t, 2)
	eventually.Nil(t, patience, func() error {
		c, err := from("a")
		if err == nil && c.server != "a" {
			err = errors.New("zone a is not served by its own backend")
		}
		return err
	})
}

// TestDeadCallerIsNoticedAndASlowOneIsNot sends data to two callers: one is cut
// off, the other does not read for longer than the limit. The dead one is cut
// off once while it reads, and once while its window is closed.
func TestDeadCallerIsNoticedAndASlowOneIsNot(t *testing.T) {
	t.Run("window open", func(t *testing.T) { deadCaller(t, true) })
	t.Run("window closed", func(t *testing.T) { deadCaller(t, false) })
}

func deadCaller(t *testing.T, reads bool) {
	t.Helper()
	n := zones(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const size = 128 << 20 // more than all sockets on the way can hold: tcp_rmem goes up to 32 MiB
	ended := make(chan error, 2)
	go func() { // a server that sends a lot to everybody
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, err := io.Copy(c, io.LimitReader(zeros{}, size))
				ended <- err
			}()
		}
	}()
	cfg := config(Backend{Endpoint: topology.Endpoint{Address: ln.Addr().String()}})
	cfg.Services[0].Listen = []string{net.JoinHostPort(zoneAddress(t, n, ""), "0")}
	cfg.Services[0].Check = Check{Interval: time.Hour, Timeout: time.Minute}
	cfg.DeadAfter = 2 * time.Second
	r := start(t, cfg)
	r.waitUp(t, 1)
	<-ended // the check's own connection
	dial := func(zone string) net.Conn {
		t.Helper()
		var c net.Conn
		if err := n.Do(zone, func() (err error) {
			c, err = net.Dial("tcp", r.addr)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	slow, dead := dial("b"), dial("a")
	if reads {
		go func() { _, _ = io.Copy(io.Discard, &slowReader{dead}) }()
	}
	eventually.Nil(t, patience, func() error {
		if got := testutil.ToFloat64(r.metrics.accepted.WithLabelValues("test", "", ln.Addr().String())); got != 2 {
			return fmt.Errorf("%v connections", got)
		}
		return nil
	})
	if err := n.Cut("a"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the data of a dead caller was taken")
		}
	case <-time.After(patience):
		t.Fatal("a dead caller is not noticed")
	}
	t.Logf("noticed after %v", time.Since(start))
	eventually.Nil(t, patience, func() error {
		if got := testutil.ToFloat64(r.metrics.reset.WithLabelValues("test", "", ln.Addr().String(), resetStalled)); got != 1 {
			return fmt.Errorf("resets = %v, want 1", got)
		}
		return nil
	})
	got, err := io.Copy(io.Discard, slow)
	if err != nil || got != size {
		t.Errorf("the slow caller got %d bytes, %v; want %d", got, err, size)
	}
	if err := <-ended; err != nil {
		t.Errorf("server of the slow caller: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// slowReader takes about 2 MB per second.
type slowReader struct{ c net.Conn }

func (s *slowReader) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return s.c.Read(p[:min(len(p), 20<<10)])
}

// TestUnansweredDataAsksForACheck cuts off a backend that is checked once an
// hour: data that its machine does not acknowledge must be reason enough to look
// at once, and the check's silence to cut what is open.
func TestUnansweredDataAsksForACheck(t *testing.T) {
	n := zones(t)
	a := serverIn(t, n, "a")
	cfg := config(a.backend("a"))
	cfg.Services[0].Listen = []string{net.JoinHostPort(zoneAddress(t, n, ""), "0")}
	cfg.Services[0].Check = Check{Interval: time.Hour, Timeout: time.Minute}
	cfg.DeadAfter = 10 * time.Minute
	r := start(t, cfg)
	r.waitUp(t, 1)
	c, idle := mustConnect(t, r.addr, ""), mustConnect(t, r.addr, "")
	if err := n.Cut("a"); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := c.echo("anybody there?"); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connection with unanswered data: %v", err)
	}
	t.Logf("noticed after %v", time.Since(begun))
	if _, err := idle.r.ReadString('\n'); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("idle connection: %v", err)
	}
	// A connection is counted after it was reset, so the caller may be faster.
	eventually.Nil(t, patience, func() error {
		if got := testutil.ToFloat64(r.metrics.reset.WithLabelValues("test", "a", a.backend("a").Name, resetUnreachable)); got != 2 {
			return fmt.Errorf("resets = %v, want 2", got)
		}
		return nil
	})
}
