package gateway

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/jobs"
)

// newLane makes the async lane when it is configured.
func (g *Gateway) newLane(cfg *Config, reg prometheus.Registerer) error {
	if !cfg.Jobs.On() {
		return nil
	}
	lane, err := jobs.New(cfg.Jobs, jobs.Deps{
		Handler: g, Client: g.redis, Log: g.log, Registry: reg,
		Drain: func() (announce, timeout time.Duration) {
			d := g.settings.Load().Drain
			return d.Announce, d.Timeout
		},
		Heartbeat: func() time.Duration { return g.settings.Load().Stream.Heartbeat },
	})
	g.jobs = lane
	return err
}

// runLane runs the async lane beside the server; stop makes it begin nothing new,
// and wg has joined it when its jobs have ended or are given back.
func (g *Gateway) runLane(base context.Context, wg *sync.WaitGroup) (stop func()) {
	if g.jobs == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(base))
	wg.Go(func() {
		if err := g.jobs.Run(ctx); err != nil {
			g.log.Error("async lane ended", "err", err)
		}
	})
	return cancel
}

// jobHandlers are the lane's paths of the admin API.
func (g *Gateway) jobHandlers() map[string]http.Handler {
	if g.jobs == nil {
		return nil
	}
	return g.jobs.AdminHandlers()
}

// serveLane answers what belongs to the async lane: questions about jobs, and
// requests that become one. It tells whether it has.
func (x *exchange) serveLane() bool {
	lane := x.g.jobs
	if lane == nil {
		return false
	}
	asks := strings.HasPrefix(x.r.URL.Path, "/jobs/")
	if !asks && !lane.Takes(x.r, x.class.Streams()) {
		x.trace = jobs.TraceOf(x.ctx)
		return false
	}
	h := x.w.Header()
	h["X-Request-Id"] = []string{x.id}
	h["X-Fournines-Zone"] = x.set.zoneHeader
	if x.g.draining.Load() && x.r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	w := &statusWriter{ResponseWriter: x.w, x: x}
	if asks {
		lane.ServeHTTP(w, x.r)
	} else {
		lane.Accept(w, x.r, x.body.held, x.body.complete(), x.app.id, x.id)
	}
	return true
}

// statusWriter notes what is answered for metrics and the log.
type statusWriter struct {
	http.ResponseWriter
	x *exchange
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.x.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) {
	if w.x.status == 0 {
		w.x.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.x.sent += int64(n)
	return n, err
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// validateLane checks what the lane needs of the other sections.
func (c *Config) validateLane(bad func(field, format string, args ...any)) {
	c.Jobs.Validate(bad)
	if !c.Jobs.On() {
		return
	}
	if len(c.Redis.Nodes) == 0 {
		bad("jobs.keyFile", "jobs live in Redis: redis.nodes is needed")
	}
	if c.Jobs.MaxBodyBytes > c.Limits.ReplayBytes {
		bad("jobs.maxBodyBytes", "%d is more than limits.replayBytes (%d)", c.Jobs.MaxBodyBytes, c.Limits.ReplayBytes)
	}
}
