package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"fournines/difysim"
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
		Args:  cobra.NoArgs,
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
	cmd.PersistentFlags().StringVar(&config, "config", "", "configuration file (YAML); Dify's environment variables override it")
	for role, short := range map[difysim.Role]string{
		difysim.RoleAPI:     "Serve the service API",
		difysim.RoleWorker:  "Take tasks from the queues",
		difysim.RoleMigrate: "Create or complete the schema and the seeded apps, then exit",
	} {
		cmd.AddCommand(&cobra.Command{
			Use: string(role), Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), role, false) },
		})
	}
	return cmd
}
