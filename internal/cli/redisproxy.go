package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fournines/internal/logging"
	"fournines/redisproxy"
)

// redisproxyFlags are the flags of `fournines redisproxy`.
type redisproxyFlags struct {
	config   string
	logLevel string
	check    bool
}

func (a *app) redisproxyCommand() *cobra.Command {
	var f redisproxyFlags
	cmd := &cobra.Command{
		Use:   "redisproxy",
		Short: "Run the proxy that makes a Redis Cluster look like one Redis",
		Long: `Run the proxy that makes a Redis Cluster look like one Redis with 16 databases.

Database 0 is spread over the cluster; each other database is kept together in
one slot, so that transactions, scripts and blocking pops work as on a single
server. Clients need no knowledge of clusters or failovers. SIGTERM drains.`,
		Example: "  fournines redisproxy --config redisproxy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runRedisproxy(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML), required")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.BoolVar(&f.check, "check", false, "check the configuration and exit")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func (a *app) runRedisproxy(ctx context.Context, f *redisproxyFlags) error {
	cfg := redisproxy.DefaultConfig()
	if err := loadConfig(f.config, &cfg); err != nil {
		return err
	}
	log, err := logging.New(a.stderr, f.logLevel)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log = log.With("component", "redisproxy")
	reg := processRegistry()
	p, err := redisproxy.New(cfg, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if f.check {
		fmt.Fprintln(a.stdout, "ok")
		return nil
	}
	return serve(ctx, daemon{
		name: "redisproxy", log: log, reg: reg, listen: cfg.Listen, run: p.Run, adminListen: cfg.AdminListen, ready: p.Ready,
	})
}
