package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"fournines/audit"
	"fournines/audit/live"
	"fournines/spec"
)

// auditOptions are the flags of `fournines audit`.
type auditOptions struct {
	output, failOn string
	suppressions   string
	showSuppressed bool
	fix, dryRun    bool
	list           bool

	prometheus, gateway, postgres, redis        []string
	gatewayToken, postgresPassword, redisSecret string
}

func (a *app) auditCommand() *cobra.Command {
	var o auditOptions
	cmd := &cobra.Command{
		Use:   "audit [FILE|DIRECTORY|-]...",
		Short: "Find what costs an installation its nines",
		Long: `Reads a spec, docker compose files, Kubernetes manifests (the output of helm
template too), rules and configuration of Prometheus, nginx, PostgreSQL and Redis,
and scripts, and reports mistakes that cost availability: where, why, how much in a
year, and the fix. Servers that run are asked with --prometheus, --postgres, --redis
and --gateway; nothing in them is changed. Without an argument it reads
fournines.yaml.

docs/audit.md lists the rules, what they cost and how to suppress one.

Exit status: 0 no finding at or above --fail-on, 1 at least one, 2 it could not run.`,
		Example: `  fournines audit docker-compose.yaml
  helm template dify ./chart | fournines audit -
  fournines audit k8s/ -o sarif
  fournines audit --postgres postgres://auditor@db/dify --postgres-password-file pw
  fournines audit k8s/ --fix --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.audit(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "table", "table, json or sarif")
	f.StringVar(&o.failOn, "fail-on", "high", "lowest severity that makes the exit status 1: low, medium, high, critical or none")
	f.StringVar(&o.suppressions, "suppressions", "", "file of suppressions (default "+audit.SuppressionFile+", if it exists)")
	f.BoolVar(&o.showSuppressed, "show-suppressed", false, "list what is suppressed")
	f.BoolVar(&o.fix, "fix", false, "change the files where that is safe, and show the difference")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --fix: show the difference only")
	f.StringArrayVar(&o.prometheus, "prometheus", nil, "URL of a Prometheus that runs; may be repeated, like the next three")
	f.StringArrayVar(&o.postgres, "postgres", nil, "URL of a PostgreSQL server that runs, without a password")
	f.StringArrayVar(&o.redis, "redis", nil, "URL of a Redis node that runs, without a password")
	f.StringArrayVar(&o.gateway, "gateway", nil, "URL of the admin address of a fournines gateway that runs")
	f.StringVar(&o.postgresPassword, "postgres-password-file", "", "file with the password for --postgres")
	f.StringVar(&o.redisSecret, "redis-password-file", "", "file with the password for --redis")
	f.StringVar(&o.gatewayToken, "gateway-token-file", "", "file with the token for --gateway")
	f.BoolVar(&o.list, "list", false, "list the rules and read nothing")
	return cmd
}

func (a *app) audit(ctx context.Context, args []string, o auditOptions) error {
	if o.list {
		return a.listRules()
	}
	failOn, err := audit.ParseSeverity(o.failOn)
	if err != nil {
		return couldNotRun(fmt.Errorf("--fail-on: %w", err))
	}
	if !slices.Contains([]string{"table", "json", "sarif"}, o.output) {
		return couldNotRun(fmt.Errorf("output %q: want table, json or sarif", o.output))
	}
	if o.dryRun && !o.fix {
		return couldNotRun(errors.New("--dry-run goes with --fix"))
	}
	servers, err := askServers(ctx, o)
	if err != nil {
		return couldNotRun(err)
	}
	if len(args) == 0 && servers == nil {
		args = []string{spec.FileName}
	}
	suppressions, err := readSuppressions(o.suppressions)
	if err != nil {
		return couldNotRun(err)
	}
	texts, err := a.readInputs(args)
	if err != nil {
		return couldNotRun(err)
	}
	report, err := inspect(servers, texts, suppressions)
	if err != nil {
		return couldNotRun(err)
	}
	if o.fix {
		if report, err = a.mend(servers, texts, report, suppressions, o.dryRun); err != nil {
			return couldNotRun(err)
		}
	}
	switch o.output {
	case "json":
		err = audit.WriteJSON(a.stdout, report, failOn)
	case "sarif":
		err = audit.WriteSARIF(a.stdout, report, version)
	default:
		err = audit.WriteTable(a.stdout, report, o.showSuppressed)
	}
	if err != nil {
		return couldNotRun(err)
	}
	if report.Worst() >= failOn {
		return &exitError{code: 1}
	}
	return nil
}

// auditInput is a file that was read.
type auditInput struct {
	name string
	data []byte
	env  map[string]string
	mode fs.FileMode
	// named by the user, not found in a folder.
	named bool
}

// askServers asks every server that the flags name; nil when they name none.
func askServers(ctx context.Context, o auditOptions) (*audit.Inventory, error) {
	if len(o.prometheus)+len(o.postgres)+len(o.redis)+len(o.gateway) == 0 {
		return nil, nil
	}
	secrets := map[string]string{}
	for _, path := range []string{o.postgresPassword, o.redisSecret, o.gatewayToken} {
		if path == "" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a secret: %w", err)
		}
		secrets[path] = strings.TrimSpace(string(text))
	}
	in := &audit.Inventory{}
	for _, u := range o.prometheus {
		s, err := live.Prometheus(ctx, u)
		if err != nil {
			return nil, err
		}
		in.Prometheus = append(in.Prometheus, s)
	}
	for _, u := range o.postgres {
		s, err := live.Postgres(ctx, u, secrets[o.postgresPassword])
		if err != nil {
			return nil, err
		}
		in.Postgres = append(in.Postgres, s)
	}
	for _, u := range o.redis {
		s, err := live.Redis(ctx, u, secrets[o.redisSecret])
		if err != nil {
			return nil, err
		}
		in.Redis = append(in.Redis, s)
	}
	for _, u := range o.gateway {
		s, err := live.Gateway(ctx, u, secrets[o.gatewayToken])
		if err != nil {
			return nil, err
		}
		in.Gateways = append(in.Gateways, s)
	}
	return in, nil
}

func inspect(servers *audit.Inventory, inputs []auditInput, suppressions []audit.Suppression) (*audit.Report, error) {
	in := &audit.Inventory{}
	if servers != nil {
		in.Prometheus, in.Postgres, in.Redis, in.Gateways = servers.Prometheus, servers.Postgres, servers.Redis, servers.Gateways
	}
	for _, input := range inputs {
		err := in.Add(input.name, input.data, input.env)
		if err != nil && (input.named || !errors.Is(err, audit.ErrUnknown)) {
			return nil, err
		}
	}
	return audit.Run(in, suppressions), nil
}

func readSuppressions(path string) ([]audit.Suppression, error) {
	named := path != ""
	if !named {
		path = audit.SuppressionFile
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read suppressions: %w", err)
	}
	return audit.ParseSuppressions(path, data, time.Now())
}

// readInputs reads the files that args name, and those below folders.
func (a *app) readInputs(args []string) ([]auditInput, error) {
	var out []auditInput
	for _, arg := range args {
		if arg == "-" {
			data, err := io.ReadAll(io.LimitReader(a.stdin, audit.MaxFileSize+1))
			if err != nil {
				return nil, fmt.Errorf("read standard input: %w", err)
			}
			out = append(out, auditInput{name: "stdin.yaml", data: data, named: true})
			continue
		}
		info, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			input, err := readInput(arg, true)
			if err != nil {
				return nil, err
			}
			out = append(out, input)
			continue
		}
		err = filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
			hidden := strings.HasPrefix(d.Name(), ".") && path != arg
			switch {
			case err != nil:
				return err
			case d.IsDir() && (hidden || d.Name() == "node_modules"):
				return fs.SkipDir
			case d.IsDir() || hidden || !d.Type().IsRegular() || !slices.Contains([]string{".yaml", ".yml", ".json", ".sh", ".conf", ".template"}, filepath.Ext(path)):
				return nil
			}
			if info, err := d.Info(); err != nil || info.Size() > audit.MaxFileSize {
				return err
			}
			input, err := readInput(path, false)
			out = append(out, input)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readInput reads a file, and the .env beside it, which docker compose takes
// variables from.
func readInput(path string, named bool) (auditInput, error) {
	info, err := os.Stat(path)
	if err != nil {
		return auditInput{}, err
	}
	if info.Size() > audit.MaxFileSize {
		return auditInput{}, fmt.Errorf("%s has %d bytes, more than the %d that are read", path, info.Size(), audit.MaxFileSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return auditInput{}, err
	}
	input := auditInput{name: path, data: data, named: named, mode: info.Mode().Perm(), env: map[string]string{}}
	env, err := os.ReadFile(filepath.Join(filepath.Dir(path), ".env"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return auditInput{}, err
	}
	for line := range strings.Lines(string(env)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(name, "#") {
			input.env[strings.TrimSpace(name)] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return input, nil
}

// mend makes the safe changes, shows them, and returns what is left.
func (a *app) mend(servers *audit.Inventory, inputs []auditInput, report *audit.Report, suppressions []audit.Suppression, dryRun bool) (*audit.Report, error) {
	edits := map[string][]audit.Edit{}
	for _, f := range report.Findings {
		for _, e := range f.Edits {
			edits[e.File] = append(edits[e.File], e)
		}
	}
	changed := slices.Clone(inputs)
	for i, input := range inputs {
		list := edits[input.name]
		if len(list) == 0 || input.name == "stdin.yaml" && input.mode == 0 {
			continue
		}
		data, err := audit.Apply(input.data, list)
		if err != nil {
			return nil, err
		}
		changed[i].data = data
	}
	// A change that breaks a file, or that a rule does not accept, is a fault of
	// ours: nothing is written then.
	rest, err := inspect(servers, changed, suppressions)
	if err != nil {
		return nil, fmt.Errorf("the changes would break the file: %w", err)
	}
	for i, input := range inputs {
		if bytes.Equal(input.data, changed[i].data) {
			continue
		}
		if _, err := a.stderr.Write(diff.Diff(input.name, input.data, input.name, changed[i].data)); err != nil {
			return nil, err
		}
		if dryRun {
			continue
		}
		if err := replaceFile(input.name, changed[i].data, input.mode); err != nil {
			return nil, err
		}
	}
	if dryRun {
		return report, nil
	}
	return rest, nil
}

// replaceFile puts a whole new file in the place of the old one.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	// The file may be a link to where the text really is.
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	next := target + ".new"
	if err := os.WriteFile(next, data, mode); err != nil {
		return err
	}
	if err := os.Rename(next, target); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}

func (a *app) listRules() error {
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tSEVERITY\tMIN/YEAR\tFINDS\tREADS")
	for _, r := range audit.Rules() {
		kinds := map[string]bool{}
		for _, k := range r.Reads {
			kinds[string(k)] = true
		}
		fmt.Fprintf(tw, "%s\t%s\t%.1f\t%s\t%s\n", r.ID, r.Severity, r.Cost.Minutes(), r.Title, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
	}
	return tw.Flush()
}
