package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.yaml.in/yaml/v3"

	"fournines/gateway/balance"
)

// AdminToken is what callers of the admin API must send, "" for nothing.
func (g *Gateway) AdminToken() string { return g.settings.Load().adminToken }

// AdminOptions are what the admin API does outside the gateway.
type AdminOptions struct {
	// Version of the program.
	Version string
	// Reload reads the configuration again; nil when there is no file.
	Reload func() error
	// Stop begins the end of the process, as SIGTERM does.
	Stop func()
}

// Status is the answer of GET /v1/status.
type Status struct {
	Zone           string     `json:"zone"`
	Version        string     `json:"version"`
	PID            int        `json:"pid"`
	Started        time.Time  `json:"started"`
	UptimeSeconds  float64    `json:"uptimeSeconds"`
	Ready          bool       `json:"ready"`
	NotReady       string     `json:"notReady,omitempty"` // why
	Draining       bool       `json:"draining"`
	InFlight       int64      `json:"requestsInFlight"`
	Waiting        int        `json:"requestsWaiting"`
	Streams        int        `json:"streamsOpen"`
	Connections    int64      `json:"connectionsOpen"`
	ConfigHash     string     `json:"configHash"`
	LastReload     *time.Time `json:"lastReload,omitempty"`
	LastReloadOK   bool       `json:"lastReloadOk"` // true before the first
	LastReloadSays string     `json:"lastReloadError,omitempty"`
	CertExpires    *time.Time `json:"certificateExpires,omitempty"`
}

// EndpointStatus is one element of the answer of GET /v1/endpoints.
type EndpointStatus struct {
	Name    string `json:"name"`
	Zone    string `json:"zone"`
	Address string `json:"address"`
	// State is "in service", "unhealthy", "ejected" or "drained".
	State        string     `json:"state"`
	Local        bool       `json:"local"`
	Healthy      bool       `json:"healthy"`
	Drained      bool       `json:"drained"`
	EjectedUntil *time.Time `json:"ejectedUntil,omitempty"`
	InFlight     int64      `json:"inFlight"`
	Limit        int64      `json:"limit"`        // of inFlight; 0 is none
	Working      int64      `json:"working"`      // those of them without content yet
	WorkingLimit int64      `json:"workingLimit"` // what the adaptive limit allows; 0 is none
	LatencyMS    float64    `json:"latencyMs"`
}

// AppStatus is one element of the answer of GET /v1/apps.
type AppStatus struct {
	App      string     `json:"app"`
	Named    bool       `json:"named"`
	Requests int64      `json:"requests"`
	Errors   int64      `json:"errors"` // answered with 5xx
	Streams  int        `json:"streamsOpen"`
	LastUsed *time.Time `json:"lastUsed,omitempty"`
}

// StreamCount is one element of the answer of GET /v1/streams.
type StreamCount struct {
	App   string `json:"app"`
	Class string `json:"class"`
	// Age is "10s", "1m", "10m", "1h" (younger than that) or "older".
	Age   string `json:"age"`
	Count int    `json:"count"`
}

// reloadResult is how a reload ended.
type reloadResult struct {
	at  time.Time
	err error
}

// admin is the state of the admin API.
type admin struct {
	started    time.Time
	lastReload atomic.Pointer[reloadResult]
}

// AdminHandlers returns the admin API for internal/adminhttp, nil when it is
// turned off. Patterns are those of http.ServeMux; others add theirs.
func (g *Gateway) AdminHandlers(o AdminOptions) map[string]http.Handler {
	if !g.settings.Load().Admin.API {
		return nil
	}
	handle := func(f func(r *http.Request) (int, any)) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			status, v := f(r)
			writeAdmin(w, status, v)
		})
	}
	read := func(f func() any) http.Handler {
		return handle(func(*http.Request) (int, any) { return http.StatusOK, f() })
	}
	handlers := map[string]http.Handler{
		"GET /v1/status":    read(func() any { return g.status(o.Version) }),
		"GET /v1/endpoints": read(func() any { return g.endpointStates() }),
		"GET /v1/apps":      read(func() any { return g.usage.appStates() }),
		"GET /v1/streams":   read(func() any { return g.usage.streamCounts(time.Now()) }),
		"POST /v1/endpoints/{name}/drain": handle(func(r *http.Request) (int, any) {
			return g.setDrained(r.PathValue("name"), true, r.URL.Query().Get("force") == "true")
		}),
		"POST /v1/endpoints/{name}/undrain": handle(func(r *http.Request) (int, any) {
			return g.setDrained(r.PathValue("name"), false, false)
		}),
		"POST /v1/reload": handle(func(*http.Request) (int, any) {
			if o.Reload == nil {
				return http.StatusConflict, adminError{"no_config_file", "the gateway was started without --config; there is nothing to read again"}
			}
			if err := o.Reload(); err != nil {
				return http.StatusUnprocessableEntity, adminError{"config_refused", err.Error()}
			}
			return http.StatusOK, g.status(o.Version)
		}),
		"POST /v1/drain": handle(func(*http.Request) (int, any) {
			o.Stop()
			return http.StatusAccepted, g.status(o.Version)
		}),
	}
	maps.Copy(handlers, g.jobHandlers())
	maps.Copy(handlers, g.cacheHandlers(handle))
	return handlers
}

// adminError has the form of Dify's errors.
type adminError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func writeAdmin(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone when this fails
}

func (g *Gateway) setDrained(name string, drained, force bool) (int, any) {
	err := g.pool.SetDrained(name, drained, force)
	switch {
	case errors.Is(err, balance.ErrNoEndpoint):
		var names []string
		for _, s := range g.pool.States() {
			names = append(names, s.Name)
		}
		return http.StatusNotFound, adminError{"no_such_endpoint", fmt.Sprintf("there is no endpoint %q; there are %s", name, strings.Join(names, ", "))}
	case err != nil:
		return http.StatusConflict, adminError{"last_endpoint", fmt.Sprintf("%v; ?force=true takes it out nevertheless", err)}
	}
	all := g.endpointStates()
	return http.StatusOK, all[slices.IndexFunc(all, func(e EndpointStatus) bool { return e.Name == name })]
}

func (g *Gateway) status(version string) Status {
	set := g.settings.Load()
	s := Status{
		Zone: set.Zone, Version: version, PID: os.Getpid(), Started: g.admin.started.Round(0), UptimeSeconds: time.Since(g.admin.started).Seconds(),
		Draining: g.draining.Load(), InFlight: g.inFlight.Load(), Waiting: g.admit.Waiting(), Streams: g.usage.openStreams(),
		Connections: g.conns.Load(), ConfigHash: set.hash, LastReloadOK: true,
	}
	if err := g.Ready(); err != nil {
		s.NotReady = err.Error()
	} else {
		s.Ready = true
	}
	if r := g.admin.lastReload.Load(); r != nil {
		s.LastReload, s.LastReloadOK = &r.at, r.err == nil
		if r.err != nil {
			s.LastReloadSays = r.err.Error()
		}
	}
	if pair := g.certificates.current.Load(); pair != nil && pair.cert.Leaf != nil {
		s.CertExpires = &pair.cert.Leaf.NotAfter
	}
	return s
}

func (g *Gateway) endpointStates() []EndpointStatus {
	states := g.pool.States()
	out := make([]EndpointStatus, len(states))
	for i, s := range states {
		e := EndpointStatus{
			Name: s.Name, Zone: s.Zone, Address: s.Address, State: "in service", Local: s.Local, Healthy: s.Healthy, Drained: s.Drained,
			InFlight: s.InFlight, Limit: s.Limit, Working: s.Working, WorkingLimit: s.WorkingLimit, LatencyMS: float64(s.Latency.Microseconds()) / 1000,
		}
		switch {
		case s.Drained:
			e.State = "drained"
		case !s.Healthy:
			e.State = "unhealthy"
		case s.Ejected:
			e.State = "ejected"
		}
		if s.Ejected {
			until := time.Now().Add(s.EjectedFor).Round(time.Millisecond)
			e.EjectedUntil = &until
		}
		out[i] = e
	}
	return out
}

func (u *usage) appStates() []AppStatus {
	streams := map[string]int{}
	u.openMu.Lock()
	for x := range u.open {
		streams[x.app.id]++
	}
	u.openMu.Unlock()
	out := []AppStatus{}
	for label, s := range *u.apps.Load() {
		a := AppStatus{App: label, Named: s.named, Requests: s.requests.Load(), Errors: s.errors.Load(), Streams: streams[label]}
		if label == appNone {
			a.Streams = streams[""]
		}
		if ms := s.lastUsed.Load(); ms != 0 {
			at := time.UnixMilli(ms)
			a.LastUsed = &at
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b AppStatus) int { return strings.Compare(a.App, b.App) })
	return out
}

// streamAges are the classes of GET /v1/streams.
var streamAges = [...]struct {
	name string
	less time.Duration
}{{"10s", 10 * time.Second}, {"1m", time.Minute}, {"10m", 10 * time.Minute}, {"1h", time.Hour}}

func (u *usage) streamCounts(now time.Time) []StreamCount {
	counts := map[StreamCount]int{}
	u.openMu.Lock()
	for x := range u.open {
		c := StreamCount{App: x.app.id, Class: x.class.String(), Age: "older"}
		if c.App == "" {
			c.App = appNone
		}
		for _, a := range streamAges {
			if now.Sub(x.start) < a.less {
				c.Age = a.name
				break
			}
		}
		counts[c]++
	}
	u.openMu.Unlock()
	out := []StreamCount{}
	for c, n := range counts {
		c.Count = n
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b StreamCount) int { return b.Count - a.Count })
	return out
}

// hash names a configuration: equal ones have equal hashes. A Config holds
// paths of secrets, no secrets.
func (c *Config) hash() string {
	text, err := yaml.Marshal(c)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}
