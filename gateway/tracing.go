package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"fournines/gateway/balance"
)

// Tracing sends OpenTelemetry traces: one server span per request and one
// client span per attempt at an instance. Off, the W3C trace context of clients
// passes to Dify as it came; on, a traced request reaches Dify as a child of
// the attempt's span.
type Tracing struct {
	// Endpoint is the URL of an OTLP/HTTP receiver, such as
	// http://collector:4318/v1/traces. Empty (default) turns tracing off.
	Endpoint string `yaml:"endpoint"`
	// HeadersFile has lines "Name: value" that go with each export, for
	// receivers that want a key. Others must not be able to read it.
	HeadersFile string `yaml:"headersFile"`
	// SampleRatio (0..1) of the requests without a traceparent are traced;
	// those with one are when its sampled flag is set. Default 0.01.
	SampleRatio float64 `yaml:"sampleRatio"`
	// Timeout of one export. Default 10s.
	Timeout time.Duration `yaml:"timeout"`
}

func defaultTracing() Tracing { return Tracing{SampleRatio: .01, Timeout: 10 * time.Second} }

func (t *Tracing) validate(bad func(field, format string, args ...any)) {
	if t.Endpoint == "" {
		return
	}
	if u, err := url.Parse(t.Endpoint); err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		bad("tracing.endpoint", "not a URL like http://collector:4318/v1/traces; a key belongs into headersFile") // not shown: it may hold one
	}
	if !(t.SampleRatio >= 0 && t.SampleRatio <= 1) {
		bad("tracing.sampleRatio", "%v is not between 0 and 1", t.SampleRatio)
	}
	if t.Timeout < 100*time.Millisecond {
		bad("tracing.timeout", "%v is less than 100ms", t.Timeout)
	}
}

// readHeaders returns nil without a file.
func (t *Tracing) readHeaders() (map[string]string, error) {
	if t.HeadersFile == "" || t.Endpoint == "" {
		return nil, nil
	}
	f, err := os.Open(t.HeadersFile)
	if err != nil {
		return nil, fmt.Errorf("tracing.headersFile: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("tracing.headersFile: %w", errors.Join(err, fmt.Errorf("%s must not be readable by others: chmod 600", t.HeadersFile), fs.ErrPermission))
	}
	headers := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("tracing.headersFile: a line in %s is not \"Name: value\"", t.HeadersFile)
		}
		headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return headers, nil
}

// tracing makes spans while Run runs.
type tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	client   *http.Client
}

// w3c reads and writes traceparent and tracestate.
var w3c propagation.TraceContext

// exporter counts exports and keeps their errors from the SDK, which would
// write them to standard error.
type exporter struct {
	sdktrace.SpanExporter
	log     *slog.Logger
	spans   *prometheus.CounterVec
	failing atomic.Bool
}

// ExportSpans implements sdktrace.SpanExporter.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	e.spans.WithLabelValues(outcome).Add(float64(len(spans)))
	switch was := e.failing.Swap(err != nil); {
	case err != nil && !was:
		e.log.Warn("traces are not taken", "err", err)
	case err == nil && was:
		e.log.Info("traces are taken again")
	}
	return nil
}

func newTraceCounter(reg prometheus.Registerer) (*prometheus.CounterVec, error) {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "fournines", Subsystem: "gateway", Name: "trace_spans_total",
		Help: "Spans exported, by outcome: ok or failed."}, []string{"outcome"})
	return c, reg.Register(c)
}

// startTracing returns nil when tracing is off. What it starts ends with stop.
func (g *Gateway) startTracing(ctx context.Context) (*tracing, error) {
	cfg := g.settings.Load().Tracing
	if cfg.Endpoint == "" {
		return nil, nil
	}
	headers, err := cfg.readHeaders()
	if err != nil {
		return nil, err
	}
	t := &tracing{client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConns: 2, IdleConnTimeout: time.Minute}}}
	otlp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.Endpoint), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithTimeout(cfg.Timeout), otlptracehttp.WithHTTPClient(t.client))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	host, _ := os.Hostname()
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&exporter{SpanExporter: otlp, log: g.log, spans: g.traceSpans}, sdktrace.WithExportTimeout(cfg.Timeout)),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.SampleRatio))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "fournines-gateway"), attribute.String("host.name", host),
			attribute.Int("process.pid", os.Getpid()), attribute.String("fournines.zone", g.settings.Load().Zone))),
	)
	t.tracer = t.provider.Tracer("fournines/gateway")
	return t, nil
}

// stop sends what is left.
func (t *tracing) stop(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endGrace)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // what the receiver does not take in time is lost
	t.client.CloseIdleConnections()
}

// requestSpan is the trace of one request. The nil requestSpan is one that is
// not traced, and its methods do nothing.
type requestSpan struct {
	tracer  trace.Tracer
	ctx     context.Context // carries the server span, nothing else
	server  trace.Span
	attempt trace.Span // the last one, open until the next or the end
	reason  string     // why the last attempt failed
}

// spanMethods are the methods that may be in a span's name.
var spanMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

func (g *Gateway) beginSpan(x *exchange) *requestSpan {
	t := g.tracing.Load()
	if t == nil {
		return nil
	}
	method := x.r.Method
	if !slices.Contains(spanMethods, method) {
		method = "HTTP"
	}
	ctx := w3c.Extract(context.Background(), propagation.HeaderCarrier(x.r.Header))
	ctx, span := t.tracer.Start(ctx, method+" "+x.class.String(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(x.start))
	if !span.IsRecording() {
		return nil
	}
	span.SetAttributes(
		attribute.String("http.request.method", method), attribute.String("url.path", logPath(x.r.URL.Path)),
		attribute.String("network.protocol.version", strings.TrimPrefix(x.r.Proto, "HTTP/")),
		attribute.String("client.address", x.r.RemoteAddr), attribute.String("fournines.request_id", x.id),
		attribute.String("fournines.class", x.class.String()), attribute.String("fournines.zone", x.set.Zone))
	return &requestSpan{tracer: t.tracer, ctx: ctx, server: span}
}

// traceID is the id of the trace, "" when there is none.
func (s *requestSpan) traceID() string {
	if s == nil {
		return ""
	}
	return s.server.SpanContext().TraceID().String()
}

func (s *requestSpan) event(name string, attrs ...attribute.KeyValue) {
	if s != nil {
		s.server.AddEvent(name, trace.WithAttributes(attrs...))
	}
}

// beginAttempt is called before each attempt, number counted from 1.
func (s *requestSpan) beginAttempt(number int, ep *balance.Endpoint) {
	if s == nil {
		return
	}
	if s.attempt != nil {
		s.attempt.End()
		s.event("retry", attribute.Int("fournines.attempt", number), attribute.String("fournines.reason", s.reason))
	}
	_, s.attempt = s.tracer.Start(s.ctx, "attempt", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.Int("fournines.attempt", number), attribute.String("fournines.endpoint", ep.Name),
		attribute.String("fournines.endpoint.zone", ep.Zone), attribute.String("server.address", ep.Address)))
	s.reason = ""
}

// endAttempt is called with what it gave; an answer that is passed on keeps the
// span open.
func (s *requestSpan) endAttempt(up *upstream, f failure) {
	if s == nil {
		return
	}
	if up != nil {
		s.attempt.SetAttributes(attribute.Int("http.response.status_code", up.resp.StatusCode))
		if up.resp.StatusCode >= 500 {
			s.reason = "status"
			s.attempt.SetStatus(codes.Error, "")
		}
		return
	}
	s.reason = f.reason
	s.attempt.SetAttributes(attribute.String("error.type", f.reason), attribute.Bool("fournines.unsent", f.unsent))
	if f.err != nil {
		s.attempt.SetStatus(codes.Error, f.err.Error())
	}
}

// header returns the header of the attempt: the client's, as a child of the
// attempt's span when there is one.
func (s *requestSpan) header(h http.Header) http.Header {
	if s == nil {
		return h
	}
	h = maps.Clone(h) // an attempt that was given up may still be reading the last one
	w3c.Inject(trace.ContextWithSpan(s.ctx, s.attempt), propagation.HeaderCarrier(h))
	return h
}

// end ends the trace of a finished request.
func (s *requestSpan) end(x *exchange) {
	if s == nil {
		return
	}
	if s.attempt != nil {
		s.attempt.End()
	}
	s.server.SetAttributes(
		attribute.String("fournines.app", x.app.id), attribute.String("fournines.endpoint", x.endpoint),
		attribute.String("fournines.endpoint.zone", x.zone), attribute.Int("fournines.attempts", x.attempts),
		attribute.Int("http.response.status_code", x.status), attribute.Int64("http.response.body.size", x.sent))
	if x.know.result != "" {
		s.server.SetAttributes(attribute.String("fournines.cache", string(x.know.result)))
	}
	if x.status >= 500 {
		s.server.SetStatus(codes.Error, "")
	}
	s.server.End()
}
