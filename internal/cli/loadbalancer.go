package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
	"fournines/loadbalancer"
)

func (a *app) loadbalancerCommand() *cobra.Command {
	return configCommand(&cobra.Command{
		Use:   "loadbalancer",
		Short: "Give each service one stable address in front of the proxies of all zones",
		Long: `Forwards TCP connections to the proxies of all zones: healthy ones in the
caller's zone first, others when there is none. SIGHUP reads the file again;
SIGTERM stops accepting, lets connections drain, and ends.`,
	}, a.runLoadbalancer)
}

func (a *app) runLoadbalancer(ctx context.Context, path string) error {
	var cfg loadbalancer.Config
	if err := loadConfig(path, &cfg); err != nil {
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
	if err := addAdmin(ctx, &group, cfg.Admin, &adminhttp.Server{Gatherer: reg, Ready: lb.Ready}); err != nil {
		return err
	}
	group.Add("loadbalancer", lb.Run)
	group.Add("reload", onHangup(logger, func() error {
		var next loadbalancer.Config
		if err := loadConfig(path, &next); err != nil {
			return err
		}
		return lb.Reload(next)
	}))
	logger.Info("load balancer starts", "services", len(cfg.Services))
	return group.Run(ctx)
}
