package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestGatewayCommandWrongCalls(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte("upstreams: [{address: '127.0.0.1:1'}]\nretry: {attempts: 0}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "--upstream"},
		{"bad upstream", []string{"--upstream", "dify-1"}, "want host:port"},
		{"bad scheme", []string{"--upstream", "ftp://dify-1:80"}, "neither http nor https"},
		{"both ways", []string{"--config", file, "--zone", "a"}, "--zone: already decided by --config"},
		{"bad value", []string{"--config", file}, "retry.attempts: 0 is less than 1"},
		{"no file", []string{"--config", file + "x"}, "no such file"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			var stderr bytes.Buffer
			code := Main(t.Context(), append([]string{"gateway"}, tc.args...), strings.NewReader(""), io.Discard, &stderr)
			if code != 2 || !strings.Contains(stderr.String(), tc.want) {
				t.Fatalf("code %d, %q; want 2 and %q", code, stderr.String(), tc.want)
			}
		})
	}
	var stdout bytes.Buffer
	if code := Main(t.Context(), []string{"gateway", "--check", "--upstream", "http://dify-1:5001@zone-a"}, strings.NewReader(""), &stdout, io.Discard); code != 0 || stdout.String() != "ok\n" {
		t.Fatalf("--check: %d %q", code, stdout.String())
	}
}

func TestGatewayCommandServesReloadsAndStops(t *testing.T) {
	serve := func(name string) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
		t.Cleanup(srv.Close)
		return srv
	}
	one, two := serve("one"), serve("two")
	listen, admin := servertest.FreeAddress(t), servertest.FreeAddress(t)
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	write := func(upstream string) {
		t.Helper()
		body := fmt.Sprintf("listen: %s\nadminListen: %s\nzone: a\nupstreams:\n  - {address: %q, zone: a}\nhealth: {interval: 50ms}\ndrain: {announce: 0s, timeout: 5s}\n", listen, admin, upstream)
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.TrimPrefix(one.URL, "http://"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var log servertest.Output
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"gateway", "--config", file}, strings.NewReader(""), io.Discard, &log)
	}()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	says := func(url, want string) func() error {
		return func() error {
			resp, err := client.Get(url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
				return fmt.Errorf("%s: %d %.200q, want %q; log:\n%s", url, resp.StatusCode, b, want, log.String())
			}
			return nil
		}
	}
	const limit = 30 * time.Second
	eventually.Nil(t, limit, says("http://"+admin+"/readyz", "ok"))
	eventually.Nil(t, limit, says("http://"+listen+"/v1/meta", "one"))
	eventually.Nil(t, limit, says("http://"+admin+"/metrics", "fournines_gateway_endpoint_healthy"))

	write("not an address")
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangUp()
	eventually.Nil(t, limit, func() error {
		if !strings.Contains(log.String(), "configuration not reloaded") {
			return fmt.Errorf("log:\n%s", log.String())
		}
		return nil
	})
	if err := says("http://"+listen+"/v1/meta", "one")(); err != nil {
		t.Fatal(err)
	}
	write(strings.TrimPrefix(two.URL, "http://"))
	hangUp()
	eventually.Nil(t, limit, says("http://"+listen+"/v1/meta", "two"))

	cancel()
	select {
	case code := <-done:
		if code != 0 {
			t.Fatalf("exit code %d; log:\n%s", code, log.String())
		}
	case <-time.After(limit):
		t.Fatal("still running")
	}
}

func TestGatewayZoneHints(t *testing.T) {
	for _, tc := range []struct {
		args []string
		hint string
	}{
		{[]string{"--zone", "a", "--upstream", "one:1@a", "--upstream", "two:1@b"}, ""},
		{[]string{"--upstream", "one:1", "--upstream", "two:1"}, ""},
		{[]string{"--upstream", "one:1@a"}, ""},
		{[]string{"--upstream", "one:1@a", "--upstream", "two:1@b"}, "several zones (a, b)"},
		{[]string{"--zone", "c", "--upstream", "one:1@a"}, "all requests cross zones"},
		{[]string{"--zone", "a", "--upstream", "one:1"}, "changes nothing"},
	} {
		var stderr bytes.Buffer
		if code := Main(t.Context(), append([]string{"gateway", "--check"}, tc.args...), strings.NewReader(""), io.Discard, &stderr); code != 0 {
			t.Errorf("%v: code %d, %s", tc.args, code, &stderr)
		}
		if got := stderr.String(); tc.hint == "" && got != "" || !strings.Contains(got, tc.hint) {
			t.Errorf("%v: %q, want %q", tc.args, got, tc.hint)
		}
	}
}
