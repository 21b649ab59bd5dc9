package cli

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
	"fournines/internal/strictyaml"
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

func (f *redisproxyFlags) load() (redisproxy.Config, error) {
	cfg := redisproxy.DefaultConfig()
	data, err := os.ReadFile(f.config)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := strictyaml.Unmarshal(f.config, data, &cfg); err != nil {
		return cfg, err
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%s: %w", f.config, err)
	}
	return cfg, nil
}

func (a *app) runRedisproxy(ctx context.Context, f *redisproxyFlags) error {
	cfg, err := f.load()
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log, err := logging.New(a.stderr, f.logLevel)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log = log.With("component", "redisproxy")
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p, err := redisproxy.New(cfg, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if f.check {
		fmt.Fprintln(a.stdout, "ok")
		return nil
	}
	var listen net.ListenConfig
	ln, err := listen.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ln.Close()
	var group lifecycle.Group
	// The admin face is added first, so that it stays up during the drain.
	if cfg.AdminListen != "" {
		adminLn, err := listen.Listen(ctx, "tcp", cfg.AdminListen)
		if err != nil {
			return fmt.Errorf("adminListen: %w", err)
		}
		defer adminLn.Close()
		admin := &adminhttp.Server{Gatherer: reg, Ready: p.Ready}
		group.Add("admin", func(ctx context.Context) error { return admin.Run(ctx, adminLn) })
	}
	group.Add("redisproxy", func(ctx context.Context) error { return p.Run(ctx, ln) })
	log.Info("redisproxy started", "listen", ln.Addr().String(), "zone", cfg.Zone, "nodes", len(cfg.Nodes))
	if err := group.Run(ctx); err != nil {
		return err
	}
	log.Info("redisproxy stopped")
	return nil
}
