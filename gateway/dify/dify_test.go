package dify

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestClassify(t *testing.T) {
	cases := []struct {
		method, path string
		want         Class
	}{
		{"GET", "/v1/parameters", Read},
		{"GET", "/v1/datasets/7/documents/9/indexing-status", Read},
		{"HEAD", "/files/1/image-preview", Read},
		{"POST", "/v1/chat-messages", Chat},
		{"POST", "/v1/completion-messages", Chat},
		{"POST", "/api/chat-messages", Chat},
		{"POST", "/console/api/apps/12/chat-messages", Chat},
		{"POST", "/v1/chat-messages/5e0c/stop", Stop},
		{"POST", "/v1/completion-messages/5e0c/stop", Stop},
		{"POST", "/v1/workflows/tasks/5e0c/stop", Stop},
		{"POST", "/v1/stop", Other},
		{"POST", "/v1/workflows/run", Workflow},
		{"POST", "/v1/workflows/abc/run", Workflow},
		{"POST", "/console/api/apps/1/workflows/draft/run", Workflow},
		{"POST", "/v1/files/upload", Upload},
		{"POST", "/v1/audio-to-text", Upload},
		{"POST", "/v1/datasets/1/document/create_by_file", Upload},
		{"POST", "/v1/datasets/1/document/create-by-text", Ingest},
		{"POST", "/v1/datasets/1/documents/2/segments", Ingest},
		{"POST", "/v1/datasets", Ingest},
		{"POST", "/v1/datasets/1/retrieve", Retrieve},
		{"POST", "/v1/datasets/1/hit-testing", Retrieve},
		{"POST", "/console/api/datasets/1/hit-testing", Retrieve},
		{"POST", "/v1/messages/4/feedbacks", Mutate},
		{"DELETE", "/v1/conversations/3", Mutate},
		{"PATCH", "/v1/datasets/1/documents/status/disable", Mutate},
		{"POST", "/console/api/login", Console},
		{"PATCH", "/console/api/apps/1", Console},
		{"POST", "/v1/conversations/3/name", Other},
		{"POST", "/v1/x/../datasets/1/retrieve", Other},
		{"POST", "/v1//datasets/1/retrieve", Other},
		{"POST", "/v1/", Other},
		{"POST", "", Other},
		{"BREW", "/v1/parameters", Other},
	}
	for _, tc := range cases {
		if got := Classify(tc.method, tc.path); got != tc.want {
			t.Errorf("%s %s: got %v, want %v", tc.method, tc.path, got, tc.want)
		}
	}
}

func TestOnlyHarmlessClassesAreIdempotent(t *testing.T) {
	for _, c := range []Class{Other, Chat, Workflow, Upload, Ingest, Console} {
		if c.Idempotent() {
			t.Errorf("%v must not be sent twice", c)
		}
	}
}

func TestPeekMode(t *testing.T) {
	big := strings.Repeat("x", 10_000)
	cases := []struct {
		name, body string
		complete   bool
		want       Mode
	}{
		{"streaming", `{"query":"q","response_mode":"streaming"}`, true, Streaming},
		{"blocking", `{"query":"q","response_mode":"blocking"}`, true, Blocking},
		{"absent", `{"query":"q"}`, true, Blocking},
		{"nested only", `{"inputs":{"response_mode":"streaming"},"a":[{"response_mode":"streaming"}]}`, true, Blocking},
		{"inside a string", `{"query":"\"response_mode\":\"streaming\""}`, true, Blocking},
		{"last one wins", `{"response_mode":"streaming","response_mode":"blocking"}`, true, Blocking},
		{"no string", `{"response_mode":1}`, true, Blocking},
		{"spaces", " {\n \"response_mode\" :\t\"streaming\" }", true, Streaming},
		{"prefix without it", `{"query":"` + big, false, Unknown},
		{"prefix with it", `{"response_mode":"streaming","query":"` + big, false, Streaming},
		{"not an object", `[1]`, false, Blocking},
		{"empty", ``, true, Blocking},
		{"too deep", strings.Repeat(`{"a":`, MaxDepth+2), false, Blocking},
	}
	for _, tc := range cases {
		if got := Peek([]byte(tc.body), tc.complete).Mode; got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestPeekWhoAsks(t *testing.T) {
	cases := []struct{ name, body, user, conversation string }{
		{"plain", `{"user":"alice","conversation_id":"c1","query":"q"}`, "alice", "c1"},
		{"escapes are another way to write the same", `{"user":"\u0061lice"}`, "alice", ""},
		{"a number is none", `{"user":7,"conversation_id":null}`, "", ""},
		{"nested ones are inputs", `{"inputs":{"user":"eve"},"user":"alice"}`, "alice", ""},
		{"a value that is a name", `{"query":"user","user":"alice"}`, "alice", ""},
		{"last one wins", `{"user":"a","user":"b"}`, "b", ""},
	}
	for _, tc := range cases {
		if got := Peek([]byte(tc.body), true); got.User != tc.user || got.Conversation != tc.conversation {
			t.Errorf("%s: got %+v", tc.name, got)
		}
	}
}

func TestAppKey(t *testing.T) {
	for in, want := range map[string]string{
		"Bearer app-1": "app-1", "bearer  app-2 ": "app-2", "Basic eA==": "", "": "", "app-1": "",
	} {
		if got := AppKey(http.Header{"Authorization": {in}}); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if id := KeyID("app-secret"); len(id) != 12 || strings.Contains(id, "secret") || id == KeyID("app-other") {
		t.Errorf("KeyID = %q", id)
	}
}

func TestErrorForms(t *testing.T) {
	rec := httptest.NewRecorder()
	ErrUnavailable.Write(rec)
	var got Error
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got.Status != 503 || got.Code != "service_unavailable" {
		t.Fatalf("body %q: %v", rec.Body, err)
	}
	if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" {
		t.Fatalf("status %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
	}
	ev := ErrStreamCut.AppendEvent(nil, StreamIDs{TaskID: "t", MessageID: "m"})
	body, ok := strings.CutPrefix(string(ev), "data: ")
	if !ok || !strings.HasSuffix(body, "\n\n") {
		t.Fatalf("event %q", ev)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	if m["event"] != "error" || m["task_id"] != "t" || m["message_id"] != "m" || m["status"] != float64(502) || m["code"] != "upstream_lost" {
		t.Fatalf("event %v", m)
	}
}

func TestParseIDs(t *testing.T) {
	ids := ParseIDs([]byte("data: {\"event\":\"message\",\"task_id\":\"t\",\"message_id\":\"m\",\"conversation_id\":\"c\"}\n\n"))
	if ids != (StreamIDs{TaskID: "t", MessageID: "m", ConversationID: "c"}) {
		t.Fatalf("got %+v", ids)
	}
	if got := ParseIDs([]byte("data: {\"task_id\":5}\n\n")); got != (StreamIDs{}) {
		t.Fatalf("got %+v", got)
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("POST", "/v1/datasets/1/retrieve")
	f.Add("PATCH", "/console/api//..")
	f.Fuzz(func(t *testing.T, method, path string) {
		c := Classify(method, path)
		if strings.HasSuffix(path, "-messages") && method == "POST" && c.Idempotent() {
			t.Fatalf("%s %q is %v", method, path, c)
		}
	})
}

func FuzzPeek(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":"\\\""}],"response_mode":"streaming"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := Peek(b, true).Mode
		var want struct {
			Mode *string `json:"response_mode"`
		}
		// Where the body is an object that decodes exactly, both must agree.
		var exact map[string]json.RawMessage
		if json.Unmarshal(b, &exact) != nil || exact == nil {
			return
		}
		raw, ok := exact["response_mode"]
		if !ok || json.Unmarshal(raw, &want.Mode) != nil || want.Mode == nil {
			return
		}
		if strings.ContainsRune(string(b), '\\') {
			return // names with escapes are not recognised
		}
		if (*want.Mode == "streaming") != (got == Streaming) {
			t.Fatalf("%q: got %v, decoder says %q", b, got, *want.Mode)
		}
	})
}

func TestStopPath(t *testing.T) {
	const task = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
	cases := []struct{ path, task, want string }{
		{"/v1/chat-messages", task, "/v1/chat-messages/" + task + "/stop"},
		{"/v1/chat-messages/", task, "/v1/chat-messages/" + task + "/stop"},
		{"/v1/completion-messages", task, "/v1/completion-messages/" + task + "/stop"},
		{"/api/chat-messages", task, "/api/chat-messages/" + task + "/stop"},
		{"/v1/workflows/run", task, "/v1/workflows/tasks/" + task + "/stop"},
		{"/v1/workflows/w1/run", task, "/v1/workflows/tasks/" + task + "/stop"},
		{"/console/api/apps/a1/chat-messages", task, "/console/api/apps/a1/chat-messages/" + task + "/stop"},
		{"/console/api/apps/a1/workflows/draft/run", task, "/console/api/apps/a1/workflow-runs/tasks/" + task + "/stop"},
		{"/console/api/apps/a1/advanced-chat/workflows/draft/run", task, "/console/api/apps/a1/workflow-runs/tasks/" + task + "/stop"},
		{"/v1/files/upload", task, ""},
		{"/v1/chat-messages", "", ""},
		{"/v1/chat-messages", "../x", ""},
		{"/v1/chat-messages", "a/b", ""},
		{"/v1/chat-messages", "a?b", ""},
		{"/v1/chat-messages", strings.Repeat("a", 65), ""},
	}
	for _, tc := range cases {
		got, ok := StopPath(tc.path, tc.task)
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("StopPath(%q, %q) = %q, %v, want %q", tc.path, tc.task, got, ok, tc.want)
		}
		if ok && Classify("POST", got) != Stop {
			t.Errorf("%q is not of the class stop", got)
		}
	}
}
