package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"fournines/difysim"
	"fournines/internal/adminhttp"
	"fournines/internal/lifecycle"
	"fournines/internal/logging"
)

// difysimCommand is the workload that speaks Dify's API. Without a subcommand it
// behaves like the entry point of Dify's image: MODE says what it is, and
// MIGRATION_ENABLED=true migrates first.
func (a *app) difysimCommand() *cobra.Command {
	var config string
	load := func() (difysim.Config, *slog.Logger, error) {
		cfg, err := difysim.LoadConfig(config, os.Getenv)
		if err != nil {
			return cfg, nil, err
		}
		log, err := logging.New(a.stderr, cfg.LogLevel)
		if err != nil {
			return cfg, nil, err
		}
		return cfg, log.With("component", "difysim", "instance", cfg.Instance), nil
	}
	run := func(ctx context.Context, role difysim.Role, skipWhenLocked bool) error {
		cfg, log, err := load()
		if err != nil {
			return err
		}
		if role == difysim.RoleMigrate {
			_, err := difysim.Migrate(ctx, cfg, log, skipWhenLocked)
			return err
		}
		ln, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return fmt.Errorf("difysim %s: %w: choose another address in listen", role, err)
		}
		defer ln.Close()
		reg := processRegistry()
		if role == difysim.RoleWorker {
			w, err := difysim.NewWorker(cfg, log, reg)
			if err != nil {
				return err
			}
			return w.Run(ctx, ln)
		}
		api, err := difysim.NewAPI(cfg, log, reg)
		if err != nil {
			return err
		}
		return api.Run(ctx, ln)
	}
	cmd := &cobra.Command{
		Use:   "difysim",
		Short: "Run the Dify simulator (api, worker or migrate; without one, what MODE says)",
		Long: `Run the Dify simulator: a workload that speaks Dify's service API, for trials,
drills and tests. It is not Dify, and every answer says so (X-Dify-Simulator).

api and worker need PostgreSQL, Redis and a vector store, as Dify does; "fournines
up" starts them with all of it. stub needs nothing. Without a subcommand it behaves
like the entry point of Dify's image: MODE says what it is, MIGRATION_ENABLED=true
migrates first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			role, migrate, err := difysim.Entrypoint(os.Getenv)
			if err != nil {
				return &exitError{code: 2, err: err}
			}
			if migrate {
				if err := run(cmd.Context(), difysim.RoleMigrate, true); err != nil {
					return err
				}
			}
			return run(cmd.Context(), role, false)
		},
	}
	withConfig := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&config, "config", "", "configuration file (YAML); Dify's environment variables override it")
		return c
	}
	withConfig(cmd)
	for role, short := range map[difysim.Role]string{
		difysim.RoleAPI:     "Serve the service API",
		difysim.RoleWorker:  "Take tasks from the queues",
		difysim.RoleMigrate: "Create or complete the schema and the seeded apps, then exit",
	} {
		cmd.AddCommand(withConfig(&cobra.Command{
			Use: string(role), Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), role, false) },
		}))
	}
	cmd.AddCommand(a.difysimStubCommand())
	return cmd
}

// difysimStubCommand is the API alone, for tests of what stands in front of it.
func (a *app) difysimStubCommand() *cobra.Command {
	cfg := difysim.DefaultStubConfig()
	var admin string
	cmd := &cobra.Command{
		Use:   "stub",
		Short: "Serve the service API without database, Redis and vector store",
		Long: `Serves Dify's service API as far as it needs no memory: chat, completion and
workflow calls (blocking and streaming), stop, parameters, info, meta and
retrieval. Every key is accepted. It says that it is a simulator.

With --admin 127.0.0.1:5002 faults are set while it runs: everything ten times
slower, every second request a 500, no answers, no new connections, and none of
these:

  curl -X PUT --data '{"slow": 10}' http://127.0.0.1:5002/faults
  curl -X PUT --data '{"errorShare": 0.5}' http://127.0.0.1:5002/faults
  curl -X PUT --data '{"hang": true}' http://127.0.0.1:5002/faults
  curl -X PUT --data '{"refuse": true}' http://127.0.0.1:5002/faults
  curl -X PUT --data '{}' http://127.0.0.1:5002/faults`,
		Example: `  # two instances to put a gateway in front of
  fournines difysim stub --listen 127.0.0.1:5001 --instance dify-1 --admin 127.0.0.1:5002
  fournines difysim stub --listen 127.0.0.1:5011 --instance dify-2 --admin 127.0.0.1:5012`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runStub(cmd.Context(), cfg, admin) },
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:5001", "address of the API")
	f.StringVar(&admin, "admin", "", "address of /faults, /metrics, /livez and /readyz, such as 127.0.0.1:5002; empty for none")
	f.StringVar(&cfg.Instance, "instance", cfg.Instance, "name in X-Dify-Instance")
	f.StringVar(&cfg.ChatMode, "chat-mode", cfg.ChatMode, "mode of chat apps: chat, agent-chat or advanced-chat")
	f.IntVar(&cfg.Answer.Tokens, "tokens", cfg.Answer.Tokens, "tokens of an answer")
	f.Float64Var(&cfg.Answer.TokensPerSecond, "tokens-per-second", cfg.Answer.TokensPerSecond, "speed of the pretended model")
	f.DurationVar(&cfg.Answer.FirstTokenDelay, "first-token-delay", cfg.Answer.FirstTokenDelay, "thinking time of the pretended model")
	f.DurationVar(&cfg.CPU.Cost, "cost", cfg.CPU.Cost, "time of the one core that a generation or retrieval takes")
	f.DurationVar(&cfg.CPU.LightCost, "light-cost", cfg.CPU.LightCost, "time of the one core that every request takes")
	f.DurationVar(&cfg.LightDelay, "light-delay", cfg.LightDelay, "what a GET waits for")
	f.DurationVar(&cfg.Server.PingInterval, "ping-interval", cfg.Server.PingInterval, "time between the pings of a stream")
	f.DurationVar(&cfg.Server.KeepAlive, "keep-alive", cfg.Server.KeepAlive, "how long an idle connection stays open")
	f.DurationVar(&cfg.Server.GracefulTimeout, "graceful-timeout", cfg.Server.GracefulTimeout, "time for running requests at a stop")
	f.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "debug, info, warn or error")
	return cmd
}

func (a *app) runStub(ctx context.Context, cfg difysim.StubConfig, admin string) error {
	log, err := logging.New(a.stderr, cfg.LogLevel)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	reg := processRegistry()
	stub, err := difysim.NewStub(cfg, log.With("component", "difysim", "instance", cfg.Instance), reg)
	if err != nil {
		return &exitError{code: 2, err: err}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("difysim stub: %w: choose another address with --listen", err)
	}
	defer ln.Close()
	var group lifecycle.Group
	if err := addAdmin(ctx, &group, admin, &adminhttp.Server{Gatherer: reg, Handlers: stub.FaultHandlers()}); err != nil {
		return err
	}
	group.Add("stub", func(ctx context.Context) error { return stub.Run(ctx, ln) })
	return group.Run(ctx)
}
