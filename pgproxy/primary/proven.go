package primary

import "fmt"

// proven is the end of the WAL that has certainly been written on the highest
// timeline: what a standby has replayed, and what the primary has flushed. A
// server of this cluster that claims to be the primary on this timeline and has
// less lacks commits that may have been acknowledged: its disk lost writes, it
// was restored from a copy, or it was a standby that somebody started as a
// primary without a promotion.
type proven struct {
	systemID string
	timeline uint32
	lsn      uint64
	server   string // who showed it
}

// minBlock is the smallest WAL block that PostgreSQL can be built with. A flush
// that ends at a block's border may end inside of a record, which a crash throws
// away; any other ends with a record.
const minBlock = 1024

// add takes in what a server has said.
func (p *proven) add(s *Status) {
	lsn := s.LSN
	if !s.InRecovery {
		lsn = s.flushed
		if lsn%minBlock == 0 {
			lsn = 0
		}
	}
	switch {
	case s.Distrust() != nil || s.Timeline < p.timeline || s.Timeline == p.timeline && p.systemID != s.SystemID && p.lsn > 0:
	case s.Timeline > p.timeline || lsn > p.lsn:
		*p = proven{systemID: s.SystemID, timeline: s.Timeline, lsn: lsn, server: s.Endpoint.Name}
	}
}

// lacking says what a server lacks, or nil. p must be older than what the server
// said: positions grow while one asks around.
func (p *proven) lacking(s *Status) error {
	if s.InRecovery || s.SystemID != p.systemID || s.Timeline != p.timeline || s.LSN >= p.lsn {
		return nil
	}
	return fmt.Errorf("its WAL ends at %s, and %s has had it up to %s on the same timeline", FormatLSN(s.LSN), p.server, FormatLSN(p.lsn))
}

// refutes reports that s shows the WAL to be wrong that it was held against,
// instead of lacking it itself: s was the primary on this timeline when it was
// asked before, on the same connection, so it has run since then. What a running
// server has written it does not lose, and a standby has nothing else. old is
// the status before.
func (s *Status) refutes(old *Status) bool {
	return s.lacks != nil && s.kept && s.shown.server != s.Endpoint.Name &&
		old.Up && !old.InRecovery && old.Timeline == s.Timeline && old.lacks == nil
}

// FormatLSN writes a WAL position as PostgreSQL does.
func FormatLSN(lsn uint64) string { return fmt.Sprintf("%X/%X", lsn>>32, uint32(lsn)) }
