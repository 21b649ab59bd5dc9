package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"fournines/gateway/admit"
	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

func TestUrgencyLowersPriority(t *testing.T) {
	for _, tt := range []struct {
		header []string
		want   bool
	}{
		{nil, false},
		{[]string{"u=0"}, false},
		{[]string{"u=4, i"}, false},
		{[]string{"u=5"}, true},
		{[]string{"i, u=7"}, true},
		{[]string{"i", "u=6"}, true},
		{[]string{"u=8"}, false},
		{[]string{"u=55"}, false},
		{[]string{"u=-1, urgency=7"}, false},
	} {
		if got := lowUrgency(tt.header); got != tt.want {
			t.Errorf("Priority %q lowers: %v", tt.header, got)
		}
	}
}

func TestKeysAreProvenByWhatChecksThem(t *testing.T) {
	for _, tt := range []struct {
		method, path string
		want         bool
	}{
		{"POST", "/v1/chat-messages", true},
		{"GET", "/v1/parameters", true},
		{"OPTIONS", "/v1/parameters", false},
		{"GET", "/v1/", false},
		{"GET", "/v1/swagger.json", false},
		{"GET", "/health", false},
		{"POST", "/api/chat-messages", false},
		{"GET", "/console/api/setup", false},
	} {
		if got := dify.ProvesKey(tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s: %v", tt.method, tt.path, got)
		}
	}
}

// TestAppsBulkhead: an app that has all it may have gets 429 and a time to come
// back; another one does not notice.
func TestAppsBulkhead(t *testing.T) {
	release := make(chan struct{})
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if dify.AppKey(r.Header) == "app-full" {
			<-release
		}
		say("ok")(w, r)
	})
	cfg := testConfig(in)
	cfg.Limits.QueueTimeout = patience
	cfg.Apps = []App{{Name: "full", KeyIDs: []string{dify.KeyID("app-full")}, MaxInFlight: 1, MaxQueue: 1}}
	g := start(t, cfg)
	c := client(t)
	ask := func(key string) (int, string, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/v1/parameters", nil)
		if err != nil {
			t.Error(err)
			return 0, "", nil
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := c.Do(req)
		if err != nil {
			t.Error(err)
			return 0, "", nil
		}
		return read(t, resp)
	}
	done := make(chan int, 2)
	for range 2 { // one in work, one waiting
		go func() {
			status, _, _ := ask("app-full")
			done <- status
		}()
	}
	eventually.Nil(t, patience, func() error {
		if n := g.admit.Waiting(); n != 1 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	status, body, h := ask("app-full")
	after, err := strconv.Atoi(h.Get("Retry-After"))
	if status != http.StatusTooManyRequests || !strings.Contains(body, `"too_many_requests"`) || err != nil || after < 1 || after > 60 {
		t.Errorf("one too many: %d %s, Retry-After %q", status, body, h.Get("Retry-After"))
	}
	if status, body, _ := ask("app-other"); status != http.StatusOK {
		t.Errorf("another app: %d %s", status, body)
	}
	close(release)
	for range 2 {
		if status := <-done; status != http.StatusOK {
			t.Errorf("an admitted request: %d", status)
		}
	}
}

// TestKeysAreLearnt: a key has a queue of its own once an instance took it.
func TestKeysAreLearnt(t *testing.T) {
	in := newInstance(t, "zone-a", func(w http.ResponseWriter, r *http.Request) {
		if dify.AppKey(r.Header) != "app-good" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	g := start(t, testConfig(in))
	c := client(t)
	for _, key := range []string{"app-good", "app-bad"} {
		for _, path := range []string{"/health", "/v1/parameters"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+key)
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			read(t, resp)
			_, known := g.admit.App(dify.KeyID(key), false, admit.Unknown)
			if want := key == "app-good" && path != "/health"; known != want {
				t.Errorf("%s after %s: known %v", key, path, known)
			}
		}
	}
}
