//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process and its descendants have taken.
type Usage struct {
	CPU time.Duration // user and system time of all threads, children that ended included
	At  time.Time
}

// tick is the unit of times in /proc: USER_HZ, which is 100 on all of Linux.
const tick = time.Second / 100

// Descendants returns pid and everything below it.
func Descendants(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if fields, err := statFields(id); err == nil {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], id)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// statFields are the fields of /proc/PID/stat behind the name: state is 0,
// parent 1, utime 11, stime 12, cutime 13, cstime 14.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 15 {
		return nil, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return fields, nil
}

// CPUOf reads the processor time of processes and everything below them. What
// a descendant that has ended took is in the times of the one that waited for it.
func CPUOf(roots ...int) (Usage, error) {
	var u Usage
	for _, root := range roots {
		pids, err := Descendants(root)
		if err != nil {
			return u, err
		}
		for _, pid := range pids {
			fields, err := statFields(pid)
			if err != nil {
				if pid != root && errors.Is(err, os.ErrNotExist) {
					continue // ended meanwhile
				}
				return u, fmt.Errorf("read the processor time of a process: %w", err)
			}
			for _, f := range fields[11:15] {
				n, err := strconv.ParseInt(f, 10, 64)
				if err != nil {
					return u, fmt.Errorf("read the processor time of process %d: %w", pid, err)
				}
				u.CPU += time.Duration(n) * tick
			}
		}
	}
	u.At = time.Now()
	return u, nil
}

// MachineCPU reads the time that all processors of the machine were not idle.
func MachineCPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu, user, nice, system, idle, iowait, irq, softirq, steal, and guests, who count as users
	if len(fields) < 9 {
		return 0, errors.New("/proc/stat is too short")
	}
	var sum int64
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return time.Duration(sum) * tick, nil
}

// Memory reads the resident memory of a process and everything below it, in
// bytes, when it has stopped to change: four readings a quarter of a second
// apart within half a percent, or the last of eight seconds.
func (p *Process) Memory(ctx context.Context) (int64, error) {
	var last [4]int64
	for n := range 32 {
		rss, err := rssOf(p.PID())
		if err != nil {
			return 0, err
		}
		last[n%len(last)] = rss
		low, high := rss, rss
		for _, v := range last {
			low, high = min(low, v), max(high, v)
		}
		if float64(high-low) < 0.005*float64(high) {
			break
		}
		if err := p.Pause(ctx, 250*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return rssOf(p.PID())
}

// rssOf reads the resident memory of a process and everything below it.
func rssOf(root int) (int64, error) {
	pids, err := Descendants(root)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("read the memory of a process: %w", err)
		}
		_, rest, ok := strings.Cut(string(b), "\nRss:")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 || fields[1] != "kB" {
			return 0, fmt.Errorf("/proc/%d/smaps_rollup has no Rss", pid)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/smaps_rollup: %w", pid, err)
		}
		sum += kib << 10
	}
	return sum, nil
}
