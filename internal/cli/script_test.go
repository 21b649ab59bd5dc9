package cli

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run the test binary as the program fournines.
func TestMain(m *testing.M) {
	if os.Getenv(testStackEnv) != "" {
		os.Exit(testStackMain())
	}
	testscript.Main(m, map[string]func(){
		"fournines": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			code := Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
			stop()
			os.Exit(code)
		},
	})
}

var updateScripts = flag.Bool("update", false, "rewrite the expected output in testdata/script")

// TestScript runs testdata/script/*.txtar: one file is one case, with the
// commands first and its files below. A command that must fail starts with "!".
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
