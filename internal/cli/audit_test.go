package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

// TestAuditOfAGateway asks a gateway whose instances stand in one zone.
func TestAuditOfAGateway(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(backend.Close)
	up := strings.TrimPrefix(backend.URL, "http://")
	admin := servertest.FreeAddress(t)
	var log servertest.Output
	done := make(chan int, 1)
	go func() {
		done <- Main(t.Context(), []string{
			"gateway", "--zone", "b", "--listen", servertest.FreeAddress(t), "--admin-listen", admin, "--upstream", up + "@a",
		}, strings.NewReader(""), io.Discard, &log)
	}()
	eventually.Nil(t, time.Minute, func() error {
		select {
		case code := <-done:
			t.Fatalf("the gateway ended with %d: %s", code, log.String())
		default:
		}
		var out, stderr bytes.Buffer
		code := Main(t.Context(), []string{"audit", "--gateway", "http://" + admin, "--fail-on", "critical"}, strings.NewReader(""), &out, &stderr)
		if code != 1 || !strings.Contains(out.String(), "FN433") || !strings.Contains(out.String(), "FN434") || strings.Contains(out.String(), "FN430") {
			return fmt.Errorf("%d %s %s", code, out.String(), stderr.String())
		}
		return nil
	})
}
