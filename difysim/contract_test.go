package difysim

import (
	"bytes"
	"fmt"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestContract goes through the service API of one instance.
func TestContract(t *testing.T) {
	s := newServers(t, true)
	in := startAPI(t, s.cfg)

	t.Run("identity", func(t *testing.T) {
		for _, path := range []string{"/", "/health", "/metrics", "/difysim/ready", "/v1/parameters", "/nowhere"} {
			r := in.call("GET", path, "", nil)
			if r.header.Get("X-Dify-Simulator") != "true" || r.header.Get("X-Version") != "0.6.9" {
				t.Errorf("%s: headers %v", path, r.header)
			}
		}
		if r := in.call("GET", "/", "", nil); !strings.Contains(r.body, "simulator") {
			t.Errorf("front page %q", r.body)
		}
		if r := in.call("GET", "/health", "", nil); r.json["status"] != "ok" || r.json["version"] != "0.6.9" {
			t.Errorf("health %s", r.body)
		}
		if r := in.call("GET", "/metrics", "", nil); !strings.Contains(r.body, "difysim_requests_total") || !strings.Contains(r.body, "difysim_simulated_cpu_seconds_total") {
			t.Error("metrics are missing")
		}
	})

	missingID := "11111111-1111-4111-8111-111111111111"
	long := strings.Repeat("x", 300)
	for _, tc := range []struct {
		name, method, path, key string
		body                    any
		status                  int
		code, message           string
	}{
		{"no key", "GET", "/v1/parameters", "", nil, 401, "unauthorized", "Authorization header must be provided and start with 'Bearer'"},
		{"wrong key", "GET", "/v1/parameters", "app-nobody-knows", nil, 401, "unauthorized", "Access token is invalid"},
		{"dataset key for an app", "GET", "/v1/parameters", datasetKey, nil, 401, "unauthorized", "Access token is invalid"},
		{"app key for datasets", "GET", "/v1/datasets", chatKey, nil, 401, "unauthorized", "Access token is invalid"},
		{"no route", "GET", "/v1/nothing", chatKey, nil, 404, "not_found", ""},
		{"no method", "PUT", "/v1/chat-messages", chatKey, "{}", 405, "method_not_allowed", ""},
		{"no json", "POST", "/v1/chat-messages", chatKey, "{", 400, "bad_request", ""},
		{"json list", "POST", "/v1/chat-messages", chatKey, "[]", 400, "bad_request", ""},
		{"no user", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "inputs", object{}}, 400, "invalid_param", "Arg user must be provided."},
		{"user too long", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "inputs", object{}, "user", long}, 400, "invalid_param", ""},
		{"no inputs", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", "u"}, 400, "invalid_param", "Missing required parameter in the JSON body"},
		{"inputs is text", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", "u", "inputs", "x"}, 400, "invalid_param", ""},
		{"no query", "POST", "/v1/chat-messages", chatKey, object{"user", "u", "inputs", object{}}, 400, "invalid_param", ""},
		{"empty query", "POST", "/v1/chat-messages", chatKey, chat(""), 400, "invalid_param", "query is required"},
		{"query is a list", "POST", "/v1/chat-messages", chatKey, object{"query", []any{}, "user", "u", "inputs", object{}}, 400, "invalid_param", ""},
		{"response mode", "POST", "/v1/chat-messages", chatKey, chat("hi", "response_mode", "fast"), 400, "invalid_param", "fast is not a valid choice"},
		{"conversation id", "POST", "/v1/chat-messages", chatKey, chat("hi", "conversation_id", "7"), 400, "invalid_param", "7 is not a valid uuid."},
		{"unknown conversation", "POST", "/v1/chat-messages", chatKey, chat("hi", "conversation_id", missingID), 404, "not_found", "Conversation Not Exists."},
		{"unknown sim input", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", "u", "inputs", object{"sim_token", 3}}, 400, "invalid_param", ""},
		{"sim input out of range", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", "u", "inputs", object{"sim_tokens", -1}}, 400, "invalid_param", ""},
		{"chat with a workflow", "POST", "/v1/chat-messages", flowKey, chat("hi"), 400, "not_chat_app", ""},
		{"completion with a chat", "POST", "/v1/completion-messages", chatKey, chat("hi"), 400, "app_unavailable", ""},
		{"workflow with a chat", "POST", "/v1/workflows/run", chatKey, chat("hi"), 400, "not_workflow_app", ""},
		{"blocking agent", "POST", "/v1/chat-messages", agentKey, chat("hi"), 400, "invalid_param", ""},
		{"asked to fail", "POST", "/v1/chat-messages", chatKey, object{"query", "hi", "user", "u", "inputs", object{"sim_error", "provider_quota_exceeded"}}, 400, "provider_quota_exceeded", ""},
		{"messages without conversation", "GET", "/v1/messages?user=alice", chatKey, nil, 400, "invalid_param", ""},
		{"limit", "GET", "/v1/conversations?user=alice&limit=0", chatKey, nil, 400, "invalid_param", ""},
		{"last id", "GET", "/v1/conversations?user=alice&last_id=" + missingID, chatKey, nil, 404, "not_found", "Last Conversation Not Exists."},
		{"unknown run", "GET", "/v1/workflows/run/" + missingID, flowKey, nil, 404, "not_found", ""},
		{"feedback rating", "POST", "/v1/messages/" + missingID + "/feedbacks", chatKey, object{"user", "u", "rating", "wow"}, 400, "invalid_param", ""},
		{"feedback message", "POST", "/v1/messages/" + missingID + "/feedbacks", chatKey, object{"user", "u", "rating", "like"}, 404, "not_found", "Message Not Exists."},
		{"dataset name", "POST", "/v1/datasets", datasetKey, object{"name", ""}, 400, "invalid_param", ""},
		{"dataset technique", "POST", "/v1/datasets", datasetKey, object{"name", "a", "indexing_technique", "x"}, 400, "invalid_param", ""},
		{"dataset unknown", "GET", "/v1/datasets/" + missingID, datasetKey, nil, 404, "not_found", "Dataset not found."},
		{"dataset id", "GET", "/v1/datasets/7", datasetKey, nil, 404, "not_found", ""},
		{"dataset in use", "DELETE", "/v1/datasets/" + SeedDatasetID("handbook"), datasetKey, nil, 409, "dataset_in_use", ""},
		{"document name", "POST", "/v1/datasets/" + SeedDatasetID("handbook") + "/document/create_by_text", datasetKey, object{"text", "t"}, 400, "invalid_param", ""},
		{"retrieve nothing", "POST", "/v1/datasets/" + SeedDatasetID("handbook") + "/retrieve", datasetKey, object{"query", ""}, 400, "invalid_param", ""},
		{"retrieve too much", "POST", "/v1/datasets/" + SeedDatasetID("handbook") + "/retrieve", datasetKey, object{"query", long}, 400, "invalid_param", ""},
		{"top k", "POST", "/v1/datasets/" + SeedDatasetID("handbook") + "/retrieve", datasetKey, object{"query", "q", "retrieval_model", object{"top_k", 0}}, 400, "invalid_param", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := in.call(tc.method, tc.path, tc.key, tc.body)
			if r.status != tc.status || r.json["code"] != tc.code || r.json["status"] != float64(tc.status) {
				t.Fatalf("got %d %s", r.status, r.body)
			}
			if tc.message != "" && r.json["message"] != tc.message {
				t.Errorf("message %q, want %q", r.json["message"], tc.message)
			}
		})
	}

	t.Run("media type", func(t *testing.T) {
		req := in.request("POST", "/v1/chat-messages", chatKey, "query=hi")
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if r := in.do(req); r.status != 415 || r.json["code"] != "unsupported_media_type" {
			t.Errorf("got %d %s", r.status, r.body)
		}
	})
	t.Run("quotes and foreign letters", func(t *testing.T) {
		query := `O'Brien \ "said" $1 %s 你好 ; DROP TABLE messages; --`
		got := in.must("POST", "/v1/chat-messages", chatKey, object{"query", query, "user", "o'neil", "inputs", object{"sim_tokens", 12}})
		list := in.must("GET", "/v1/messages?user=o%27neil&conversation_id="+text(got, "conversation_id"), chatKey, nil)
		data := list["data"].([]any)
		if len(data) != 1 || data[0].(map[string]any)["query"] != query {
			t.Errorf("messages %v", list)
		}
	})
	t.Run("conversation", func(t *testing.T) {
		first := in.must("POST", "/v1/chat-messages", chatKey, chat("what is a quorum", "response_mode", "blocking"))
		id := text(first, "conversation_id")
		if want := "You asked: what is a"; text(first, "answer") != want {
			t.Errorf("answer %q, want %q", text(first, "answer"), want)
		}
		if first["event"] != "message" || first["mode"] != "chat" || first["metadata"].(map[string]any)["usage"] == nil {
			t.Errorf("answer %v", first)
		}
		in.must("POST", "/v1/chat-messages", chatKey, chat("and a second thing", "conversation_id", id))
		msgs := in.must("GET", "/v1/messages?user=alice&limit=1&conversation_id="+id, chatKey, nil)
		if msgs["has_more"] != true || len(msgs["data"].([]any)) != 1 {
			t.Errorf("messages %v", msgs)
		}
		newest := msgs["data"].([]any)[0].(map[string]any)
		if newest["query"] != "and a second thing" {
			t.Errorf("newest %v", newest)
		}
		older := in.must("GET", "/v1/messages?user=alice&conversation_id="+id+"&first_id="+text(newest, "id"), chatKey, nil)
		if d := older["data"].([]any); len(d) != 1 || d[0].(map[string]any)["id"] != first["message_id"] {
			t.Errorf("older %v", older)
		}
		if r := in.call("GET", "/v1/messages?user=bob&conversation_id="+id, chatKey, nil); r.status != 404 {
			t.Errorf("another user reads the conversation: %s", r.body)
		}
		in.must("POST", "/v1/messages/"+text(first, "message_id")+"/feedbacks", chatKey, object{"user", "alice", "rating", "like"})
		got := in.must("GET", "/v1/messages?user=alice&conversation_id="+id, chatKey, nil)["data"].([]any)[0].(map[string]any)
		if fb, _ := got["feedback"].(map[string]any); fb["rating"] != "like" {
			t.Errorf("feedback %v", got["feedback"])
		}
		list := in.must("GET", "/v1/conversations?user=alice&limit=100", chatKey, nil)["data"].([]any)
		if len(list) == 0 || list[0].(map[string]any)["name"] != "what is a quorum" {
			t.Errorf("conversations %v", list)
		}
		in.must("POST", "/v1/conversations/"+id+"/name", chatKey, object{"user", "alice", "name", "renamed"})
		if r := in.call("DELETE", "/v1/conversations/"+id, chatKey, object{"user", "bob"}); r.status != 404 {
			t.Errorf("another user deletes: %d", r.status)
		}
		in.must("DELETE", "/v1/conversations/"+id, chatKey, object{"user", "alice"})
		if r := in.call("POST", "/v1/chat-messages", chatKey, chat("again", "conversation_id", id)); r.status != 404 {
			t.Errorf("deleted conversation goes on: %s", r.body)
		}
	})
	t.Run("completion", func(t *testing.T) {
		got := in.must("POST", "/v1/completion-messages", complKey, object{"inputs", object{}, "query", "a b", "user", "u"})
		if got["mode"] != "completion" || text(got, "answer") == "" {
			t.Errorf("answer %v", got)
		}
	})
	t.Run("workflow", func(t *testing.T) {
		got := in.must("POST", "/v1/workflows/run", flowKey, object{"inputs", object{"query", "sum it up"}, "user", "u"})
		data := got["data"].(map[string]any)
		if data["status"] != "succeeded" || data["total_steps"] != 3.0 {
			t.Errorf("run %v", got)
		}
		stored := in.must("GET", "/v1/workflows/run/"+text(got, "workflow_run_id"), flowKey, nil)
		if stored["status"] != "succeeded" || stored["finished_at"] == nil {
			t.Errorf("stored %v", stored)
		}
		failed := in.must("POST", "/v1/workflows/run", flowKey, object{"inputs", object{"sim_error", "completion_request_error"}, "user", "u"})
		if failed["data"].(map[string]any)["status"] != "failed" {
			t.Errorf("run that was asked to fail: %v", failed)
		}
	})
	t.Run("small routes", func(t *testing.T) {
		if got := in.must("GET", "/v1/info", chatKey, nil); got["name"] != "chat" {
			t.Errorf("info %v", got)
		}
		if got := in.must("GET", "/v1/parameters", chatKey, nil); got["user_input_form"] == nil {
			t.Errorf("parameters %v", got)
		}
		if got := in.must("GET", "/v1/meta", chatKey, nil); got["tool_icons"] == nil {
			t.Errorf("meta %v", got)
		}
		if got := in.must("GET", "/db-pool-stat", "", nil); got["pool_size"] != 30.0 {
			t.Errorf("pool %v", got)
		}
	})
	t.Run("files", func(t *testing.T) { testFiles(t, s, in) })
	t.Run("database effects", func(t *testing.T) {
		var used bool
		if err := s.difyRow("SELECT last_used_at IS NOT NULL FROM api_tokens WHERE token = '"+chatKey+"'", &used); err != nil || !used {
			t.Errorf("last_used_at: %v %v", used, err)
		}
		var running int
		if err := s.difyRow("SELECT count(*) FROM workflow_runs WHERE status = 'running'", &running); err != nil || running != 0 {
			t.Errorf("%d runs are still running (%v)", running, err)
		}
	})
}

// upload sends a file and returns the answer.
func (in *instance) upload(name, content string, fields ...string) response {
	in.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if name != "" {
		f, err := w.CreateFormFile("file", name)
		if err != nil {
			in.t.Fatal(err)
		}
		fmt.Fprint(f, content)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		if err := w.WriteField(fields[i], fields[i+1]); err != nil {
			in.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		in.t.Fatal(err)
	}
	req := in.request("POST", "/v1/files/upload", chatKey, b.String())
	req.Header.Set("Content-Type", w.FormDataContentType())
	return in.do(req)
}

func testFiles(t *testing.T, s *servers, in *instance) {
	t.Helper()
	r := in.upload("photo.PNG", "not really a picture", "user", "alice")
	if r.status != http.StatusCreated || r.json["extension"] != "png" || r.json["size"] != 20.0 {
		t.Fatalf("upload: %d %s", r.status, r.body)
	}
	files := func() int {
		n := 0
		err := filepath.WalkDir(s.cfg.Storage.Path, func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if files() != 1 {
		t.Errorf("%d files in the shared folder, want 1", files())
	}
	if r := in.upload("", "", "user", "alice"); r.status != 400 || r.json["code"] != "no_file_uploaded" {
		t.Errorf("no file: %d %s", r.status, r.body)
	}
	if r := in.upload("run.exe", "x", "user", "alice"); r.status != 415 || r.json["code"] != "unsupported_file_type" {
		t.Errorf("wrong type: %d %s", r.status, r.body)
	}
	if r := in.upload("big.txt", strings.Repeat("x", int(s.cfg.Storage.UploadLimit)+1), "user", "alice"); r.status != 413 || r.json["code"] != "file_too_large" {
		t.Errorf("too large: %d %s", r.status, r.body)
	}
	if files() != 1 {
		t.Errorf("%d files in the shared folder after refused uploads, want 1", files())
	}
}
