package gateway

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"fournines/internal/eventually"
)

// receiver is an OTLP/HTTP receiver.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	spans   []*otlp.Span
	service string
	header  http.Header
	refuse  bool
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var export collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &export)
		}
		if err != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("export to %s: %v", req.URL, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.header = req.Header.Clone()
		if r.refuse {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		for _, rs := range export.GetResourceSpans() {
			for _, a := range rs.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					r.service = a.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				r.spans = append(r.spans, ss.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(r.Close)
	return r
}

// of returns the spans of a trace by kind, attempts in order.
func (r *receiver) of(traceID string) (server *otlp.Span, attempts []*otlp.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans {
		switch {
		case fmt.Sprintf("%x", s.GetTraceId()) != traceID:
		case s.GetKind() == otlp.Span_SPAN_KIND_SERVER:
			server = s
		case s.GetKind() == otlp.Span_SPAN_KIND_CLIENT:
			attempts = append(attempts, s)
		}
	}
	slices.SortFunc(attempts, func(a, b *otlp.Span) int { return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano()) })
	return server, attempts
}

func attributesOf(s *otlp.Span) map[string]string {
	out := map[string]string{}
	for _, a := range s.GetAttributes() {
		v := a.GetValue()
		out[a.GetKey()] = v.GetStringValue()
		if v.GetStringValue() == "" {
			out[a.GetKey()] = fmt.Sprint(v.GetIntValue())
		}
	}
	return out
}

func eventsOf(s *otlp.Span) []string {
	var out []string
	for _, e := range s.GetEvents() {
		out = append(out, e.GetName())
	}
	return out
}

const (
	parentTrace = "0af7651916cd43dd8448eb211c80319c"
	parentSpan  = "b7ad6b7169203331"
)

func TestTraces(t *testing.T) {
	var mu sync.Mutex
	seen := map[string][]string{} // traceparents by path
	note := func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Path] = append(seen[r.URL.Path], r.Header.Get("Traceparent")+" "+r.Header.Get("Tracestate"))
	}
	first := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		note(r)
		if r.URL.Path == "/v1/chat-messages" {
			abort(w) // before anything: the stream is started elsewhere
			return
		}
		_, _ = io.WriteString(w, "one")
	})
	second := newInstance(t, "zone-b", func(w http.ResponseWriter, r *http.Request) {
		note(r)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"event\":\"message\",\"answer\":\"a\"}\n\ndata: {\"event\":\"message_end\"}\n\n")
	})
	otel := newReceiver(t)
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("X-Key: secret-of-the-receiver\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(first, second)
	cfg.Tracing.Endpoint, cfg.Tracing.HeadersFile, cfg.Tracing.SampleRatio = otel.URL+"/v1/traces", headers, 0
	g := start(t, cfg)
	call := func(path, traceparent string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+path, strings.NewReader(`{"response_mode":"streaming"}`))
		if err != nil {
			t.Fatal(err)
		}
		if traceparent != "" {
			req.Header.Set("Traceparent", traceparent)
			req.Header.Set("Tracestate", "vendor=1")
		}
		resp, err := client(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if status, body, _ := read(t, resp); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	sampled := "00-" + parentTrace + "-" + parentSpan + "-01"
	unsampled := "00-" + strings.Repeat("1", 32) + "-" + parentSpan + "-00"
	call("/v1/chat-messages", sampled)
	call("/v1/plain", unsampled)
	call("/v1/none", "")
	if err := g.tracing.Load().provider.ForceFlush(t.Context()); err != nil {
		t.Fatal(err)
	}
	var server *otlp.Span
	var attempts []*otlp.Span
	eventually.Nil(t, patience, func() error { // a request is accounted after its answer
		if server, attempts = otel.of(parentTrace); server == nil {
			_ = g.tracing.Load().provider.ForceFlush(t.Context())
			return fmt.Errorf("no server span")
		}
		return nil
	})
	if got := attributesOf(server); server.GetName() != "POST chat" || fmt.Sprintf("%x", server.GetParentSpanId()) != parentSpan ||
		got["fournines.zone"] != "zone-a" || got["fournines.endpoint"] != second.addr || got["fournines.endpoint.zone"] != "zone-b" ||
		got["fournines.class"] != "chat" || got["http.response.status_code"] != "200" || got["fournines.attempts"] != "2" {
		t.Errorf("server span %s of %x: %v", server.GetName(), server.GetParentSpanId(), got)
	}
	if got := eventsOf(server); !slices.Contains(got, "retry") || !slices.Contains(got, "first content") {
		t.Errorf("events %v", got)
	}
	if len(attempts) != 2 {
		t.Fatalf("%d attempts", len(attempts))
	}
	for i, want := range []*instance{first, second} {
		if got := attributesOf(attempts[i]); got["fournines.endpoint"] != want.addr || fmt.Sprintf("%x", attempts[i].GetParentSpanId()) != fmt.Sprintf("%x", server.GetSpanId()) {
			t.Errorf("attempt %d: %v", i, got)
		}
	}
	if attributesOf(attempts[0])["error.type"] != "reset" || attempts[0].GetStatus().GetCode() != otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("failed attempt: %v %v", attributesOf(attempts[0]), attempts[0].GetStatus())
	}
	mu.Lock()
	for i, got := range seen["/v1/chat-messages"] {
		if want := fmt.Sprintf("00-%s-%x-01 vendor=1", parentTrace, attempts[i].GetSpanId()); got != want {
			t.Errorf("attempt %d had %q, want %q", i, got, want)
		}
	}
	if got := seen["/v1/plain"]; len(got) != 1 || got[0] != unsampled+" vendor=1" {
		t.Errorf("a request that is not traced had %q", got)
	}
	if got := seen["/v1/none"]; len(got) != 1 || got[0] != " " {
		t.Errorf("a request without a parent had %q", got)
	}
	mu.Unlock()
	otel.mu.Lock()
	if otel.service != "fournines-gateway" || otel.header.Get("X-Key") != "secret-of-the-receiver" || len(otel.spans) != 3 {
		t.Errorf("service %q, header %v, %d spans", otel.service, slices.Sorted(maps.Keys(otel.header)), len(otel.spans))
	}
	otel.refuse = true
	otel.mu.Unlock()
	eventually.Nil(t, patience, func() error { // a span ends before its request is logged
		if !strings.Contains(g.logs.String(), "trace_id="+parentTrace) {
			return fmt.Errorf("the access log has no trace id")
		}
		return nil
	})
	if strings.Contains(g.logs.String(), "secret-of-the-receiver") {
		t.Error("the log has the receiver's key")
	}
	call("/v1/again", sampled)
	eventually.Nil(t, patience, func() error {
		_ = g.tracing.Load().provider.ForceFlush(t.Context())
		if got := g.metric(t, g.traceSpans.WithLabelValues("failed")); got != 2 {
			return fmt.Errorf("%v spans failed", got)
		}
		return nil
	})
}

func TestTracingConfig(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("A: b"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		change func(*Tracing)
		says   string
	}{
		{func(c *Tracing) { c.Endpoint = "collector:4318" }, "tracing.endpoint"},
		{func(c *Tracing) { c.Endpoint = "http://user:hunter2@collector" }, "tracing.endpoint"},
		{func(c *Tracing) { c.SampleRatio = 2 }, "tracing.sampleRatio"},
		{func(c *Tracing) { c.Timeout = 0 }, "tracing.timeout"},
		{func(c *Tracing) { c.HeadersFile = open }, "chmod 600"},
	} {
		cfg := testConfig(newInstance(t, "zone-a", say("a")))
		cfg.Tracing.Endpoint = "http://127.0.0.1:4318/v1/traces"
		tc.change(&cfg.Tracing)
		_, err := newSettings(cfg)
		if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want %q", err, tc.says)
		}
	}
}
