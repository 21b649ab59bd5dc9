package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
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
configuration again: users, passwords, certificates, pool sizes, hold and
limits. SIGTERM drains.`,
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
	cfg, err := pgproxy.LoadConfig(path)
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
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p, err := pgproxy.New(cfg, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if check {
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
	group.Add("reload", func(ctx context.Context) error {
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			next, err := pgproxy.LoadConfig(path)
			if err == nil {
				err = p.Reload(next)
			}
			if err != nil {
				log.Error("configuration not reloaded, the old one stays", "err", err)
				continue
			}
			log.Info("configuration reloaded")
		}
	})
	group.Add("pgproxy", func(ctx context.Context) error { return p.Run(ctx, ln) })
	log.Info("pgproxy started", "listen", ln.Addr().String(), "zone", cfg.Zone, "backends", len(cfg.Backends))
	if err := group.Run(ctx); err != nil {
		return err
	}
	log.Info("pgproxy stopped")
	return nil
}
