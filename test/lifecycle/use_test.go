package lifecycle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
)

// credentials are what the stack's credentials file offers to users.
type credentials struct {
	Gateway  struct{ AppKey, DatasetKey string }
	Postgres struct{ URL string }
	Redis    struct {
		Host           string
		Port           int
		User, Password string
	}
}

func (s *stack) credentials(t *testing.T) credentials {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.data, "credentials.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c credentials
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request to the gateway, decodes the answer into out, and returns
// which instance gave it.
func ask(method, path, key string, in, out any) (instance string, err error) {
	text, err := json.Marshal(in)
	if err != nil {
		return "", err
	}
	return send(method, gatewayURL+path, key, "application/json", bytes.NewReader(text), out)
}

func send(method, url, key, contentType string, body io.Reader, out any) (instance string, err error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", contentType)
	client := http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			return "", fmt.Errorf("%s %s: %w in %s", method, url, err, text)
		}
	}
	return resp.Header.Get("X-Dify-Instance"), nil
}

// chat has a conversation of one question and returns who answered.
func chat(t *testing.T, key string) (instance string) {
	t.Helper()
	return chatAt(t, gatewayURL, key)
}

func chatAt(t *testing.T, gateway, key string) (instance string) {
	t.Helper()
	var answer struct {
		Answer         string
		ConversationID string `json:"conversation_id"`
	}
	const question = `{"inputs": {}, "query": "When do you open?", "user": "lifecycle", "response_mode": "blocking"}`
	instance, err := send("POST", gateway+"/v1/chat-messages", key, "application/json", strings.NewReader(question), &answer)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Answer == "" || answer.ConversationID == "" {
		t.Errorf("answer = %+v", answer)
	}
	return instance
}

// kept is what one test has left in every store of a stack.
type kept struct {
	dataset, text string
}

// leave writes into every store of the stack.
func leave(t *testing.T, s *stack) kept {
	t.Helper()
	c := s.credentials(t)
	conn, err := pgx.Connect(t.Context(), c.Postgres.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "create table survivor(what text)"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "insert into survivor values ('row')"); err != nil {
		t.Fatal(err)
	}
	rdb := s.redis(t)
	defer rdb.Close()
	if err := rdb.Set(t.Context(), "survivor", "key", 0).Err(); err != nil {
		t.Fatal(err)
	}
	k := kept{text: "The espresso machine is descaled every four weeks with citric acid."}
	var dataset struct{ ID string }
	if _, err := ask("POST", "/v1/datasets", c.Gateway.DatasetKey, map[string]any{"name": "manuals"}, &dataset); err != nil {
		t.Fatal(err)
	}
	k.dataset = dataset.ID
	if _, err := ask("POST", "/v1/datasets/"+k.dataset+"/document/create_by_text", c.Gateway.DatasetKey, map[string]any{
		"name": "coffee", "text": k.text, "indexing_technique": "high_quality", "process_rule": map[string]any{"mode": "automatic"},
	}, nil); err != nil {
		t.Fatal(err)
	}
	k.found(t, s)
	return k
}

func (s *stack) redis(t *testing.T) *redis.Client {
	t.Helper()
	c := s.credentials(t).Redis
	return redis.NewClient(&redis.Options{Addr: fmt.Sprintf("%s:%d", c.Host, c.Port), Username: c.User, Password: c.Password})
}

// found fails the test when any of what was left is not there.
func (k kept) found(t *testing.T, s *stack) {
	t.Helper()
	c := s.credentials(t)
	conn, err := pgx.Connect(t.Context(), c.Postgres.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var row string
	if err := conn.QueryRow(t.Context(), "select what from survivor").Scan(&row); err != nil || row != "row" {
		t.Errorf("PostgreSQL has %q: %v", row, err)
	}
	rdb := s.redis(t)
	defer rdb.Close()
	if got, err := rdb.Get(t.Context(), "survivor").Result(); err != nil || got != "key" {
		t.Errorf("Redis has %q: %v", got, err)
	}
	eventually.Nil(t, time.Minute, func() error {
		var found struct {
			Records []struct{ Segment struct{ Content string } }
		}
		_, err := ask("POST", "/v1/datasets/"+k.dataset+"/retrieve", c.Gateway.DatasetKey, map[string]any{
			"query": "how is the espresso machine descaled",
			"retrieval_model": map[string]any{
				"search_method": "semantic_search", "reranking_enable": false, "top_k": 1, "score_threshold_enabled": false,
			},
		}, &found)
		if err != nil {
			return err
		}
		if len(found.Records) != 1 || found.Records[0].Segment.Content != k.text {
			return fmt.Errorf("found %+v", found)
		}
		return nil
	})
}

// upload sends a file to an application.
func upload(t *testing.T, key, name, content string) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	file, err := form.CreateFormFile("file", name)
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := io.WriteString(file, content)
	if err := errors.Join(writeErr, form.WriteField("user", "lifecycle"), form.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := send("POST", gatewayURL+"/v1/files/upload", key, form.FormDataContentType(), &body, nil); err != nil {
		t.Fatal(err)
	}
}
