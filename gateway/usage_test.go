package gateway

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

// appLabels are the values of the label app in all metrics.
func appLabels(tb testing.TB, reg *prometheus.Registry) (labels map[string]bool, series int) {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	labels = map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			series++
			for _, l := range m.GetLabel() {
				if l.GetName() == "app" {
					labels[l.GetValue()] = true
				}
			}
		}
	}
	return labels, series
}

// failures is how many requests have failed, over all apps.
func failures(tb testing.TB, reg *prometheus.Registry) (n float64) {
	tb.Helper()
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "fournines_gateway_app_failures_total" {
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// TestFailuresAreWhatUsersFelt counts an answer of 500 and half an answer of 200,
// and no refusal that the client brought on itself.
func TestFailuresAreWhatUsersFelt(t *testing.T) {
	a := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		switch _, _ = io.Copy(io.Discard, r.Body); r.URL.Query().Get("mode") {
		case "half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			abort(w)
		case "error":
			w.WriteHeader(http.StatusInternalServerError)
		case "wrong":
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	cfg := testConfig(a)
	cfg.Ejection.Consecutive5xx, cfg.Ejection.ConsecutiveErrors = 1000, 1000
	g := start(t, cfg)
	want := 0.0
	for _, c := range []struct {
		mode  string
		fails bool
	}{{"ok", false}, {"error", true}, {"wrong", false}, {"half", true}} {
		resp, err := http.Post(g.url+"/v1/files/upload?mode="+c.mode, "text/plain", strings.NewReader("x"))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if c.fails {
			want++
		}
		eventually.Nil(t, time.Minute, func() error {
			if got := failures(t, g.reg); got != want {
				return fmt.Errorf("%s: %v failures, want %v", c.mode, got, want)
			}
			return nil
		})
	}
}

// keyed serves keys that begin with "app-good" and refuses all others.
func keyed(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	switch {
	case r.Method == http.MethodGet: // Dify answers some without a look at the key
	case !strings.HasPrefix(dify.AppKey(r.Header), "app-good"):
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func TestRandomKeysMakeNoSeries(t *testing.T) {
	in := newInstance(t, "zone-a", keyed)
	cfg := testConfig(in)
	cfg.AccessLog = false
	named := "app-good-named"
	cfg.Apps = []App{{Name: "shop", KeyIDs: []string{dify.KeyID(named)}}}
	g := start(t, cfg)
	_, before := appLabels(t, g.reg)
	call := func(method, key string) {
		t.Helper()
		// Straight into the handler: 10,000 of them over the network take long.
		r, err := http.NewRequestWithContext(t.Context(), method, g.url+"/v1/chat-messages", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+key)
		r.RemoteAddr = "127.0.0.1:1"
		g.ServeHTTP(&discard{header: http.Header{}}, r)
	}
	for i := range 10_000 {
		x := &exchange{g: g.Gateway, class: dify.Chat, status: http.StatusUnauthorized, endpoint: "e", app: app{id: dify.KeyID(fmt.Sprint("app-", i))}}
		x.r, _ = http.NewRequest(http.MethodPost, "http://h/v1/chat-messages", nil)
		g.usage.count(x, 0)
		if i%500 == 0 { // and some through the whole of it
			call(http.MethodPost, fmt.Sprint("app-random-", i))
			call(http.MethodGet, fmt.Sprint("app-random-", i))
		}
	}
	labels, after := appLabels(t, g.reg)
	if diff := cmp.Diff(map[string]bool{appOther: true, appNone: true}, labels); diff != "" {
		t.Errorf("apps in metrics: %s", diff)
	}
	if after > before+40 {
		t.Errorf("%d series grew to %d", before, after)
	}
	call(http.MethodPost, named)
	for i := range 3 * maxKeyLabels {
		call(http.MethodPost, fmt.Sprint("app-good-", i))
	}
	if labels, _ = appLabels(t, g.reg); len(labels) != 3+maxKeyLabels || !labels["shop"] {
		t.Errorf("%d apps in metrics, want %d", len(labels), 3+maxKeyLabels)
	}
	if got := g.metric(t, g.usage.appRequests.WithLabelValues("shop", "2xx")); got != 1 {
		t.Errorf("shop has %v requests", got)
	}
	if got := g.metric(t, g.usage.appRequests.WithLabelValues(appOther, "2xx")); got < 2*maxKeyLabels {
		t.Errorf("other has %v requests", got)
	}

	// A key that gets a name counts under it, and a name that goes is forgotten.
	cfg.Apps = []App{{Name: "first", KeyIDs: []string{dify.KeyID("app-good-0")}}}
	if err := g.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	call(http.MethodPost, "app-good-0")
	labels, _ = appLabels(t, g.reg)
	if !labels["first"] || labels["shop"] || labels[dify.KeyID("app-good-0")] {
		t.Errorf("after the reload: %v", labels)
	}
}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

func TestUsageOfAStream(t *testing.T) {
	release := make(chan struct{})
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"event\":\"message\",\"answer\":\"a\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-release
		_, _ = io.WriteString(w, "data: {\"event\":\"message_end\"}\n\n")
	})
	g := start(t, testConfig(in))
	resp, err := client(t).Post(g.url+"/v1/chat-messages?secret=query", "application/json", strings.NewReader(`{"response_mode":"streaming"}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := g.usage.openStreams(); n != 1 {
		t.Errorf("%d open streams", n)
	}
	close(release)
	_, body, _ := read(t, resp)
	eventually.Nil(t, patience, func() error {
		if !strings.Contains(g.logs.String(), "msg=request") {
			return fmt.Errorf("no line in the access log")
		}
		return nil
	})
	if n := g.usage.openStreams(); n != 0 {
		t.Errorf("%d open streams after its end", n)
	}
	if got := g.metric(t, g.usage.appBytes.WithLabelValues(appNone, "out")); got != float64(len(body)) {
		t.Errorf("%v bytes out, want %d", got, len(body))
	}
	if got := g.metric(t, g.usage.endpointRequests.WithLabelValues(in.addr, "zone-a", "2xx")); got != 1 {
		t.Errorf("%v requests of the instance", got)
	}
	if line := g.logs.String(); strings.Contains(line, "secret=query") || !strings.Contains(line, "first_content_ms=") || !strings.Contains(line, "path=/v1/chat-messages ") {
		t.Errorf("access log: %s", line)
	}
}

func TestLogPath(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat-messages":               "/v1/chat-messages",
		"/mcp/server/abcSECRET/mcp":       "/mcp/server/***/mcp",
		"/triggers/webhook/SECRET":        "/triggers/webhook/***",
		"/" + strings.Repeat("x", 10_000): "/" + strings.Repeat("x", maxLogPath-1) + "...",
	} {
		if got := logPath(path); got != want {
			t.Errorf("logPath(%.40q) = %.60q, want %.60q", path, got, want)
		}
	}
}

func TestAccessLogShare(t *testing.T) {
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/bad") {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	cfg := testConfig(in)
	cfg.AccessLogShare = 0
	g := start(t, cfg)
	c := client(t)
	for range 20 {
		post(t, c, g.url+"/v1/good", "")
	}
	post(t, c, g.url+"/v1/bad", "")
	eventually.Nil(t, patience, func() error {
		if !strings.Contains(g.logs.String(), "path=/v1/bad") {
			return fmt.Errorf("a failed request is not logged")
		}
		return nil
	})
	if strings.Contains(g.logs.String(), "path=/v1/good") {
		t.Error("a request without an error is logged")
	}
}
