package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
	"fournines/internal/zonenet"
)

func (a *app) zonelinkCommand() *cobra.Command {
	return configCommand(&cobra.Command{
		Use:   "zonelink",
		Short: "Carry the packets between zones, with delay and loss (runs as root)",
		Long: `Carries the packets between the zones of a local stack, to give the links
delay, loss and rate on kernels without netem. When it ends, for whatever
reason, the zones are connected without delay. SIGHUP reads the links from the
file again; the control socket serves GET and PUT /links.`,
	}, a.runZonelink)
}

func (a *app) runZonelink(ctx context.Context, path string) error {
	var cfg zonenet.ForwarderConfig
	if err := loadConfig(path, &cfg); err != nil {
		return err
	}
	logger, err := logging.New(a.stderr, cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	logger = logger.With("component", "zonelink")
	reg := processRegistry()
	forwarder, err := zonenet.NewForwarder(cfg, logger, reg)
	if err != nil {
		return err
	}
	var group lifecycle.Group
	if cfg.Control != "" {
		ln, err := zonenet.ListenControl(cfg.Control)
		if err != nil {
			return err
		}
		defer ln.Close()
		admin := &adminhttp.Server{Gatherer: reg, Ready: forwarder.Connected, Handlers: zonenet.LinksHandlers(forwarder)}
		group.Add("control", func(ctx context.Context) error { return admin.Run(ctx, ln) })
	}
	group.Add("forwarder", forwarder.Run)
	group.Add("reload", onHangup(logger, func() error {
		var next zonenet.ForwarderConfig
		if err := loadConfig(path, &next); err != nil {
			return err
		}
		return forwarder.SetLinks(next.Links)
	}))
	return group.Run(ctx)
}
