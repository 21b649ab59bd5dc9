package gateway

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// account counts and logs the finished request.
func (x *exchange) account() {
	took := time.Since(x.start)
	if x.status == 0 {
		x.status = http.StatusInternalServerError
	}
	x.g.m.done(x.class, x.status, x.zone, took.Seconds())
	x.g.usage.count(x, took)
	x.span.end(x)
	if x.set.AccessLog && x.logged() {
		x.log(took)
	}
}

// logged tells whether the access log gets this request: always when it
// failed, else as often as the configuration says.
func (x *exchange) logged() bool {
	share := x.set.AccessLogShare
	return share >= 1 || x.status >= 500 || x.status == statusClientGone || rand.Float64() < share
}

// log writes the line. Its field names are stable; docs/gateway.md lists them.
// It has neither the key nor the query, where a file's signature is.
func (x *exchange) log(took time.Duration) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	attrs := make([]slog.Attr, 0, 20)
	attrs = append(attrs,
		slog.String("id", x.id), slog.String("method", x.r.Method), slog.String("path", logPath(x.r.URL.Path)),
		slog.String("proto", x.r.Proto), slog.String("class", x.class.String()), slog.Int("status", x.status),
		slog.Int64("bytes_in", x.received()), slog.Int64("bytes", x.sent), slog.Float64("ms", ms(took)),
		slog.Float64("first_content_ms", ms(x.first)), slog.String("app", x.app.id),
		slog.String("endpoint", x.endpoint), slog.String("zone", x.zone), slog.Int("attempts", x.attempts),
		slog.Int("restarts", x.restarts), slog.String("client", x.r.RemoteAddr))
	if x.know.result != "" {
		attrs = append(attrs, slog.String("cache", string(x.know.result)))
	}
	if id := x.traceID(); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	x.g.log.LogAttrs(context.WithoutCancel(x.r.Context()), slog.LevelInfo, "request", attrs...)
}

// secretPaths are followed by a code that opens what is behind it.
var secretPaths = [...]string{"/mcp/server/", "/triggers/webhook/", "/triggers/webhook-debug/", "/triggers/plugin/"}

// maxLogPath bounds what the log takes of a path.
const maxLogPath = 512

// logPath is path without what gives access by itself.
func logPath(path string) string {
	for _, prefix := range secretPaths {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			_, tail, more := strings.Cut(rest, "/")
			if path = prefix + "***"; more {
				path += "/" + tail
			}
			break
		}
	}
	if len(path) > maxLogPath {
		path = path[:maxLogPath] + "..."
	}
	return path
}

// traceID is the id of the request's trace: ours, or the one its client sent.
func (x *exchange) traceID() string {
	if id := x.span.traceID(); id != "" {
		return id
	}
	if x.r.Header.Get("Traceparent") == "" {
		return ""
	}
	parent := trace.SpanContextFromContext(w3c.Extract(context.Background(), propagation.HeaderCarrier(x.r.Header)))
	if !parent.HasTraceID() {
		return ""
	}
	return parent.TraceID().String()
}
