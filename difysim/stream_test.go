package difysim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
)

// TestStreams shows the event sequences and everything that happens to streams,
// over two instances that share their servers.
func TestStreams(t *testing.T) {
	s := newServers(t, true)
	cfg := s.cfg
	cfg.Server.PingInterval = 50 * time.Millisecond
	in := startAPI(t, cfg)
	other := startAPI(t, cfg)

	sim := func(more ...any) object { return object(more) }
	flow := func(inputs object) object {
		return object{"inputs", inputs, "user", "alice", "response_mode", "streaming"}
	}
	talk := func(inputs object) object {
		return object{"query", "tell me", "inputs", inputs, "user", "alice", "response_mode", "streaming"}
	}
	for _, tc := range []struct {
		name, path, key string
		body            object
		want            string
	}{
		{"chat", "/v1/chat-messages", chatKey, talk(sim()), "message message_end"},
		{"agent", "/v1/chat-messages", agentKey, talk(sim()), "agent_thought agent_message message_end"},
		{"completion", "/v1/completion-messages", complKey, talk(sim()), "message message_end"},
		{"workflow", "/v1/workflows/run", flowKey, flow(sim()), "workflow_started node_started node_finished node_started text_chunk node_finished node_started node_finished workflow_finished"},
		{"advanced", "/v1/chat-messages", advancedKey, talk(sim()), "workflow_started node_started node_finished node_started message node_finished node_started node_finished workflow_finished message_end"},
		{"failing chat", "/v1/chat-messages", chatKey, talk(sim("sim_error", "internal_server_error")), "error"},
		{"failing workflow", "/v1/workflows/run", flowKey, flow(sim("sim_error", "provider_not_initialize")), "workflow_started node_started node_finished node_started node_finished workflow_finished"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := &instance{t: t, base: in.base}
			events := in.openStream(tc.path, tc.key, tc.body).rest()
			if got := names(events); got != tc.want {
				t.Fatalf("events %q, want %q", got, tc.want)
			}
			answer, task := "", text(events[0], "task_id")
			for _, e := range events {
				answer += text(e, "answer")
				if e["event"] != "ping" && (text(e, "task_id") != task || task == "") {
					t.Errorf("task id %v", e)
				}
				if e["id"] == nil && (e["event"] == "message" || e["event"] == "message_end") {
					t.Errorf("no id in %v", e)
				}
			}
			last := lastOf(events)
			switch {
			case last["event"] == "message_end":
				if !strings.HasPrefix(answer, "You asked: tell me") {
					t.Errorf("answer %q", answer)
				}
				if last["metadata"].(map[string]any)["usage"].(map[string]any)["completion_tokens"] != 5.0 {
					t.Errorf("end %v", last)
				}
			case last["event"] == "error" && (last["code"] != "internal_server_error" || last["status"] != 500.0):
				t.Errorf("error %v", last)
			}
		})
	}

	t.Run("ping", func(t *testing.T) {
		in := &instance{t: t, base: in.base}
		pings := 0
		for _, e := range in.openStream("/v1/chat-messages", chatKey, talk(sim("sim_delay_ms", 500))).rest() {
			if e["event"] == "ping" {
				pings++
			}
		}
		if pings == 0 {
			t.Error("no ping in half a second at one per 50 ms")
		}
	})

	slow := sim("sim_tokens", 100000, "sim_tokens_per_second", 50)
	t.Run("stop from another replica", func(t *testing.T) {
		in, other := &instance{t: t, base: in.base}, &instance{t: t, base: other.base}
		for _, tc := range []struct {
			path, stop, key string
			body            object
			want            string
		}{
			{"/v1/chat-messages", "/v1/chat-messages/%s/stop", chatKey, talk(slow), "message message_end"},
			{"/v1/workflows/run", "/v1/workflows/tasks/%s/stop", flowKey, flow(slow), "workflow_started node_started node_finished node_started text_chunk workflow_finished"},
		} {
			st := in.openStream(tc.path, tc.key, tc.body)
			var events []map[string]any
			first := map[string]any{}
			for first["event"] != "message" && first["event"] != "text_chunk" {
				var err error
				if first, err = st.next(); err != nil {
					t.Fatal(err)
				}
				events = append(events, first)
			}
			stop := fmt.Sprintf(tc.stop, text(first, "task_id"))
			// Somebody else's stop succeeds and does nothing.
			if got := other.must("POST", stop, tc.key, object{"user", "bob"}); got["result"] != "success" {
				t.Errorf("stop by another user: %v", got)
			}
			if n := s.redisHas(t, stoppedKey+text(first, "task_id")); n {
				t.Error("another user's stop set the flag")
			}
			other.must("POST", stop, tc.key, object{"user", "alice"})
			events = append(events, st.rest()...)
			if got := names(events); got != tc.want {
				t.Errorf("events %q, want %q", got, tc.want)
			}
			last := lastOf(events)
			if d, ok := last["data"].(map[string]any); ok && d["status"] != "stopped" {
				t.Errorf("end %v", last)
			}
		}
		other.must("POST", "/v1/chat-messages/no-such-task/stop", chatKey, object{"user", "alice"})
		if r := other.call("POST", "/v1/chat-messages/x/stop", flowKey, object{"user", "alice"}); r.json["code"] != "not_chat_app" {
			t.Errorf("stop with a workflow's key: %s", r.body)
		}
	})

	t.Run("abandoned", func(t *testing.T) {
		in := &instance{t: t, base: in.base}
		st := in.openStream("/v1/chat-messages", chatKey, talk(sim("sim_tokens", 30, "sim_tokens_per_second", 50)))
		ev := map[string]any{}
		for ev["event"] != "message" {
			var err error
			if ev, err = st.next(); err != nil {
				t.Fatal(err)
			}
		}
		st.cancel()
		// The generation goes on without its client, and its answer is lost.
		eventually.Nil(t, patience, func() error {
			r := in.call("GET", "/metrics", "", nil)
			if !strings.Contains(r.body, `difysim_generations_total{mode="chat",outcome="abandoned"} 1`) {
				return errors.New("the abandoned generation has not ended")
			}
			return nil
		})
		var answer string
		if err := s.difyRow("SELECT answer FROM messages WHERE id = '"+text(ev, "message_id")+"'", &answer); err != nil || answer != "" {
			t.Errorf("answer %q (%v), want none", answer, err)
		}
	})

	t.Run("shared state", func(t *testing.T) {
		in, other := &instance{t: t, base: in.base}, &instance{t: t, base: other.base}
		got := in.must("POST", "/v1/chat-messages", chatKey, chat("first"))
		other.must("POST", "/v1/chat-messages", chatKey, chat("second", "conversation_id", got["conversation_id"]))
		msgs := in.must("GET", "/v1/messages?user=alice&conversation_id="+text(got, "conversation_id"), chatKey, nil)
		if len(msgs["data"].([]any)) != 2 {
			t.Errorf("messages %v", msgs)
		}
	})

	t.Run("no vector store", func(t *testing.T) {
		in := &instance{t: t, base: in.base}
		id := SeedDatasetID("handbook")
		s.exec(t, "UPDATE datasets SET index_struct = '{}' WHERE id = '"+id+"'")
		if r := in.call("POST", "/v1/datasets/"+id+"/retrieve", datasetKey, object{"query", "anything"}); r.status != 500 || r.json["code"] != "internal_server_error" {
			t.Errorf("retrieve without Milvus: %d %s", r.status, r.body)
		}
		if got := in.must("POST", "/v1/chat-messages", ragKey, chat("anything")); text(got, "answer") == "" {
			t.Errorf("chat without Milvus: %v", got)
		}
	})

	t.Run("database restart", func(t *testing.T) {
		in := &instance{t: t, base: in.base}
		in.must("POST", "/v1/chat-messages", chatKey, chat("before"))
		s.pg.Restart()
		// Nothing checks a connection before use: the first request pays, the pool
		// is thrown away, the next ones work.
		if r := in.call("GET", "/v1/parameters", chatKey, nil); r.status != 500 {
			t.Errorf("first request after the restart: %d, want 500", r.status)
		}
		for range 3 {
			in.must("GET", "/v1/parameters", chatKey, nil)
		}
		if r := in.call("GET", "/health", "", nil); r.status != 200 {
			t.Errorf("health %d", r.status)
		}
	})

	t.Run("stop of the instance", func(t *testing.T) {
		short := cfg
		short.Server.GracefulTimeout = 200 * time.Millisecond
		dying := startAPI(t, short)
		st := dying.openStream("/v1/chat-messages", chatKey, talk(slow))
		if _, err := st.next(); err != nil {
			t.Fatal(err)
		}
		if err := dying.stop(); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := st.next(); err != nil {
				if errors.Is(err, io.EOF) {
					t.Error("the stream ended as if it were complete")
				}
				break
			}
		}
		if _, err := net.DialTimeout("tcp", strings.TrimPrefix(dying.base, "http://"), time.Second); err == nil {
			t.Error("the port is still open")
		}
	})

	t.Run("graceful stop", func(t *testing.T) {
		dying := startAPI(t, cfg)
		st := dying.openStream("/v1/chat-messages", chatKey, talk(sim("sim_tokens", 20, "sim_tokens_per_second", 40)))
		if _, err := st.next(); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error, 1)
		go func() { stopped <- dying.stop() }()
		events := st.rest()
		if lastOf(events)["event"] != "message_end" {
			t.Errorf("last event %v", lastOf(events))
		}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

// TestEventBus runs streams of workflows in the worker, as Dify 1.13.
func TestEventBus(t *testing.T) {
	s := newServers(t, true)
	cfg := s.cfg
	cfg.EventBus = BusPubSub
	in, other := startAPI(t, cfg), startAPI(t, cfg)
	w := startWorker(t, cfg)
	body := object{"inputs", object{"query", "go"}, "user", "alice", "response_mode", "streaming"}
	want := "workflow_started node_started node_finished node_started text_chunk node_finished node_started node_finished workflow_finished"
	if got := names(in.openStream("/v1/workflows/run", flowKey, body).rest()); got != want {
		t.Errorf("events %q", got)
	}
	if r := w.call("GET", "/metrics", "", nil); !strings.Contains(r.body, `difysim_generations_total{mode="workflow",outcome="ok"} 1`) {
		t.Error("the worker did not run the workflow")
	}
	body = object{"inputs", object{"sim_tokens", 10000, "sim_tokens_per_second", 50}, "user", "alice", "response_mode", "streaming"}
	st := in.openStream("/v1/workflows/run", flowKey, body)
	first, err := st.next()
	if err != nil {
		t.Fatal(err)
	}
	other.must("POST", "/v1/workflows/tasks/"+text(first, "task_id")+"/stop", flowKey, object{"user", "alice"})
	events := st.rest()
	last := lastOf(events)
	if last["event"] != "workflow_finished" || last["data"].(map[string]any)["status"] != "stopped" {
		t.Errorf("last event %v", last)
	}
}

// TestSaturation shows the one core: requests beyond its rate wait.
func TestSaturation(t *testing.T) {
	s := newServers(t, true)
	cfg := s.cfg
	cfg.CPU = DefaultConfig().CPU
	in := startAPI(t, cfg)
	const requests = 30
	errs := make(chan error, requests)
	start := time.Now()
	for i := range requests {
		req := in.request("POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", fmt.Sprint("u", i), "inputs", object{}})
		go func() {
			res, err := client.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			if err == nil && res.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", res.StatusCode)
			}
			errs <- err
		}()
	}
	for range requests {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	took := time.Since(start)
	rate := requests / took.Seconds()
	t.Logf("%d requests at once took %v: %.1f per second", requests, took, rate)
	// The core gives out exactly one second per second, so the rate cannot be
	// above 10; how far below depends on the machine alone.
	if rate > 10 {
		t.Errorf("rate %.1f per second, want just under 10", rate)
	}
}

// TestConnectionLimit shows that connections over the limit wait.
func TestConnectionLimit(t *testing.T) {
	s := newServers(t, true)
	cfg := s.cfg
	cfg.Server.WorkerConnections = 2
	cfg.Server.KeepAlive = 100 * time.Millisecond
	in := startAPI(t, cfg)
	client.CloseIdleConnections()
	body := object{"query", "hi", "user", "alice", "inputs", object{"sim_tokens", 10000, "sim_tokens_per_second", 20}, "response_mode", "streaming"}
	one, two := in.openStream("/v1/chat-messages", chatKey, body), in.openStream("/v1/chat-messages", chatKey, body)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if res, err := client.Do(in.request("GET", "/health", "", nil).WithContext(ctx)); err == nil {
		res.Body.Close()
		t.Fatal("a third connection was served")
	}
	one.cancel()
	two.cancel()
	if r := in.call("GET", "/health", "", nil); r.status != http.StatusOK {
		t.Errorf("health after the others left: %d", r.status)
	}
}
