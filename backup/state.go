package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/internal/process"
)

// Operations that leave a record.
const (
	OpBackup = "backup"
	OpPrune  = "prune"
	OpVerify = "verify"
	OpDrill  = "drill"
)

// Record is how the last run of an operation went.
type Record struct {
	Started time.Time `json:"started"`
	// Ended is zero while the operation runs.
	Ended time.Time `json:"ended,omitzero"`
	// Error is empty when it went well.
	Error string `json:"error,omitempty"`
	// LastSuccess is the end of the last run that went well; zero when none did.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	// Failures and Successes count the runs.
	Failures  int `json:"failures"`
	Successes int `json:"successes"`
	// RPO and RTO are what the last good restore drill measured; zero otherwise.
	RPO time.Duration `json:"rpo,omitempty"`
	RTO time.Duration `json:"rto,omitempty"`
}

// Failed reports that the last run that ended did not go well.
func (r Record) Failed() bool { return r.Error != "" }

// errKilled is the result of a run that never wrote one.
const errKilled = "was killed before it ended"

// ErrBusy says that another operation holds the lock.
var ErrBusy = errors.New("another backup, verification or drill is running")

// Records returns the last run of each operation. A run whose process was killed
// is reported as failed.
func (b *Backups) Records() (map[string]Record, error) {
	records, err := b.readRecords()
	if err != nil {
		return nil, err
	}
	for name, r := range records {
		if r.Ended.IsZero() && !b.locked() {
			r.fail(errKilled, b.now())
			records[name] = r
		}
	}
	return records, nil
}

func (r *Record) fail(message string, at time.Time) {
	r.Ended, r.Error = at, message
	r.Failures++
}

func (b *Backups) readRecords() (map[string]Record, error) {
	records := map[string]Record{}
	text, err := os.ReadFile(b.state("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return records, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the results of earlier runs: %w", err)
	}
	if err := json.Unmarshal(text, &records); err != nil {
		return nil, fmt.Errorf("read the results of earlier runs: %s: %w; remove it to begin anew", b.state("state.json"), err)
	}
	return records, nil
}

func (b *Backups) writeRecords(records map[string]Record) error {
	text, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return err
	}
	return process.WriteFile(b.state("state.json"), append(text, '\n'), 0o600, process.Owner{})
}

// record runs an operation under the lock and keeps how it went.
func (b *Backups) record(operation string, do func(r *Record) error) error {
	if err := b.prepare(); err != nil {
		return err
	}
	unlock, err := b.lock(operation)
	if err != nil {
		return err
	}
	defer unlock()
	records, err := b.readRecords()
	if err != nil {
		return err
	}
	// Under the lock nothing else runs: what has no end was killed.
	for name, r := range records {
		if r.Ended.IsZero() {
			r.fail(errKilled, b.now())
			records[name] = r
		}
	}
	r := records[operation]
	r.Started, r.Ended = b.now(), time.Time{}
	records[operation] = r
	if err := b.writeRecords(records); err != nil {
		return err
	}
	result := do(&r)
	if result != nil {
		r.fail(result.Error(), b.now())
	} else {
		r.Error, r.Ended = "", b.now()
		r.LastSuccess = r.Ended
		r.Successes++
	}
	records[operation] = r
	return errors.Join(result, b.writeRecords(records))
}

// lock takes the lock of all operations. The kernel gives it back when the
// process dies, however it dies.
func (b *Backups) lock(operation string) (unlock func(), err error) {
	path := b.state("operation.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		who, _ := os.ReadFile(path)
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (%s): wait for its end", ErrBusy, strings.TrimSpace(string(who)))
		}
		return nil, fmt.Errorf("take the lock %s: %w", path, err)
	}
	// Only for the message above; the lock itself does not depend on it.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(operation+", process "+strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}

// locked reports whether an operation runs.
func (b *Backups) locked() bool {
	f, err := os.Open(b.state("operation.lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}
