package gateway

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"fournines/gateway/jobs"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// killable runs a gateway of the same settings that the test ends with SIGKILL.
func killable(t *testing.T, settings, instance string) (url, admin string, kill func()) {
	t.Helper()
	url, admin = servertest.FreeAddress(t), servertest.FreeAddress(t)
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	text := fmt.Sprintf("listen: %s\nadminListen: %s\nhealth: {interval: 200ms, timeout: 5s}\nupstreams: [{address: %q}]\n%s", url, admin, instance, settings)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &servertest.Output{}
	cmd := exec.Command(binary, "gateway", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			text := log.String()
			t.Logf("killed gateway:\n%s", text[max(0, len(text)-2000):])
		}
	})
	eventually.Nil(t, patience, func() error {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz says %d", resp.StatusCode)
		}
		return nil
	})
	return "http://" + url, admin, kill
}

func fournines(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("fournines %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestJobsSurviveTheirGateway kills a gateway in the middle of its jobs: those
// whose caller allows it run again elsewhere, the others are dead letters with
// the reason, and the operator's commands show and replay them.
func TestJobsSurviveTheirGateway(t *testing.T) {
	cluster := servertest.NewRedisCluster(t)
	var mu sync.Mutex
	runs := map[string]int{}
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	instance := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Query string }
		raw, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(raw, &body)
		mu.Lock()
		runs[body.Query]++
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "data: {\"event\":\"message\",\"task_id\":\"t\",\"message_id\":\"m\",\"answer\":%q}\n\n", body.Query)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, "data: {\"event\":\"message_end\",\"task_id\":\"t\",\"message_id\":\"m\",\"metadata\":{}}\n\n")
	})
	keyFile := filepath.Join(t.TempDir(), "jobs.key")
	if err := os.WriteFile(keyFile, []byte(fournines(t, "jobs", "new-key")), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := fmt.Sprintf("redis: {nodes: [%s], user: gateway, passwordFile: %s}\njobs: {keyFile: %s, lease: 3s}\n",
		strings.Join(cluster.Addrs(), ", "), cluster.PasswordFile("gateway"), keyFile)
	url, admin, kill := killable(t, settings, instance)

	submit := func(query, prefer string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/chat-messages",
			strings.NewReader(`{"inputs":{},"user":"u","response_mode":"blocking","query":`+strconv.Quote(query)+`}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer app-test")
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Prefer", prefer)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			text, _ := io.ReadAll(resp.Body)
			t.Fatalf("submit: %d %s", resp.StatusCode, text)
		}
		return resp.Header.Get("Location")
	}
	once, again := submit("once", "respond-async"), submit("again", "respond-async; repeat")
	eventually.Nil(t, patience, func() error {
		mu.Lock()
		defer mu.Unlock()
		if runs["once"] != 1 || runs["again"] != 1 {
			return fmt.Errorf("runs %v", runs)
		}
		return nil
	})
	if list := fournines(t, "jobs", "list", "--state", "running", "--admin", admin); !strings.Contains(list, strings.TrimPrefix(once, "/jobs/")) {
		t.Errorf("jobs list:\n%s", list)
	}
	kill()
	open()
	second := startGateway(t, settings, instance)
	await := func(path string, want jobs.State) (s jobs.Status) {
		t.Helper()
		eventually.Nil(t, patience, func() error {
			_, body, _ := answer(t, "GET", second.url+path, "")
			s = jobs.Status{}
			if err := json.Unmarshal([]byte(body), &s); err != nil {
				return fmt.Errorf("%w: %s", err, body)
			}
			if s.State != want {
				return fmt.Errorf("%s: %s", s.State, body)
			}
			return nil
		})
		return s
	}
	if s := await(again, jobs.Succeeded); s.Attempts != 2 || !strings.Contains(string(s.Result), `"answer":"again"`) {
		t.Errorf("%+v", s)
	}
	if s := await(once, jobs.Failed); s.Error == nil || s.Error.Reason != "lost" || s.Error.Code != "job_lost" {
		t.Errorf("%+v", s.Error)
	}
	mu.Lock()
	if runs["once"] != 1 || runs["again"] != 2 {
		t.Errorf("runs %v", runs)
	}
	mu.Unlock()
	if dead := fournines(t, "jobs", "dead", "--admin", second.admin); !strings.Contains(dead, "lost job_lost") {
		t.Errorf("jobs dead:\n%s", dead)
	}
	fournines(t, "jobs", "replay", strings.TrimPrefix(once, "/jobs/"), "--admin", second.admin)
	await(once, jobs.Succeeded)
	if show := fournines(t, "jobs", "show", strings.TrimPrefix(once, "/jobs/"), "--admin", second.admin); !strings.Contains(show, "succeeded") {
		t.Errorf("jobs show:\n%s", show)
	}
}
