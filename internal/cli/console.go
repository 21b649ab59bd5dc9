package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fournines/console"
	"fournines/internal/logging"
	"fournines/local"
	"fournines/web"
)

// watchedStack lets the console look at a stack of the local engine.
type watchedStack struct{ *local.Client }

// Watch implements console.StackSource.
func (w watchedStack) Watch(ctx context.Context, changed func()) error {
	return w.Events(ctx, func(local.Event) error {
		changed()
		return nil
	})
}

func (a *app) consoleCommand() *cobra.Command {
	return configCommand(&cobra.Command{
		Use:   "console",
		Short: "Serve the web page that shows a running stack",
		Long: `Serves the web page of a stack: zones and what runs in them, traffic, the error
budget, alerts and what happened. It only shows. "fournines up" runs one; see
docs/console.md.`,
	}, a.runConsole)
}

func (a *app) runConsole(ctx context.Context, path string) error {
	cfg := console.DefaultConfig()
	if err := loadConfig(path, &cfg); err != nil {
		return err
	}
	log, err := logging.New(a.stderr, cfg.LogLevel)
	if err != nil {
		return &exitError{code: 2, err: fmt.Errorf("%s: logLevel: %w", path, err)}
	}
	log = log.With("component", "console")
	client := local.NewObserver(cfg.StackDir)
	defer client.Close()
	reg := processRegistry()
	c, err := console.New(cfg, console.Options{
		Version: version, Stack: watchedStack{client}, Page: web.Page(), Logger: log, Registerer: reg,
	})
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	return serve(ctx, daemon{name: "console", log: log, reg: reg, listen: cfg.Listen, run: c.Run, adminListen: cfg.AdminListen})
}
