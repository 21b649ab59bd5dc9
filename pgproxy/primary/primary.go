// Package primary finds out which of several PostgreSQL servers is the
// primary, and which are its standbys, by asking each of them, and nobody else.
//
// A server is the primary when it answers, is not in recovery, takes writes,
// and stands on the highest timeline that has ever been seen, with all the WAL
// that has been seen on it. Two servers that claim this on the same timeline are
// both refused until one of them stops. A server is a standby of that primary
// when it answers, is in recovery, belongs to the same cluster and follows the
// primary's timeline.
package primary

import (
	"fmt"
	"sort"
	"time"

	"fournines/topology"
)

// Status is what one server said about itself when it was asked last.
type Status struct {
	Endpoint topology.Endpoint
	// Up is false after too many probes failed in a row.
	Up bool
	// InRecovery is true for a standby.
	InRecovery bool
	// ReadOnly is true when transactions are read-only by default or in recovery.
	ReadOnly bool
	// Timeline counts promotions; 0 is unknown. Of a standby it is the one that
	// it receives, as far as the probe's role may read that
	// (pg_read_all_stats); else the one of its last restart point, which
	// follows a promotion after minutes only.
	Timeline uint32
	// LSN is the last written, or on a standby the last replayed, position.
	LSN uint64
	// SystemID identifies the cluster that the data directory was made for.
	SystemID string
	// Misses is the number of failed probes in a row.
	Misses int
	// Err is the last probe's error, nil when it succeeded.
	Err error
	// At is when the server answered last.
	At time.Time
	// RTT is the shortest duration of the last few probes on an open connection,
	// which leaves out what a busy machine adds; 0 is unknown.
	RTT time.Duration
	// Parameters are what the server reported when the probe logged in. The map
	// is never changed.
	Parameters map[string]string

	rtts    [rttProbes]time.Duration // of the last probes, newest first
	flushed uint64                   // position that a primary has flushed
	kept    bool                     // the connection is the one of the answer before
	lacks   error                    // what a primary lacks
	shown   proven                   // what it was held against, as it was before it was asked
	ahead   error                    // what a standby has that its primary never wrote
}

// rttProbes is how many probes RTT looks at.
const rttProbes = 8

// addRTT notes the duration of the newest probe.
func (s *Status) addRTT(old *Status, d time.Duration) {
	s.rtts[0], s.RTT = d, d
	copy(s.rtts[1:], old.rtts[:])
	for _, other := range s.rtts {
		if other > 0 {
			s.RTT = min(s.RTT, other)
		}
	}
}

// Distrust says why a server is not used that answers: it claims to be the
// primary and lacks WAL, or it is a standby with WAL that the primary has never
// written. It is nil for all others.
func (s *Status) Distrust() error {
	if s.lacks != nil {
		return s.lacks
	}
	return s.ahead
}

// Target is the primary during one reign, or one of its standbys. A pointer to
// it identifies the reign: a server that loses and regains the role gets a new
// Target.
type Target struct {
	Endpoint topology.Endpoint
	Timeline uint32
	// Generation counts the reigns that this process has seen, from 1. A
	// standby has the generation of its primary.
	Generation uint64
	// Standby is false for the primary.
	Standby bool
	// Lost is closed when the reign ends, or when a standby is down or no
	// longer follows the primary.
	Lost <-chan struct{}

	lost chan struct{}
}

// View is an immutable snapshot.
type View struct {
	// Primary is nil while there is none that may be used.
	Primary *Target
	// Why says in words why Primary is nil.
	Why string
	// Standbys follow Primary, in configured order; there are none without it.
	Standbys []*Target
	// Servers has one entry per endpoint in configured order.
	Servers []Status
	// Changed is closed when a newer View with another Primary or other
	// Standbys exists.
	Changed <-chan struct{}
	// Since is when Primary took its present value.
	Since time.Time
}

// Demoted reports that the server of a reign that has ended still answers: it
// was not lost, it is no longer the primary.
func (v *View) Demoted(t *Target) bool {
	return v.Server(t.Endpoint).Up
}

// Server returns what the server of an endpoint said last.
func (v *View) Server(e topology.Endpoint) Status {
	for _, s := range v.Servers {
		if s.Endpoint == e {
			return s
		}
	}
	return Status{Endpoint: e}
}

// follows reports that a server is a standby of the primary. Positions in the
// WAL of another timeline cannot be compared with the primary's: such a standby
// may have gone on where the primary's history ends.
func (s *Status) follows(primary *Status) bool {
	return s.Up && s.InRecovery && s.ahead == nil && s.Timeline == primary.Timeline && s.SystemID == primary.SystemID
}

// choose applies the rule of the package comment. highest is the highest
// timeline seen so far; the new one is returned.
func choose(servers []Status, highest uint32) (best *Status, newHighest uint32, why string) {
	for i := range servers {
		if servers[i].Up && servers[i].Timeline > highest {
			highest = servers[i].Timeline
		}
	}
	var claims []*Status
	up, stale, readOnly := 0, 0, 0
	var lacking *Status
	for i := range servers {
		s := &servers[i]
		if !s.Up {
			continue
		}
		up++
		switch {
		case s.InRecovery:
		case s.Timeline < highest:
			stale++
		case s.lacks != nil:
			lacking = s
		case s.ReadOnly:
			readOnly++
		default:
			claims = append(claims, s)
		}
	}
	switch {
	case len(claims) == 1:
		return claims[0], highest, ""
	case len(claims) > 1:
		names := make([]string, 0, len(claims))
		for _, c := range claims {
			names = append(names, c.Endpoint.Name)
		}
		sort.Strings(names)
		why = "more than one server claims to be the primary on the same timeline: " + join(names)
	case up == 0:
		why = "no server answers"
	case lacking != nil:
		why = fmt.Sprintf("%s claims to be the primary and lacks WAL: %v", lacking.Endpoint.Name, lacking.lacks)
	case stale > 0:
		why = "the only server out of recovery is on an old timeline"
	case readOnly > 0:
		why = "the primary is read-only"
	default:
		why = "every server that answers is a standby"
	}
	return nil, highest, why
}

func join(names []string) string {
	s := ""
	for i, n := range names {
		if i > 0 {
			s += ", "
		}
		s += n
	}
	return s
}
