//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/bench/postgres"
)

// The scripts that pgbench has.
const (
	selectOnly = "select-only"
	tpcb       = "tpcb-like"
)

// load is what pgbench does.
type load struct {
	script   string // selectOnly or tpcb
	prepared bool
	clients  int
	// seconds is how long, counted from when pgbench starts to connect; each is
	// how many transactions of each client instead.
	seconds, each int
	rate          int // transactions a second, when they are due; 0 is as many as possible
}

// outcome is what pgbench tells.
type outcome struct {
	transactions int
	tps          float64
	p99          float64       // ms, from when a transaction was due; with a rate only
	cpu          time.Duration // of pgbench
	connecting   time.Duration // until all clients were connected
}

var (
	tpsLine   = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)$`)
	countLine = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	none      = regexp.MustCompile(`(?m)^number of transactions actually processed: 0$`)
	beginLine = regexp.MustCompile(`(?m)^initial connection time = ([0-9.]+) ms$`)
)

// errNoTime means that pgbench's time was over before a transaction was: it runs
// while the clients connect.
var errNoTime = errors.New("pgbench's time ended before its first transaction")

// longest is how long a load may become on a busy machine, in seconds.
const longest = 60

// pgbenchWithTime runs a load, for longer when its time did not suffice.
func (b *bench) pgbenchWithTime(ctx context.Context, dir string, at netip.AddrPort, l load) (outcome, error) {
	for {
		o, err := b.pgbench(ctx, dir, at, l)
		if !errors.Is(err, errNoTime) || l.seconds >= longest {
			return o, err
		}
		l.seconds = min(4*l.seconds, longest)
	}
}

// pgbench runs a load at an address; dir is for its files.
func (b *bench) pgbench(ctx context.Context, dir string, at netip.AddrPort, l load) (outcome, error) {
	var o outcome
	mode := "simple"
	if l.prepared {
		mode = "prepared"
	}
	args := []string{
		"-n", "-h", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-U", postgres.User, "-b", l.script, "-M", mode,
		"-c", strconv.Itoa(l.clients), "-j", strconv.Itoa(min(2, l.clients)),
	}
	if l.each > 0 {
		args = append(args, "-t", strconv.Itoa(l.each))
	} else {
		args = append(args, "-T", strconv.Itoa(l.seconds))
	}
	logs := filepath.Join(dir, "transactions")
	if l.rate > 0 {
		args = append(args, "-R", strconv.Itoa(l.rate), "-l", "--log-prefix", logs)
	}
	cmd := b.command(ctx, dir, append(args, postgres.User)...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return o, context.Cause(ctx)
		}
		return o, fmt.Errorf("pgbench: %w: %s", err, lastLines(problems.String(), 3))
	}
	if none.Match(out.Bytes()) {
		return o, errNoTime
	}
	find := func(line *regexp.Regexp) (float64, error) {
		m := line.FindSubmatch(out.Bytes())
		if m == nil {
			return 0, fmt.Errorf("pgbench says nothing of its speed: %s", lastLines(out.String(), 3))
		}
		return strconv.ParseFloat(string(m[1]), 64)
	}
	tps, err1 := find(tpsLine)
	count, err2 := find(countLine)
	connecting, err3 := find(beginLine)
	o.tps, o.transactions, o.connecting = tps, int(count), time.Duration(connecting*float64(time.Millisecond))
	var err4 error
	if l.rate > 0 {
		o.p99, err4 = p99(logs + ".*")
	}
	o.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return o, errors.Join(err1, err2, err3, err4)
}

// command is pgbench, in a process group of its own: Ctrl-C reaches the runner alone.
func (b *bench) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PGPASSWORD="+b.cluster.Password, "PGSSLMODE=disable")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// p99 reads the logs of transactions and returns what 99% of them took at most,
// in ms; it removes them.
func p99(pattern string) (float64, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return 0, err
	}
	var all []float64
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// Client, number, microseconds, and more.
			fields := strings.Fields(lines.Text())
			if len(fields) < 3 {
				return 0, fmt.Errorf("%s: %q is no transaction", name, lines.Text())
			}
			us, err := strconv.ParseFloat(fields[2], 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %q is no transaction", name, lines.Text())
			}
			all = append(all, us/1000)
		}
		if err := errors.Join(lines.Err(), os.Remove(name)); err != nil {
			return 0, err
		}
	}
	if len(all) < 100 {
		return 0, fmt.Errorf("%d transactions are too few for a p99: %w", len(all), errNoTime)
	}
	slices.Sort(all)
	return all[(len(all)*99+99)/100-1], nil
}
