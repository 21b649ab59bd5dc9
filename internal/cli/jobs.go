package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/gateway/jobs"
)

// jobsAdmin speaks to the jobs part of a gateway's admin API.
type jobsAdmin struct {
	app    *app
	client gatewayClient
}

func (a *app) jobsCommand() *cobra.Command {
	j := &jobsAdmin{app: a}
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "Look after the jobs of the gateways' async lane",
		Long: `Look after the jobs of the gateways' async lane.

A job is a call with "Prefer: respond-async": the gateway answered 202, and the
call runs by itself. It ends in a result or, when it failed, as a dead letter.

Any gateway knows the jobs of all that share its Redis. What was asked and
answered is not shown: that is for the app's own key, at /jobs/ID.`,
		Example: `  fournines jobs list --state running
  fournines jobs dead
  fournines jobs replay all

  # in a stack on this machine, through any gateway
  fournines jobs dead --config /var/lib/fournines/gateway-a/config.yaml`,
		Args: cobra.NoArgs,
	}
	var state string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List jobs, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return j.list(cmd.Context(), state, limit) },
	}
	list.Flags().StringVar(&state, "state", "all", "all, queued, running, dead or webhooks-dead")
	list.Flags().IntVar(&limit, "limit", 100, "at most so many, up to 1000")
	dead := &cobra.Command{
		Use: "dead", Short: "List the dead letters: jobs that failed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return j.list(cmd.Context(), "dead", limit) },
	}
	dead.Flags().IntVar(&limit, "limit", 100, "at most so many, up to 1000")
	show := &cobra.Command{
		Use: "show ID", Short: "Show one job", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return j.show(cmd.Context(), args[0]) },
	}
	cancel := &cobra.Command{
		Use: "cancel ID", Short: "Cancel a job that has not finished", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return j.act(cmd.Context(), "/jobs/"+url.PathEscape(args[0])+"/cancel")
		},
	}
	var hooks bool
	replay := &cobra.Command{
		Use: "replay ID|all", Short: "Queue dead letters again", Args: cobra.ExactArgs(1),
		Long: `Queue dead letters again.

A job with the reason "lost" may have been carried out before: to replay it is to
accept that it may be carried out twice.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case hooks && args[0] == "all":
				return j.act(cmd.Context(), "/jobs/webhooks-dead/replay")
			case hooks:
				return j.act(cmd.Context(), "/jobs/"+url.PathEscape(args[0])+"/webhook/replay")
			case args[0] == "all":
				return j.act(cmd.Context(), "/jobs/dead/replay")
			}
			return j.act(cmd.Context(), "/jobs/"+url.PathEscape(args[0])+"/replay")
		},
	}
	replay.Flags().BoolVar(&hooks, "webhook", false, "make the webhook calls that were given up again, not the jobs")
	purge := &cobra.Command{
		Use: "purge ID|all", Short: "Forget dead letters", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "all" {
				return j.act(cmd.Context(), "/jobs/dead/purge")
			}
			return j.act(cmd.Context(), "/jobs/"+url.PathEscape(args[0])+"/purge")
		},
	}
	key := &cobra.Command{
		Use: "new-key", Short: "Print a new key for jobs.keyFile", Args: cobra.NoArgs,
		Long: `Print a new key for jobs.keyFile.

Put it in a file of mode 0600 and give all gateways the same file. To change the
key, put the new one on the first line and leave the old one below it until the
jobs that it encrypted are gone (jobs.deadRetention).`,
		Example: `  (umask 077; fournines jobs new-key > jobs.key)`,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.stdout, jobs.NewKey())
			return err
		},
	}
	for _, c := range []*cobra.Command{list, dead, show, cancel, replay, purge} {
		cmd.AddCommand(j.client.flags(c))
	}
	cmd.AddCommand(key)
	return cmd
}

func (j *jobsAdmin) list(ctx context.Context, state string, limit int) error {
	var answer struct {
		Jobs []jobs.Listed `json:"jobs"`
	}
	raw, err := j.call(ctx, http.MethodGet, fmt.Sprintf("/jobs?state=%s&limit=%d", url.QueryEscape(state), limit), &answer)
	if err != nil {
		return err
	}
	if j.client.output == "json" {
		_, err := j.app.stdout.Write(raw)
		return err
	}
	w := tabwriter.NewWriter(j.app.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tSTATE\tAPP\tCLASS\tAGE\tATTEMPTS\tERROR")
	for _, job := range answer.Jobs {
		problem := ""
		if job.Error != nil {
			problem = strings.TrimSpace(job.Error.Reason + " " + job.Error.Code)
		}
		if state == "webhooks-dead" {
			problem = job.WebhookError
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", job.ID, job.State, job.App, job.Class, age(job.Created), job.Attempts, problem)
	}
	return w.Flush()
}

func age(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return time.Since(*t).Round(time.Second).String()
}

func (j *jobsAdmin) show(ctx context.Context, id string) error {
	var job jobs.Listed
	raw, err := j.call(ctx, http.MethodGet, "/jobs/"+url.PathEscape(id), &job)
	if err != nil {
		return err
	}
	if j.client.output == "json" {
		_, err := j.app.stdout.Write(raw)
		return err
	}
	w := tabwriter.NewWriter(j.app.stdout, 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(w, "%s\t%v\n", name, value) }
	row("id", job.ID)
	row("state", job.State)
	row("app", job.App)
	row("request", job.Class+" "+job.Path)
	row("request id", job.RequestID)
	for _, t := range []struct {
		name string
		at   *time.Time
	}{{"created", job.Created}, {"started", job.Started}, {"finished", job.Finished}} {
		if t.at != nil {
			row(t.name, t.at.Format(time.RFC3339))
		}
	}
	row("attempts", job.Attempts)
	row("may be repeated", job.Repeat)
	if job.Owner != "" {
		row("gateway", job.Owner)
	}
	if job.Error != nil {
		row("error", strings.TrimSpace(fmt.Sprintf("%s %s: %s", job.Error.Reason, job.Error.Code, job.Error.Message)))
	}
	if job.Webhook != nil {
		row("webhook", fmt.Sprintf("%s after %d attempts %s", job.Webhook.State, job.Webhook.Attempts, job.WebhookError))
	}
	return w.Flush()
}

// act makes a call that changes something.
func (j *jobsAdmin) act(ctx context.Context, path string) error {
	var answer struct {
		ID   string `json:"id"`
		Done *int   `json:"done"`
	}
	raw, err := j.call(ctx, http.MethodPost, path, &answer)
	if err != nil {
		return err
	}
	switch {
	case j.client.output == "json":
		_, err = j.app.stdout.Write(raw)
	case answer.Done != nil:
		_, err = fmt.Fprintf(j.app.stdout, "%d done\n", *answer.Done)
	default:
		_, err = fmt.Fprintln(j.app.stdout, answer.ID)
	}
	return err
}

func (j *jobsAdmin) call(ctx context.Context, method, path string, into any) ([]byte, error) {
	if j.client.output != "table" && j.client.output != "json" {
		return nil, &exitError{code: 2, err: fmt.Errorf("output %q: want table or json", j.client.output)}
	}
	raw, err := j.client.call(ctx, method, "/v1"+path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("answer of the gateway: %w", err)
	}
	return raw, nil
}
