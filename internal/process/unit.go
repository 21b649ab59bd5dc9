// Package process describes and runs the operating-system processes that make
// up a local stack. It knows nothing of what the processes are for.
package process

import (
	"context"
	"syscall"
	"time"
)

// Spec says how to start one operating-system process.
type Spec struct {
	// Path is the absolute path of the executable.
	Path string
	// Args are the arguments without argv[0]. They are visible to every user
	// of the machine, so they never carry a secret.
	Args []string
	// Env is the complete environment as KEY=VALUE. The caller's environment
	// is not inherited.
	Env []string
	// Dir is the working directory. It must exist when the process starts.
	Dir string
	// Root keeps the privileges of the supervisor. Unset, a supervisor that
	// runs as root starts the process as the unprivileged Owner.
	Root bool
	// StopSignal asks the process to end by itself; zero means SIGTERM.
	StopSignal syscall.Signal
	// StopTimeout is how long the process may take after StopSignal before
	// its whole process group is killed; zero means 10 s.
	StopTimeout time.Duration
	// KillGroup sends StopSignal to the whole process group instead of the
	// leader alone. Most servers coordinate their own children and want it unset.
	KillGroup bool
	// Handover is the path of the Unix socket at which a second process of this
	// Spec takes over the listeners of a running one (internal/handover). Set, a
	// restart starts the next process first and lets the one before end its
	// work; empty, it stops the one and then starts the other.
	Handover string
	// NetNS is the network namespace the process runs in: a name under
	// /run/netns, or a path. Empty means the supervisor's own. Needs root.
	NetNS string
}

// DefaultStopTimeout is the StopTimeout of a Spec that sets none.
const DefaultStopTimeout = 10 * time.Second

func (s *Spec) stopSignal() syscall.Signal {
	if s.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return s.StopSignal
}

// StopLimit is StopTimeout with its default applied.
func (s *Spec) StopLimit() time.Duration {
	if s.StopTimeout == 0 {
		return DefaultStopTimeout
	}
	return s.StopTimeout
}

// Unit is one line of a stack's plan: a long-running process, or a one-shot
// task that brings data into the state later units need (a cluster formed, a
// database created). Exactly one of Process and Task is set.
type Unit struct {
	// Name is unique in the stack, "postgres-a".
	Name string
	// Kind groups units of one service, "postgres".
	Kind string
	// Zone is the zone's name; empty for units outside all zones.
	Zone string
	// Address is the host:port that clients of the unit use; empty for tasks.
	Address string
	// After names the units that must be ready before this one starts. On
	// stop the order is reversed.
	After []string

	// Process is the process to keep running.
	Process *Spec
	// Task runs once per start of the stack, after everything in After is
	// ready. It must be idempotent: it finds its work done and returns nil.
	Task func(ctx context.Context) error

	// Prepare writes the files the process reads, just before each start. It
	// must be idempotent and must not touch data of an initialised server.
	Prepare func(ctx context.Context) error
	// Ready returns nil when the unit serves what it is for. The error says
	// what is still missing; it is shown to the user. Unset: ready when running.
	Ready func(ctx context.Context) error
	// ReadyTimeout bounds the first wait for Ready; zero means 60 s.
	ReadyTimeout time.Duration
	// Role tells the unit's current role ("primary", "standby", "replica"),
	// for units whose role changes at run time. Unset: the kind has no roles.
	Role func(ctx context.Context) (string, error)
}

// Owner is the unprivileged account that runs the processes of a stack whose
// supervisor is root. The zero Owner means the account of the supervisor.
type Owner struct {
	UID, GID int
	Name     string
}
