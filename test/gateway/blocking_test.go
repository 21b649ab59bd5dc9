package gateway

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fournines/difysim"
)

// changing are the members that differ from call to call: identifiers and times.
var changing = map[string]bool{
	"id": true, "task_id": true, "message_id": true, "conversation_id": true, "workflow_run_id": true,
	"created_at": true, "finished_at": true, "elapsed_time": true, "latency": true,
}

// steady replaces what changes by its kind.
func steady(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if changing[name] {
				switch member.(type) {
				case string:
					v[name] = "string"
				case float64:
					v[name] = "number"
				}
				continue
			}
			v[name] = steady(member)
		}
	case []any:
		for i := range v {
			v[i] = steady(v[i])
		}
	}
	return v
}

// The same call blocking at the instance and converted by the gateway gives the
// same answer, but for identifiers and times.
func TestBlockingAsStreamIsTheSame(t *testing.T) {
	const chat = `{"inputs":{},"query":"what is a <quorum> & why? 你好","response_mode":"blocking","user":"u"}`
	cases := []struct{ name, mode, path, body string }{
		{"chat", difysim.ModeChat, "/v1/chat-messages", chat},
		{"chat without a mode", difysim.ModeChat, "/v1/chat-messages", strings.Replace(chat, `"response_mode":"blocking",`, "", 1)},
		{"chatflow", difysim.ModeAdvancedChat, "/v1/chat-messages", chat},
		{"with sources", difysim.ModeChat, "/v1/chat-messages", strings.Replace(chat, `{}`, `{"sim_dataset_ids":["`+difysim.SeedDatasetID("handbook")+`"]}`, 1)},
		{"completion", difysim.ModeChat, "/v1/completion-messages", chat},
		{"workflow", difysim.ModeChat, "/v1/workflows/run", `{"inputs":{"query":"sum it up"},"response_mode":"blocking","user":"u"}`},
		{"a workflow that fails", difysim.ModeChat, "/v1/workflows/run", `{"inputs":{"sim_error":"completion_request_error"},"response_mode":"blocking","user":"u"}`},
		{"the model fails", difysim.ModeChat, "/v1/chat-messages", strings.Replace(chat, `{}`, `{"sim_error":"provider_quota_exceeded"}`, 1)},
		{"the model fails with 500", difysim.ModeChat, "/v1/completion-messages", strings.Replace(chat, `{}`, `{"sim_error":"internal_server_error"}`, 1)},
		{"a chatflow fails", difysim.ModeAdvancedChat, "/v1/chat-messages", strings.Replace(chat, `{}`, `{"sim_error":"provider_not_initialize"}`, 1)},
		{"no user", difysim.ModeChat, "/v1/chat-messages", `{"inputs":{},"query":"q","response_mode":"blocking"}`},
		{"a mode that is none", difysim.ModeChat, "/v1/chat-messages", strings.Replace(chat, "blocking", "fast", 1)},
		{"not JSON", difysim.ModeChat, "/v1/chat-messages", `{"query":`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			addr, _ := startStub(t, func(c *difysim.StubConfig) { c.ChatMode = tc.mode })
			g := startGateway(t, "stream: {blockingAsStream: true}\n", addr)
			wantStatus, want, wantHeader := answer(t, "POST", "http://"+addr+tc.path, tc.body)
			gotStatus, got, gotHeader := answer(t, "POST", g.url+tc.path, tc.body)
			if gotStatus != wantStatus || gotHeader.Get("Content-Type") != wantHeader.Get("Content-Type") {
				t.Fatalf("got %d %s, want %d %s", gotStatus, got, wantStatus, want)
			}
			var a, b any
			if err := errors.Join(json.Unmarshal([]byte(want), &a), json.Unmarshal([]byte(got), &b)); err != nil {
				t.Fatalf("direct %s, converted %s: %v", want, got, err)
			}
			if diff := cmp.Diff(steady(a), steady(b)); diff != "" {
				t.Fatalf("direct and converted differ (-direct +converted):\n%s", diff)
			}
		})
	}
	t.Run("agent, which Dify cannot do", func(t *testing.T) {
		addr, _ := startStub(t, func(c *difysim.StubConfig) { c.ChatMode = difysim.ModeAgentChat })
		if status, text, _ := answer(t, "POST", "http://"+addr+"/v1/chat-messages", chat); status != 400 {
			t.Fatalf("direct: %d %s", status, text)
		}
		g := startGateway(t, "stream: {blockingAsStream: true}\n", addr)
		status, text, _ := answer(t, "POST", g.url+"/v1/chat-messages", chat)
		var got map[string]any
		if err := json.Unmarshal([]byte(text), &got); err != nil || status != 200 || got["mode"] != "agent-chat" || !strings.Contains(got["answer"].(string), "quorum") {
			t.Fatalf("converted: %d %s", status, text)
		}
	})
}
