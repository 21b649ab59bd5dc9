package zonenet

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"fournines/internal/adminhttp"
	"fournines/internal/strictyaml"
)

// forwarderEnv makes the test binary a forwarder with that configuration file,
// so that a test can kill it.
const forwarderEnv = "FOURNINES_TEST_ZONELINK"

func TestMain(m *testing.M) {
	if path := os.Getenv(forwarderEnv); path != "" {
		if err := runForwarder(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runForwarder(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var cfg ForwarderConfig
	if err := strictyaml.Unmarshal(path, data, &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	reg := prometheus.NewRegistry()
	f, err := NewForwarder(cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)), reg)
	if err != nil {
		return err
	}
	if cfg.Control != "" {
		ln, err := ListenControl(cfg.Control)
		if err != nil {
			return err
		}
		defer ln.Close()
		admin := adminhttp.Server{Gatherer: reg, Handlers: LinksHandlers(f)}
		go func() { _ = admin.Run(ctx, ln) }()
	}
	return f.Run(ctx)
}
