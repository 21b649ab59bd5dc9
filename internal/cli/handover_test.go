package cli

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/handover"
	"fournines/internal/servertest"
)

const handoverPatience = time.Minute

// program is this test binary as the program fournines.
func program(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fournines")
	if err := os.Symlink(exe, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// gatewayProcess is one generation of a gateway.
type gatewayProcess struct {
	*exec.Cmd
	log  *servertest.Output
	done chan struct{}
}

func startGateway(t *testing.T, program, config string) *gatewayProcess {
	t.Helper()
	p := &gatewayProcess{Cmd: exec.Command(program, "gateway", "--config", config), log: &servertest.Output{}, done: make(chan struct{})}
	p.Stderr = p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("gateway %d:\n%.4000s", p.Process.Pid, p.log)
		}
	})
	return p
}

func (p *gatewayProcess) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(handoverPatience):
		t.Fatalf("gateway %d does not end", p.Process.Pid)
	}
}

// strictClient sends requests over one kept connection until an answer says
// that it was the last, and never sends one twice.
type strictClient struct {
	address string
	conn    net.Conn
	r       *bufio.Reader
}

func (c *strictClient) post(path string) error {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.address, handoverPatience)
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Minute))
		c.conn, c.r = conn, bufio.NewReader(conn)
	}
	if _, err := fmt.Fprintf(c.conn, "POST %s HTTP/1.1\r\nHost: dify\r\nContent-Length: 2\r\n\r\n{}", path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(b) != "done" {
		return fmt.Errorf("%d %q %w", resp.StatusCode, b, err)
	}
	if resp.Close {
		c.close()
	}
	return nil
}

func (c *strictClient) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

func TestGatewayRestartsWithoutARefusalOrACut(t *testing.T) {
	end := make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/chat-messages" {
			_, _ = io.WriteString(w, "done")
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"event\":\"message\",\"answer\":\"a\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-end:
			_, _ = io.WriteString(w, "data: {\"event\":\"message_end\"}\n\n")
		case <-r.Context().Done():
		}
	}))
	defer backend.Close()
	exe, dir := program(t), t.TempDir()
	listen, admin := servertest.FreeAddress(t), servertest.FreeAddress(t)
	socket := filepath.Join(dir, "handover.sock")
	write := func(name, upstream string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		text := fmt.Sprintf("listen: %s\nadminListen: %s\nhandover: %s\nzone: a\nupstreams:\n  - {address: %q, zone: a}\nhealth: {interval: 50ms}\ndrain: {announce: 0s, timeout: 5m}\n", listen, admin, socket, upstream)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.yaml", strings.TrimPrefix(backend.URL, "http://"))
	holds := func(p *gatewayProcess) {
		t.Helper()
		eventually.Nil(t, handoverPatience, func() error {
			if pid, err := handover.Holder(socket); err != nil || pid != p.Process.Pid {
				return fmt.Errorf("the holder is %d (%w), not %d yet", pid, err, p.Process.Pid)
			}
			return nil
		})
	}
	current := startGateway(t, exe, good)
	holds(current)

	// The load: requests over kept connections without a pause, over kept
	// connections that are idle most of the time, and over new ones.
	var load sync.WaitGroup
	stop := make(chan struct{})
	var requests, failures atomic.Int64
	run := func(kept bool, pause time.Duration) {
		load.Go(func() {
			c := &strictClient{address: listen}
			defer c.close()
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				requests.Add(1)
				if err := c.post("/v1/audio-to-text"); err != nil {
					failures.Add(1)
					t.Errorf("request failed (kept %v, pause %v): %v", kept, pause, err)
					c.close()
				}
				if !kept {
					c.close()
				}
			}
		})
	}
	for i := range 4 {
		run(i%2 == 0, time.Millisecond)
	}
	for i := range 20 {
		run(true, time.Duration(10+7*i)*time.Millisecond)
	}
	var streams sync.WaitGroup
	openStreams := func(n int) {
		t.Helper()
		for range n {
			resp, err := http.Post("http://"+listen+"/v1/chat-messages", "application/json", strings.NewReader(`{"response_mode":"streaming"}`))
			if err != nil {
				t.Fatal(err)
			}
			streams.Go(func() {
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || !strings.HasSuffix(string(b), "{\"event\":\"message_end\"}\n\n") || strings.Contains(string(b), `"error"`) {
					t.Errorf("stream cut: %q %v", b, err)
				}
			})
		}
	}
	moreLoad := func() {
		t.Helper()
		from := requests.Load()
		eventually.Nil(t, handoverPatience, func() error {
			if requests.Load() < from+200 {
				return fmt.Errorf("%d requests", requests.Load()-from)
			}
			return nil
		})
	}

	all := []*gatewayProcess{current}
	for range 5 {
		openStreams(10)
		moreLoad()
		next := startGateway(t, exe, good)
		holds(next)
		moreLoad()
		all, current = append(all, next), next
	}

	// A configuration that is wrong, an address that cannot change, and a
	// successor that is killed while it gets ready: the old one goes on.
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("handover: "+socket+"\nupstreams: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.yaml")
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte(strings.Replace(string(text), listen, servertest.FreeAddress(t), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{bad: "upstreams", other: "an address cannot change"} {
		p := startGateway(t, exe, file)
		p.awaitEnd(t)
		if p.ProcessState.ExitCode() == 0 || !strings.Contains(p.log.String(), says) {
			t.Errorf("%s: exit code %d, %s", file, p.ProcessState.ExitCode(), p.log)
		}
	}
	never := startGateway(t, exe, write("never.yaml", servertest.FreeAddress(t)))
	eventually.Nil(t, handoverPatience, func() error {
		if !strings.Contains(never.log.String(), `"msg":"started"`) {
			return fmt.Errorf("not started: %s", never.log)
		}
		return nil
	})
	moreLoad()
	_ = never.Process.Kill()
	never.awaitEnd(t)
	moreLoad()
	holds(current)

	close(stop)
	load.Wait()
	close(end)
	streams.Wait()
	http.DefaultClient.CloseIdleConnections()
	for _, p := range all[:len(all)-1] {
		p.awaitEnd(t)
		if code := p.ProcessState.ExitCode(); code != 0 {
			t.Errorf("gateway %d ended with %d: %s", p.Process.Pid, code, p.log)
		}
	}
	if err := current.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	current.awaitEnd(t)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	t.Logf("%d requests, %d failed, 50 streams over 5 restarts", requests.Load(), failures.Load())
}
