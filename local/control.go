package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"fournines/internal/process"
	"fournines/topology"
)

// RequestError is a request that the supervisor refuses.
type RequestError struct {
	// Code is an HTTP status code.
	Code    int    `json:"-"`
	Message string `json:"error"`
}

func (e *RequestError) Error() string { return e.Message }

const (
	codeNotFound = http.StatusNotFound
	codeConflict = http.StatusConflict
)

// statusAPI tells the state of the stack.
func (s *Supervisor) statusAPI() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.Status()) })
	mux.HandleFunc("GET /events", s.serveEvents)
	return mux
}

// controlAPI also takes orders.
func (s *Supervisor) controlAPI() *http.ServeMux {
	mux := s.statusAPI()
	mux.HandleFunc("POST /down", s.serveDown)
	mux.HandleFunc("POST /units/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		replyDone(w, s.unitVerb(r.Context(), r.PathValue("name"), verb(r.PathValue("verb"))))
	})
	mux.HandleFunc("POST /zones/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		replyDone(w, s.zoneVerb(r.Context(), r.PathValue("name"), r.PathValue("verb")))
	})
	return mux
}

// serve answers on ln until Run ends.
func (s *Supervisor) serve(ln net.Listener, api http.Handler) {
	srv := &http.Server{Handler: api, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("control API ended", "err", err)
		}
	}()
	<-s.closing
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close()
	}
	<-served
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone when this fails
}

func replyDone(w http.ResponseWriter, err error) {
	if err == nil {
		reply(w, struct{}{})
		return
	}
	var re *RequestError
	if !errors.As(err, &re) {
		re = &RequestError{Code: http.StatusInternalServerError, Message: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(re.Code)
	_ = json.NewEncoder(w).Encode(re)
}

// serveDown stops the stack and answers when it has stopped.
func (s *Supervisor) serveDown(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("hurry") != "" {
		s.Hurry()
	}
	s.Down()
	select {
	case <-s.stopped:
		replyDone(w, s.stopErr)
	case <-r.Context().Done():
	}
}

// serveEvents streams one JSON object per line: first every unit as it is,
// then each change.
func (s *Supervisor) serveEvents(w http.ResponseWriter, r *http.Request) {
	sub := s.hub.subscribe()
	defer s.hub.unsubscribe(sub)
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	for _, u := range s.units {
		if enc.Encode(s.event(u)) != nil {
			return
		}
	}
	end := s.event(nil)
	end.Synced = true
	if enc.Encode(end) != nil {
		return
	}
	for {
		if flush.Flush() != nil {
			return
		}
		last := false
		select {
		case <-sub.wake:
		case <-s.closing:
			last = true
		case <-r.Context().Done():
			return
		}
		changed := sub.take()
		for _, u := range s.units {
			if _, ok := changed[u.def.Name]; ok {
				if enc.Encode(s.event(u)) != nil {
					return
				}
			}
		}
		if _, ok := changed[""]; ok && enc.Encode(s.event(nil)) != nil {
			return
		}
		if last {
			return
		}
	}
}

func (s *Supervisor) event(u *unit) Event {
	e := Event{}
	if u != nil {
		e.Zone, e.Component = u.def.Zone, u.view.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Stack, e.StartSeconds = s.stackState(), s.startSeconds
	return e
}

func (s *Supervisor) unitVerb(ctx context.Context, name string, v verb) error {
	u := s.byName[name]
	if u == nil {
		return &RequestError{Code: codeNotFound, Message: fmt.Sprintf("there is no component %q; there are %s", name, strings.Join(s.names(), ", "))}
	}
	switch v {
	case verbStop, verbStart, verbRestart, verbKill, verbPause, verbResume:
		s.log.Info("asked", "unit", name, "verb", string(v))
		s.asked(topology.Action{Verb: string(v), Component: name})
		return u.do(ctx, v)
	}
	return &RequestError{Code: codeNotFound, Message: fmt.Sprintf("there is no verb %q; a component knows stop, start, restart, kill, pause and resume", v)}
}

// keptActions is how many orders the status shows.
const keptActions = 20

// asked remembers an order for the status.
func (s *Supervisor) asked(a topology.Action) {
	s.mu.Lock()
	s.actionSeq++
	a.Seq = s.actionSeq
	s.actions = append(s.actions, action{a, time.Now()})
	if len(s.actions) > keptActions {
		s.actions = slices.Clone(s.actions[1:])
	}
	s.mu.Unlock()
	s.hub.touch("")
}

func (s *Supervisor) names() []string {
	var out []string
	for _, u := range s.units {
		out = append(out, u.def.Name)
	}
	return out
}

func (s *Supervisor) zoneVerb(ctx context.Context, zone, v string) error {
	units, known := s.inZone(zone)
	if !known {
		return &RequestError{Code: codeNotFound, Message: fmt.Sprintf("there is no zone %q; there are %s", zone, strings.Join(s.opts.Plan.Zones, ", "))}
	}
	s.mu.Lock()
	ending := s.stage >= stageStopping
	s.mu.Unlock()
	if ending {
		return &RequestError{Code: codeConflict, Message: "the stack is being stopped"}
	}
	s.zoneVerbs.Lock()
	defer s.zoneVerbs.Unlock()
	s.log.Info("asked", "zone", zone, "verb", v)
	s.asked(topology.Action{Verb: v, Zone: zone})
	switch v {
	case "off":
		return s.zonePowerOff(ctx, zone, units)
	case "on":
		return s.zonePowerOn(ctx, zone, units)
	case "cut", "heal":
		n := s.opts.Plan.Network
		if n == nil {
			return &RequestError{Code: codeConflict, Message: "the zones of this stack share one network, so none can be cut off; run `fournines up` as root with local.network: namespaces"}
		}
		if v == "cut" {
			return n.Cut(zone)
		}
		return n.Heal(zone)
	}
	return &RequestError{Code: codeNotFound, Message: fmt.Sprintf("there is no verb %q; a zone knows on, off, cut and heal", v)}
}

// inZone returns the processes of a zone. Tasks are work of the supervisor
// and do not lose power.
func (s *Supervisor) inZone(zone string) (units []*unit, known bool) {
	for _, z := range s.opts.Plan.Zones {
		known = known || z == zone
	}
	for _, u := range s.units {
		if u.def.Zone == zone && u.def.Process != nil {
			units = append(units, u)
		}
	}
	return units, known
}

func (s *Supervisor) setPower(zone string, off bool) {
	s.mu.Lock()
	if off {
		s.powerOff[zone] = true
	} else {
		delete(s.powerOff, zone)
	}
	s.mu.Unlock()
	s.persistSoon()
}

// zonePowerOff kills everything in the zone with one volley, and returns when
// nothing of it runs.
func (s *Supervisor) zonePowerOff(ctx context.Context, zone string, units []*unit) error {
	s.setPower(zone, true)
	for _, u := range units {
		u.powerless.Store(true)
	}
	table, err := process.Scan()
	if err != nil {
		return err
	}
	var all []process.Identity
	for _, u := range units {
		all = append(all, table.Members(u.record.Load().Identity, u.mark)...)
	}
	if err := process.SignalAll(all, sigKill); err != nil {
		return err
	}
	return each(units, func(u *unit) error { return u.do(ctx, verbPowerOff) })
}

// zonePowerOn starts what the zone had before, in the order of dependencies
// inside the zone. It does not wait until all is ready.
func (s *Supervisor) zonePowerOn(ctx context.Context, zone string, units []*unit) error {
	s.mu.Lock()
	off := s.powerOff[zone]
	s.mu.Unlock()
	if !off {
		return nil
	}
	s.setPower(zone, false)
	for _, u := range units {
		// Closed before anybody waits at it; what stays stopped by hand opens
		// it again when it answers.
		u.gate.set(false)
		u.powerless.Store(false)
	}
	return each(units, func(u *unit) error {
		var deps []*unit
		for _, d := range u.deps {
			if d.def.Zone == zone && d.def.Process != nil {
				deps = append(deps, d)
			}
		}
		return u.do(ctx, verbPowerOn, deps...)
	})
}

func each(units []*unit, f func(*unit) error) error {
	errs := make([]error, len(units))
	var wg sync.WaitGroup
	for i, u := range units {
		wg.Go(func() { errs[i] = f(u) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
