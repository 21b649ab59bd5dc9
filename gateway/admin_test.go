package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/gateway/dify"
	"fournines/internal/adminhttp"
	"fournines/internal/eventually"
)

// adminAPI serves the admin API of g and returns a function that calls it.
func adminAPI(t *testing.T, g *running, o AdminOptions) func(method, path string, out any) int {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range g.AdminHandlers(o) {
		mux.Handle(pattern, h)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return func(method, path string, out any) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		status, body, _ := read(t, resp)
		if out != nil {
			if err := json.Unmarshal([]byte(body), out); err != nil {
				t.Fatalf("%s %s: %v in %q", method, path, err, body)
			}
		}
		return status
	}
}

func TestAdminAPI(t *testing.T) {
	release := make(chan struct{})
	stream := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/chat-messages" {
				_, _ = io.WriteString(w, name)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {\"event\":\"message\",\"answer\":\"a\"}\n\n")
			_ = http.NewResponseController(w).Flush()
			<-release
			_, _ = io.WriteString(w, "data: {\"event\":\"message_end\"}\n\n")
		}
	}
	a, b := newInstance(t, "zone-a", stream("a")), newInstance(t, "zone-b", stream("b"))
	cfg := testConfig(a, b)
	cfg.Upstreams[0].Name, cfg.Upstreams[1].Name = "dify-a", "dify-b"
	cfg.Apps = []App{{Name: "shop", KeyIDs: []string{dify.KeyID("app-shop")}}}
	g := start(t, cfg)
	refuse := errors.New("upstreams: at least one Dify instance is needed")
	stopped := 0
	call := adminAPI(t, g, AdminOptions{Version: "v1", Stop: func() { stopped++ }, Reload: func() error {
		return g.ReloadFrom(func() (Config, error) { return Config{}, refuse })
	}})

	var st Status
	if code := call("GET", "/v1/status", &st); code != 200 || st.Zone != "zone-a" || st.Version != "v1" || !st.Ready || !st.LastReloadOK || st.ConfigHash == "" || st.PID != os.Getpid() {
		t.Errorf("status %d %+v", code, st)
	}
	var said adminError
	if code := call("POST", "/v1/reload", &said); code != 422 || !strings.Contains(said.Message, "at least one Dify instance") {
		t.Errorf("reload %d %+v", code, said)
	}
	if call("GET", "/v1/status", &st); st.LastReloadOK || st.LastReload == nil || !strings.Contains(st.LastReloadSays, "at least one") {
		t.Errorf("status after a refused reload: %+v", st)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(`{"response_mode":"streaming"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer app-shop")
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var streams []StreamCount
	if code := call("GET", "/v1/streams", &streams); code != 200 || len(streams) != 1 || streams[0] != (StreamCount{"shop", "chat", "10s", 1}) {
		t.Errorf("streams %d %+v", code, streams)
	}
	if old := g.usage.streamCounts(time.Now().Add(2 * time.Hour)); len(old) != 1 || old[0].Age != "older" {
		t.Errorf("streams in two hours: %+v", old)
	}

	// Maintenance: nothing new at the drained instance, what is there goes on.
	var e EndpointStatus
	if code := call("POST", "/v1/endpoints/dify-a/drain", &e); code != 200 || e.State != "drained" || e.InFlight != 1 || !e.Local {
		t.Errorf("drain %d %+v", code, e)
	}
	c := client(t)
	for range 20 {
		if _, body, _ := post(t, c, g.url+"/v1/x", ""); body != "b" {
			t.Fatalf("a request went to %q", body)
		}
	}
	if code := call("POST", "/v1/endpoints/dify-b/drain", &said); code != 409 || !strings.Contains(said.Message, "last endpoint in service") {
		t.Errorf("drain of the last: %d %+v", code, said)
	}
	if code := call("POST", "/v1/endpoints/nobody/drain", &said); code != 404 || !strings.Contains(said.Message, "dify-a, dify-b") {
		t.Errorf("drain of nobody: %d %+v", code, said)
	}
	if err := g.Reload(cfg); err != nil { // a reload does not forget it
		t.Fatal(err)
	}
	var all []EndpointStatus
	if call("GET", "/v1/endpoints", &all); len(all) != 2 || all[0].State != "drained" || all[1].State != "in service" {
		t.Errorf("endpoints %+v", all)
	}
	if code := call("POST", "/v1/endpoints/dify-b/drain?force=true", &e); code != 200 {
		t.Errorf("forced drain %d", code)
	}
	// All are out: refused, not sent to an instance under maintenance.
	if status, body, _ := post(t, c, g.url+"/v1/x", ""); status != 503 {
		t.Errorf("got %d %q with all instances drained", status, body)
	}
	call("POST", "/v1/endpoints/dify-b/undrain", nil)
	if code := call("POST", "/v1/endpoints/dify-a/undrain", &e); code != 200 || e.State != "in service" {
		t.Errorf("undrain %d %+v", code, e)
	}
	eventually.Nil(t, patience, func() error {
		if _, body, _ := post(t, c, g.url+"/v1/x", ""); body != "a" {
			return fmt.Errorf("answered by %q", body)
		}
		return nil
	})
	close(release)
	if _, body, _ := read(t, resp); !strings.Contains(body, "message_end") {
		t.Errorf("the stream of the drained instance: %q", body)
	}
	eventually.Nil(t, patience, func() error {
		var apps []AppStatus
		call("GET", "/v1/apps", &apps)
		for _, a := range apps {
			if a.App == "shop" && a.Requests == 1 && a.Streams == 0 && a.Named && a.LastUsed != nil {
				return nil
			}
		}
		return fmt.Errorf("apps %+v", apps)
	})
	if code := call("POST", "/v1/drain", &st); code != 202 || stopped != 1 {
		t.Errorf("drain %d, stopped %d times", code, stopped)
	}
	if code := call("GET", "/v1/drain", nil); code != 405 {
		t.Errorf("GET /v1/drain: %d", code)
	}
}

func TestAdminNeedsATokenOffLoopback(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", "0123456789abcdef\n", 0o600)
	in := newInstance(t, "zone-a", say("a"))
	for _, tc := range []struct {
		listen string
		admin  adminhttp.Config
		says   string
	}{
		{"127.0.0.1:1", adminhttp.Config{API: true}, ""},
		{"localhost:1", adminhttp.Config{API: true}, ""},
		{"[::1]:1", adminhttp.Config{API: true}, ""},
		{"127.9.0.1:1", adminhttp.Config{API: true}, ""},
		{":1", adminhttp.Config{API: true}, "admin.tokenFile: needed"},
		{"10.0.0.1:1", adminhttp.Config{API: true}, "admin.tokenFile: needed"},
		{"gateway:1", adminhttp.Config{API: true}, "admin.tokenFile: needed"},
		{"10.0.0.1:1", adminhttp.Config{}, ""},
		{"10.0.0.1:1", adminhttp.Config{API: true, TokenFile: good}, ""},
		{"10.0.0.1:1", adminhttp.Config{API: true, TokenFile: file("open", "0123456789abcdef", 0o644)}, "chmod 600"},
		{"10.0.0.1:1", adminhttp.Config{API: true, TokenFile: file("short", "123", 0o600)}, "fewer than 16"},
		{"10.0.0.1:1", adminhttp.Config{API: true, TokenFile: good + "x"}, "no such file"},
	} {
		cfg := testConfig(in)
		cfg.AdminListen, cfg.Admin = tc.listen, tc.admin
		_, err := newSettings(cfg)
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s %+v: %v, want %q", tc.listen, tc.admin, err, tc.says)
		}
		if err != nil && strings.Contains(err.Error(), "0123456789abcdef") {
			t.Errorf("the token is in the error: %v", err)
		}
	}
}
