package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/difysim"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// patience bounds every wait: the machine may be busy.
const patience = 60 * time.Second

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	os.Exit(servertest.WithBinary(func(path string) int {
		binary = path
		return m.Run()
	}))
}

// gateway is a running gateway process.
type gateway struct {
	addr, url, admin string
	pid              int
	log              *servertest.Output
}

// startGateway runs a gateway in front of the instances until the test ends;
// settings are further lines of its configuration.
func startGateway(t *testing.T, settings string, instances ...string) *gateway {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "fournines-test-gateway-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	g := &gateway{addr: servertest.FreeAddress(t), admin: servertest.FreeAddress(t), log: &servertest.Output{}}
	g.url = "http://" + g.addr
	var cfg strings.Builder
	fmt.Fprintf(&cfg, "listen: %s\nadminListen: %s\nzone: zone-a\ndrain: {announce: 0s, timeout: 5s}\nhealth: {interval: 200ms, timeout: 5s}\nupstreams:\n", g.addr, g.admin)
	for _, in := range instances {
		fmt.Fprintf(&cfg, "  - {address: %q, zone: zone-a}\n", in)
	}
	cfg.WriteString(settings)
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte(cfg.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "gateway", "--config", file)
	cmd.Stdout, cmd.Stderr = g.log, g.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.pid = cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("gateway: %v", err)
			}
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			t.Errorf("the gateway did not end; killed: %v", <-ended)
		}
		text := g.log.String()
		if strings.Contains(text, "panic") || strings.Contains(text, "DATA RACE") {
			t.Errorf("the gateway panicked")
		}
		if t.Failed() {
			t.Logf("gateway:\n%s", text[max(0, len(text)-4000):])
		}
	})
	eventually.Nil(t, patience, func() error {
		resp, err := http.Get("http://" + g.admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz says %d", resp.StatusCode)
		}
		return nil
	})
	return g
}

// memory reads a line of the process's status in KiB: VmHWM is the most that was
// ever resident, VmRSS what is now.
func (g *gateway) memory(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in the process's status", name)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// forgetPeak makes VmHWM begin again.
func (g *gateway) forgetPeak(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", g.pid), []byte("5"), 0); err != nil {
		t.Fatalf("reset the peak of resident memory: %v", err)
	}
}

// metric reads one sample of the gateway's metrics, 0 when it is not there.
func (g *gateway) metric(t *testing.T, sample string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + g.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), sample+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// idle waits until no request is in work.
func (g *gateway) idle(t *testing.T) {
	t.Helper()
	eventually.Nil(t, patience, func() error {
		if n := g.metric(t, "fournines_gateway_requests_in_flight"); n != 0 {
			return fmt.Errorf("%v requests in flight", n)
		}
		return nil
	})
}

// alive fails the test when the gateway does not answer an honest request.
func (g *gateway) alive(t *testing.T) {
	t.Helper()
	resp, err := http.Get(g.url + "/v1/alive")
	if err != nil {
		t.Fatalf("the gateway is not well: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the gateway is not well: %d", resp.StatusCode)
	}
}

// startStub runs an instance of the simulator that needs no servers.
func startStub(t *testing.T, change func(*difysim.StubConfig)) (addr string, reg *prometheus.Registry) {
	t.Helper()
	cfg := difysim.DefaultStubConfig()
	cfg.Answer = difysim.AnswerConfig{Tokens: 12, TokensPerSecond: 100, FirstTokenDelay: 10 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	reg = prometheus.NewRegistry()
	s, err := difysim.NewStub(cfg, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("stub: %v", err)
		}
	})
	return ln.Addr().String(), reg
}

// startInstance runs a scripted instance; /health and /v1/alive answer by
// themselves.
func startInstance(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" || r.URL.Path == "/v1/alive" {
			return
		}
		h(w, r)
	}), IdleTimeout: 2 * time.Second, ReadHeaderTimeout: patience}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("instance: %v", err)
		}
	})
	return ln.Addr().String()
}

// answer makes a request with a JSON body and a key.
func answer(t *testing.T, method, url, body string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer app-test")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v after %q", err, raw)
	}
	return resp.StatusCode, string(raw), resp.Header
}
