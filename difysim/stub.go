package difysim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// StubConfig is the configuration of a stub: an instance of the API that needs
// no database, no Redis and no vector store. Of Config it uses the name, the
// version, the answers, the server and the core.
type StubConfig struct {
	Config
	// LightDelay is what a request without a generation waits for, as Dify waits
	// for its database; 0 to 1m, default 5ms.
	LightDelay time.Duration
	// ChatMode is the mode of every chat app: chat, agent-chat or
	// advanced-chat; default chat.
	ChatMode string
}

// DefaultStubConfig returns a stub's defaults: those of the simulator, with
// answers of 20 tokens at 2 per second and 5ms of the core for each.
func DefaultStubConfig() StubConfig {
	c := StubConfig{Config: DefaultConfig(), LightDelay: 5 * time.Millisecond, ChatMode: ModeChat}
	c.Answer = AnswerConfig{Tokens: 20, TokensPerSecond: 2, FirstTokenDelay: 100 * time.Millisecond}
	c.CPU.Cost, c.CPU.LightCost = 5*time.Millisecond, time.Millisecond
	return c
}

// Validate reports every problem.
func (c *StubConfig) Validate() error {
	errs := []error{c.Config.Validate()}
	if c.LightDelay < 0 || c.LightDelay > time.Minute {
		errs = append(errs, fmt.Errorf("difysim: lightDelay: %v: want 0 to 1m", c.LightDelay))
	}
	switch c.ChatMode {
	case ModeChat, ModeAgentChat, ModeAdvancedChat:
	default:
		errs = append(errs, fmt.Errorf("difysim: chatMode: %q: want %s, %s or %s", c.ChatMode, ModeChat, ModeAgentChat, ModeAdvancedChat))
	}
	return errors.Join(errs...)
}

// Faults are what a stub does wrong, changed while it runs. The zero value is a
// healthy instance. A process that hangs as a whole is made from outside, with
// SIGSTOP.
type Faults struct {
	// Slow stretches every wait by this factor, 1 to 1000; 0 is 1. Waits that
	// have begun keep their length.
	Slow float64 `json:"slow"`
	// ErrorShare (0..1) of the requests, /health excepted, fail at once with
	// ErrorStatus (500 to 599; 0 is 500).
	ErrorShare  float64 `json:"errorShare"`
	ErrorStatus int     `json:"errorStatus"`
	// Hang keeps every new request, /health excepted, without an answer until it
	// is off again.
	Hang bool `json:"hang"`
	// Refuse closes the listener; connections that are open stay.
	Refuse bool `json:"refuse"`
}

func (f Faults) validate() error {
	switch {
	case f.Slow != 0 && (f.Slow < 1 || f.Slow > 1000):
		return fmt.Errorf("slow: %v: want 1 to 1000", f.Slow)
	case f.ErrorShare < 0 || f.ErrorShare > 1:
		return fmt.Errorf("errorShare: %v: want 0 to 1", f.ErrorShare)
	case f.ErrorStatus != 0 && (f.ErrorStatus < 500 || f.ErrorStatus > 599):
		return fmt.Errorf("errorStatus: %d: want 500 to 599", f.ErrorStatus)
	}
	return nil
}

// Stub is one instance of the API that keeps nothing. Every key is accepted and
// stands for an app of its own; a running task is known to this instance only.
type Stub struct {
	*API
}

// NewStub returns an instance; it opens nothing.
func NewStub(cfg StubConfig, log *slog.Logger, reg *prometheus.Registry) (*Stub, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := newMetrics(reg)
	state := &stubState{
		lightDelay: cfg.LightDelay, chatMode: cfg.ChatMode, tasks: map[string]*atomic.Bool{},
		stops: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "difysim_stops_total", Help: "Calls that stopped a task that was running here.",
		}),
	}
	_ = state.set(Faults{}) // without a door it cannot fail
	reg.MustRegister(state.stops)
	a := &API{backend: &backend{cfg: cfg.Config, log: log, metrics: m, core: newCore(cfg.CPU, m.cpuSeconds), stub: state}}
	a.handler = a.routes(reg)
	return &Stub{a}, nil
}

// Run serves on ln until ctx ends, as API.Run does.
func (s *Stub) Run(ctx context.Context, ln net.Listener) error {
	d := &stubDoor{address: ln.Addr().String(), ln: ln, moved: make(chan struct{})}
	defer d.Close()
	s.stub.mu.Lock()
	s.stub.door = d
	s.stub.mu.Unlock()
	if err := d.refuse(s.stub.faults.Load().Refuse); err != nil {
		return err
	}
	return s.API.Run(ctx, d)
}

// SetFaults changes what the stub does wrong.
func (s *Stub) SetFaults(f Faults) error {
	if err := f.validate(); err != nil {
		return err
	}
	return s.stub.set(f)
}

// FaultHandlers are the admin paths by which faults are read and set: GET and
// PUT /faults with the JSON of Faults.
func (s *Stub) FaultHandlers() map[string]http.Handler {
	show := func(w http.ResponseWriter) { _ = writeJSON(w, http.StatusOK, s.stub.faults.Load().Faults) }
	return map[string]http.Handler{
		"GET /faults": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { show(w) }),
		"PUT /faults": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var f Faults
			in := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
			in.DisallowUnknownFields()
			err := in.Decode(&f)
			if err == nil {
				err = s.SetFaults(f)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			show(w)
		}),
	}
}

// stubState is what a stub has in place of database and Redis.
type stubState struct {
	lightDelay time.Duration
	chatMode   string
	stops      prometheus.Counter
	faults     atomic.Pointer[stubFaults]

	mu    sync.Mutex
	tasks map[string]*atomic.Bool // running here; true when it is to stop
	door  *stubDoor               // nil before Run
}

// stubFaults are faults in force; over ends with them.
type stubFaults struct {
	Faults
	over chan struct{}
}

func (s *stubState) set(f Faults) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.faults.Swap(&stubFaults{Faults: f, over: make(chan struct{})}); old != nil {
		close(old.over)
	}
	if s.door == nil {
		return nil
	}
	return s.door.refuse(f.Refuse)
}

func (s *stubState) stretch(d time.Duration) time.Duration {
	if slow := s.faults.Load().Slow; slow > 1 {
		return time.Duration(float64(d) * slow)
	}
	return d
}

// admit holds a request as long as a fault or its database does, and answers it
// when it is to fail. It returns false when nothing is left to do.
func (s *stubState) admit(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/metrics" {
		return true
	}
	if r.URL.Path != "/health" {
		for {
			f := s.faults.Load()
			if f.Hang {
				select {
				case <-f.over:
					continue
				case <-r.Context().Done():
					return false
				}
			}
			if f.ErrorShare > 0 && rand.Float64() < f.ErrorShare {
				e := errInternal()
				if f.ErrorStatus != 0 {
					e.Status = f.ErrorStatus
				}
				_ = writeJSON(w, e.Status, e)
				return false
			}
			break
		}
	}
	return r.Method != http.MethodGet || sleep(r.Context(), s.stretch(s.lightDelay)) == nil
}

func (s *stubState) own(task string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[task] = &atomic.Bool{}
}

func (s *stubState) forget(task string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, task)
}

func (s *stubState) stop(task string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if flag := s.tasks[task]; flag != nil && !flag.Swap(true) {
		s.stops.Inc()
	}
}

func (s *stubState) stopped(task string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if flag := s.tasks[task]; flag != nil && flag.Load() {
		return errStopped
	}
	return nil
}

// search finds the query itself.
func (s *stubState) search(sr searchRequest) searchResult {
	id := stubID("segment", sr.datasetID)
	return searchResult{datasetName: "stub", records: []searchRecord{{
		segmentID: id, documentID: stubID("document", sr.datasetID), documentName: "stub.txt", dataSourceType: "upload_file",
		content: sr.query, nodeID: id, nodeHash: id, status: "completed", position: 1, words: len(sr.query),
		tokens: promptTokens(sr.query), enabled: true, created: time.Unix(1.7e9, 0), score: 1,
	}}}
}

// stubID is always the same identifier for the same thing.
func stubID(kind, name string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(kind+":"+name)).String()
}

func stubKey(r *http.Request) (string, error) {
	scheme, key, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if key = strings.TrimSpace(key); !ok || !strings.EqualFold(scheme, "bearer") || key == "" {
		return "", unauthorized("Authorization header must be provided and start with 'Bearer'")
	}
	return key, nil
}

// withApp lets every key in: it is an app of the mode that the route needs.
func (s *stubState) withApp(where userFrom, h handlerFunc) handlerFunc {
	return func(ctx context.Context, q *request) error {
		key, err := stubKey(q.r)
		if err != nil {
			return err
		}
		mode := s.chatMode
		switch path := q.r.URL.Path; {
		case strings.HasPrefix(path, "/v1/completion-messages"):
			mode = ModeCompletion
		case strings.HasPrefix(path, "/v1/workflows"):
			mode = ModeWorkflow
		}
		q.app = appRow{
			id: stubID("app", key), tenantID: stubID("tenant", "stub"), name: "stub", description: "An app of the Dify simulator.",
			mode: mode, status: "normal", workflowID: stubID("workflow", key), enableAPI: true,
		}
		q.tenantID = q.app.tenantID
		var user string
		switch where {
		case userInQuery:
			user = q.r.URL.Query().Get("user")
		case userInBody:
			if err := q.readBody(); err != nil {
				return err
			}
			if user = q.text("user"); user == "" {
				return invalidParam("Arg user must be provided.")
			}
		}
		q.user = endUser{id: stubID("user", key+":"+user), session: user}
		return h(ctx, q)
	}
}

// withDatasets lets every key in and knows every dataset.
func (s *stubState) withDatasets(h handlerFunc) handlerFunc {
	return func(ctx context.Context, q *request) error {
		key, err := stubKey(q.r)
		if err != nil {
			return err
		}
		if _, err := q.pathUUID("dataset"); err != nil {
			return err
		}
		q.tenantID = stubID("tenant", key)
		return h(ctx, q)
	}
}

// stubDoor is a listener that can be shut and opened again.
type stubDoor struct {
	address string

	mu     sync.Mutex
	ln     net.Listener  // nil while shut
	moved  chan struct{} // closed at the next change
	closed bool
}

var _ net.Listener = (*stubDoor)(nil)

// refuse shuts the door, or opens it.
func (d *stubDoor) refuse(yes bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed || yes == (d.ln == nil):
		return nil
	case yes:
		_ = d.ln.Close()
		d.ln = nil
	default:
		ln, err := net.Listen("tcp", d.address)
		if err != nil {
			return fmt.Errorf("listen again: %w", err)
		}
		d.ln = ln
	}
	close(d.moved)
	d.moved = make(chan struct{})
	return nil
}

// Accept implements net.Listener.
func (d *stubDoor) Accept() (net.Conn, error) {
	for {
		d.mu.Lock()
		ln, moved, closed := d.ln, d.moved, d.closed
		d.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if ln == nil {
			<-moved
			continue
		}
		c, err := ln.Accept()
		if err == nil {
			return c, nil
		}
		d.mu.Lock()
		same := d.ln == ln && !d.closed
		d.mu.Unlock()
		if same {
			return nil, err
		}
	}
}

// Close implements net.Listener.
func (d *stubDoor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	close(d.moved)
	if d.ln == nil {
		return nil
	}
	return d.ln.Close()
}

// Addr implements net.Listener.
func (d *stubDoor) Addr() net.Addr {
	if a, err := net.ResolveTCPAddr("tcp", d.address); err == nil {
		return a
	}
	return &net.TCPAddr{}
}
