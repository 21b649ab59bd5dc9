// Package local runs a stack on this machine: it starts the units of a plan
// in the order of their dependencies, keeps them running, tells the truth
// about their state, and stops them in the reverse order. What the units are
// for is the business of the plan.
package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"fournines/internal/process"
)

// Plan is everything that a stack consists of.
type Plan struct {
	// Name of the installation.
	Name string
	// Zones in the order they are shown.
	Zones []string
	// Units of the stack. They form a directed acyclic graph by After.
	Units []process.Unit
	// Endpoints are the URLs for the user, by service.
	Endpoints map[string]string
	// CredentialsFile is where the user finds the passwords; may be empty.
	CredentialsFile string
	// Network cuts and heals the links of zones; nil when the zones cannot be
	// separated.
	Network Network
	// Setup makes what all units need before the first one starts, such as
	// the network of the zones. It runs at each start of a supervisor, also
	// when it adopts running units, so it must be idempotent. May be nil.
	Setup func(ctx context.Context) error
	// Teardown undoes Setup after the last unit has stopped. May be nil.
	Teardown func(ctx context.Context) error
	// Reconcilers run while the stack does, once all of it was ready.
	Reconcilers []Reconciler
	// Requirements are the programs that Preflight checks before the units'
	// own executables.
	Requirements []Requirement
	// Leftovers are files outside the data directory that a component makes by
	// itself; they are removed after the stop.
	Leftovers []string
	// Ports are the public addresses that must be free before the start.
	Ports []Port
}

// Network cuts zones off and joins them again.
type Network interface {
	// Cut takes the zone's link down: nothing gets in or out.
	Cut(zone string) error
	// Heal undoes Cut.
	Heal(zone string) error
	// LinkState is "up" or "down".
	LinkState(zone string) (string, error)
}

// Files and directories under the data directory.
const (
	// SpecFile is the specification the stack was started from.
	SpecFile   = "fournines.yaml"
	stateFile  = "state.json"
	lockFile   = "lock"
	turnFile   = "turn"
	socketFile = "control.sock"
	statusFile = "status.sock"
	markerFile = ".fournines"
	logDir     = "logs"
	// SupervisorLog is the name under which `fournines logs` knows the log of
	// the supervisor itself.
	SupervisorLog = "supervisor"
)

// LogPath is the log file of the unit called name in the data directory dir.
func LogPath(dir, name string) string { return filepath.Join(dir, logDir, name+".log") }

// PlanError lists all that is wrong with a plan.
type PlanError struct{ Problems []string }

func (e *PlanError) Error() string {
	return "the plan of the stack is not runnable: " + strings.Join(e.Problems, "; ")
}

// Validate reports every problem of the plan: missing, duplicate and unknown
// names, units that are both or neither process and task, and cycles.
func (p *Plan) Validate() error {
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	byName := map[string]*process.Unit{}
	for i := range p.Units {
		u := &p.Units[i]
		switch {
		case u.Name == "":
			bad("unit %d has no name", i+1)
			continue
		case u.Name == SupervisorLog || strings.ContainsAny(u.Name, "/\x00") || strings.HasPrefix(u.Name, "."):
			bad("unit name %q cannot name a log file", u.Name)
		case byName[u.Name] != nil:
			bad("two units are called %q", u.Name)
		}
		byName[u.Name] = u
		if (u.Process == nil) == (u.Task == nil) {
			bad("unit %q must be either a process or a task", u.Name)
		}
		if u.Zone != "" && !slices.Contains(p.Zones, u.Zone) {
			bad("unit %q stands in zone %q, which does not exist", u.Name, u.Zone)
		}
	}
	for _, u := range p.Units {
		for _, dep := range u.After {
			if byName[dep] == nil {
				bad("unit %q comes after %q, which does not exist", u.Name, dep)
			}
		}
	}
	if len(problems) == 0 {
		if cycle := findCycle(p.Units, byName); cycle != nil {
			bad("units wait for each other: %s", strings.Join(cycle, " after "))
		}
	}
	if len(problems) > 0 {
		return &PlanError{Problems: problems}
	}
	return nil
}

// findCycle returns the names along one cycle, or nil.
func findCycle(units []process.Unit, byName map[string]*process.Unit) []string {
	const (
		unseen = iota
		open
		closed
	)
	state := map[string]int{}
	var path []string
	var visit func(name string) []string
	visit = func(name string) []string {
		switch state[name] {
		case closed:
			return nil
		case open:
			return append(slices.Clone(path[slices.Index(path, name):]), name)
		}
		state[name] = open
		path = append(path, name)
		for _, dep := range byName[name].After {
			if cycle := visit(dep); cycle != nil {
				return cycle
			}
		}
		path = path[:len(path)-1]
		state[name] = closed
		return nil
	}
	for _, u := range units {
		if cycle := visit(u.Name); cycle != nil {
			return cycle
		}
	}
	return nil
}

// ErrNotRunning says that no supervisor runs for a data directory.
var ErrNotRunning = errors.New("the stack is not running; start it with `fournines up`")
