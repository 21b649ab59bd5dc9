package difysim

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/eventually"
)

func startStub(t *testing.T, change func(*StubConfig)) (*Stub, *instance) {
	t.Helper()
	cfg := DefaultStubConfig()
	cfg.Instance = "stub"
	quick(&cfg.Config)
	cfg.LightDelay = 0
	if change != nil {
		change(&cfg)
	}
	stub, err := NewStub(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return stub, start(t, stub.Run)
}

// TestStubAnswersAsTheSimulator shows that without its servers the simulator
// sends what it sends with them.
func TestStubAnswersAsTheSimulator(t *testing.T) {
	_, in := startStub(t, nil)
	_, advanced := startStub(t, func(c *StubConfig) { c.ChatMode = ModeAdvancedChat })
	ask := func(mode string) object {
		return object{"query", "tell me", "inputs", object{}, "user", "alice", "response_mode", mode}
	}
	for _, tc := range []struct {
		name, path, want string
		in               *instance
	}{
		{"chat", "/v1/chat-messages", "message message_end", in},
		{"completion", "/v1/completion-messages", "message message_end", in},
		{"workflow", "/v1/workflows/run", "workflow_started node_started node_finished node_started text_chunk node_finished node_started node_finished workflow_finished", in},
		{"advanced", "/v1/chat-messages", "workflow_started node_started node_finished node_started message node_finished node_started node_finished workflow_finished message_end", advanced},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := &instance{t: t, base: tc.in.base}
			events := in.openStream(tc.path, "app-any", ask("streaming")).rest()
			if got := names(events); got != tc.want {
				t.Fatalf("events %q, want %q", got, tc.want)
			}
			if text(events[0], "task_id") == "" {
				t.Errorf("no task in %v", events[0])
			}
			in.must("POST", tc.path, "app-any", ask("blocking"))
		})
	}
	res := in.call("GET", "/v1/parameters", "app-any", nil)
	if res.status != http.StatusOK || res.header.Get("X-Dify-Simulator") != "true" || res.header.Get("X-Dify-Instance") != "stub" {
		t.Errorf("parameters: %d %v", res.status, res.header)
	}
	if r := in.call("GET", "/v1/parameters", "", nil); r.status != http.StatusUnauthorized {
		t.Errorf("without a key: %d", r.status)
	}
	found := in.must("POST", "/v1/datasets/"+stubID("dataset", "x")+"/retrieve", "dataset-any", object{"query", "what"})
	if records, _ := found["records"].([]any); len(records) != 1 {
		t.Errorf("retrieve: %v", found)
	}
}

func TestStubStopsATask(t *testing.T) {
	_, in := startStub(t, func(c *StubConfig) { c.Answer = AnswerConfig{Tokens: 1000, TokensPerSecond: 20} })
	s := in.openStream("/v1/chat-messages", "app-any", object{"query", "q", "inputs", object{}, "user", "alice", "response_mode", "streaming"})
	first, err := s.next()
	if err != nil {
		t.Fatal(err)
	}
	in.must("POST", "/v1/chat-messages/"+text(first, "task_id")+"/stop", "app-any", object{"user", "alice"})
	if got := names(s.rest()); !strings.HasSuffix(got, "message_end") {
		t.Errorf("after the stop: %q", got)
	}
	in.must("POST", "/v1/chat-messages/unknown/stop", "app-any", object{"user", "alice"})
}

func TestStubFaults(t *testing.T) {
	stub, in := startStub(t, func(c *StubConfig) { c.LightDelay = 20 * time.Millisecond })
	set := func(f Faults) {
		t.Helper()
		if err := stub.SetFaults(f); err != nil {
			t.Fatal(err)
		}
	}
	set(Faults{ErrorShare: 1, ErrorStatus: http.StatusBadGateway})
	if r := in.call("GET", "/v1/parameters", "app-any", nil); r.status != http.StatusBadGateway || r.json["code"] != "internal_server_error" {
		t.Errorf("errors: %d %s", r.status, r.body)
	}
	in.must("GET", "/health", "", nil)

	set(Faults{Slow: 10})
	began := time.Now()
	in.must("GET", "/v1/parameters", "app-any", nil)
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("slow: answered after %v", took)
	}

	set(Faults{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if res, err := client.Do(in.request("GET", "/v1/parameters", "app-any", nil).WithContext(ctx)); err == nil {
		res.Body.Close()
		t.Error("a hanging instance answered")
	}
	in.must("GET", "/health", "", nil)
	answered := make(chan response, 1)
	go func() { answered <- in.call("GET", "/v1/parameters", "app-any", nil) }()
	set(Faults{})
	if r := <-answered; r.status != http.StatusOK {
		t.Errorf("after the hang: %d", r.status)
	}

	set(Faults{Refuse: true})
	address := strings.TrimPrefix(in.base, "http://")
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("the door is open")
	}
	set(Faults{})
	eventually.Nil(t, patience, func() error {
		c, err := net.Dial("tcp", address)
		return errors.Join(err, closed(c))
	})

	if err := stub.SetFaults(Faults{ErrorShare: 2}); err == nil || !strings.Contains(err.Error(), "errorShare") {
		t.Errorf("wrong faults: %v", err)
	}
}

func closed(c net.Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}
