package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types of a base backup.
const (
	Full         = "full"
	Differential = "diff"
)

// Backup is one base backup in the target.
type Backup struct {
	// Label is its name in the target, "20261129-020000F".
	Label string `json:"label"`
	// Type is Full or Differential; the latter needs its full one.
	Type string `json:"type"`
	// Needs are the labels of the backups whose files it refers to.
	Needs []string `json:"needs,omitempty"`
	// Started and Ended bound the copying. One can go back to any moment from
	// Ended on.
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	// Size is that of the database, Stored what this backup alone takes in the
	// target, both in bytes.
	Size   int64 `json:"size"`
	Stored int64 `json:"stored"`
	// FirstWAL and LastWAL are the segments that it needs to be consistent, in
	// the archive called Archive.
	FirstWAL string `json:"firstWAL"`
	LastWAL  string `json:"lastWAL"`
	Archive  string `json:"archive"`
	// PageErrors says that pages failed their checksum while they were copied:
	// the server's own files are damaged.
	PageErrors bool `json:"pageErrors,omitempty"`
	// oldestXID is a transaction id below which all were complete when the
	// backup ended; 0 when it is not known.
	oldestXID uint64
}

// oldestXIDNote is the annotation of a backup that holds Backup.oldestXID.
const oldestXIDNote = "fournines-oldest-xid"

// Inventory is what a target holds.
type Inventory struct {
	// Backups, oldest first.
	Backups []Backup `json:"backups"`
	// LastWAL is the newest segment in the archive; empty when there is none.
	LastWAL string `json:"lastWAL"`
}

// Latest returns the newest backup; ok is false when there is none.
func (i Inventory) Latest() (last Backup, ok bool) {
	if len(i.Backups) == 0 {
		return Backup{}, false
	}
	return i.Backups[len(i.Backups)-1], true
}

// info is what `pgbackrest info --output=json` answers for one stanza.
type info struct {
	Archive []struct {
		ID       string `json:"id"`
		Max      string `json:"max"`
		Database struct {
			ID int `json:"id"`
		} `json:"database"`
	} `json:"archive"`
	Backup []struct {
		Annotation map[string]string `json:"annotation"`
		Archive    struct {
			Start string `json:"start"`
			Stop  string `json:"stop"`
		} `json:"archive"`
		Database struct {
			ID int `json:"id"`
		} `json:"database"`
		Error bool `json:"error"`
		Info  struct {
			Size       int64 `json:"size"`
			Repository struct {
				Delta int64 `json:"delta"`
			} `json:"repository"`
		} `json:"info"`
		Label     string   `json:"label"`
		Reference []string `json:"reference"`
		Timestamp struct {
			Start int64 `json:"start"`
			Stop  int64 `json:"stop"`
		} `json:"timestamp"`
		Type string `json:"type"`
	} `json:"backup"`
	Repo []struct {
		Status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		} `json:"status"`
	} `json:"repo"`
}

// Statuses of a stanza (src/command/info/info.c).
const (
	statusNoStanza     = 1
	statusNoBackup     = 2
	statusNoStanzaData = 3
)

func (b *Backups) info(ctx context.Context) (answer info, exists bool, err error) {
	var out bytes.Buffer
	if err := b.run(ctx, call{command: "info", args: []string{"--output=json"}, stdout: &out}); err != nil {
		return answer, false, err
	}
	var all []info
	// It quotes what it cannot read, whatever the bytes.
	text := bytes.Map(func(r rune) rune { return max(r, ' ') }, out.Bytes())
	if err := json.Unmarshal(text, &all); err != nil {
		return answer, false, fmt.Errorf("read pgBackRest's list: %w", err)
	}
	if len(all) != 1 || len(all[0].Repo) != 1 {
		return answer, false, nil
	}
	answer = all[0]
	switch s := answer.Repo[0].Status; s.Code {
	case statusNoStanza, statusNoStanzaData:
		return answer, false, nil
	case 0, statusNoBackup:
		return answer, true, nil
	default:
		cause := firstError("ERROR: [000]: " + s.Message)
		meaning := b.serviceTrouble(s.Message)
		if meaning == "" {
			meaning = b.meaning(codeOf(s.Message), cause)
		}
		return answer, true, &ToolError{Command: "info", Code: s.Code, Message: strings.TrimSpace(meaning + " (" + cause + ")")}
	}
}

// codeOf guesses the exit code from the name of an error that is in a status.
func codeOf(message string) int {
	switch {
	case strings.Contains(message, "FormatError"):
		return codeFormat
	case strings.Contains(message, "CryptoError"):
		return codeCrypto
	}
	return 0
}

// List returns what the target holds. A target without a set of backups of this
// name is empty.
func (b *Backups) List(ctx context.Context) (Inventory, error) {
	answer, _, err := b.info(ctx)
	if err != nil {
		return Inventory{}, err
	}
	archives := map[int]string{}
	inv := Inventory{Backups: []Backup{}}
	for _, a := range answer.Archive {
		archives[a.Database.ID] = a.ID
		inv.LastWAL = a.Max // archives are in the order of the server's upgrades
	}
	for _, e := range answer.Backup {
		xid, _ := strconv.ParseUint(e.Annotation[oldestXIDNote], 10, 64)
		inv.Backups = append(inv.Backups, Backup{
			Label: e.Label, Type: e.Type, Needs: e.Reference,
			Started: time.Unix(e.Timestamp.Start, 0).UTC(), Ended: time.Unix(e.Timestamp.Stop, 0).UTC(),
			Size: e.Info.Size, Stored: e.Info.Repository.Delta,
			FirstWAL: e.Archive.Start, LastWAL: e.Archive.Stop, Archive: archives[e.Database.ID],
			PageErrors: e.Error, oldestXID: xid,
		})
	}
	slices.SortStableFunc(inv.Backups, func(x, y Backup) int { return x.Ended.Compare(y.Ended) })
	return inv, nil
}

// find returns the backup called label.
func (i Inventory) find(label string) (Backup, error) {
	var labels []string
	for _, k := range i.Backups {
		if k.Label == label {
			return k, nil
		}
		labels = append(labels, k.Label)
	}
	return Backup{}, fmt.Errorf("there is no backup %s; there are: %s", label, strings.Join(labels, ", "))
}

// Now takes a backup of whichever node is primary, and removes what the
// retention no longer needs. An empty kind means Full when the last full backup
// is older than Config.FullEvery, else Differential.
func (b *Backups) Now(ctx context.Context, kind string) (Backup, error) {
	var taken Backup
	err := b.record(OpBackup, func(*Record) error {
		var err error
		taken, err = b.take(ctx, kind)
		return err
	})
	return taken, err
}

func (b *Backups) take(ctx context.Context, kind string) (Backup, error) {
	node, err := b.primary(ctx)
	if err != nil {
		return Backup{}, err
	}
	_, exists, err := b.info(ctx)
	if err != nil {
		return Backup{}, err
	}
	if !exists {
		if err := b.run(ctx, call{command: "stanza-create", node: node}); err != nil {
			return Backup{}, err
		}
	}
	before, err := b.List(ctx)
	if err != nil {
		return Backup{}, err
	}
	if kind == "" {
		kind = b.due(before)
	}
	began := time.Now()
	b.progress(Progress{Phase: "begin a " + kind + " backup of " + node.Name, Percent: -1})
	err = b.run(ctx, call{
		command: "backup", node: node, phase: "copy files",
		// The checkpoint is done at once: waiting for the next one would leave
		// the database without a new backup for minutes.
		args: []string{"--type=" + kind, "--start-fast"},
	})
	if err != nil {
		return Backup{}, err
	}
	after, err := b.List(ctx)
	if err != nil {
		return Backup{}, err
	}
	taken, ok := after.Latest()
	if old, had := before.Latest(); !ok || had && old.Label == taken.Label {
		return Backup{}, fmt.Errorf("pgBackRest reported success, but %s lists no new backup", b.Target())
	}
	if err := b.note(ctx, node, taken.Label); err != nil {
		return taken, err
	}
	if err := b.satisfy(began); err != nil {
		return taken, err
	}
	if taken.PageErrors {
		return taken, fmt.Errorf("backup %s is there, but pages of %s failed their checksum while they were copied: the server's own files are damaged, restore from an older backup", taken.Label, node.Name)
	}
	return taken, nil
}

// due is the type that a backup has now when nobody asks for one.
func (b *Backups) due(inv Inventory) string {
	// An hour of grace: the daily backup is not always equally long.
	newest := b.now().Add(time.Hour).AddDate(0, 0, -b.cfg.FullEvery)
	for _, k := range inv.Backups {
		if k.Type == Full && k.Started.After(newest) {
			return Differential
		}
	}
	return Full
}

// note writes into the backup which transactions it has whole, so that a restore
// to a transaction knows where to begin.
func (b *Backups) note(ctx context.Context, node Node, label string) error {
	conn, err := b.connect(ctx, node, "postgres")
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	var xid string
	if err := conn.QueryRow(ctx, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text").Scan(&xid); err != nil {
		return fmt.Errorf("ask %s for its transactions: %w", node.Name, err)
	}
	return b.run(ctx, call{command: "annotate", args: []string{"--set=" + label, "--annotation=" + oldestXIDNote + "=" + xid}})
}

// Prune removes backups that are older than Config.KeepDays and the WAL that
// only they need. The newest backup that is older stays: going back to the first
// of those days begins with it. Dry only says what would go.
func (b *Backups) Prune(ctx context.Context, dry bool) (removed []string, err error) {
	err = b.record(OpPrune, func(*Record) error {
		var out bytes.Buffer
		c := call{command: "expire", stdout: &out, phase: "remove old backups"}
		if dry {
			c.args = []string{"--dry-run"}
		}
		if err := b.run(ctx, c); err != nil {
			return err
		}
		removed = expired(out.String())
		return nil
	})
	return removed, err
}

var removedBackup = regexp.MustCompile(`remove expired backup (\S+)`)

// expired reads from pgBackRest's log which backups it removed.
func expired(log string) []string {
	var labels []string
	for _, m := range removedBackup.FindAllStringSubmatch(log, -1) {
		if !slices.Contains(labels, m[1]) {
			labels = append(labels, m[1])
		}
	}
	return labels
}
