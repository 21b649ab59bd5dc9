package proof

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fournines/availability"
)

// maxFile bounds a file of records, in bytes.
const maxFile = 64 << 20

// Record is one drill that ran once.
type Record struct {
	// File it was read from, as the user named it.
	File string
	// Suite of fault tables that it belongs to; empty for a drill of a whole stack.
	Suite string
	// Drill is its name, Target what was broken.
	Drill, Target string
	Repetition    int
	// Verdict is "pass" or "fail".
	Verdict string
	// Restored tells that every component became ready again.
	Restored bool
	// Failed lists the checks of the data that failed.
	Failed []string
	// Event is what it cost the users.
	Event availability.Event
	// LongestOutage in which some class of requests was not served.
	LongestOutage time.Duration
	// Requests that were sent, and those that failed or were slow.
	Requests, Bad int
}

// dataChecks are the checks of drills that are about data and not about time.
var dataChecks = map[string]bool{
	"acknowledged-writes": true, "refused-writes": true, "linearizable-registers": true, "append-lists": true,
}

// problems says what is worse than an outage.
func (r Record) problems() []string {
	var out []string
	name := fmt.Sprintf("%s: drill %s, repetition %d", r.File, r.Drill, r.Repetition)
	if !r.Restored {
		out = append(out, name+": the steady state did not come back; it is not counted as a measurement")
	}
	for _, check := range r.Failed {
		out = append(out, name+": "+check)
	}
	return out
}

// report is the part of a drill's JSON report that is read here.
type report struct {
	Version    int    `json:"version"`
	Drill      string `json:"drill"`
	Target     string `json:"target"`
	Repetition int    `json:"repetition"`
	Window     struct {
		Start    time.Time `json:"start"`
		Fault    time.Time `json:"fault"`
		Restored time.Time `json:"restored"`
		End      time.Time `json:"end"`
	} `json:"window"`
	Requests struct {
		Total   int `json:"total"`
		Failed  int `json:"failed"`
		Slow    int `json:"slow"`
		ByClass map[string]struct {
			Total           int   `json:"total"`
			LongestOutageMs int64 `json:"longestOutageMs"`
		} `json:"byClass"`
	} `json:"requests"`
	LongestOutageMs     int64 `json:"longestOutageMs"`
	SteadyStateRestored bool  `json:"steadyStateRestored"`
	Checks              []struct {
		Name   string `json:"name"`
		OK     bool   `json:"ok"`
		Detail string `json:"detail"`
	} `json:"checks"`
	Verdict string `json:"verdict"`
}

// document is a line or a file of records: a report by itself, or a table of
// faults as those under bench/results.
type document struct {
	report
	Suite  string `json:"suite"`
	Faults []struct {
		Fault       string `json:"fault"`
		Repetitions []struct {
			Report report `json:"report"`
		} `json:"repetitions"`
	} `json:"faults"`
}

// errNoRecords says that a file is JSON and holds no drill.
var errNoRecords = errors.New("no drill is recorded in it: want the output of `fournines drill -o json`, or a table of faults with reports")

// Read reads records from files and folders. In a folder it takes every .json
// and .jsonl file and passes over those that hold no drill; a file that is named
// must hold one.
func Read(paths []string) ([]Record, error) {
	var all []Record
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			records, err := readFile(path)
			if err != nil {
				return nil, err
			}
			all = append(all, records...)
			continue
		}
		found := false
		err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if ext := filepath.Ext(name); d.IsDir() || ext != ".json" && ext != ".jsonl" {
				return nil
			}
			records, err := readFile(name)
			if errors.Is(err, errNoRecords) {
				return nil
			}
			found = found || len(records) > 0
			all = append(all, records...)
			return err
		})
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, fmt.Errorf("%s: no file with recorded drills in it", path)
		}
	}
	return all, nil
}

func readFile(path string) ([]Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	records, err := parse(path, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return records, nil
}

// parse reads one document after the other.
func parse(file string, text []byte) ([]Record, error) {
	var all []Record
	add := func(suite string, r report) error {
		rec, err := r.record(file)
		if err != nil {
			return err
		}
		rec.Suite = suite
		all = append(all, rec)
		return nil
	}
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("at byte %d: %w", dec.InputOffset(), err)
		}
		docs := []document{{}}
		var err error
		if strings.HasPrefix(string(bytes.TrimSpace(raw)), "[") {
			err = json.Unmarshal(raw, &docs)
		} else {
			err = json.Unmarshal(raw, &docs[0])
		}
		if err != nil {
			// Some other program's JSON.
			return nil, fmt.Errorf("%w (%w)", errNoRecords, err)
		}
		for _, d := range docs {
			if d.Drill != "" {
				if err := add("", d.report); err != nil {
					return nil, err
				}
			}
			for _, f := range d.Faults {
				for _, rep := range f.Repetitions {
					if err := add(d.Suite, rep.Report); err != nil {
						return nil, fmt.Errorf("fault %s: %w", f.Fault, err)
					}
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, errNoRecords
	}
	return all, nil
}

// record turns a report into what an event cost.
func (r report) record(file string) (Record, error) {
	at := fmt.Sprintf("drill %q, repetition %d", r.Drill, r.Repetition)
	if r.Version != 1 {
		return Record{}, fmt.Errorf("%s: version %d: this program reads version 1", at, r.Version)
	}
	window := r.Window.End.Sub(r.Window.Start)
	held := r.Window.Restored.Sub(r.Window.Fault)
	q := r.Requests
	switch {
	case window <= 0 || held < 0 || held > window:
		return Record{}, fmt.Errorf("%s: window: want start, fault, restored and end in this order", at)
	case q.Total <= 0:
		return Record{}, fmt.Errorf("%s: requests.total: %d, want the requests of a load", at, q.Total)
	case q.Failed < 0 || q.Slow < 0 || q.Failed+q.Slow > q.Total:
		return Record{}, fmt.Errorf("%s: requests: %d failed and %d slow of %d", at, q.Failed, q.Slow, q.Total)
	}
	// Requests arrive at a constant rate, so those that were not served well
	// stand for a time without service.
	bad := q.Failed + q.Slow
	lost := window.Minutes() * float64(bad) / float64(q.Total)
	// Held requests do not fail: a time in which nothing of a class is served
	// counts too, with the share that the class has of the requests.
	byClass := 0.0
	for name, c := range q.ByClass {
		if c.Total < 0 || c.Total > q.Total || c.LongestOutageMs < 0 {
			return Record{}, fmt.Errorf("%s: requests.byClass.%s: %d requests of %d, %d ms", at, name, c.Total, q.Total, c.LongestOutageMs)
		}
		byClass += float64(c.Total) / float64(q.Total) * (time.Duration(c.LongestOutageMs) * time.Millisecond).Minutes()
	}
	rec := Record{
		File: file, Drill: r.Drill, Target: r.Target, Repetition: r.Repetition, Verdict: r.Verdict, Restored: r.SteadyStateRestored,
		Event:         availability.Event{Minutes: max(lost, byClass)},
		LongestOutage: time.Duration(r.LongestOutageMs) * time.Millisecond,
		Requests:      q.Total, Bad: bad,
	}
	if held > 0 {
		rec.Event.Share = min(1, max(lost, byClass)/held.Minutes())
	}
	for _, c := range r.Checks {
		if !c.OK && dataChecks[c.Name] {
			rec.Failed = append(rec.Failed, fmt.Sprintf("check %s: %s", c.Name, c.Detail))
		}
	}
	return rec, nil
}
