package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fournines/internal/servertest"
	"fournines/topology"
)

// theStack is the stack that all tests of this package share: starting one
// takes most of a minute.
var theStack *stack

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	s, err := start()
	if s != nil {
		defer func() {
			if err := s.stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	theStack = s
	return m.Run()
}

// stack is a running stack and how to reach it.
type stack struct {
	dir     string // holds everything below
	bin     string
	spec    string
	data    string
	started time.Duration
	hook    *webhook
	hookSrv *httptest.Server
}

// portOffset keeps the test's public ports away from those of a stack that
// already runs on the machine.
// It keeps them below 32768, where the kernel takes ports for outgoing connections.
const portOffset = 2000

func start() (*stack, error) {
	// The unprivileged account that runs the servers must reach the directory,
	// so it cannot be a private one of the testing package.
	dir, err := os.MkdirTemp("/tmp", "fournines-test-stack-")
	if err != nil {
		return nil, err
	}
	s := &stack{
		dir:  dir,
		bin:  filepath.Join(dir, "fournines"),
		spec: filepath.Join(dir, "fournines.yaml"),
		data: filepath.Join(dir, "data"),
		hook: &webhook{},
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return s, err
	}
	if err := servertest.BuildBinary(s.bin); err != nil {
		return s, err
	}
	s.hookSrv = httptest.NewServer(s.hook)
	if err := s.writeSpec(""); err != nil {
		return s, err
	}
	begun := time.Now()
	if out, err := s.run(5*time.Minute, "up", "--detach", "-f", s.spec); err != nil {
		return s, fmt.Errorf("up: %w\n%s", err, out)
	}
	s.started = time.Since(begun)
	return s, nil
}

// writeSpec writes the test's spec with the lines of extra at its end.
func (s *stack) writeSpec(extra string) error {
	text := fmt.Sprintf(`name: stack-test
local:
  ports:
    portOffset: %d
observability:
  alertWebhook: %s/alerts
%s`, portOffset, s.hookSrv.URL, extra)
	return os.WriteFile(s.spec, []byte(text), 0o600)
}

// run calls the binary and returns what it printed.
func (s *stack) run(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	args = append(args, "--data-dir", s.data)
	cmd := exec.CommandContext(ctx, s.bin, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// stop ends the stack and removes every trace of it.
func (s *stack) stop() error {
	out, err := s.run(2*time.Minute, "down", "--delete-data", "--delete-backups")
	if s.hookSrv != nil {
		s.hookSrv.Close()
	}
	if err != nil {
		return fmt.Errorf("down: %w\n%s", err, out)
	}
	return os.RemoveAll(s.dir)
}

func (s *stack) status(t *testing.T) topology.Status {
	t.Helper()
	st, err := s.askStatus()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (s *stack) askStatus() (topology.Status, error) {
	var st topology.Status
	cmd := exec.Command(s.bin, "status", "-o", "json", "--data-dir", s.data)
	out, err := cmd.Output()
	// A stack that is not ready answers too, with another exit status.
	if len(out) == 0 {
		return st, fmt.Errorf("status: %w", err)
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return st, fmt.Errorf("status: %w in %q", err, out)
	}
	return st, nil
}

// component finds the first component of a kind, in a role if one is given.
func component(t *testing.T, st topology.Status, kind, role string) topology.Component {
	t.Helper()
	for _, z := range st.Zones {
		for _, c := range z.Components {
			if c.Kind == kind && (role == "" || strings.Contains(c.Role, role)) {
				return c
			}
		}
	}
	t.Fatalf("no %s %s in %+v", kind, role, st)
	return topology.Component{}
}

// credentials are what the stack's credentials file offers to users.
type credentials struct {
	Gateway struct {
		URL, AppKey, DatasetKey string
	}
	Postgres struct {
		URL string
	}
	Redis struct {
		Host           string
		Port           int
		User, Password string
	}
	Prometheus, Alertmanager struct {
		URL string
	}
}

// credentials reads what `status` names as the credentials file. It does not
// ask for the status, which needs a supervisor.
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

// webhook remembers what Alertmanager sent.
type webhook struct {
	mu    sync.Mutex
	texts []string
}

func (h *webhook) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	_, _ = body.ReadFrom(http.MaxBytesReader(nil, r.Body, 1<<20))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.texts = append(h.texts, body.String())
}

func (h *webhook) received(text string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.texts {
		if strings.Contains(t, text) {
			return true
		}
	}
	return false
}
