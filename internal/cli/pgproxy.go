package cli

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"fournines/internal/logging"
	"fournines/pgproxy"
)

func (a *app) pgproxyCommand() *cobra.Command {
	var config string
	var check bool
	cmd := &cobra.Command{
		Use:   "pgproxy",
		Short: "Run the proxy that follows the PostgreSQL primary",
		Long: `Run the proxy that follows the PostgreSQL primary.

It asks every server what it is, and runs transactions on the one that is the
primary. While there is none, new transactions wait. SIGHUP reads the
configuration again; what needs a restart is refused by name. SIGTERM drains.`,
		Example: "  fournines pgproxy --config pgproxy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runPGProxy(cmd.Context(), config, check)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file (YAML), required")
	cmd.Flags().BoolVar(&check, "check", false, "check the configuration and exit")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func (a *app) runPGProxy(ctx context.Context, path string, check bool) error {
	load := func() (pgproxy.Config, error) { return pgproxy.LoadConfig(path) }
	cfg, err := load()
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if cfg.Listen == "" {
		return &exitError{code: 2, err: fmt.Errorf("%s: listen: must be host:port", path)}
	}
	log, err := logging.New(a.stderr, cfg.LogLevel)
	if err != nil {
		return &exitError{code: 2, err: fmt.Errorf("%s: logLevel: %w", path, err)}
	}
	log = log.With("component", "pgproxy")
	reg := processRegistry()
	p, err := pgproxy.New(cfg, pgproxy.Options{Version: version, Load: load}, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if check {
		fmt.Fprintln(a.stdout, "ok")
		return nil
	}
	return serve(ctx, daemon{
		name: "pgproxy", log: log, reg: reg, listen: cfg.Listen, run: p.Run, adminListen: cfg.AdminListen, ready: p.Ready, reload: p.ReloadFile,
		adminToken: p.AdminToken,
		admin: func(func()) map[string]http.Handler {
			return p.AdminHandlers()
		},
	})
}
