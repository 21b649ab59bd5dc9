package adminhttp

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestWhoMayCallHandlers(t *testing.T) {
	const token = "0123456789abcdef"
	for _, tc := range []struct {
		name   string
		token  string
		path   string
		host   string
		header map[string]string
		want   int
	}{
		{"loopback", "", "/v1/x", "", nil, 200},
		{"by name", "", "/v1/x", "localhost:9101", nil, 200},
		{"rebound name", "", "/v1/x", "attacker.example:9101", nil, 403},
		{"another site's page", "", "/v1/x", "", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"another origin", "", "/v1/x", "", map[string]string{"Origin": "http://attacker.example"}, 403},
		{"no token", token, "/v1/x", "", nil, 401},
		{"wrong token", token, "/v1/x", "", map[string]string{"Authorization": "Bearer " + token + "x"}, 401},
		{"token", token, "/v1/x", "gateway:9101", map[string]string{"Authorization": "Bearer " + token}, 200},
		{"metrics need none", token, "/metrics", "gateway:9101", nil, 200},
		{"readiness needs none", token, "/readyz", "gateway:9101", nil, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
			s := &Server{Gatherer: prometheus.NewRegistry(), Handlers: map[string]http.Handler{"POST /v1/x": ok}, Token: func() string { return tc.token }}
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx, ln) }()
			defer func() {
				stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			method := http.MethodPost
			if tc.path != "/v1/x" {
				method = http.MethodGet
			}
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+ln.Addr().String()+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = tc.host
			for k, v := range tc.header {
				req.Header.Set(k, v)
			}
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != tc.want {
				t.Errorf("%d, want %d", resp.StatusCode, tc.want)
			}
		})
	}
}
