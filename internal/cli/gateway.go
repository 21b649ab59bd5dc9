package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
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
	tlsCert     string
	tlsKey      string
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

It needs nothing but the instances: --upstream names each API instance of a Dify
that already runs, with its zone if there are zones, and --zone says where this
gateway stands. Clients then use the gateway's address as Dify's API URL. More
settings need a file, --config; everything comes from it then, and SIGHUP or
"fournines gateway reload" reads it again: a file with a mistake changes nothing.

SIGTERM drains: not ready at once, streams end by themselves within
drain.timeout. With --handover a new process with the same path takes over from
the running one, and the port never closes. See docs/gateway.md.`,
		Example: `  # in front of an existing Dify with two instances
  fournines gateway --zone zone-a --listen :8080 \
    --upstream http://dify-1:5001@zone-a --upstream http://dify-2:5001@zone-b

  # only look whether the settings are right
  fournines gateway --config gateway.yaml --check

  # replace a running gateway, with a new version or new settings
  fournines gateway --config gateway.yaml   # which names a handover path

  # how is it?
  fournines gateway status
  fournines gateway endpoints`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.config != "" {
				for _, name := range []string{"upstream", "zone", "listen", "admin-listen", "access-log", "handover", "admin-token-file", "tls-cert", "tls-key"} {
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
	cmd.AddCommand(a.gatewayCacheCommand())
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration file (YAML)")
	flags.StringArrayVar(&f.upstreams, "upstream", nil, "a Dify API instance, [scheme://]host:port[@zone]; repeat for each")
	flags.StringVar(&f.zone, "zone", "", "the zone of this gateway; instances of the same zone come first")
	flags.StringVar(&f.listen, "listen", defaults.Listen, "address for clients")
	flags.StringVar(&f.adminListen, "admin-listen", defaults.AdminListen, "address of /metrics, /livez, /readyz and the admin API; empty for none")
	flags.StringVar(&f.adminToken, "admin-token-file", "", "file with the token of the admin API, needed when --admin-listen is not a loopback address")
	flags.BoolVar(&f.accessLog, "access-log", false, "log every request")
	flags.StringVar(&f.tlsCert, "tls-cert", "", "certificate with its chain (PEM), to serve clients over TLS; a new file is taken up by itself")
	flags.StringVar(&f.tlsKey, "tls-key", "", "key of the certificate (PEM)")
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
				return &exitError{code: 2, err: errors.New("no key on standard input: give the key of an app or a data set")}
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
	cfg.TLS.CertFile, cfg.TLS.KeyFile = f.tlsCert, f.tlsKey
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
	for _, hint := range zoneHints(cfg) {
		log.Warn("zones", "hint", hint)
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

// zoneHints says what about the zones is allowed and hardly meant.
func zoneHints(cfg gateway.Config) []string {
	zones := map[string]bool{}
	for _, u := range cfg.Upstreams {
		if u.Zone != "" {
			zones[u.Zone] = true
		}
	}
	names := strings.Join(slices.Sorted(maps.Keys(zones)), ", ")
	switch {
	case cfg.Zone == "" && len(zones) > 1:
		return []string{fmt.Sprintf("the instances are in several zones (%s) and the gateway in none: all are used alike; say where it stands with zone", names)}
	case cfg.Zone != "" && len(zones) > 0 && !zones[cfg.Zone]:
		return []string{fmt.Sprintf("no instance is in the gateway's zone %q, only in %s: all requests cross zones", cfg.Zone, names)}
	case cfg.Zone != "" && len(zones) == 0:
		return []string{fmt.Sprintf("no instance has a zone, so the gateway's zone %q changes nothing; add @%s to those that are near", cfg.Zone, cfg.Zone)}
	}
	return nil
}
