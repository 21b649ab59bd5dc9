package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"fournines/topology"
)

const (
	// keptEvents is how many events the timeline holds.
	keptEvents = 500
	// liveEvents is how many of them every snapshot carries.
	liveEvents = 40
)

// timeline is what has happened, the oldest first. Its owner guards it.
type timeline struct {
	events []Event
	last   int64 // the highest ID
	// file keeps it; nil for memory only. lines is how many are in it.
	path  string
	file  *os.File
	lines int

	roles   map[string]string // the last role of each component that was not empty
	actions int64             // Seq of the last action seen
	firing  map[string]Alert  // nil before the first look
}

// openTimeline goes on with the timeline in the file at path; empty keeps it in
// memory. Lines that cannot be read, as the last one of a process that was
// killed, are left out.
func openTimeline(path string) (*timeline, error) {
	t := &timeline{path: path, roles: map[string]string{}, actions: -1}
	if path == "" {
		return t, nil
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the timeline: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		var e Event
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.ID > t.last {
			t.events, t.last = append(t.events, e), e.ID
		}
	}
	t.trim()
	return t, t.rewrite()
}

// rewrite replaces the file by what is held in memory, and opens it for more.
func (t *timeline) rewrite() error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	for _, e := range t.events {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("write the timeline: %w", err)
		}
	}
	next := filepath.Join(filepath.Dir(t.path), "."+filepath.Base(t.path)+".new")
	if err := os.WriteFile(next, text.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write the timeline: %w", err)
	}
	if err := os.Rename(next, t.path); err != nil {
		return fmt.Errorf("write the timeline: %w", err)
	}
	file, err := os.OpenFile(t.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("write the timeline: %w", err)
	}
	t.close()
	t.file, t.lines = file, len(t.events)
	return nil
}

func (t *timeline) close() {
	if t.file != nil {
		_ = t.file.Close()
		t.file = nil
	}
}

func (t *timeline) trim() {
	if extra := len(t.events) - keptEvents; extra > 0 {
		t.events = slices.Clone(t.events[extra:])
	}
}

// add appends events and gives them their IDs. The error is the file's: the
// timeline in memory has them anyway.
func (t *timeline) add(events []Event) error {
	if len(events) == 0 {
		return nil
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	for i := range events {
		t.last++
		events[i].ID = t.last
		if err := enc.Encode(events[i]); err != nil {
			return fmt.Errorf("write the timeline: %w", err)
		}
	}
	t.events = append(t.events, events...)
	t.trim()
	if t.file == nil {
		return nil
	}
	if t.lines += len(events); t.lines > 4*keptEvents {
		return t.rewrite()
	}
	if _, err := t.file.Write(text.Bytes()); err != nil {
		return fmt.Errorf("write the timeline: %w", err)
	}
	return nil
}

// newest returns at most n events, the newest first.
func (t *timeline) newest(n int) []Event {
	out := slices.Clone(t.events[max(0, len(t.events)-n):])
	slices.Reverse(out)
	return out
}

// stack tells what is different between two looks at the stack; before is nil
// at the first look, which is no event but for what was asked before it.
func (t *timeline) stack(before *topology.Status, now topology.Status, at time.Time) []Event {
	out := t.ordered(now, at)
	was := map[string]topology.Component{}
	zones := map[string]topology.Zone{}
	if before != nil {
		for _, z := range before.Zones {
			zones[z.Name] = z
			for _, c := range z.Components {
				was[c.Name] = c
			}
		}
	}
	ms := at.UnixMilli()
	for _, z := range now.Zones {
		if old, known := zones[z.Name]; known {
			for _, change := range [][3]string{{"power", old.Power, z.Power}, {"link", old.Link, z.Link}} {
				if change[1] != change[2] && change[1] != "" && change[2] != "" {
					out = append(out, Event{At: ms, Kind: EventZone, Zone: z.Name, From: change[1], To: change[2], Text: change[0]})
				}
			}
		}
		for _, c := range z.Components {
			old, known := was[c.Name]
			out = append(out, t.component(old, known, c, z.Name, ms)...)
		}
	}
	if before != nil && before.State != now.State {
		out = append(out, Event{At: ms, Kind: EventStack, From: string(before.State), To: string(now.State)})
	}
	return out
}

func (t *timeline) component(old topology.Component, known bool, c topology.Component, zone string, ms int64) (out []Event) {
	if known && c.State != old.State {
		out = append(out, Event{At: ms, Kind: EventState, Component: c.Name, Zone: zone, From: string(old.State), To: string(c.State), Text: c.Reason})
	}
	if known && c.Restarts > old.Restarts {
		out = append(out, Event{At: ms, Kind: EventRestart, Component: c.Name, Zone: zone})
	}
	if c.Role == "" {
		return out // it has none, or does not say
	}
	last := t.roles[c.Name]
	t.roles[c.Name] = c.Role
	if known && last != "" && last != c.Role {
		out = append(out, Event{At: ms, Kind: EventRole, Component: c.Name, Zone: zone, From: last, To: c.Role})
	}
	return out
}

// ordered returns the orders that are new. A supervisor that starts anew counts
// from one again.
func (t *timeline) ordered(now topology.Status, at time.Time) (out []Event) {
	newest := int64(0)
	for _, a := range now.Actions {
		newest = max(newest, a.Seq)
	}
	if newest < t.actions {
		t.actions = 0
	}
	for _, a := range now.Actions {
		if a.Seq <= t.actions {
			continue
		}
		when := at.Add(-time.Duration(a.AgeSeconds * float64(time.Second))).UnixMilli()
		// After a restart of the console the file has it already.
		if t.actions < 0 && t.has(a, when) {
			continue
		}
		out = append(out, Event{At: when, Kind: EventAction, Component: a.Component, Zone: a.Zone, To: a.Verb})
	}
	t.actions = newest
	return out
}

// has tells if an order of about that time is in the timeline.
func (t *timeline) has(a topology.Action, when int64) bool {
	return slices.ContainsFunc(t.events, func(e Event) bool {
		return e.Kind == EventAction && e.Component == a.Component && e.Zone == a.Zone && e.To == a.Verb && max(e.At-when, when-e.At) < 2000
	})
}

// alerts tells which alerts began and ended since the last look.
func (t *timeline) alerts(now []Alert, at time.Time) (out []Event) {
	next := map[string]Alert{}
	for _, a := range now {
		next[a.ID] = a
		if _, known := t.firing[a.ID]; !known && t.firing != nil {
			out = append(out, Event{At: a.Since, Kind: EventAlert, Component: a.Component, Zone: a.Zone, From: a.Severity, To: "firing", Text: a.Name})
		}
	}
	for id, a := range t.firing {
		if _, still := next[id]; !still {
			out = append(out, Event{At: at.UnixMilli(), Kind: EventAlert, Component: a.Component, Zone: a.Zone, From: a.Severity, To: "resolved", Text: a.Name})
		}
	}
	t.firing = next
	return out
}
