//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"

	"fournines/bench/rig"
)

// The runner starts this program again in two roles.
const (
	roleBackend = "role-backend"
	roleClient  = "role-client"
)

// runRole runs what the command line names, and tells if it names a role.
func runRole(args []string) (isRole bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	switch args[0] {
	case roleBackend:
		return true, runBackend(args[1:])
	case roleClient:
		if len(args) != 5 {
			return true, errors.New("client: kind, address, connections and rate are needed")
		}
		to, err1 := netip.ParseAddrPort(args[2])
		connections, err2 := strconv.Atoi(args[3])
		rate, err3 := strconv.Atoi(args[4])
		if err := errors.Join(err1, err2, err3); err != nil {
			return true, err
		}
		return true, runClient(order{kind: args[1], to: to, connections: connections, rate: rate})
	}
	return false, nil
}

// driver talks to a backend or client process.
type driver struct {
	*rig.Process
	in      *os.File
	reports chan report
}

// startDriver starts this program in a role.
func startDriver(name, dir string, cpus []int, args ...string) (*driver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer childOut.Close()
	p, err := rig.Start(rig.Command{Name: name, Dir: dir, CPUs: cpus, Argv: append([]string{self}, args...), Stdin: childIn, Stdout: childOut})
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	d := &driver{Process: p, in: in, reports: make(chan report, 16)}
	go d.listen(out)
	return d, nil
}

// listen passes on what the process says, until it ends.
func (d *driver) listen(out io.ReadCloser) {
	defer out.Close()
	defer close(d.reports)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			r = report{State: lines.Text()} // the backend's "ready"
		}
		// The last report comes from a process that may have ended already: it is
		// kept all the same. stop takes what nobody waited for.
		d.reports <- r
	}
}

// expect waits until the process says that it is in a state.
func (d *driver) expect(ctx context.Context, state string, limit time.Duration) (report, error) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case r, ok := <-d.reports:
		switch {
		case !ok:
			<-d.Done()
			return r, d.Alive()
		case r.State == "failed":
			return r, fmt.Errorf("disqualified: %s", r.Error)
		case r.State != state:
			return r, fmt.Errorf("the %s is %q, not %q", d.Name, r.State, state)
		}
		return r, nil
	case <-t.C:
		return report{}, fmt.Errorf("the %s is not %q after %v", d.Name, state, limit)
	case <-ctx.Done():
		return report{}, context.Cause(ctx)
	}
}

// tell gives a command and waits for the state that follows.
func (d *driver) tell(ctx context.Context, command, state string) (report, error) {
	if _, err := d.in.WriteString(command + "\n"); err != nil {
		// It has ended, and has said why.
		r, failed := d.expect(ctx, state, time.Second)
		return r, errors.Join(failed, err)
	}
	return d.expect(ctx, state, 10*time.Second)
}

// stop ends the process.
func (d *driver) stop() {
	d.in.Close()
	d.Stop()
	for range d.reports { // until listen has ended
	}
}
