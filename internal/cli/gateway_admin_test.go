package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestGatewayAdminCommands(t *testing.T) {
	backend := func() string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
		t.Cleanup(srv.Close)
		return strings.TrimPrefix(srv.URL, "http://")
	}
	one, two := backend(), backend()
	listen, admin := servertest.FreeAddress(t), servertest.FreeAddress(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("adminListen: %q\nadmin: {tokenFile: %q}\nupstreams: [{address: %q}]\n", admin, token, one)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log servertest.Output
	done := make(chan int, 1)
	go func() {
		done <- Main(t.Context(), []string{"gateway", "--zone", "a", "--listen", listen, "--admin-listen", admin, "--admin-token-file", token,
			"--upstream", one + "@a", "--upstream", two + "@b"}, strings.NewReader(""), io.Discard, &log)
	}()
	run := func(args ...string) (int, string) {
		var out, stderr bytes.Buffer
		code := Main(t.Context(), append([]string{"gateway"}, args...), strings.NewReader(""), &out, &stderr)
		return code, out.String() + stderr.String()
	}
	at := []string{"--admin", admin, "--token-file", token}
	eventually.Nil(t, time.Minute, func() error {
		if code, out := run(append([]string{"status"}, at...)...); code != 0 || !strings.Contains(out, "ready") || strings.Contains(out, "not ready") {
			return fmt.Errorf("%d %s", code, out)
		}
		return nil
	})
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"endpoints", "--admin", admin}, 1, "give it with --token-file"},
		{append([]string{"endpoints"}, at...), 0, one},
		{append([]string{"drain", one}, at...), 0, "drained"},
		{append([]string{"drain", two}, at...), 1, "last endpoint in service; --force takes"},
		{[]string{"endpoints", "--config", config}, 0, "drained"},
		{[]string{"endpoints", "--config", config, "--admin", admin}, 2, "leave --admin"},
		{append([]string{"drain", "nobody"}, at...), 1, `there is no endpoint "nobody"`},
		{append([]string{"undrain", one}, at...), 0, "in service"},
		{append([]string{"apps"}, at...), 0, "none"},
		{append([]string{"streams"}, at...), 0, "CLASS"},
		{append([]string{"status", "-o", "json"}, at...), 0, `"lastReloadOk":true`},
		{append([]string{"cache", "stats"}, at...), 0, "off (cache.enabled)"},
		{append([]string{"cache", "top"}, at...), 0, "DATA SET"},
		{append([]string{"cache", "top", "-n", "0"}, at...), 1, "not between 1 and 10000"},
		{append([]string{"cache", "purge"}, at...), 2, "one of --dataset, --app and --all"},
		{append([]string{"cache", "purge", "--all", "--app", "x"}, at...), 2, "one of"},
		{append([]string{"cache", "purge", "--all"}, at...), 0, "0 entries dropped here; Redis was not told"},
		{append([]string{"reload"}, at...), 1, "started without --config"},
		{[]string{"status", "--admin", servertest.FreeAddress(t)}, 1, "connection refused: --admin or --config says"},
		{append([]string{"status", "-o", "xml"}, at...), 2, "want table or json"},
		{append([]string{"undrain"}, at...), 2, "wants the name of one endpoint"},
	} {
		if code, out := run(tc.args...); code != tc.code || !strings.Contains(out, tc.says) {
			t.Errorf("%v: %d %q, want %d and %q", tc.args[:1], code, out, tc.code, tc.says)
		}
	}
	var stderr bytes.Buffer
	if code := Main(t.Context(), append([]string{"jobs", "dead"}, at...), strings.NewReader(""), io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "no async lane") {
		t.Errorf("jobs without the lane: %d %s", code, &stderr)
	}
	if code, out := run(append([]string{"drain"}, at...)...); code != 0 {
		t.Errorf("drain: %d %s", code, out)
	}
	select {
	case code := <-done:
		if code != 0 {
			t.Errorf("the gateway ended with %d: %s", code, &log)
		}
	case <-time.After(time.Minute):
		t.Fatalf("the gateway does not end: %s", &log)
	}
	if strings.Contains(log.String(), "0123456789abcdef") {
		t.Error("the token is in the log")
	}
}
