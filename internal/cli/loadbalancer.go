package cli

import (
	"context"
	"fmt"
	"log/slog"
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
	"fournines/internal/strictyaml"
	"fournines/loadbalancer"
)

func (a *app) loadbalancerCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "loadbalancer --config FILE",
		Short: "Give each service one stable address in front of the proxies of all zones",
		Long: `Forwards TCP connections to the proxies of all zones: healthy ones in the
caller's zone first, others when there is none. SIGHUP reads the file again;
SIGTERM stops accepting, lets connections drain, and ends.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runLoadbalancer(cmd.Context(), config)
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration file")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func loadLoadbalancerConfig(path string) (loadbalancer.Config, error) {
	var cfg loadbalancer.Config
	data, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := strictyaml.Unmarshal(path, data, &cfg); err != nil {
		return cfg, err
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}

func (a *app) runLoadbalancer(ctx context.Context, path string) error {
	cfg, err := loadLoadbalancerConfig(path)
	if err != nil {
		return err
	}
	logger, err := logging.New(a.stderr, cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	logger = logger.With("component", "loadbalancer")
	listeners, err := loadbalancer.Listen(ctx, cfg)
	if err != nil {
		return err
	}
	defer listeners.Close()
	reg := processRegistry()
	lb, err := loadbalancer.New(cfg, listeners, logger, reg)
	if err != nil {
		return err
	}
	var group lifecycle.Group
	if cfg.Admin != "" {
		ln, err := net.Listen("tcp", cfg.Admin)
		if err != nil {
			return fmt.Errorf("listen on the admin address %s: %w", cfg.Admin, err)
		}
		defer ln.Close()
		admin := &adminhttp.Server{Gatherer: reg, Ready: lb.Ready}
		group.Add("admin", func(ctx context.Context) error { return admin.Run(ctx, ln) })
	}
	group.Add("loadbalancer", lb.Run)
	group.Add("reload", func(ctx context.Context) error {
		return onHangup(ctx, logger, func() error {
			next, err := loadLoadbalancerConfig(path)
			if err != nil {
				return err
			}
			return lb.Reload(next)
		})
	})
	logger.Info("load balancer starts", "services", len(cfg.Services))
	return group.Run(ctx)
}

// processRegistry is a registry with the metrics of the process itself.
func processRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// onHangup calls reload at each SIGHUP until ctx ends. A reload that fails
// leaves everything as it was.
func onHangup(ctx context.Context, logger *slog.Logger, reload func() error) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			if err := reload(); err != nil {
				logger.Error("configuration is not reloaded", "err", err)
			} else {
				logger.Info("configuration is reloaded")
			}
		}
	}
}
