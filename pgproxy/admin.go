package pgproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"fournines/pgproxy/primary"
)

// AdminToken is what callers of the admin API must send, "" for nothing.
func (p *Proxy) AdminToken() string { return p.live.Load().adminToken }

// Status is the answer of GET /v1/status, and of what changes it.
type Status struct {
	Zone     string `json:"zone"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	Ready    bool   `json:"ready"`
	NotReady string `json:"notReady,omitempty"` // why
	// Primary is the address of the server that transactions go to, "" while
	// there is none; Reign counts the reigns that this process has seen.
	Primary   string         `json:"primary"`
	Reign     uint64         `json:"reign"`
	NoPrimary string         `json:"noPrimary,omitempty"` // why
	Servers   []ServerStatus `json:"servers"`
	Paused    []PausedStatus `json:"paused"`
	Clients   int64          `json:"clients"`
	Held      int64          `json:"heldClients"`
	// LastReload is absent before the first one; the error says why it was refused.
	LastReload      *time.Time `json:"lastReload,omitempty"`
	LastReloadError string     `json:"lastReloadError,omitempty"`
}

// ServerStatus is one PostgreSQL server as the probes see it.
type ServerStatus struct {
	Name    string `json:"name"`
	Zone    string `json:"zone"`
	Address string `json:"address"`
	// State is "primary", "standby", "refused" (out of recovery and not used)
	// or "down".
	State    string `json:"state"`
	Timeline uint32 `json:"timeline"`
	LSN      string `json:"lsn"` // written, or on a standby replayed
	Error    string `json:"error,omitempty"`
}

// PausedStatus is one pause in force.
type PausedStatus struct {
	Database string    `json:"database"` // "" is all
	Until    time.Time `json:"until"`
}

func (p *Proxy) adminStatus() Status {
	v := p.tracker.View()
	s := Status{
		Zone: p.live.Load().cfg.Zone, Version: p.opts.Version, PID: os.Getpid(),
		Clients: p.clients.Load(), Held: p.held.Load(), Paused: []PausedStatus{}, NoPrimary: v.Why,
	}
	if err := p.Ready(); err != nil {
		s.NotReady = err.Error()
	} else {
		s.Ready = true
	}
	if v.Primary != nil {
		s.Primary, s.Reign, s.NoPrimary = v.Primary.Endpoint.Address, v.Primary.Generation, ""
	}
	for _, server := range v.Servers {
		e := ServerStatus{
			Name: server.Endpoint.Name, Zone: server.Endpoint.Zone, Address: server.Endpoint.Address,
			Timeline: server.Timeline, LSN: primary.FormatLSN(server.LSN),
		}
		switch {
		case !server.Up:
			e.State = "down"
		case server.InRecovery:
			e.State = "standby"
		case v.Primary != nil && v.Primary.Endpoint == server.Endpoint:
			e.State = "primary"
		default:
			e.State = "refused"
		}
		if err := errors.Join(server.Err, server.Distrust()); err != nil {
			e.Error = err.Error()
		}
		s.Servers = append(s.Servers, e)
	}
	if r := p.lastReload.Load(); r != nil {
		s.LastReload = &r.at
		if r.err != nil {
			s.LastReloadError = r.err.Error()
		}
	}
	for _, x := range p.gates.list() {
		s.Paused = append(s.Paused, PausedStatus{x.database, x.until.Round(0)})
	}
	return s
}

// adminError is the body of an answer that is no success.
type adminError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// AdminHandlers returns the admin API for internal/adminhttp, nil when it is
// turned off. Patterns are those of http.ServeMux.
//
//	GET  /v1/status
//	POST /v1/pause?database=&wait=5s&lease=30s&until=primary   all optional; see PauseOptions
//	POST /v1/resume?database=
//	POST /v1/reload
func (p *Proxy) AdminHandlers() map[string]http.Handler {
	if !p.live.Load().cfg.Admin.API {
		return nil
	}
	handle := func(f func(r *http.Request) (int, any)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			status, v := f(r)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(v) // the caller is gone when this fails
		})
	}
	done := func() (int, any) { return http.StatusOK, p.adminStatus() }
	return map[string]http.Handler{
		"GET /v1/status": handle(func(*http.Request) (int, any) { return done() }),
		"POST /v1/pause": handle(func(r *http.Request) (int, any) {
			opts, err := pauseOptions(r)
			if err != nil {
				return http.StatusBadRequest, adminError{"bad_request", err.Error()}
			}
			if err := p.Pause(r.Context(), opts); err != nil {
				return pauseFailure(err)
			}
			return done()
		}),
		"POST /v1/resume": handle(func(r *http.Request) (int, any) {
			if err := p.Resume(r.URL.Query().Get("database")); err != nil {
				return http.StatusConflict, adminError{"not_paused", err.Error()}
			}
			return done()
		}),
		"POST /v1/reload": handle(func(*http.Request) (int, any) {
			if err := p.ReloadFile(); err != nil {
				return http.StatusUnprocessableEntity, adminError{"config_refused", err.Error()}
			}
			return done()
		}),
	}
}

func pauseFailure(err error) (int, any) {
	switch {
	case errors.Is(err, ErrPaused):
		return http.StatusConflict, adminError{"paused", err.Error()}
	case errors.Is(err, ErrStillRunning):
		return http.StatusConflict, adminError{"still_running", err.Error() + "; nothing is paused"}
	case errors.Is(err, errStopping), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable, adminError{"stopping", err.Error()}
	}
	return http.StatusBadRequest, adminError{"bad_request", err.Error()}
}

// pauseOptions reads the parameters of POST /v1/pause.
func pauseOptions(r *http.Request) (PauseOptions, error) {
	o := PauseOptions{Wait: DefaultPauseWait, Lease: DefaultPauseLease}
	for name, values := range r.URL.Query() {
		value := values[0]
		var err error
		switch name {
		case "database":
			o.Database = value
		case "wait":
			o.Wait, err = time.ParseDuration(value)
		case "lease":
			o.Lease, err = time.ParseDuration(value)
		case "until":
			if o.UntilPrimary = value == "primary"; !o.UntilPrimary {
				err = fmt.Errorf("%q is not \"primary\"", value)
			}
		default:
			err = errors.New("unknown parameter")
		}
		if err != nil {
			return o, fmt.Errorf("%s: %w", name, err)
		}
	}
	return o, nil
}
