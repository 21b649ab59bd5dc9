package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Verification is what Verify found.
type Verification struct {
	// Checked are the labels of the backups that were read in full.
	Checked []string `json:"checked"`
	// Segments is how many WAL segments were read.
	Segments int `json:"segments"`
	// Problems are sentences; none means that everything is as it was written.
	Problems []string `json:"problems"`
}

// Verify reads everything in the target, compares it with the checksums that
// were made while it was written, and checks that the WAL from the oldest backup
// on has no hole. It is an error when there is a problem, or nothing to verify.
func (b *Backups) Verify(ctx context.Context) (Verification, error) {
	var v Verification
	err := b.record(OpVerify, func(*Record) error {
		var err error
		v, err = b.verify(ctx)
		if err != nil {
			return err
		}
		switch n := len(v.Problems); {
		case n == 1:
			return errors.New(v.Problems[0])
		case n > 1:
			return fmt.Errorf("%s (and %d more problems)", v.Problems[0], n-1)
		case len(v.Checked) == 0:
			return fmt.Errorf("%s has no backup to verify", b.Target())
		}
		return nil
	})
	return v, err
}

func (b *Backups) verify(ctx context.Context) (Verification, error) {
	v := Verification{Checked: []string{}, Problems: []string{}}
	inv, err := b.List(ctx)
	if err != nil {
		return v, err
	}
	if len(inv.Backups) == 0 {
		return v, nil
	}
	b.progress(Progress{Phase: "read all backups and WAL", Percent: -1})
	var text, log bytes.Buffer
	err = b.run(ctx, call{command: "verify", args: []string{"--output=text", "--verbose"}, stdout: &text})
	if err != nil {
		return v, err
	}
	v.read(text.String())
	if len(v.Problems) > 0 {
		// A second run names the files, which the summary only counts.
		if err := b.run(ctx, call{command: "verify", args: []string{"--output=none"}, stdout: &log, phase: "name the damaged files"}); err != nil {
			return v, err
		}
		v.nameFiles(log.String())
	}
	for _, k := range inv.Backups {
		if !slices.Contains(v.Checked, k.Label) && !v.mentions(k.Label) {
			v.Problems = append(v.Problems, "backup "+k.Label+" was not verified: its manifest cannot be read")
		}
	}
	archives, err := b.segments(ctx)
	if err != nil {
		return v, err
	}
	v.Problems = append(v.Problems, holes(inv, archives)...)
	// What the server was told is archived has to be there. A server that is
	// down must not make verification impossible.
	if lag, err := b.ArchiveLag(ctx); err == nil && walName.MatchString(lag.LastArchived) {
		if newest := newestOf(archives); newest < lag.LastArchived[:24] {
			v.Problems = append(v.Problems, fmt.Sprintf("WAL segment %s was archived by %s and is missing", lag.LastArchived[:24], lag.Node))
		}
	}
	return v, nil
}

func (v *Verification) mentions(label string) bool {
	return slices.ContainsFunc(v.Problems, func(p string) bool { return strings.Contains(p, label) })
}

var (
	verifiedBackup = regexp.MustCompile(`^backup: (\S+), status: ([^,]+)`)
	verifiedWAL    = regexp.MustCompile(`^archiveId: (\S+), total WAL checked: (\d+), total valid WAL: (\d+)`)
	damagedFile    = regexp.MustCompile(`INFO: (invalid checksum|invalid size|file missing|missing file|[a-z ]*invalid[a-z ]*) '([^']+)'`)
)

// read takes over pgBackRest's summary.
func (v *Verification) read(text string) {
	counts := ""
	bad := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch m := verifiedBackup.FindStringSubmatch(line); {
		case m != nil && m[2] == "valid":
			v.Checked = append(v.Checked, m[1])
		case m != nil && strings.HasPrefix(m[2], "in-progress"):
		case m != nil:
			v.Problems = append(v.Problems, fmt.Sprintf("backup %s is corrupt", m[1]))
		}
		if m := verifiedWAL.FindStringSubmatch(line); m != nil {
			total, _ := strconv.Atoi(m[2])
			valid, _ := strconv.Atoi(m[3])
			v.Segments += total
			if total != valid {
				v.Problems = append(v.Problems, fmt.Sprintf("%d WAL segments of archive %s are corrupt", total-valid, m[1]))
			}
		}
		if line == "status: error" {
			bad = true
		}
		if strings.HasPrefix(line, "no archives or backups") {
			counts = line
		}
	}
	if bad && len(v.Problems) == 0 {
		v.Problems = append(v.Problems, "pgBackRest finds an error that it does not name")
	}
	if counts != "" {
		v.Problems = append(v.Problems, "the target is empty: "+counts)
	}
}

// mostNamed bounds the damaged files that a verification names.
const mostNamed = 20

// nameFiles adds the damaged files of pgBackRest's log.
func (v *Verification) nameFiles(log string) {
	named := 0
	for line := range strings.Lines(log) {
		if m := damagedFile.FindStringSubmatch(line); m != nil && named < mostNamed {
			v.Problems = append(v.Problems, m[2]+": "+m[1])
			named++
		}
	}
}

// segment is a WAL segment's place on its timeline.
type segment struct {
	timeline uint32
	number   uint64
}

// segmentsPerLog is 4 GiB divided by PostgreSQL's own segment size of 16 MiB.
const segmentsPerLog = 1 << 32 / walSegmentSize

const walSegmentSize = 16 << 20

func parseSegment(name string) (segment, bool) {
	if len(name) != 24 || !walName.MatchString(name) {
		return segment{}, false
	}
	timeline, err1 := strconv.ParseUint(name[:8], 16, 32)
	high, err2 := strconv.ParseUint(name[8:16], 16, 32)
	low, err3 := strconv.ParseUint(name[16:], 16, 32)
	return segment{uint32(timeline), high*segmentsPerLog + low}, errors.Join(err1, err2, err3) == nil && low < segmentsPerLog
}

func (s segment) String() string {
	return fmt.Sprintf("%08X%08X%08X", s.timeline, s.number/segmentsPerLog, s.number%segmentsPerLog)
}

// archived are the segments of one archive.
type archived map[segment]bool

// archivedNames lists the WAL files in the target, each with the archive it is in:
// "15-1/000000010000000000000003", "15-1/00000002.history".
func (b *Backups) archivedNames(ctx context.Context) (map[string]bool, error) {
	var out bytes.Buffer
	err := b.run(ctx, call{
		command: "repo-ls", args: []string{"--recurse", "--output=json"}, operands: []string{"archive/" + b.cfg.Name}, stdout: &out,
	})
	if err != nil {
		return nil, err
	}
	var files map[string]json.RawMessage
	if err := json.Unmarshal(out.Bytes(), &files); err != nil {
		return nil, fmt.Errorf("read pgBackRest's list of the archive: %w", err)
	}
	names := map[string]bool{}
	for file := range files {
		id, _, ok := strings.Cut(file, "/")
		if m := archivedFile.FindStringSubmatch(path.Base(file)); ok && m != nil {
			names[id+"/"+m[1]] = true
		}
	}
	return names, nil
}

// segments lists the WAL segments in the target by archive.
func (b *Backups) segments(ctx context.Context) (map[string]archived, error) {
	names, err := b.archivedNames(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]archived{}
	for name := range names {
		id, file, _ := strings.Cut(name, "/")
		s, ok := parseSegment(file)
		if !ok {
			continue
		}
		if all[id] == nil {
			all[id] = archived{}
		}
		all[id][s] = true
	}
	return all, nil
}

// archivedFile is the name of a complete segment in the archive, which has its
// checksum behind it, or of a timeline's history.
var archivedFile = regexp.MustCompile(`^([0-9A-F]{24}|[0-9A-F]{8}\.history)(?:-[0-9a-f]{40}(?:\.[a-z0-9]+)?)?$`)

func newestOf(archives map[string]archived) string {
	newest := ""
	for _, a := range archives {
		for s := range a {
			newest = max(newest, s.String())
		}
	}
	return newest
}

// mostHoles bounds the missing segments that are named.
const mostHoles = 20

// holes names the segments that are missing from the first segment of the oldest
// backup to the newest one of its archive.
func holes(inv Inventory, archives map[string]archived) []string {
	first := map[string]segment{}
	var problems []string
	for _, k := range inv.Backups {
		begin, ok := parseSegment(k.FirstWAL)
		if !ok {
			problems = append(problems, fmt.Sprintf("backup %s does not say which WAL it needs", k.Label))
			continue
		}
		if old, seen := first[k.Archive]; !seen || begin.number < old.number {
			first[k.Archive] = begin
		}
	}
	missing := 0
	for _, id := range slices.Sorted(maps.Keys(first)) {
		for _, s := range missingFrom(first[id], archives[id]) {
			if missing++; missing <= mostHoles {
				problems = append(problems, fmt.Sprintf("WAL segment %s is missing from the archive: no recovery can pass it", s))
			}
		}
	}
	if missing > mostHoles {
		problems = append(problems, fmt.Sprintf("%d more WAL segments are missing", missing-mostHoles))
	}
	for _, k := range inv.Backups {
		if last, ok := parseSegment(k.LastWAL); ok && !archives[k.Archive][last] && missing == 0 {
			problems = append(problems, fmt.Sprintf("backup %s cannot be restored: WAL segment %s, which it needs, is missing", k.Label, last))
		}
	}
	return problems
}

// missingFrom follows the WAL from the segment begin to the end of the archive.
// A later timeline continues an earlier one in the segment in which it left it,
// which it has whole.
func missingFrom(begin segment, have archived) []segment {
	type span struct{ first, last uint64 }
	spans := map[uint32]span{}
	for s := range have {
		if s.timeline < begin.timeline {
			continue
		}
		at, ok := spans[s.timeline]
		if !ok {
			at = span{s.number, s.number}
		}
		spans[s.timeline] = span{min(at.first, s.number), max(at.last, s.number)}
	}
	if len(spans) == 0 {
		return []segment{begin}
	}
	timelines := slices.Sorted(maps.Keys(spans))
	newest := timelines[len(timelines)-1]
	var missing []segment
	at := begin.timeline
	// A server that lost its place may have archived on after the switch: the
	// end of the newest timeline is the end.
	for n := begin.number; at != newest || n <= spans[newest].last; n++ {
		for _, t := range timelines {
			if t > at && spans[t].first <= n {
				at = t
			}
		}
		if at == newest && n > spans[newest].last {
			break
		}
		if s := (segment{at, n}); !have[s] {
			missing = append(missing, s)
		}
	}
	return missing
}
