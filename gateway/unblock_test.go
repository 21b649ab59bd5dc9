package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"fournines/gateway/dify"
	"fournines/internal/eventually"
)

const blockingChat = `{"query": "q",  "response_mode":"blocking", "user":"u"}`

func TestBlockingAsStream(t *testing.T) {
	plain := func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		h := w.Header()
		h.Set("Content-Type", "application/json")
		_, _ = w.Write(raw)
	}
	cases := []struct {
		name, path, body string
		handler          http.HandlerFunc
		change           func(*Config)
		second           http.HandlerFunc
		status           int
		want             string // is in the answer
	}{
		{name: "answer", handler: whole, status: 200, want: `"answer":"hello"`},
		{name: "an error in the stream is a status", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)(string(dify.Error{Code: "provider_quota_exceeded", Message: "no money", Status: 400}.AppendEvent(nil, dify.StreamIDs{})))
		}, status: 400, want: `"code":"provider_quota_exceeded"`},
		{name: "a refusal passes", handler: func(w http.ResponseWriter, _ *http.Request) {
			dify.Error{Code: "not_chat_app", Message: "m", Status: 400}.Write(w)
		}, status: 400, want: "not_chat_app"},
		{name: "only the mode is changed", handler: plain, status: 200, want: `{"query": "q",  "response_mode":"streaming", "user":"u"}`},
		{name: "turned off", handler: plain, change: func(c *Config) { c.Stream.BlockingAsStream = false }, status: 200, want: blockingChat},
		{name: "a mode that Dify refuses", body: `{"response_mode":"x"}`, handler: plain, status: 200, want: `{"response_mode":"x"}`},
		{name: "what is not the service API", path: "/console/api/apps/a/chat-messages", handler: plain, status: 200, want: blockingChat},
		{name: "death", path: "/v1/workflows/run", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)(frame("workflow_started", ""))
			abort(w)
		}, status: 502, want: "upstream_lost"},
		{name: "death before content", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)("event: ping\n\n")
			abort(w)
		}, second: whole, status: 200, want: `"answer":"hello"`},
		{name: "death after content is not repeated", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)(frame("message", ""))
			abort(w)
		}, second: whole, status: 502, want: "upstream_lost"},
		{name: "an end that is none", handler: func(w http.ResponseWriter, r *http.Request) { emit(w, r)(frame("message", "")) }, status: 502, want: "upstream_lost"},
		{name: "no content", handler: pingsOnly, change: func(c *Config) { c.Stream.FirstContentTimeout = 200 * time.Millisecond }, status: 504, want: "first_content_timeout"},
		{name: "silence", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)(frame("message", ""))
			<-r.Context().Done()
		}, change: func(c *Config) { c.Stream.IdleTimeout = 300 * time.Millisecond }, status: 504, want: "upstream_silent"},
		{name: "too large", handler: func(w http.ResponseWriter, r *http.Request) {
			send := emit(w, r)
			for range 100 {
				send(frame("message", `, "answer": "`+strings.Repeat("x", 100)+`"`))
			}
			<-r.Context().Done()
		}, change: func(c *Config) { c.Stream.BlockingBytes = 5000 }, status: 502, want: "answer_too_large"},
		{name: "an event larger than any buffer", path: "/v1/workflows/run", handler: func(w http.ResponseWriter, r *http.Request) {
			emit(w, r)(frame("workflow_finished", `, "data": {"outputs": "`+strings.Repeat("long ", 100_000)+`end"}`))
		}, status: 200, want: `long end"`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			calls := make(chan stopCall, 10)
			ins := []*instance{newInstance(t, "zone-a", stopping(calls, tc.handler))}
			if tc.second != nil {
				ins = append(ins, newInstance(t, "zone-b", tc.second))
			}
			cfg := testConfig(ins...)
			cfg.Stream.BlockingAsStream, cfg.Stream.Heartbeat = true, 50*time.Millisecond
			cfg.Stream.Hold = 20 * time.Millisecond // must not open the answer
			if tc.change != nil {
				tc.change(&cfg)
			}
			g := start(t, cfg)
			if tc.path == "" {
				tc.path = "/v1/chat-messages"
			}
			if tc.body == "" {
				tc.body = blockingChat
			}
			status, body, h := post(t, client(t), g.url+tc.path, tc.body)
			if status != tc.status || !strings.Contains(body, tc.want) || h.Get("Content-Type") != "application/json" {
				t.Fatalf("got %d %.200q %v", status, body, h)
			}
			if tc.status != 200 || tc.handler == nil {
				var e dify.Error
				if err := json.Unmarshal([]byte(body), &e); err != nil || e.Status != tc.status {
					t.Fatalf("not Dify's form: %q", body)
				}
			}
			eventually.Nil(t, patience, func() error { return nobodyInFlight(g) })
		})
	}
}

func TestBlockingClientLeaves(t *testing.T) {
	calls := make(chan stopCall, 10)
	a := newInstance(t, "zone-a", stopping(calls, func(w http.ResponseWriter, r *http.Request) {
		emit(w, r)(frame("message", ""))
		<-r.Context().Done()
	}))
	cfg := testConfig(a)
	cfg.Stream.BlockingAsStream = true
	g := start(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.url+"/v1/chat-messages", strings.NewReader(blockingChat))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	done := make(chan error, 1)
	go func() {
		resp, err := client(t).Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		done <- err
	}()
	// The gateway must have read the event, or there is no task to stop.
	eventually.Nil(t, patience, func() error {
		if testutil.CollectAndCount(g.m.firstContent) == 0 {
			return errors.New("no content yet")
		}
		return nil
	})
	cancel()
	if err := <-done; err == nil {
		t.Fatal("an answer")
	}
	select {
	case c := <-calls:
		if c.path != "/v1/chat-messages/t1/stop" || c.body != `{"user":"u"}` {
			t.Fatalf("got %+v", c)
		}
	case <-time.After(patience):
		t.Fatal("no stop call")
	}
}
