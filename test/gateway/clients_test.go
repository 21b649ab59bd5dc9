package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// tool runs another program and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	servertest.Need(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

const question = `{"inputs":{},"query":"what is a quorum","response_mode":"streaming","user":"u"}`

// testDir is a directory with a name of ours, so that leftovers are found.
func testDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fournines-test-gateway-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's directory: %v", err)
		}
	})
	return dir
}

func TestCurl(t *testing.T) {
	addr, _ := startStub(t, nil)
	g := startGateway(t, "", addr)
	chat := []string{"-sSN", "-H", "Authorization: Bearer app-test", "-H", "Content-Type: application/json", "-d", question}
	for name, more := range map[string][]string{
		"HTTP/1.1":              nil,
		"HTTP/1.0":              {"--http1.0"},
		"h2 by prior knowledge": {"--http2-prior-knowledge"},
		"asking for h2c":        {"--http2"}, // stays at HTTP/1.1, as RFC 9113 wants
		"chunked":               {"-H", "Transfer-Encoding: chunked"},
		"expecting 100":         {"-H", "Expect: 100-continue"},
	} {
		t.Run("stream, "+name, func(t *testing.T) {
			out := tool(t, "curl", append(append(chat, more...), "-w", "\n%{http_code} %{http_version} %{num_connects}", g.url+"/v1/chat-messages")...)
			if !strings.Contains(out, `"event":"message_end"`) || !strings.Contains(out, "\n200 ") {
				t.Fatalf("got %s", out)
			}
			if strings.HasPrefix(name, "h2") && !strings.HasSuffix(out, "200 2 1") {
				t.Fatalf("not HTTP/2: %s", out)
			}
		})
	}
	file := filepath.Join(testDir(t), "upload.txt")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456789abcdef", 1<<16)), 0o600); err != nil { // 1 MiB
		t.Fatal(err)
	}
	for name, more := range map[string][]string{
		"multipart":     nil,
		"chunked":       {"-H", "Transfer-Encoding: chunked"},
		"h2":            {"--http2-prior-knowledge"},
		"expecting 100": {"-H", "Expect: 100-continue", "--expect100-timeout", "50"},
	} {
		t.Run("upload, "+name, func(t *testing.T) {
			got := make(chan string, 1)
			in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
				f, _, err := r.FormFile("file")
				if err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
				h := sha256.New()
				n, _ := io.Copy(h, f)
				got <- fmt.Sprint(n, " ", hex.EncodeToString(h.Sum(nil)[:4]))
				w.WriteHeader(http.StatusCreated)
			})
			g := startGateway(t, "", in)
			begin := time.Now()
			out := tool(t, "curl", append(more, "-sS", "-F", "file=@"+file, "-F", "user=u", "-w", "%{http_code}", g.url+"/v1/files/upload")...)
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(want)
			if want := fmt.Sprint(len(want), " ", hex.EncodeToString(sum[:4])); out != "201" || <-got != want {
				t.Fatalf("got %s, want %s", out, want)
			}
			if took := time.Since(begin); name == "expecting 100" && took > 45*time.Second {
				t.Fatalf("took %v: the 100 did not come", took)
			}
		})
	}
	t.Run("resumes a download", func(t *testing.T) {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		in := startInstance(t, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
		g := startGateway(t, "", in)
		to := filepath.Join(testDir(t), "download.txt")
		if err := os.WriteFile(to, content[:100_000], 0o600); err != nil {
			t.Fatal(err)
		}
		out := tool(t, "curl", "-sS", "-C", "-", "-o", to, "-w", "%{http_code}", g.url+"/files/1")
		if got, err := os.ReadFile(to); err != nil || string(got) != string(content) || out != "206" {
			t.Fatalf("got %s, %d bytes (%v)", out, len(got), err)
		}
	})
	g.idle(t)
}

// page shows in its title and body what the gateway sends it: by EventSource
// (GET), by fetch with a stream (POST), and by a fetch that is left in the middle.
const page = `<!doctype html><meta charset="utf-8"><pre id="out"></pre><script>
const out = document.getElementById("out");
const say = s => { out.textContent += s + "\n"; };
function source() {
  return new Promise(done => {
    const es = new EventSource("/api/events");
    es.onopen = () => say("source open");
    es.onmessage = e => {
      const d = JSON.parse(e.data);
      say("source " + d.event + " " + (d.answer || "."));
      if (d.event === "message_end") { es.close(); done(); }
    };
    es.onerror = () => { say("source error"); es.close(); done(); };
  });
}
async function stream(url, leaveAfter) {
  const stop = new AbortController();
  const r = await fetch(url, {method: "POST", signal: stop.signal, headers: {"Content-Type": "application/json"},
    body: JSON.stringify({query: "q", response_mode: "streaming", user: "browser"})});
  say("fetch " + r.status + " " + r.headers.get("content-type"));
  const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", pieces = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    if (++pieces === 1) fetch("/seen", {method: "POST"});
    rest += value;
    let i;
    while ((i = rest.indexOf("\n\n")) >= 0) {
      const block = rest.slice(0, i);
      rest = rest.slice(i + 2);
      if (!block.startsWith("data: ")) continue;
      const d = JSON.parse(block.slice(6));
      say("fetch " + d.event + " " + (d.answer || d.code || "."));
      if (d.event === leaveAfter) { stop.abort(); say("left"); return; }
    }
  }
  say("pieces " + (pieces > 1 ? "several" : pieces));
}
(async () => {
  try {
    await source();
    await stream("/api/chat-messages");
    await stream("/api/chat-messages?broken");
    await stream("/api/chat-messages?endless", "message");
  } catch (e) { say("failed " + e); }
  say("finished");
  await fetch("/report", {method: "POST", body: document.body.innerText});
})();
</script>`

// browse opens url in a Chromium without a window until the test ends.
func browse(t *testing.T, url string) {
	t.Helper()
	servertest.Need(t, "chromium")
	profile := testDir(t)
	log := &servertest.Output{}
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--disable-background-networking", "--no-first-run", "--remote-debugging-port=0", "--user-data-dir="+profile, url)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // its status after a signal says nothing
		if t.Failed() {
			t.Logf("chromium:\n%s", log)
		}
	})
}

func TestBrowser(t *testing.T) {
	var stopped, canceled atomic.Int64
	report, seen := make(chan string, 1), make(chan struct{}, 10)
	send := func(w http.ResponseWriter, event, more string) {
		fmt.Fprintf(w, "data: {\"event\": %q, \"task_id\": \"t1\", \"message_id\": \"m1\"%s}\n\n", event, more)
		_ = http.NewResponseController(w).Flush()
	}
	in := startInstance(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/page":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, page)
			return
		case r.URL.Path == "/report":
			raw, _ := io.ReadAll(r.Body)
			report <- string(raw)
			return
		case r.URL.Path == "/seen":
			seen <- struct{}{}
			return
		case strings.HasSuffix(r.URL.Path, "/stop"):
			stopped.Add(1)
			return
		case !strings.HasPrefix(r.URL.Path, "/api/"):
			http.NotFound(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		_, _ = io.WriteString(w, "event: ping\n\n")
		for _, word := range []string{"Grüße", "你好", "end"} {
			send(w, "message", `, "answer": "`+word+`"`)
			if r.Method == http.MethodPost && word == "Grüße" { // the rest when the page has the first piece
				select {
				case <-seen:
				case <-r.Context().Done():
				}
			}
		}
		switch r.URL.RawQuery {
		case "broken":
			// Half a UTF-8 sequence within an event, then death.
			_, _ = io.WriteString(w, "data: {\"event\": \"message\", \"answer\": \"\xe4\xbd")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "endless":
			<-r.Context().Done()
			canceled.Add(1)
		default:
			send(w, "message_end", "")
		}
	})
	g := startGateway(t, "", in)
	browse(t, g.url+"/page")
	var got string
	select {
	case got = <-report:
	case <-time.After(patience):
		t.Fatal("the page did not come to its end")
	}
	want := `source open
source message Grüße
source message 你好
source message end
source message_end .
fetch 200 text/event-stream; charset=utf-8
fetch message Grüße
fetch message 你好
fetch message end
fetch message_end .
pieces several
fetch 200 text/event-stream; charset=utf-8
fetch message Grüße
fetch message 你好
fetch message end
fetch error upstream_lost
pieces several
fetch 200 text/event-stream; charset=utf-8
fetch message Grüße
left
finished
`
	if got = strings.TrimSpace(got) + "\n"; got != want {
		t.Fatalf("the page shows %q, want %q", got, want)
	}
	eventually.Nil(t, patience, func() error {
		if canceled.Load() != 1 || stopped.Load() != 1 {
			return fmt.Errorf("the stream that was left: canceled %d, stopped %d", canceled.Load(), stopped.Load())
		}
		return nil
	})
	g.idle(t)
}

func TestSDK(t *testing.T) {
	addr, _ := startStub(t, nil)
	g := startGateway(t, "stream: {blockingAsStream: true}\n", addr)
	python, err := filepath.Abs("../../.tools/venv/bin/python")
	if err != nil {
		t.Fatal(err)
	}
	servertest.Need(t, python)
	file := filepath.Join(testDir(t), "credentials.json")
	raw, err := json.Marshal(map[string]any{"gateway": map[string]string{"url": g.url, "appKey": "app-test"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "gateway_sdk.py")
	cmd.Dir = "../clients"
	cmd.Env = append(os.Environ(), "FOURNINES_CREDENTIALS="+file, "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), "ok\n") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestHey(t *testing.T) {
	addr, _ := startStub(t, nil)
	g := startGateway(t, "", addr)
	for _, more := range [][]string{nil, {"-disable-keepalive"}} {
		out := tool(t, "hey", append(more, "-n", "400", "-c", "20", "-H", "Authorization: Bearer app-test", g.url+"/v1/parameters?user=u")...)
		if !strings.Contains(out, "[200]\t400 responses") {
			t.Fatalf("got %s", out)
		}
	}
	out := tool(t, "hey", "-n", "40", "-c", "20", "-m", "POST", "-T", "application/json", "-d", question, "-H", "Authorization: Bearer app-test", g.url+"/v1/chat-messages")
	if !strings.Contains(out, "[200]\t40 responses") {
		t.Fatalf("got %s", out)
	}
	g.idle(t)
}

func TestWrk(t *testing.T) {
	addr, _ := startStub(t, nil)
	g := startGateway(t, "", addr)
	out := tool(t, "wrk", "-t", "1", "-c", "20", "-d", "2s", "--timeout", "30s", "-H", "Authorization: Bearer app-test", g.url+"/v1/parameters?user=u")
	if !regexp.MustCompile(`[1-9]\d* requests in`).MatchString(out) || strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
		t.Fatalf("got %s", out)
	}
	g.idle(t)
}
