package dify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAskStream(t *testing.T) {
	cases := []struct {
		name, in, want string // "" is no
	}{
		{"given", `{"query": "q", "response_mode": "blocking", "user":"u"}`, `{"query": "q", "response_mode": "streaming", "user":"u"}`},
		{"absent", `{"query": "q"}` + "\n", `{"query": "q","response_mode":"streaming"}` + "\n"},
		{"empty object", ` { } `, ` { "response_mode":"streaming"} `},
		{"nested ones stay", `{"inputs":{"response_mode":"blocking"},"a":["response_mode","blocking"]}`, `{"inputs":{"response_mode":"blocking"},"a":["response_mode","blocking"],"response_mode":"streaming"}`},
		{"a value that reads like it", `{"query":"response_mode","user":"blocking"}`, `{"query":"response_mode","user":"blocking","response_mode":"streaming"}`},
		{"the last of two counts", `{"response_mode":"blocking","response_mode":"blocking"}`, `{"response_mode":"blocking","response_mode":"streaming"}`},
		{"braces in strings", `{"query":"}{\"","x":"\\"}`, `{"query":"}{\"","x":"\\","response_mode":"streaming"}`},
		{"streaming already", `{"response_mode":"streaming"}`, ""},
		{"Dify refuses it", `{"response_mode":"fast"}`, ""},
		{"null", `{"response_mode":null}`, ""},
		{"number", `{"response_mode":1}`, ""},
		{"object", `{"response_mode":{"a":"blocking"}}`, ""},
		{"array", `{"response_mode":["blocking"]}`, ""},
		{"an escaped name", `{"response\u005fmode":"blocking"}`, ""},
		{"not an object", `["response_mode"]`, ""},
		{"a string", `"response_mode"`, ""},
		{"a number", `7`, ""},
		{"not JSON", `{"query": NaN}`, ""},
		{"cut", `{"query": "q"`, ""},
		{"two documents", `{} {}`, ""},
		{"empty", ``, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := AskStream([]byte(tc.in))
			if ok != (tc.want != "") || string(got) != tc.want {
				t.Fatalf("got %q, %v, want %q", got, ok, tc.want)
			}
		})
	}
}

func FuzzAskStream(f *testing.F) {
	for _, s := range []string{`{}`, `{"response_mode":"blocking","a":[{"b":"c"}]}`, `{"a":"\"}"}`, `{"a":{"response_mode":"x"},"response_mode":"blocking"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, ok := AskStream(body)
		if !ok {
			return
		}
		if Peek(got, true).Mode != Streaming {
			t.Fatalf("%q became %q, which does not ask for a stream", body, got)
		}
		var before, after map[string]any
		if err := json.Unmarshal(body, &before); err != nil {
			t.Fatalf("%q was changed and is no object", body)
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q became %q: %v", body, got, err)
		}
		delete(before, "response_mode")
		if mode, ok := after["response_mode"]; !ok || mode != "streaming" {
			t.Fatalf("%q became %q", body, got)
		}
		delete(after, "response_mode")
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("%q became %q", body, got)
		}
	})
}

func sseOf(events ...string) string {
	return "data: " + strings.Join(events, "\n\ndata: ") + "\n\n"
}

func TestAnswer(t *testing.T) {
	const ids = `"task_id":"t","message_id":"m","conversation_id":"c","created_at":17`
	cases := []struct {
		name       string
		class      Class
		completion bool
		stream     string
		status     int // 0: not complete
		want       string
	}{
		{
			"chat", Chat, false, "event: ping\n\n" + sseOf(
				`{"event":"message",`+ids+`,"id":"m","answer":"Grüße, "}`,
				`{"event":"message",`+ids+`,"id":"m","answer":"<world> \u4f60"}`,
				`{"event":"message_end",`+ids+`,"id":"m","metadata":{"usage":{"total_price":"0.10","latency":1.50},"retriever_resources":[{"score":0.1}]}}`),
			200, `{"event":"message","task_id":"t","id":"m","message_id":"m","conversation_id":"c","mode":"chat","answer":"Grüße, <world> 你","metadata":{"usage":{"total_price":"0.10","latency":1.50},"retriever_resources":[{"score":0.1}]},"created_at":17}`,
		},
		{
			"completion", Chat, true, sseOf(`{"event":"message",`+ids+`,"answer":"a"}`, `{"event":"message_end",`+ids+`}`),
			200, `{"event":"message","task_id":"t","id":"m","message_id":"m","mode":"completion","answer":"a","metadata":{},"created_at":17}`,
		},
		{
			"agent, replaced", Chat, false, sseOf(`{"event":"agent_thought",`+ids+`,"id":"x"}`, `{"event":"agent_message",`+ids+`,"answer":"bad"}`, `{"event":"message_replace",`+ids+`,"answer":"good"}`, `{"event":"message_end",`+ids+`}`),
			200, `{"event":"message","task_id":"t","id":"m","message_id":"m","conversation_id":"c","mode":"agent-chat","answer":"good","metadata":{},"created_at":17}`,
		},
		{
			"chatflow", Chat, false, sseOf(`{"event":"workflow_started",`+ids+`,"data":{}}`, `{"event":"message",`+ids+`,"answer":"a"}`, `{"event":"workflow_finished",`+ids+`,"data":{"id":"r"}}`, `{"event":"message_end",`+ids+`}`),
			200, `{"event":"message","task_id":"t","id":"m","message_id":"m","conversation_id":"c","mode":"advanced-chat","answer":"a","metadata":{},"created_at":17}`,
		},
		{
			"workflow", Workflow, false, sseOf(`{"event":"workflow_started","task_id":"t","workflow_run_id":"r","data":{}}`, `{"event":"text_chunk","data":{"text":"x"}}`,
				`{"event":"workflow_finished","task_id":"t","workflow_run_id":"r","data":{"id":"r","workflow_id":"w","sequence_number":3,"status":"failed","outputs":{"text":"x"},"error":null,"elapsed_time":0.1234567890123,"total_tokens":12,"total_steps":3,"created_by":{"id":"u"},"created_at":1,"finished_at":2,"files":[]}}`),
			200, `{"workflow_run_id":"r","task_id":"t","data":{"id":"r","workflow_id":"w","status":"failed","outputs":{"text":"x"},"error":null,"elapsed_time":0.1234567890123,"total_tokens":12,"total_steps":3,"created_at":1,"finished_at":2}}`,
		},
		{
			"error", Chat, false, sseOf(`{"event":"message",`+ids+`,"answer":"a"}`, `{"event":"error",`+ids+`,"code":"provider_quota_exceeded","status":400,"message":"no money"}`),
			400, `{"code":"provider_quota_exceeded","message":"no money","status":400}`,
		},
		{"an error without a status", Chat, false, sseOf(`{"event":"error","code":"x","message":"y"}`), 500, `{"code":"x","message":"y","status":500}`},
		{"too early an end", Chat, false, sseOf(`{"event":"message","answer":"a"}`), 0, ""},
		{"an event that is cut", Chat, false, sseOf(`{"event":"message",`+ids+`}`) + `data: {"event":"message_end"}`, 0, ""},
		{"data in two lines", Chat, true, "data: {\"event\":\"message\",\ndata: \"answer\":\"a\"}\r\n\r\n" + sseOf(`{"event":"message_end"}`), 200, ``},
	}
	for _, tc := range cases {
		for _, size := range []int{1, 7, 1 << 20} {
			t.Run(fmt.Sprintf("%s in pieces of %d", tc.name, size), func(t *testing.T) {
				a := NewAnswer(tc.class, tc.completion, 1<<20)
				for p := []byte(tc.stream); len(p) > 0; p = p[min(size, len(p)):] {
					if _, err := a.Write(p[:min(size, len(p))]); err != nil {
						t.Fatal(err)
					}
				}
				status, body, ok := a.Result()
				if status != tc.status || ok != (tc.status != 0) {
					t.Fatalf("got %d %s", status, body)
				}
				if tc.want == "" {
					return
				}
				var got, want any
				for raw, v := range map[string]*any{string(body): &got, tc.want: &want} {
					d := json.NewDecoder(strings.NewReader(raw))
					d.UseNumber() // 1.50 must stay 1.50
					if err := d.Decode(v); err != nil {
						t.Fatalf("%s: %v", raw, err)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestAnswerIsBounded(t *testing.T) {
	a := NewAnswer(Chat, false, 1000)
	_, err := a.Write(bytes.Repeat([]byte("data: x"), 1000))
	if !errors.Is(err, ErrAnswerSize) {
		t.Fatalf("one endless event: %v", err)
	}
	a = NewAnswer(Chat, false, 1000)
	for range 1000 {
		if _, err = a.Write([]byte(sseOf(`{"event":"message","answer":"0123456789"}`))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrAnswerSize) {
		t.Fatalf("many events: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(sseOf(`{"event":"message","answer":"a","task_id":"t"}`, `{"event":"message_end","metadata":{"usage":{}}}`)), 3)
	f.Add([]byte(sseOf(`{"event":"workflow_finished","data":{"id":"r","status":"x"}}`)), 100)
	f.Add([]byte(sseOf(`{"event":"error","status":429,"code":"x"}`)), 1)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		const bound = 4 << 10
		for _, class := range []Class{Chat, Workflow} {
			whole, parts := NewAnswer(class, false, bound), NewAnswer(class, false, bound)
			_, err := whole.Write(stream)
			cut := min(max(cut, 0), len(stream))
			_, err1 := parts.Write(stream[:cut])
			if err1 == nil {
				_, err1 = parts.Write(stream[cut:])
			}
			if err != nil || err1 != nil {
				return // where a bound is met depends on the pieces
			}
			s1, b1, ok1 := whole.Result()
			s2, b2, ok2 := parts.Result()
			if s1 != s2 || ok1 != ok2 || !bytes.Equal(b1, b2) {
				t.Fatalf("%q cut at %d: %d %q and %d %q", stream, cut, s1, b1, s2, b2)
			}
			if ok1 && (!json.Valid(b1) || s1 != 200 && (s1 < 400 || s1 > 599)) {
				t.Fatalf("%q gave %d %q", stream, s1, b1)
			}
		}
	})
}
