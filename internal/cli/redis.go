package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fournines/component/rediscluster"
	"fournines/local"
	"fournines/redisproxy"
	"fournines/topology"
)

// redisCall is one of the subcommands of `fournines redis`.
type redisCall struct {
	dataDir  string
	nodes    []string
	user     string
	password string
	output   string
	timeout  time.Duration
	out      io.Writer
}

func (a *app) redisCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "redis",
		Short: "Look after a Redis Cluster: status, check, failover, reshard",
		Long: `Look after a Redis Cluster.

It operates the stack in --data-dir, or with --node any other cluster. The
account needs the right to administrate it.`,
		Args: cobra.NoArgs,
	}
	for _, sub := range []func(*redisCall) *cobra.Command{(*redisCall).statusCommand, (*redisCall).checkCommand, (*redisCall).failoverCommand, (*redisCall).reshardCommand} {
		cmd.AddCommand(sub(&redisCall{out: a.stdout}))
	}
	cmd.AddCommand(a.redisCommandsCommand())
	return cmd
}

// flags are those that every subcommand has.
func (c *redisCall) flags(f *pflag.FlagSet, timeout time.Duration) {
	dataDirFlag(f, &c.dataDir)
	f.StringArrayVar(&c.nodes, "node", nil, "a member of another cluster, host:port or host:port@zone; repeat to give zones to more")
	f.StringVar(&c.user, "user", "", "account at that cluster; empty means the default user")
	f.StringVar(&c.password, "password-file", "", "file with its password; without it there is no authentication")
	f.DurationVar(&c.timeout, "timeout", timeout, "how long all of it may take")
}

// with runs f with an operator of the cluster that the flags name.
func (c *redisCall) with(ctx context.Context, f func(ctx context.Context, o *rediscluster.Operator) error) error {
	var cfg rediscluster.OperatorConfig
	if len(c.nodes) > 0 {
		cfg = rediscluster.OperatorConfig{User: c.user, PasswordFile: c.password}
		for _, text := range c.nodes {
			_, e, err := topology.ParseEndpoint(text)
			if err != nil {
				return &exitError{code: 2, err: fmt.Errorf("--node: %w", err)}
			}
			cfg.Nodes = append(cfg.Nodes, e)
		}
	} else {
		dir, err := local.AbsDir(c.dataDir)
		if err != nil {
			return err
		}
		if cfg, err = local.OpenRedisControl(dir); err != nil {
			return err
		}
	}
	o, err := rediscluster.NewOperator(cfg)
	if err != nil {
		return err
	}
	defer o.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("not within --timeout %v", c.timeout))
	defer cancel()
	return f(ctx, o)
}

func (c *redisCall) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show masters, replicas, their slots, keys, memory and lag",
		Long: `Show masters, replicas, their slots, keys, memory and lag.

Exit status: 0 when all slots are served, 1 when not.`,
		Example: "  fournines redis status\n  fournines redis status --node 10.0.1.4:6379 --user admin --password-file redis.password -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.output != "text" && c.output != "json" {
				return &exitError{code: 2, err: fmt.Errorf("--output: want text or json, got %q", c.output)}
			}
			return c.with(cmd.Context(), func(ctx context.Context, o *rediscluster.Operator) error {
				s, err := o.Status(ctx)
				if err != nil {
					return err
				}
				if c.output == "json" {
					enc := json.NewEncoder(c.out)
					enc.SetIndent("", "  ")
					err = enc.Encode(s)
				} else {
					err = printRedisStatus(c.out, s)
				}
				if err == nil && s.State == "down" {
					err = &exitError{code: 1}
				}
				return err
			})
		},
	}
	c.flags(cmd.Flags(), time.Minute)
	cmd.Flags().StringVarP(&c.output, "output", "o", "text", "text or json")
	return cmd
}

func printRedisStatus(w io.Writer, s *rediscluster.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tZONE\tADDRESS\tROLE\tSTATE\tSLOTS\tKEYS\tMEMORY\tLAG")
	row := func(n rediscluster.NodeStatus) {
		slots, lag := "", ""
		if n.Role == "master" {
			slots = fmt.Sprint(n.Slots)
		} else {
			lag = fmt.Sprintf("%d B", n.LagBytes)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.1f MiB\t%s\n", n.Name, n.Zone, n.Address, n.Role, n.State, slots, n.Keys, float64(n.MemoryBytes)/(1<<20), lag)
	}
	for _, shard := range s.Shards {
		row(shard.Master)
		for _, r := range shard.Replicas {
			row(r)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%s: %d of 16384 slots served\n", s.State, s.SlotsServed)
	for _, p := range s.Problems {
		fmt.Fprintln(w, "  "+p)
	}
	return nil
}

func (c *redisCall) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the cluster, placement included",
		Long: `Say what is wrong with the cluster: nodes that are down, slots that nobody
serves or that are half moved, replicas that do not follow, masters without a
replica outside their zone, a zone whose loss leaves no majority of masters,
memory that is nearly full, members that do not agree.

Exit status: 0 when nothing is wrong, 1 when something is.`,
		Example: "  fournines redis check",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, o *rediscluster.Operator) error {
				s, err := o.Status(ctx)
				if err != nil {
					return err
				}
				if len(s.Problems) > 0 {
					return errors.New(strings.Join(s.Problems, "\n"))
				}
				fmt.Fprintf(c.out, "ok: %d masters, each with a replica elsewhere; all slots served\n", len(s.Shards))
				return nil
			})
		},
	}
	c.flags(cmd.Flags(), time.Minute)
	return cmd
}

func (c *redisCall) failoverCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "failover REPLICA",
		Short: "Make a replica the master of its shard, without losing a write",
		Long: `Make a replica the master of its shard, by name or address.

The master stops taking writes until the replica has them all, so nothing is
lost; through redisproxy clients see one slow command. With --force the master
is not asked, for one that is dead and was not replaced by itself: writes that
had not reached the replica are lost.`,
		Example: "  fournines redis failover redis-b-2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, o *rediscluster.Operator) error {
				began := time.Now()
				old, next, err := o.Failover(ctx, args[0], force)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.out, "%s is master of %d slots instead of %s after %.1fs\n", next.Name, old.Slots, old.Name, time.Since(began).Seconds())
				return nil
			})
		},
	}
	c.flags(cmd.Flags(), time.Minute)
	cmd.Flags().BoolVar(&force, "force", false, "without the master's consent; writes may be lost")
	return cmd
}

func (c *redisCall) reshardCommand() *cobra.Command {
	var from, to string
	var slots int
	var balance, dryRun bool
	cmd := &cobra.Command{
		Use:   "reshard",
		Short: "Move slots with their keys between masters while clients go on",
		Long: `Move slots with their keys between masters while clients go on.

Give --from, --to and --slots, or --balance. Slots that an earlier reshard left
half moved are moved to their end first. A key of many megabytes stops its
master for as long as it is copied.`,
		Example: "  fournines redis reshard --balance --dry-run\n  fournines redis reshard --from redis-a-1 --to redis-c-1 --slots 500",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if balance == (slots > 0) || !balance && (from == "" || to == "") || balance && (from != "" || to != "") {
				return &exitError{code: 2, err: errors.New("give --from, --to and --slots, or --balance")}
			}
			return c.with(cmd.Context(), func(ctx context.Context, o *rediscluster.Operator) error {
				return c.reshard(ctx, o, dryRun, func(s *rediscluster.Status) ([]*rediscluster.Move, error) {
					if balance {
						return s.PlanBalance(), nil
					}
					m, err := s.PlanMove(from, to, slots)
					return []*rediscluster.Move{m}, err
				})
			})
		},
	}
	f := cmd.Flags()
	c.flags(f, time.Hour)
	f.StringVar(&from, "from", "", "master that gives slots")
	f.StringVar(&to, "to", "", "master that gets them")
	f.IntVar(&slots, "slots", 0, "how many")
	f.BoolVar(&balance, "balance", false, "give every master the same number of slots")
	f.BoolVar(&dryRun, "dry-run", false, "only say what would move")
	return cmd
}

func (c *redisCall) reshard(ctx context.Context, o *rediscluster.Operator, dryRun bool, plan func(*rediscluster.Status) ([]*rediscluster.Move, error)) error {
	if !dryRun {
		mended, err := o.Mend(ctx)
		if err != nil {
			return err
		}
		if len(mended) > 0 {
			fmt.Fprintf(c.out, "ended what was left half moved: slots %v\n", mended)
		}
	}
	s, err := o.Status(ctx)
	if err != nil {
		return err
	}
	moves, err := plan(s)
	if err != nil {
		return err
	}
	if len(moves) == 0 {
		fmt.Fprintln(c.out, "nothing to move")
	}
	for _, m := range moves {
		if dryRun {
			fmt.Fprintf(c.out, "%d slots from %s to %s\n", len(m.Slots), m.From.Name, m.To.Name)
			continue
		}
		began, keys := time.Now(), 0
		if err := o.Execute(ctx, m, func(_, n int) { keys += n }); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%d slots with %d keys from %s to %s in %.1fs\n", len(m.Slots), keys, m.From.Name, m.To.Name, time.Since(began).Seconds())
	}
	return nil
}

func (a *app) redisCommandsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "commands",
		Short: "List what redisproxy does with each command of Redis",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "COMMAND\tSUPPORT\tREASON")
			for _, c := range redisproxy.Commands() {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", strings.ReplaceAll(c.Name, "|", " "), c.Support, c.Reason)
			}
			return tw.Flush()
		},
	}
}
