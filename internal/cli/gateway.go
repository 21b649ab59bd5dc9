package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"fournines/gateway"
	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
	"fournines/internal/strictyaml"
)

// gatewayFlags are the flags of `fournines gateway`.
type gatewayFlags struct {
	config      string
	upstreams   []string
	zone        string
	listen      string
	adminListen string
	accessLog   bool
	logLevel    string
	check       bool
}

func (a *app) gatewayCommand() *cobra.Command {
	var f gatewayFlags
	defaults := gateway.DefaultConfig()
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run the HTTP gateway in front of Dify API instances",
		Long: `Run the HTTP gateway in front of Dify API instances.

With --config everything comes from the file, and SIGHUP reads it again: a file
with a mistake changes nothing. Without it, --upstream names the instances of a
Dify that already runs. SIGTERM drains: not ready at once, streams end by
themselves within drain.timeout.`,
		Example: `  fournines gateway --config gateway.yaml
  fournines gateway --zone zone-a --listen :8080 \
    --upstream http://dify-1:5001@zone-a --upstream http://dify-2:5001@zone-b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.config != "" {
				for _, name := range []string{"upstream", "zone", "listen", "admin-listen", "access-log"} {
					if cmd.Flags().Changed(name) {
						return &exitError{code: 2, err: fmt.Errorf("--%s: already decided by --config; set it in the file", name)}
					}
				}
			}
			return a.runGateway(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML)")
	flags.StringArrayVar(&f.upstreams, "upstream", nil, "a Dify API instance, [scheme://]host:port[@zone]; repeat for each")
	flags.StringVar(&f.zone, "zone", "", "the zone of this gateway; instances of the same zone come first")
	flags.StringVar(&f.listen, "listen", defaults.Listen, "address for clients")
	flags.StringVar(&f.adminListen, "admin-listen", defaults.AdminListen, "address of /metrics, /livez and /readyz; empty for none")
	flags.BoolVar(&f.accessLog, "access-log", false, "log every request")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.BoolVar(&f.check, "check", false, "check the configuration and exit")
	return cmd
}

// load builds the configuration from the file or from the flags.
func (f *gatewayFlags) load() (gateway.Config, error) {
	cfg := gateway.DefaultConfig()
	if f.config != "" {
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
	if len(f.upstreams) == 0 {
		return cfg, errors.New("no Dify instance: give --upstream http://host:port@zone for each, or --config FILE")
	}
	cfg.Zone, cfg.Listen, cfg.AdminListen, cfg.AccessLog = f.zone, f.listen, f.adminListen, f.accessLog
	for _, s := range f.upstreams {
		u, err := gateway.ParseUpstream(s)
		if err != nil {
			return cfg, fmt.Errorf("--upstream: %w", err)
		}
		cfg.Upstreams = append(cfg.Upstreams, u)
	}
	return cfg, cfg.Validate()
}

func (a *app) runGateway(ctx context.Context, f *gatewayFlags) error {
	cfg, err := f.load()
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if f.check {
		fmt.Fprintln(a.stdout, "ok")
		return nil
	}
	log, err := logging.New(a.stderr, f.logLevel)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log = log.With("component", "gateway")
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	g, err := gateway.New(cfg, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}

	var listen net.ListenConfig
	ln, err := listen.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ln.Close()
	var group lifecycle.Group
	// The admin face is added first, so that it stays up during the drain and
	// tells the load balancer about it.
	if cfg.AdminListen != "" {
		adminLn, err := listen.Listen(ctx, "tcp", cfg.AdminListen)
		if err != nil {
			return fmt.Errorf("adminListen: %w", err)
		}
		defer adminLn.Close()
		admin := &adminhttp.Server{Gatherer: reg, Ready: g.Ready}
		group.Add("admin", func(ctx context.Context) error { return admin.Run(ctx, adminLn) })
	}
	if f.config != "" {
		// From here on SIGHUP does not end the process.
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		group.Add("reload", func(ctx context.Context) error { return reloadGateway(ctx, hup, f, g, log) })
	}
	group.Add("gateway", func(ctx context.Context) error { return g.Run(ctx, ln) })
	log.Info("gateway started", "listen", ln.Addr().String(), "zone", cfg.Zone, "upstreams", len(cfg.Upstreams))
	if err := group.Run(ctx); err != nil {
		return err
	}
	log.Info("gateway stopped")
	return nil
}

// reloadGateway reads the file again at each SIGHUP.
func reloadGateway(ctx context.Context, hup <-chan os.Signal, f *gatewayFlags, g *gateway.Gateway, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		cfg, err := f.load()
		if err == nil {
			err = g.Reload(cfg)
		}
		if err != nil {
			log.Error("configuration not reloaded, the old one stays", "err", err)
			continue
		}
		log.Info("configuration reloaded", "upstreams", len(cfg.Upstreams))
	}
}
