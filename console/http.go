package console

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"fournines/internal/adminhttp"
)

const (
	// sessionCookie holds proof that its browser has given the token.
	sessionCookie = "fournines_console"
	// writeTimeout bounds one write: who does not read that long is cut off.
	writeTimeout = 10 * time.Second
	// retryMillis is how long a browser waits before it connects again.
	retryMillis = "1000"
	// maxLogin bounds the body of a login.
	maxLogin = 4 << 10
)

// securityPolicy lets the page load its own files and nothing else: no script or
// style in the page itself, no other site, no frame around it.
const securityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// serve answers requests on ln until ctx ends.
func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler(ctx.Done()),
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

// handler routes requests; live streams end when closing does.
func (s *Server) handler(closing <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /api/live", s.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveLive(w, r, closing) })))
	mux.Handle("GET /api/snapshot", s.guard(http.HandlerFunc(s.serveSnapshot)))
	mux.Handle("GET /api/series", s.guard(http.HandlerFunc(s.serveSeries)))
	mux.Handle("GET /api/events", s.guard(http.HandlerFunc(s.serveEvents)))
	mux.Handle("POST /api/login", http.NewCrossOriginProtection().Handler(http.HandlerFunc(s.serveLogin)))
	mux.HandleFunc("GET /", s.assets.serve)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", securityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if s.token == "" && !adminhttp.ByLoopbackName(r) {
			// A page of another site that a browser shows could come through a
			// name that is resolved to this machine.
			http.Error(w, "the console is called by a loopback address, or with a token", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// guard lets those through who have given the token, if there is one.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if s.token != "" && !s.knows(r) {
			refuse(w, http.StatusUnauthorized, "the console needs its token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knows tells if the caller has given the token: by name, or before, by cookie.
func (s *Server) knows(r *http.Request) bool {
	if scheme, sent, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		return subtle.ConstantTimeCompare([]byte(strings.TrimSpace(sent)), []byte(s.token)) == 1
	}
	cookie, err := r.Cookie(sessionCookie)
	return err == nil && subtle.ConstantTimeCompare([]byte(cookie.Value), []byte(s.session())) == 1
}

// session is the value of the cookie. Another token makes another one, and the
// token cannot be found from it.
func (s *Server) session() string {
	mac := hmac.New(sha256.New, []byte(s.token))
	mac.Write([]byte(sessionCookie))
	return hex.EncodeToString(mac.Sum(nil))
}

func (s *Server) serveLogin(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLogin))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "that is no token")
		return
	}
	sent := strings.TrimSpace(string(body))
	if s.token == "" || subtle.ConstantTimeCompare([]byte(sent), []byte(s.token)) != 1 {
		refuse(w, http.StatusUnauthorized, "that is not the token")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookie, Value: s.session(), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
		// Behind a TLS terminator it must not travel in the clear.
		Secure: r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https",
	})
	w.WriteHeader(http.StatusNoContent)
}

// refuse answers with an error as JSON.
func refuse(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": message}) // the client is gone when this fails
}

func writeJSON(w http.ResponseWriter, text []byte) {
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = w.Write(text) // the client is gone when this fails
}

func (s *Server) serveSnapshot(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.feed.frame.Load().json)
}

// serveEvents answers with the whole timeline, the newest first.
func (s *Server) serveEvents(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	all := s.timeline.newest(keptEvents)
	s.mu.Unlock()
	text, err := json.Marshal(list(all))
	if err != nil {
		refuse(w, http.StatusInternalServerError, "the timeline cannot be written")
		return
	}
	writeJSON(w, text)
}

func (s *Server) serveSeries(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	of := subject{span: q.Get("range"), component: q.Get("component"), app: q.Get("app")}
	if err := s.check(of); err != nil {
		refuse(w, http.StatusNotFound, err.Error())
		return
	}
	text, err := s.series.get(r.Context(), of)
	if err != nil {
		refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	writeJSON(w, text)
}

// serveLive sends the newest snapshot now and after each change.
func (s *Server) serveLive(w http.ResponseWriter, r *http.Request, closing <-chan struct{}) {
	v, first := s.feed.join()
	if v == nil {
		w.Header().Set("Retry-After", "30")
		refuse(w, http.StatusServiceUnavailable, "too many pages are open")
		return
	}
	defer s.feed.leave(v)
	if first {
		for _, c := range []chan struct{}{s.kickStack, s.kickMetrics, s.kickAlerts, s.kickBudget} {
			kick(c)
		}
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	send := func(text []byte) bool {
		if out.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return false
		}
		if _, err := w.Write(text); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	if !send([]byte("retry: " + retryMillis + "\n\n")) {
		return
	}
	for shown := (*frame)(nil); ; {
		if newest := s.feed.frame.Load(); newest != shown {
			if shown = newest; !send(newest.event) {
				return
			}
		}
		select {
		case <-v.wake:
		case <-closing:
			return
		case <-r.Context().Done():
			return
		}
	}
}
