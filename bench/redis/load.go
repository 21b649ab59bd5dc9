//go:build linux

package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fournines/internal/resp"
	"fournines/redisproxy/keyspace"
)

// Keys and values of all loads: 100,000 keys, 64 bytes each.
const (
	keys      = 100_000
	valueSize = 64
)

// keysPerSlot makes about as many keys of a redis-benchmark that knows the
// cluster: its names have a tag for each slot.
const keysPerSlot = keys / keyspace.Slots

// closed is a load of redis-benchmark: each client asks again when it has its
// answers.
type closed struct {
	clients, pipeline int
	requests          int  // of each kind of command
	mget              bool // MGET of ten keys instead of SET and GET
	fill              bool // SET alone
}

// outcome is what a load saw.
type outcome struct {
	ops  int           // commands answered
	rate float64       // commands a second, over the kinds of command alike
	p99  float64       // ms
	cpu  time.Duration // of the load itself
}

// benchmark runs redis-benchmark, which ends at the first error reply. With whole
// it knows the cluster itself.
func benchmark(ctx context.Context, program string, at netip.AddrPort, password string, whole bool, l closed) (*outcome, error) {
	random := keys
	if whole {
		random = keysPerSlot
	}
	// The password is of this run alone; redis-benchmark takes it nowhere else.
	args := []string{
		"-h", at.Addr().String(), "-p", strconv.Itoa(int(at.Port())), "-a", password, "-c", strconv.Itoa(l.clients), "-P", strconv.Itoa(l.pipeline),
		"-n", strconv.Itoa(l.requests), "-r", strconv.Itoa(random), "-d", strconv.Itoa(valueSize), "--csv",
	}
	if whole {
		args = append(args, "--cluster")
	}
	switch {
	case l.mget:
		args = append(args, "MGET")
		for range 10 {
			args = append(args, "key:__rand_int__")
		}
	case l.fill:
		args = append(args, "-t", "set")
	default:
		args = append(args, "-t", "set,get")
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var failed strings.Builder
	cmd.Stderr = &failed
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("redis-benchmark: %w: %.300s", err, failed.String())
	}
	rates, err := parseBenchmark(string(text))
	if err != nil {
		return nil, err
	}
	o := &outcome{cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	var seconds float64
	for _, r := range rates {
		o.ops += l.requests
		seconds += float64(l.requests) / r
	}
	o.rate = float64(o.ops) / seconds
	return o, nil
}

// parseBenchmark reads the requests a second of each line of --csv.
func parseBenchmark(text string) ([]float64, error) {
	// In cluster mode lines about the nodes come first.
	_, table, ok := strings.Cut(text, `"test","rps"`)
	if !ok {
		return nil, fmt.Errorf("redis-benchmark printed no table: %.300q", text)
	}
	r := csv.NewReader(strings.NewReader(`"test","rps"` + table))
	r.FieldsPerRecord = -1
	lines, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("redis-benchmark: %w", err)
	}
	var rates []float64
	for _, line := range lines[1:] {
		if len(line) < 2 {
			continue
		}
		rate, err := strconv.ParseFloat(line[1], 64)
		if err != nil || !(rate > 0) { // not a number either
			return nil, fmt.Errorf("redis-benchmark printed %q", line)
		}
		rates = append(rates, rate)
	}
	if len(rates) == 0 {
		return nil, errors.New("redis-benchmark measured nothing")
	}
	return rates, nil
}

// caller is a client of the paced load: one connection, or one for each node
// where it has to know the cluster.
type caller struct {
	conns []net.Conn
	rds   []*resp.ReplyReader
}

func dialCaller(ctx context.Context, addresses []netip.AddrPort, password string) (*caller, error) {
	c := &caller{}
	for _, at := range addresses {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", at.String())
		if err != nil {
			c.close()
			return nil, err
		}
		c.conns, c.rds = append(c.conns, conn), append(c.rds, resp.NewReplyReader(conn, 0))
		if got, err := c.call(len(c.conns)-1, "AUTH", password); err != nil || got != "+OK\r\n" {
			c.close()
			return nil, fmt.Errorf("AUTH: %q %w", got, err)
		}
	}
	return c, nil
}

func (c *caller) close() {
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

func (c *caller) call(i int, args ...string) (string, error) {
	_ = c.conns[i].SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.conns[i].Write(resp.AppendCommandStrings(nil, args...)); err != nil {
		return "", err
	}
	raw, err := c.rds[i].Append(nil)
	return string(raw), err
}

// paced lets clients send SET and GET in turn at times that do not depend on
// the answers. A command's time counts from when it was due if its client still
// waited for an answer then, else from its sending: that a timer fires late is
// not the proxy's doing. Each answer is checked. Addresses are one proxy, or all
// nodes in the order of their slots.
func paced(ctx context.Context, addresses []netip.AddrPort, password string, clients, rate int, length time.Duration) (*outcome, error) {
	callers := make([]*caller, clients)
	for i := range callers {
		var err error
		if callers[i], err = dialCaller(ctx, addresses, password); err != nil {
			return nil, err
		}
		defer callers[i].close()
	}
	value := strings.Repeat("x", valueSize)
	times := make([][]time.Duration, clients)
	errs := make([]error, clients)
	gap := time.Second * time.Duration(clients) / time.Duration(rate)
	begin := time.Now().Add(50 * time.Millisecond)
	var wg sync.WaitGroup
	for i, c := range callers {
		wg.Go(func() {
			due := begin.Add(gap * time.Duration(i) / time.Duration(clients))
			timer := time.NewTimer(0)
			defer timer.Stop()
			for n := 0; due.Before(begin.Add(length)); n, due = n+1, due.Add(gap) {
				from := due
				if wait := time.Until(due); wait > 0 {
					timer.Reset(wait)
					select {
					case <-timer.C:
					case <-ctx.Done():
						errs[i] = context.Cause(ctx)
						return
					}
					from = time.Now()
				}
				key := fmt.Sprintf("paced:%d:%d", i, rand.IntN(100))
				node := 0
				if len(addresses) > 1 {
					node = owner(key)
				}
				args, good := []string{"SET", key, value}, "+OK\r\n"
				if n%2 == 1 {
					args, good = []string{"GET", key}, ""
				}
				got, err := c.call(node, args...)
				if err == nil && (got[0] == resp.Error || good != "" && got != good) {
					err = fmt.Errorf("%v: %q", args[:2], got)
				}
				if err != nil {
					errs[i] = err
					return
				}
				times[i] = append(times[i], time.Since(from))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	all := slices.Concat(times...)
	if len(all) < 1000 {
		return nil, fmt.Errorf("only %d commands: too few for a p99", len(all))
	}
	slices.Sort(all)
	return &outcome{
		ops: len(all), rate: float64(len(all)) / length.Seconds(),
		p99: float64(all[len(all)*99/100].Nanoseconds()) / 1e6,
	}, nil
}
