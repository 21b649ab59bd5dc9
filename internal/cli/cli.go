// Package cli is the command line of fournines: one file per subcommand. It is
// the only place where features are put together.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"fournines/local"
)

// version is what --version says; `make build` puts the commit here.
var version = "dev"

// app carries what every subcommand needs from its surroundings.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// plan makes the plan of a stack; tests put a small one here.
	plan func(ctx context.Context, cfg local.PlanConfig) (*local.Plan, error)
}

// exitError ends the program with a code other than 1. Its message, when not
// empty, is printed like any other error.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Main runs the command that args name and returns the exit code: 0 for
// success, 1 for a failure, 2 for a wrong call, or the code a command documents.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// The Redis client prints to stderr in its own form what its callers get as
	// errors, and log, as well.
	redis.SetLogger(silentRedis{})
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, plan: local.BuildPlan}
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if msg := exit.Error(); msg != "" {
			fmt.Fprintln(a.stderr, "fournines: "+msg)
		}
		return exit.code
	}
	fmt.Fprintln(a.stderr, "fournines: "+err.Error())
	return 1
}

// silentRedis drops what the Redis client says on its own.
type silentRedis struct{}

// Printf implements the Redis client's logger.
func (silentRedis) Printf(context.Context, string, ...any) {}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "fournines",
		Short:         "Run a self-hosted Dify at 99.99% availability",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// The help lists commands by what a person wants to do.
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"stack", "Run a stack on this machine:", []*cobra.Command{
			a.upCommand(), a.statusCommand(), a.logsCommand(), a.downCommand(),
			a.restartCommand(), a.startCommand(), a.stopCommand(), a.switchoverCommand(),
		}},
		{"spec", "Describe it:", []*cobra.Command{a.initCommand(), a.configCommand(), a.renderCommand()}},
		{"faults", "Break it on purpose:", []*cobra.Command{
			a.drillCommand(), a.killCommand(), a.pauseCommand(), a.resumeCommand(), a.zoneCommand(),
		}},
		{"objectives", "Watch the objectives:", []*cobra.Command{a.sloCommand()}},
		{"audit", "Find what costs availability:", []*cobra.Command{a.auditCommand(), a.planCommand(), a.proveCommand()}},
		{"work", "Look after work in progress:", []*cobra.Command{a.jobsCommand(), a.redisCommand()}},
		{"backup", "Keep copies of the data:", []*cobra.Command{a.backupCommand()}},
		{"parts", "Run one part alone:", []*cobra.Command{
			a.gatewayCommand(), a.pgproxyCommand(), a.redisproxyCommand(), a.loadbalancerCommand(),
			a.consoleCommand(), a.zonelinkCommand(), a.difysimCommand(),
		}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(a.superviseCommand())
	return root
}
