// Package adminhttp serves the operational face that every fournines process
// has: /metrics, /livez and /readyz, and what a process adds for its operator.
package adminhttp

import (
	"context"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server answers operational requests on one listener.
type Server struct {
	// Gatherer is what /metrics shows.
	Gatherer prometheus.Gatherer
	// Ready tells whether the process serves; nil means always. The error's
	// text is the body of the 503 answer.
	Ready func() error
	// Handlers adds further paths (an admin API); keys are ServeMux patterns.
	// Browsers of other sites cannot call them.
	Handlers map[string]http.Handler
	// Token returns what callers of Handlers must send as "Authorization: Bearer".
	// Nil, or "": nothing, but the Host header must name a loopback address.
	Token func() string
}

// Run serves on ln until ctx ends, then closes it. It returns nil after a
// stop that was asked for.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.Ready != nil {
			if err := s.Ready(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	for pattern, h := range s.Handlers {
		mux.Handle(pattern, s.guard(h))
	}
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(ln)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// guard lets the right callers through. Any page that a browser shows can send
// requests to a loopback address, so a caller without a token must
// not come from another site, nor through a name that somebody else resolves.
func (s *Server) guard(h http.Handler) http.Handler {
	h = http.NewCrossOriginProtection().Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := ""
		if s.Token != nil {
			token = s.Token()
		}
		if token == "" {
			if !ByLoopbackName(r) {
				http.Error(w, "the admin API is called by a loopback address, or with a token", http.StatusForbidden)
				return
			}
			h.ServeHTTP(w, r)
			return
		}
		scheme, sent, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "bearer") || subtle.ConstantTimeCompare([]byte(strings.TrimSpace(sent)), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the admin API needs a token", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// ByLoopbackName reports whether the request names this machine by a loopback
// address, or came through a Unix socket, whose mode says who may. A browser that
// shows a page of another site may come through a name that somebody else
// resolves.
func ByLoopbackName(r *http.Request) bool {
	if _, unix := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); unix {
		return true
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
