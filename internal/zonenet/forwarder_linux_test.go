package zonenet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"fournines/internal/eventually"
)

// startForwarder runs a forwarder in this process until the test ends.
func startForwarder(tb testing.TB, n *Network, change func(*ForwarderConfig)) *Forwarder {
	tb.Helper()
	if err := ProbeTUN(); err != nil {
		tb.Skip(err)
	}
	cfg, err := n.ForwarderConfig()
	if err != nil {
		tb.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	f, err := NewForwarder(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("forwarder: %v", err)
		}
	})
	select {
	case <-f.Ready():
	case err := <-done:
		done <- err
		tb.Fatal(err)
	case <-time.After(patience):
		tb.Fatal("forwarder is not ready")
	}
	return f
}

// roundTrip is the shortest of twenty echoes from one zone to an address, or of
// as many more as a busy machine needs for one that takes less than most.
func roundTrip(t *testing.T, n *Network, from, addr string, most time.Duration) time.Duration {
	t.Helper()
	c, err := dial(n, from, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	best := patience
	begun := time.Now()
	for k := 0; k < 20 || best > most && time.Since(begun) < patience; k++ {
		start := time.Now()
		if err := ping(c, patience); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	return best
}

func TestDelayBetweenZonesOnly(t *testing.T) {
	const delay = 30 * time.Millisecond
	n := testNetwork(t, func(c *Config) { c.Delay = delay })
	shaper, why := n.Shaper()
	switch shaper {
	case Zonelink:
		startForwarder(t, n, nil)
	case NoShaper:
		t.Skip(why)
	}
	t.Logf("shaper %s", shaper)
	for _, zone := range []string{"", "a", "b"} {
		echoServer(t, n, zone, address(t, n, zone, 1))
	}
	for _, from := range []string{"", "a", "b", "c"} {
		for _, to := range []string{"", "a", "b"} {
			cross := from != "" && to != "" && from != to
			most := 15 * time.Millisecond
			if cross {
				most += delay
			}
			got := roundTrip(t, n, from, address(t, n, to, 1), most)
			t.Logf("%q to %q: %v", from, to, got)
			if cross && got < delay {
				t.Errorf("%s to %s: round trip %v is under %v", from, to, got, delay)
			}
			if got > most {
				t.Errorf("%q to %q: round trip %v, want %v at the most", from, to, got, most)
			}
		}
	}
}

// packetsThrough sends datagrams from one zone to another and counts arrivals.
func packetsThrough(t *testing.T, n *Network, from, to string, total int) int {
	t.Helper()
	var receiver net.PacketConn
	toAddr, _ := n.Address(to, 10)
	if err := n.Do(to, func() (err error) {
		receiver, err = net.ListenPacket("udp", net.JoinHostPort(toAddr, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	var sender net.Conn
	if err := n.Do(from, func() (err error) {
		sender, err = net.Dial("udp", receiver.LocalAddr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	got := 0
	buf := make([]byte, 100)
	// In small groups, so that no receive buffer overflows.
	for sent := 0; sent < total; {
		group := min(50, total-sent)
		for range group {
			if _, err := sender.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		sent += group
		_ = receiver.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		for range group {
			if _, _, err := receiver.ReadFrom(buf); err != nil {
				break
			}
			got++
		}
	}
	return got
}

func TestLinkFaults(t *testing.T) {
	n := testNetwork(t, nil)
	f := startForwarder(t, n, nil)
	links := func(change func(Links)) {
		t.Helper()
		l := n.DefaultLinks()
		change(l)
		if err := f.SetLinks(l); err != nil {
			t.Fatal(err)
		}
	}
	links(func(l Links) { l.Set("a", "b", Link{Drop: true}) })
	if got := packetsThrough(t, n, "a", "b", 50); got != 0 {
		t.Errorf("b is deaf for a, yet %d of 50 packets arrived", got)
	}
	if got := packetsThrough(t, n, "b", "a", 50); got != 50 {
		t.Errorf("other way: %d of 50 packets arrived", got)
	}
	if got := packetsThrough(t, n, "a", "c", 50); got != 50 {
		t.Errorf("other zone: %d of 50 packets arrived", got)
	}
	links(func(l Links) { l.Set("a", "b", Link{Loss: 0.3}) })
	if got := packetsThrough(t, n, "a", "b", 1000); got < 550 || got > 850 {
		t.Errorf("with a loss of 30%%, %d of 1000 packets arrived", got)
	}
	// TCP copes with loss, and still does without.
	links(func(l Links) { l.Set("a", "b", Link{Loss: 0.02}) })
	echoServer(t, n, "b", address(t, n, "b", 10))
	for range 2 {
		if err := ask(n, "a", address(t, n, "b", 10), patience); err != nil {
			t.Error(err)
		}
		links(func(Links) {})
	}
	if err := f.SetLinks(Links{"a": {"nowhere": {}}}); err == nil {
		t.Error("an unknown zone is taken")
	}
}

func TestCutReachesTheForwarder(t *testing.T) {
	n := testNetwork(t, nil)
	startForwarder(t, n, nil)
	echoServer(t, n, "a", address(t, n, "a", 10))
	if err := ask(n, "b", address(t, n, "a", 10), patience); err != nil {
		t.Fatal(err)
	}
	if err := n.Cut("a"); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, patience, func() error {
		if ask(n, "b", address(t, n, "a", 10), 100*time.Millisecond) == nil {
			return errors.New("the zone still answers")
		}
		return nil
	})
	if err := n.Heal("a"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	eventually.Nil(t, patience, func() error { return ask(n, "b", address(t, n, "a", 10), 200*time.Millisecond) })
	t.Logf("works %v after Heal", time.Since(start))
}

func TestForwarderRefusesASecondOne(t *testing.T) {
	n := testNetwork(t, nil)
	startForwarder(t, n, nil)
	cfg, err := n.ForwarderConfig()
	if err != nil {
		t.Fatal(err)
	}
	second, err := NewForwarder(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another forwarder") {
		t.Errorf("second forwarder: %v", err)
	}
	cfg.Zones[0].Namespace = "fn-no-such-zone"
	lost, err := NewForwarder(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "fn-no-such-zone") {
		t.Errorf("missing zone: %v", err)
	}
}

func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := ListenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := ListenControl(path); err == nil || !strings.Contains(err.Error(), "another forwarder is running") {
		t.Errorf("second listener: %v", err)
	}
	_ = ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenControl(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("on a plain file: %v", err)
	}
}

// forwarderProcess starts this test binary as a forwarder.
func forwarderProcess(t *testing.T, cfg ForwarderConfig) *exec.Cmd {
	t.Helper()
	data, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "zonelink.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), forwarderEnv+"="+path)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// inserted tells whether the routes of a zone lead through a forwarder.
func inserted(n *Network, zone string) error {
	return n.Do(zone, func() error {
		if _, err := net.InterfaceByName(tunName); err != nil {
			return err
		}
		routes, err := os.ReadFile("/proc/thread-self/net/route")
		if err != nil {
			return err
		}
		if !strings.Contains(string(routes), tunName) {
			return errors.New("no route through the forwarder")
		}
		return nil
	})
}

func TestKilledForwarderCutsNoConnection(t *testing.T) {
	if err := ProbeTUN(); err != nil {
		t.Skip(err)
	}
	n := testNetwork(t, func(c *Config) { c.Delay = 10 * time.Millisecond })
	cfg, err := n.ForwarderConfig()
	if err != nil {
		t.Fatal(err)
	}
	allInserted := func() error {
		return errors.Join(inserted(n, "a"), inserted(n, "b"), inserted(n, "c"))
	}
	first := forwarderProcess(t, cfg)
	eventually.Nil(t, patience, allInserted)
	// The control socket works across processes.
	links, err := GetLinks(t.Context(), cfg.Control)
	if err != nil || time.Duration(links.Get("a", "b").Delay) != 5*time.Millisecond {
		t.Fatalf("links %v, %v", links, err)
	}
	links.Set("a", "b", Link{Delay: Duration(6 * time.Millisecond)})
	if err := PutLinks(t.Context(), cfg.Control, links); err != nil {
		t.Fatal(err)
	}
	if err := PutLinks(t.Context(), cfg.Control, Links{"a": {"b": {Loss: 7}}}); err == nil || !strings.Contains(err.Error(), "links.a.b.loss") {
		t.Errorf("a wrong loss: %v", err)
	}

	// A counted stream from a to b; the receiver checks every byte's place.
	ln := listen(t, n, "b", address(t, n, "b", 10))
	received := make(chan int, 1)
	verdict := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			verdict <- err
			return
		}
		defer c.Close()
		r := bufio.NewScanner(c)
		k := 0
		for ; r.Scan(); k++ {
			if r.Text() != strconv.Itoa(k) {
				verdict <- fmt.Errorf("line %d reads %q", k, r.Text())
				return
			}
			select {
			case <-received:
			default:
			}
			received <- k
		}
		if r.Err() == nil && k == 0 {
			verdict <- io.ErrUnexpectedEOF
			return
		}
		verdict <- r.Err()
	}()
	c, err := dial(n, "a", address(t, n, "b", 10), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	sent := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(c, 32<<10)
		for k := 0; ; k++ {
			select {
			case <-stop:
				sent <- errors.Join(w.Flush(), c.(*net.TCPConn).CloseWrite())
				return
			default:
			}
			if _, err := fmt.Fprintln(w, k); err != nil {
				sent <- err
				return
			}
		}
	}()
	// progress waits until clearly more has arrived than is on its way.
	progress := func(what string) {
		t.Helper()
		start := -1
		eventually.Nil(t, patience, func() error {
			select {
			case k := <-received:
				if start < 0 {
					start = k
				}
				if k > start+50_000 {
					return nil
				}
			default:
			}
			return fmt.Errorf("no progress: %s", what)
		})
	}
	progress("through the first forwarder")
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	progress("after the kill")
	if err := inserted(n, "a"); err == nil {
		t.Error("the device is there without a forwarder")
	}
	second := forwarderProcess(t, cfg)
	eventually.Nil(t, patience, allInserted)
	progress("through the second forwarder")
	close(stop)
	if err := <-sent; err != nil {
		t.Errorf("sender: %v", err)
	}
	if err := <-verdict; err != nil {
		t.Errorf("receiver: %v", err)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("second forwarder: %v", err)
	}
	if _, err := os.Stat(cfg.Control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("control socket is left: %v", err)
	}
}

func TestForwarderEndsWhenItsZonesAreGone(t *testing.T) {
	if err := ProbeTUN(); err != nil {
		t.Skip(err)
	}
	n := testNetwork(t, nil)
	cfg, err := n.ForwarderConfig()
	if err != nil {
		t.Fatal(err)
	}
	f, err := NewForwarder(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.Run(context.Background()) }()
	<-f.Ready()
	if err := n.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(patience):
		t.Fatal("the forwarder outlives its zones")
	}
}

// BenchmarkTCP measures one TCP connection from zone a to zone b, through the
// bridge and through the forwarder, with the CPU time of this process (both
// ends and the forwarder) per transferred GB.
func BenchmarkTCP(b *testing.B) {
	for _, v := range []struct {
		name  string
		mtu   int
		delay time.Duration
	}{{"bridge", 0, 0}, {"zonelink-1500", 1500, 0}, {"zonelink-9000", 9000, 0}, {"zonelink-65535", 65535, 0}, {"zonelink-1500-30ms", 1500, 30 * time.Millisecond}} {
		b.Run(v.name, func(b *testing.B) {
			n := testNetwork(b, func(c *Config) { c.Delay = v.delay })
			if v.mtu > 0 {
				startForwarder(b, n, func(c *ForwarderConfig) { c.MTU = v.mtu })
			}
			ln := listen(b, n, "b", address(b, n, "b", 10))
			got := make(chan int64, 1)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					got <- 0
					return
				}
				defer c.Close()
				sum, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
				got <- sum
			}()
			c, err := dial(n, "a", address(b, n, "b", 10), patience)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			before := cpuTime()
			for b.Loop() {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.(*net.TCPConn).CloseWrite()
			sum := <-got
			if sum == 0 {
				b.Fatal("nothing arrived")
			}
			b.ReportMetric((cpuTime()-before).Seconds()/(float64(sum)/1e9), "cpu-s/GB")
		})
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRoundTrip measures one byte there and back without any delay.
func BenchmarkRoundTrip(b *testing.B) {
	for _, through := range []bool{false, true} {
		b.Run(map[bool]string{false: "bridge", true: "zonelink"}[through], func(b *testing.B) {
			n := testNetwork(b, nil)
			if through {
				startForwarder(b, n, nil)
			}
			echoServer(b, n, "b", address(b, n, "b", 10))
			c, err := dial(n, "a", address(b, n, "b", 10), patience)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			var times []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := ping(c, patience); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(start))
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-us")
		})
	}
}
