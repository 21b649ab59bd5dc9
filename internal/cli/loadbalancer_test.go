package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// background runs a command until the test ends, which must then succeed.
func background(t *testing.T, args ...string) (stderr *servertest.Output) {
	t.Helper()
	stderr = &servertest.Output{}
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	go func() { code <- Main(ctx, args, strings.NewReader(""), io.Discard, stderr) }()
	t.Cleanup(func() {
		cancel()
		if c := <-code; c != 0 {
			t.Errorf("%s ended with code %d", args[0], c)
		}
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	return stderr
}

// greeter is a TCP server that says its name and hangs up.
func greeter(t *testing.T, name string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, name)
			_ = c.Close()
		}
	}()
	return ln.Addr().String()
}

func TestLoadbalancerCommand(t *testing.T) {
	listen, admin := servertest.FreeAddress(t), servertest.FreeAddress(t)
	path := filepath.Join(t.TempDir(), "loadbalancer.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(backend string) string {
		return fmt.Sprintf("admin: %q\nservices:\n  - {name: test, listen: [%q], backends: [{address: %q}]}\n", admin, listen, backend)
	}
	write(config(greeter(t, "first")))
	log := background(t, "loadbalancer", "--config", path)
	says := func(want string) func() error {
		return func() error {
			c, err := net.DialTimeout("tcp", listen, 10*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			got, err := io.ReadAll(c)
			if err == nil && string(got) != want {
				err = fmt.Errorf("got %q, want %q", got, want)
			}
			return err
		}
	}
	eventually.Nil(t, 30*time.Second, says("first"))
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !strings.Contains(string(body), `fournines_loadbalancer_connections_total{backend=`) {
		t.Errorf("metrics: %v\n%s", err, body)
	}
	http.DefaultClient.CloseIdleConnections()

	hangup := func(message string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually.Nil(t, 30*time.Second, func() error {
			if !strings.Contains(log.String(), message) {
				return errors.New("the log lacks " + message)
			}
			return nil
		})
	}
	write("services: nonsense\n")
	hangup("configuration not reloaded")
	if err := says("first")(); err != nil {
		t.Errorf("after a wrong file: %v", err)
	}
	write(config(greeter(t, "second")))
	hangup("configuration reloaded")
	if err := says("second")(); err != nil {
		t.Errorf("after the reload: %v", err)
	}
}
