package postgresdrill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/internal/process"
)

// Fault is one way to break the cluster. The victim is the zone of the primary.
type Fault struct {
	// Name is how it is called on the command line and in results.
	Name string
	// About says in a few words what is done.
	About string
	// Network tells that the fault needs network namespaces.
	Network bool
	// SmallDisks tells that the fault needs disks that can be filled.
	SmallDisks bool
	// takesClients tells that the clients of the victim's zone are cut off too,
	// so that their outage is not the database's.
	takesClients bool
	// stays tells that the primary has to stay where it is.
	stays bool
	// refused tells that no write can be served while the fault lasts: each has
	// to be refused at once, and the outage counts from the repair. If the server
	// ends instead, a standby has to take over.
	refused bool
	// MaxOutage is the goal for the longest write outage of one repetition.
	MaxOutage time.Duration
	// hold is the least time that the fault lasts.
	hold time.Duration
	// strike breaks; repair mends, and is nil when the cluster mends itself.
	strike, repair func(ctx context.Context, c *Cluster, victim string) error
}

// minHold lets every fault last longer than it takes to notice it.
const minHold = 6 * time.Second

// Faults lists the faults in the order of the table.
func Faults() []Fault {
	return []Fault{
		{
			Name: "server-kill", About: "kill -9 of PostgreSQL, its Patroni lives", MaxOutage: 5 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error { return c.killPostmaster(victim) },
		},
		{
			Name: "node-kill", About: "kill -9 of Patroni and PostgreSQL; Patroni is started again after 0.5 s", MaxOutage: 15 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error { return c.nodes[victim].kill() },
		},
		{
			Name: "zone-loss", About: "a zone loses power: all its processes and its network at once", Network: true, takesClients: true, MaxOutage: 15 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error {
				// The network first: a zone without power says no goodbye.
				errs := []error{c.net.Cut(victim)}
				for _, u := range c.inZone(victim) {
					errs = append(errs, u.off())
				}
				return errors.Join(errs...)
			},
			repair: func(ctx context.Context, c *Cluster, victim string) error {
				errs := []error{c.net.Heal(victim)}
				for _, u := range c.inZone(victim) {
					errs = append(errs, u.start(ctx))
				}
				return errors.Join(errs...)
			},
		},
		{
			Name: "zone-cut", About: "a zone is cut off by the network, its primary and its clients live on", Network: true, takesClients: true, MaxOutage: 15 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error { return c.net.Cut(victim) },
			repair: func(_ context.Context, c *Cluster, victim string) error { return c.net.Heal(victim) },
		},
		{
			Name: "node-hang", About: "Patroni and PostgreSQL hang (SIGSTOP) and go on when there is a successor", MaxOutage: 15 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error { return c.nodes[victim].pause() },
			repair: func(_ context.Context, c *Cluster, victim string) error { return c.nodes[victim].resume() },
		},
		{
			Name: "disk-full", About: "the disk of the primary's data directory is full", SmallDisks: true, refused: true, MaxOutage: 5 * time.Second,
			hold:   20 * time.Second,
			strike: func(_ context.Context, c *Cluster, victim string) error { return c.fillDisk(victim) },
			repair: func(_ context.Context, c *Cluster, victim string) error { return os.Remove(c.filler(victim)) },
		},
		{
			Name: "switchover", About: "planned switchover (`fournines switchover`)", MaxOutage: 3 * time.Second,
			strike: func(ctx context.Context, c *Cluster, _ string) error { return c.switchover(ctx) },
		},
		{
			Name: "busy-machine", About: "no fault: 16 busy processes per processor for a minute", stays: true, MaxOutage: 5 * time.Second,
			hold: time.Minute,
			strike: func(ctx context.Context, _ *Cluster, _ string) error {
				return hogs(ctx, 16*runtime.NumCPU(), time.Minute)
			},
		},
	}
}

// FindFaults returns the faults of these names, in their own order; all when
// none is given.
func FindFaults(names []string) ([]Fault, error) {
	all := Faults()
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, f := range all {
		known = append(known, f.Name)
	}
	out := slices.DeleteFunc(all, func(f Fault) bool { return !slices.Contains(names, f.Name) })
	if len(out) != len(names) {
		return nil, fmt.Errorf("faults %q: there are %q", names, known)
	}
	return out, nil
}

// killPostmaster kills the PostgreSQL server of a zone and nothing else; what it
// has started ends by itself.
func (c *Cluster) killPostmaster(zone string) error {
	text, err := os.ReadFile(filepath.Join(c.dataDir(zone), "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return fmt.Errorf("postmaster.pid: %w", err)
	}
	id, err := process.Identify(pid)
	if err != nil {
		return err
	}
	return process.SignalAll([]process.Identity{id}, syscall.SIGKILL)
}

func (c *Cluster) dataDir(zone string) string {
	return filepath.Join(c.nodes[zone].Process.Dir, "data")
}

// filler is the file that takes the room on a zone's disk.
func (c *Cluster) filler(zone string) string {
	return filepath.Join(c.nodes[zone].Process.Dir, "filler")
}

func (c *Cluster) fillDisk(zone string) error {
	f, err := os.OpenFile(c.filler(zone), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

// switchover runs `fournines switchover` as an operator would.
func (c *Cluster) switchover(ctx context.Context) error {
	args := []string{"switchover", "--proxy-token-file", c.secretFile("admin"),
		"--patroni-password-file", c.secretFile("rest"), "--superuser-password-file", c.secretFile("postgres")}
	for _, z := range proxyZones {
		args = append(args, "--proxy", onPort(c.proxies[z].Address, proxyAdminPort))
	}
	for _, z := range allZones {
		args = append(args, "--patroni", onPort(c.nodes[z].Address, restPort))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, c.o.Binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("fournines switchover: %w: %s", err, out)
	}
	return nil
}

// onPort is another port of the same host.
func onPort(address string, port int) string {
	host, _, _ := net.SplitHostPort(address)
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// hogs keeps n processes busy that do nothing.
func hogs(ctx context.Context, n int, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var errs []error
	var all []*exec.Cmd
	for range n {
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "while :; do :; done")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			errs = append(errs, err)
			break
		}
		all = append(all, cmd)
	}
	<-ctx.Done()
	for _, cmd := range all {
		_ = cmd.Wait() // killed
	}
	return errors.Join(errs...)
}
