package stack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/internal/eventually"
	"fournines/topology"
)

func TestEveryComponentIsReady(t *testing.T) {
	st := theStack.status(t)
	if st.State != topology.Ready {
		t.Fatalf("the stack is %s", st.State)
	}
	var memory int64
	n := 0
	for _, z := range st.Zones {
		for _, c := range z.Components {
			n++
			memory += c.MemoryBytes
			if c.State != topology.Ready {
				t.Errorf("%s is %s: %s", c.Name, c.State, c.Reason)
			}
		}
	}
	if st.CredentialsFile != filepath.Join(st.DataDir, "credentials.json") {
		t.Errorf("credentials file is %q", st.CredentialsFile)
	}
	t.Logf("%d components, %d MiB, ready after %v", n, memory>>20, theStack.started.Round(100*time.Millisecond))
	if memory == 0 || memory > 4<<30 {
		t.Errorf("memory in all is %d MiB, want it known and under 4096", memory>>20)
	}
}

// call sends a JSON request to the gateway and decodes the answer into out.
func call(t *testing.T, method, path, key string, in, out any) {
	t.Helper()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, theStack.credentials(t).Gateway.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
}

func TestStreamingChatIsKept(t *testing.T) {
	c := theStack.credentials(t)
	body := `{"inputs": {}, "query": "Do you deliver abroad?", "user": "stream-user", "response_mode": "streaming"}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.Gateway.URL+"/v1/chat-messages", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Gateway.AppKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %s", resp.Status)
	}
	if resp.Header.Get("X-Dify-Simulator") == "" {
		t.Error("the simulator does not say that it is one")
	}
	var first, last time.Time
	var conversation, answer, lastEvent string
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var event struct {
			Event, Answer  string
			ConversationID string `json:"conversation_id"`
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		lastEvent = event.Event
		if event.Event == "message" {
			if first.IsZero() {
				first = time.Now()
			}
			last = time.Now()
			conversation = event.ConversationID
			answer += event.Answer
		}
	}
	if lastEvent != "message_end" || answer == "" {
		t.Fatalf("last event %q, answer %q", lastEvent, answer)
	}
	if spread := last.Sub(first); spread < 200*time.Millisecond {
		t.Errorf("all tokens came within %v: something on the way collects them", spread)
	}

	// Primary and standbys agree on what was said.
	st := theStack.status(t)
	superuser, err := os.ReadFile(filepath.Join(st.DataDir, "secrets", "postgres-superuser"))
	if err != nil {
		t.Fatal(err)
	}
	servers := 0
	for _, z := range st.Zones {
		for _, server := range z.Components {
			if server.Kind != "postgres" {
				continue
			}
			servers++
			url := fmt.Sprintf("postgres://postgres:%s@%s/dify", strings.TrimSpace(string(superuser)), server.Address)
			eventually.Nil(t, 20*time.Second, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				conn, err := pgx.Connect(ctx, url)
				if err != nil {
					return err
				}
				defer conn.Close(ctx)
				var got string
				err = conn.QueryRow(ctx, "select answer from messages where conversation_id = $1", conversation).Scan(&got)
				if err == nil && got != answer {
					err = fmt.Errorf("%s has the answer %q, the client got %q", server.Name, got, answer)
				}
				return err
			})
		}
	}
	if servers != 3 {
		t.Errorf("%d PostgreSQL servers, want 3", servers)
	}
}

func TestRetrieveFindsUploadedDocuments(t *testing.T) {
	key := theStack.credentials(t).Gateway.DatasetKey
	var dataset struct{ ID string }
	call(t, "POST", "/v1/datasets", key, map[string]any{"name": fmt.Sprintf("manuals %d", time.Now().UnixNano())}, &dataset)
	documents := map[string]string{
		"coffee": "The espresso machine is descaled every four weeks with citric acid.",
		"bike":   "The bicycle chain is cleaned with a brush and then oiled sparingly.",
		"garden": "Tomatoes are watered in the morning, at the root and never on the leaves.",
	}
	for name, text := range documents {
		var made struct{ Batch string }
		call(t, "POST", "/v1/datasets/"+dataset.ID+"/document/create_by_text", key, map[string]any{
			"name": name, "text": text, "indexing_technique": "high_quality", "process_rule": map[string]any{"mode": "automatic"},
		}, &made)
		eventually.Nil(t, time.Minute, func() error {
			var indexing struct {
				Data []struct {
					IndexingStatus string `json:"indexing_status"`
				}
			}
			call(t, "GET", "/v1/datasets/"+dataset.ID+"/documents/"+made.Batch+"/indexing-status", key, nil, &indexing)
			for _, d := range indexing.Data {
				if d.IndexingStatus != "completed" {
					return fmt.Errorf("%s is %s", name, d.IndexingStatus)
				}
			}
			return nil
		})
	}
	var found struct {
		Records []struct {
			Segment struct{ Content string }
			Score   float64
		}
	}
	eventually.Nil(t, 30*time.Second, func() error {
		call(t, "POST", "/v1/datasets/"+dataset.ID+"/retrieve", key, map[string]any{
			"query": "how is the bicycle chain cleaned",
			"retrieval_model": map[string]any{
				"search_method": "semantic_search", "reranking_enable": false, "top_k": 1, "score_threshold_enabled": false,
			},
		}, &found)
		if len(found.Records) != 1 || found.Records[0].Segment.Content != documents["bike"] {
			return fmt.Errorf("found %+v", found)
		}
		return nil
	})
}

func TestRedisClusterIsWhole(t *testing.T) {
	st := theStack.status(t)
	roles := map[string]int{}
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Kind == "redis" {
				roles[c.Role]++
			}
		}
	}
	if roles["master"] != 3 || roles["replica"] != 3 {
		t.Errorf("roles = %v, want 3 masters and 3 replicas", roles)
	}
	info := theStack.redisAdmin(t, "cluster", "info")
	if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") {
		t.Errorf("cluster info: %s", info)
	}
}

func TestPrometheusSeesEverything(t *testing.T) {
	url := theStack.credentials(t).Prometheus.URL
	eventually.Nil(t, time.Minute, func() error {
		var targets struct {
			Data struct {
				ActiveTargets []struct {
					ScrapeURL, Health, LastError string
				}
			}
		}
		if err := getJSON(t, url+"/api/v1/targets", &targets); err != nil {
			return err
		}
		if n := len(targets.Data.ActiveTargets); n < 20 {
			return fmt.Errorf("only %d targets", n)
		}
		for _, target := range targets.Data.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
		}
		return nil
	})
}

func TestAlertReachesWebhook(t *testing.T) {
	url := theStack.credentials(t).Alertmanager.URL
	name := fmt.Sprintf("TestAlert%d", time.Now().UnixNano())
	body := fmt.Sprintf(`[{"labels": {"alertname": %q, "severity": "critical"}, "annotations": {"summary": "a test"}}]`, name)
	resp, err := http.Post(url+"/api/v2/alerts", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("alertmanager: %s", resp.Status)
	}
	eventually.Nil(t, time.Minute, func() error {
		if !theStack.hook.received(name) {
			return fmt.Errorf("the webhook has not been told of %s", name)
		}
		return nil
	})
}

// TestSecretsStayHidden looks for every generated secret in every command line
// and in every log.
func TestSecretsStayHidden(t *testing.T) {
	dir := theStack.status(t).DataDir
	files, err := filepath.Glob(filepath.Join(dir, "secrets", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no secrets found: %v", err)
	}
	secrets := map[string]string{}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", f, info.Mode().Perm())
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		secrets[filepath.Base(f)] = strings.TrimSpace(string(text))
	}
	logs, err := filepath.Glob(filepath.Join(dir, "logs", "*"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs found: %v", err)
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(logs, cmdlines...) {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a process that has ended meanwhile
		}
		for name, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("the secret %s stands in %s", name, f)
			}
		}
	}
}

func getJSON(t *testing.T, url string, out any) error {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
