package difysim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// API is one instance of Dify's api service.
type API struct {
	*backend
	handler http.Handler
	// notReady holds the reason why nothing is served yet, nil when started.
	notReady atomic.Pointer[string]
	runs     sync.WaitGroup // generations, which may outlive their request
}

// Registry takes metrics and shows them.
type Registry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// NewAPI returns an instance; it opens nothing. Its metrics go to reg, which
// /metrics on the same port shows.
func NewAPI(cfg Config, log *slog.Logger, reg Registry) (*API, error) {
	b, err := newBackend(cfg, log, newMetrics(reg))
	if err != nil {
		return nil, err
	}
	a := &API{backend: b}
	starting := "starting"
	a.notReady.Store(&starting)
	a.handler = a.routes(reg)
	b.registerGauges(reg)
	return a, nil
}

// registerGauges adds what is asked only when metrics are read.
func (b *backend) registerGauges(reg prometheus.Registerer) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "difysim_database_connections_used", Help: "Database connections in use.",
		}, func() float64 { used, _ := b.db.Stat(); return float64(used) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "difysim_database_connections_idle", Help: "Database connections kept for later.",
		}, func() float64 { _, idle := b.db.Stat(); return float64(idle) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "difysim_info", Help: "Always 1: this process is a simulator.",
			ConstLabels: prometheus.Labels{"version": b.cfg.Version, "instance_name": b.cfg.Instance},
		}, func() float64 { return 1 }),
	)
}

// lifeKey is the key of the context that ends when the instance's grace is over.
type lifeKey struct{}

// Run serves on ln until ctx ends; then it refuses new connections, waits for
// running requests up to the graceful timeout and cuts the rest. Before the
// schema is ready only /health, /metrics and the deep probe answer.
func (a *API) Run(ctx context.Context, ln net.Listener) error {
	defer a.close()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	srv := &http.Server{
		Handler:           a.handler,
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(life, lifeKey{}, life) },
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       a.cfg.Server.KeepAlive,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	var helpers sync.WaitGroup
	waitCtx, stopWait := context.WithCancel(ctx)
	helpers.Go(func() {
		if a.stub != nil {
			return // its notReady was never set
		}
		err := a.waitForSchema(waitCtx, func(err error) {
			if err == nil {
				a.notReady.Store(nil)
				return
			}
			reason := err.Error()
			a.notReady.Store(&reason)
		})
		if err == nil {
			a.log.Info("serving", "address", ln.Addr().String(), "version", a.cfg.Version)
		}
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(netutil.LimitListener(ln, a.cfg.Server.WorkerConnections)) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		a.log.Info("stopping", "grace", a.cfg.Server.GracefulTimeout)
		grace, cancel := context.WithTimeout(life, a.cfg.Server.GracefulTimeout)
		if srv.Shutdown(grace) != nil {
			a.log.Warn("grace is over, cutting requests")
			a.metrics.cutStreams.Inc()
			_ = srv.Close()
		}
		cancel()
		err = <-served
	}
	stopWait()
	end()
	helpers.Wait()
	a.runs.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve: %w", err)
}

// handlerFunc answers one request. ctx ends only when the instance dies: a client
// that goes away does not stop Dify's work.
type handlerFunc func(ctx context.Context, q *request) error

// routes builds the whole surface.
func (a *API) routes(reg prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	plain := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, h) }
	plain("GET /{$}", a.front)
	plain("GET /health", a.health)
	if a.stub == nil {
		plain("GET /difysim/ready", a.ready)
		plain("GET /db-pool-stat", a.poolStat)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))

	letIn, letDatasetsIn := a.withApp, a.withDatasets
	if a.stub != nil {
		letIn, letDatasetsIn = a.stub.withApp, a.stub.withDatasets
	}
	app := func(pattern string, where userFrom, h handlerFunc) { mux.Handle(pattern, a.wrap(letIn(where, h))) }
	app("POST /v1/chat-messages", userInBody, a.chatMessages)
	app("POST /v1/chat-messages/{task}/stop", userInBody, a.stopChat)
	app("POST /v1/completion-messages", userInBody, a.completionMessages)
	app("POST /v1/completion-messages/{task}/stop", userInBody, a.stopCompletion)
	app("POST /v1/workflows/run", userInBody, a.runWorkflow)
	app("POST /v1/workflows/tasks/{task}/stop", userInBody, a.stopWorkflow)
	app("GET /v1/parameters", userNone, a.parameters)
	app("GET /v1/info", userNone, a.info)
	app("GET /v1/meta", userNone, a.meta)

	ds := func(pattern string, h handlerFunc) { mux.Handle(pattern, a.wrap(letDatasetsIn(h))) }
	ds("POST /v1/datasets/{dataset}/retrieve", a.retrieve)
	ds("POST /v1/datasets/{dataset}/hit-testing", a.retrieve)
	if a.stub != nil {
		return a.counted(mux) // the rest is about what is stored
	}

	app("GET /v1/workflows/run/{run}", userNone, a.workflowRun)
	app("GET /v1/conversations", userInQuery, a.conversations)
	app("DELETE /v1/conversations/{conversation}", userInBody, a.deleteConversation)
	app("POST /v1/conversations/{conversation}/name", userInBody, a.renameConversation)
	app("GET /v1/messages", userInQuery, a.messages)
	app("POST /v1/messages/{message}/feedbacks", userInBody, a.feedback)
	app("GET /v1/messages/{message}/suggested", userInQuery, a.suggested)
	app("POST /v1/files/upload", userInForm, a.upload)

	ds("GET /v1/datasets", a.listDatasets)
	ds("POST /v1/datasets", a.createDataset)
	ds("GET /v1/datasets/{dataset}", a.getDataset)
	ds("PATCH /v1/datasets/{dataset}", a.patchDataset)
	ds("DELETE /v1/datasets/{dataset}", a.deleteDataset)
	for _, verb := range []string{"create_by_text", "create-by-text"} {
		ds("POST /v1/datasets/{dataset}/document/"+verb, a.createDocument)
	}
	for _, verb := range []string{"update_by_text", "update-by-text"} {
		ds("POST /v1/datasets/{dataset}/documents/{document}/"+verb, a.updateDocument)
	}
	ds("GET /v1/datasets/{dataset}/documents", a.listDocuments)
	ds("GET /v1/datasets/{dataset}/documents/{document}/indexing-status", a.indexingStatus)
	ds("DELETE /v1/datasets/{dataset}/documents/{document}", a.deleteDocument)
	ds("GET /v1/datasets/{dataset}/documents/{document}/segments", a.listSegments)
	ds("POST /v1/datasets/{dataset}/documents/{document}/segments", a.createSegments)
	ds("POST /v1/datasets/{dataset}/documents/{document}/segments/{segment}", a.updateSegment)
	ds("DELETE /v1/datasets/{dataset}/documents/{document}/segments/{segment}", a.deleteSegment)
	return a.counted(mux)
}

// counted puts the simulator's headers on every answer and counts it.
func (a *API) counted(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Dify-Simulator", "true")
		h.Set("X-Dify-Instance", a.cfg.Instance)
		h.Set("X-Version", a.cfg.Version)
		h.Set("X-Env", a.cfg.Environment)
		start := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		a.metrics.inflight.Inc()
		_, pattern := mux.Handler(r)
		defer func() {
			a.metrics.inflight.Dec()
			route := pattern
			if route == "" {
				route = "none"
			}
			a.metrics.requests.WithLabelValues(route, strconv.Itoa(rec.status)).Inc()
			a.metrics.duration.WithLabelValues(route).Observe(time.Since(start).Seconds())
		}()
		if a.stub != nil && !a.stub.admit(rec, r) {
			return
		}
		if pattern == "" {
			e := unroutable(mux, r)
			_ = writeJSON(rec, e.Status, e)
			return
		}
		mux.ServeHTTP(rec, r)
	})
}

// unroutable says in Dify's words that there is no such route, or no such method.
func unroutable(mux *http.ServeMux, r *http.Request) *apiError {
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = m
		if _, p := mux.Handler(other); p != "" {
			return &apiError{Code: "method_not_allowed", Message: "The method is not allowed for the requested URL.", Status: http.StatusMethodNotAllowed}
		}
	}
	return notFound("The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.")
}

// recorder notes the status for the metrics.
type recorder struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (r *recorder) WriteHeader(code int) {
	if !r.wrote {
		r.status, r.wrote = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// wrap turns a handler into net/http's: the start gate, the cost, errors in
// Dify's form, and a panic that costs one request only.
func (a *API) wrap(h handlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reason := a.notReady.Load(); reason != nil {
			_ = writeJSON(w, http.StatusServiceUnavailable, &apiError{
				Code: "service_unavailable", Message: "The simulator has not started: " + *reason, Status: http.StatusServiceUnavailable,
			})
			return
		}
		life, ok := r.Context().Value(lifeKey{}).(context.Context)
		if !ok {
			life = context.WithoutCancel(r.Context())
		}
		q := &request{w: w, r: r}
		if a.db != nil { // the stub has none
			q.db = a.db.Session()
			defer q.db.Close()
		}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http panics with this very value
					panic(p)
				}
				a.log.Error("request panicked", "path", r.URL.Path, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
				_ = writeJSON(w, http.StatusInternalServerError, errInternal())
			}
		}()
		err := a.core.use(life, a.cfg.CPU.LightCost)
		if err == nil {
			err = h(life, q)
		}
		if err == nil {
			return
		}
		e := asAPIError(err)
		if e.Status >= http.StatusInternalServerError {
			a.log.Warn("request failed", "path", r.URL.Path, "err", err.Error())
		}
		_ = writeJSON(w, e.Status, e)
	})
}

func (a *API) front(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html><html lang="en"><title>Dify simulator</title>
<h1>This is a simulator of Dify</h1>
<p>It speaks the service API of Dify %s under <code>/v1</code> for drills and tests.
There is no language model behind it, and it is not Dify.</p></html>
`, a.cfg.Version)
}

// health is Dify's: it touches neither database nor Redis. Before the schema was
// seen once it fails, as a Dify that is migrating does not listen yet.
func (a *API) health(w http.ResponseWriter, r *http.Request) {
	if a.core.use(r.Context(), a.cfg.CPU.LightCost) != nil {
		return
	}
	if reason := a.notReady.Load(); reason != nil {
		_ = writeJSON(w, http.StatusServiceUnavailable, object{"pid", os.Getpid(), "status", "starting: " + *reason, "version", a.cfg.Version})
		return
	}
	_ = writeJSON(w, http.StatusOK, object{"pid", os.Getpid(), "status", "ok", "version", a.cfg.Version})
}

// ready is the simulator's own deep probe: database, schema and Redis.
func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	a.answerReady(w, r, a.notReady.Load())
}

func (b *backend) answerReady(w http.ResponseWriter, r *http.Request, starting *string) {
	reason := ""
	if starting != nil {
		reason = *starting
	} else if err := b.checkDeep(r.Context()); err != nil {
		reason = err.Error()
	}
	if reason != "" {
		_ = writeJSON(w, http.StatusServiceUnavailable, object{"status", "not ready", "reason", reason, "simulator", true})
		return
	}
	_ = writeJSON(w, http.StatusOK, object{"status", "ready", "simulator", true})
}

func (a *API) poolStat(w http.ResponseWriter, _ *http.Request) {
	used, idle := a.db.Stat()
	_ = writeJSON(w, http.StatusOK, object{
		"pid", os.Getpid(), "pool_size", a.cfg.Database.PoolSize, "checked_in_connections", idle,
		"checked_out_connections", used, "overflow_connections", max(0, used+idle-a.cfg.Database.PoolSize),
		"connection_timeout", a.cfg.Database.PoolTimeout.Seconds(), "recycle_time", a.cfg.Database.PoolRecycle.Seconds(),
	})
}
