package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"fournines/internal/process"
)

// savedState is state.json: what a supervisor must know to go on where a dead
// one was, without asking the plan.
type savedState struct {
	Version int                   `json:"version"`
	Name    string                `json:"name"`
	BootID  string                `json:"bootId"`
	Units   map[string]unitRecord `json:"units"`
	// PowerOff names the zones without power.
	PowerOff []string `json:"powerOff,omitempty"`
}

// unitRecord is the saved part of one unit.
type unitRecord struct {
	process.Identity
	Restarts int  `json:"restarts,omitempty"`
	Held     bool `json:"held,omitempty"`
	Paused   bool `json:"paused,omitempty"`
	// Done says that the task has been run in this start of the stack.
	Done bool `json:"done,omitempty"`
	// Next is a successor that gets ready; see internal/handover.
	Next process.Identity   `json:"next,omitzero"`
	old  []process.Identity // found by recover: those that have handed over
	Task bool               `json:"task,omitempty"`
	// The rest is for `down` without a supervisor, which may not be able to
	// build the plan again.
	Kind        string         `json:"kind,omitempty"`
	Zone        string         `json:"zone,omitempty"`
	Address     string         `json:"address,omitempty"`
	After       []string       `json:"after,omitempty"`
	StopSignal  syscall.Signal `json:"stopSignal,omitempty"`
	StopTimeout time.Duration  `json:"stopTimeout,omitempty"`
	KillGroup   bool           `json:"killGroup,omitempty"`
	Handover    string         `json:"handover,omitempty"`
}

const stateVersion = 1

// loadState reads state.json. A missing file is an empty state. What was
// written before the last boot is forgotten: its processes are gone.
func loadState(dir string) (*savedState, error) {
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	empty := &savedState{Version: stateVersion, BootID: boot, Units: map[string]unitRecord{}}
	path := filepath.Join(dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var s savedState
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); stop the stack's processes by hand and delete the file", path, err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s was written by another version of fournines (format %d, want %d); stop the stack with that version", path, s.Version, stateVersion)
	}
	if s.BootID != boot || s.Units == nil {
		return empty, nil
	}
	return &s, nil
}

func saveState(dir string, s *savedState) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return process.ReplaceFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600, process.Owner{})
}

// unit turns the record back into what is needed to stop the unit.
func (r *unitRecord) unit(name string) process.Unit {
	u := process.Unit{Name: name, Kind: r.Kind, Zone: r.Zone, Address: r.Address, After: r.After}
	u.Process = &process.Spec{StopSignal: r.StopSignal, StopTimeout: r.StopTimeout, KillGroup: r.KillGroup, Handover: r.Handover}
	return u
}
