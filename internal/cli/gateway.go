package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"fournines/gateway"
	"fournines/gateway/dify"
	"fournines/internal/logging"
)

// maxKeyBytes bounds what key-id reads; Dify's keys have about 30 characters.
const maxKeyBytes = 4 << 10

// gatewayFlags are the flags of `fournines gateway`.
type gatewayFlags struct {
	config      string
	upstreams   []string
	zone        string
	listen      string
	adminListen string
	accessLog   bool
	adminToken  string
	handover    string
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
				for _, name := range []string{"upstream", "zone", "listen", "admin-listen", "access-log", "handover", "admin-token-file"} {
					if cmd.Flags().Changed(name) {
						return &exitError{code: 2, err: fmt.Errorf("--%s: already decided by --config; set it in the file", name)}
					}
				}
			}
			return a.runGateway(cmd.Context(), &f)
		},
	}
	cmd.AddCommand(a.keyIDCommand())
	cmd.AddCommand(a.gatewayAdminCommands()...)
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML)")
	flags.StringArrayVar(&f.upstreams, "upstream", nil, "a Dify API instance, [scheme://]host:port[@zone]; repeat for each")
	flags.StringVar(&f.zone, "zone", "", "the zone of this gateway; instances of the same zone come first")
	flags.StringVar(&f.listen, "listen", defaults.Listen, "address for clients")
	flags.StringVar(&f.adminListen, "admin-listen", defaults.AdminListen, "address of /metrics, /livez, /readyz and the admin API; empty for none")
	flags.StringVar(&f.adminToken, "admin-token-file", "", "file with the token of the admin API, needed when --admin-listen is not a loopback address")
	flags.BoolVar(&f.accessLog, "access-log", false, "log every request")
	flags.StringVar(&f.handover, "handover", "", "path of a Unix socket: a second process with the same path takes over from a running one without closing the port")
	flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.BoolVar(&f.check, "check", false, "check the configuration and exit")
	return cmd
}

func (a *app) keyIDCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key-id",
		Short: "Print the id of an API key read from standard input",
		Long: `Print the id of an API key read from standard input.

The gateway's configuration, logs and metrics know an application by the id of
its key, from which the key cannot be found. The key is read from standard input
so that it stays out of the shell's history and the list of processes.`,
		Example: `  fournines gateway key-id < app-key.txt`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), maxKeyBytes)).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read the key: %w", err)
			}
			key := strings.TrimSpace(line)
			if key == "" {
				return &exitError{code: 2, err: errors.New("no key on standard input: give the app's API key, app-... or dataset-...")}
			}
			fmt.Fprintln(a.stdout, dify.KeyID(key))
			return nil
		},
	}
}

// load builds the configuration from the file or from the flags.
func (f *gatewayFlags) load() (gateway.Config, error) {
	cfg := gateway.DefaultConfig()
	if f.config != "" {
		return cfg, loadConfig(f.config, &cfg)
	}
	if len(f.upstreams) == 0 {
		return cfg, errors.New("no Dify instance: give --upstream http://host:port@zone for each, or --config FILE")
	}
	cfg.Zone, cfg.Listen, cfg.AdminListen, cfg.AccessLog = f.zone, f.listen, f.adminListen, f.accessLog
	cfg.Handover, cfg.Admin.TokenFile = f.handover, f.adminToken
	for _, s := range f.upstreams {
		u, err := gateway.ParseUpstream(s)
		if err != nil {
			return cfg, fmt.Errorf("--upstream: %w", err)
		}
		cfg.Upstreams = append(cfg.Upstreams, u)
	}
	return cfg, cfg.Validate()
}

// heapFloor is memory that a gateway asks for and never touches. The collector
// lets the heap double before it runs; a gateway's is a few MiB, so that under
// load it would run 20 times a second, for a sixth of all processor time. What
// is not touched takes no memory from the machine.
const heapFloor = 32 << 20

func (a *app) runGateway(ctx context.Context, f *gatewayFlags) error {
	cfg, err := f.load()
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log, err := logging.New(a.stderr, f.logLevel)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	log = log.With("component", "gateway")
	reg := processRegistry()
	g, err := gateway.New(cfg, log, reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	if f.check {
		fmt.Fprintln(a.stdout, "ok")
		return nil
	}
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(floor)
	d := daemon{
		name: "gateway", log: log, reg: reg, listen: cfg.Listen, adminListen: cfg.AdminListen, ready: g.Ready,
		run:      func(ctx context.Context, ln net.Listener) error { return g.Run(ctx, ln) },
		handover: cfg.Handover, handOver: g.HandOver,
	}
	if f.config != "" {
		d.reload = func() error {
			return g.ReloadFrom(f.load)
		}
	}
	d.adminToken = g.AdminToken
	d.admin = func(stop func()) map[string]http.Handler {
		return g.AdminHandlers(gateway.AdminOptions{Version: version, Reload: d.reload, Stop: stop})
	}
	return serve(ctx, d)
}
