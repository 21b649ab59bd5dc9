package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"fournines/gateway"
)

// gatewayClient calls the admin API of one gateway.
type gatewayClient struct {
	config    string // of the gateway; has the other two
	address   string
	tokenFile string
	output    string
}

// maxAdminAnswer bounds what is read of an answer.
const maxAdminAnswer = 16 << 20

func (c *gatewayClient) flags(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&c.address, "admin", gateway.DefaultConfig().AdminListen, "admin address of the gateway, host:port")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the token of the admin API")
	f.StringVar(&c.config, "config", "", "configuration file of the gateway, to take both from")
	f.StringVarP(&c.output, "output", "o", "table", "table or json")
	return cmd
}

// gatewayAdminCommands look at a running gateway and operate it.
func (a *app) gatewayAdminCommands() []*cobra.Command {
	get := func(use, short, long, path string, table func(io.Writer, []byte) error) *cobra.Command {
		var c gatewayClient
		return c.flags(&cobra.Command{
			Use: use, Short: short, Long: long, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.gatewayCall(cmd.Context(), &c, http.MethodGet, path, table)
			},
		})
	}
	var drain, undrain, reload gatewayClient
	var force bool
	drainCmd := drain.flags(&cobra.Command{
		Use:   "drain [ENDPOINT]",
		Short: "Take a Dify instance out of service, or end the whole gateway in order",
		Long: `Take a Dify instance out of service, or end the whole gateway in order.

With the name of an endpoint (see "fournines gateway endpoints") it gets no new
requests until "undrain"; what it works on ends by itself. This is for
maintenance and is forgotten when the gateway is restarted. Without a name the
gateway itself drains and ends, as after SIGTERM.`,
		Example: `  fournines gateway drain dify-1:5001
  fournines gateway undrain dify-1:5001`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.gatewayCall(cmd.Context(), &drain, http.MethodPost, "/v1/drain", statusTable)
			}
			path := "/v1/endpoints/" + url.PathEscape(args[0]) + "/drain"
			if force {
				path += "?force=true"
			}
			return a.gatewayCall(cmd.Context(), &drain, http.MethodPost, path, oneEndpointTable)
		},
	})
	drainCmd.Flags().BoolVar(&force, "force", false, "also when it is the last endpoint in service")
	return []*cobra.Command{
		get("status", "Show how a gateway is", "", "/v1/status", statusTable),
		get("endpoints", "Show the Dify instances as a gateway sees them", `Show the Dify instances as a gateway sees them.

IN FLIGHT are the requests at an instance, open streams included; WORKING are
those of them without content yet, and how many of these the adaptive limit
allows. LATENCY is the time until an answer begins, "-" without one of late.`, "/v1/endpoints", endpointsTable),
		get("apps", "Show who uses a gateway", `Show who uses a gateway, since it was started.

An app has the name that the configuration gives it, or the id of its key; "none"
is requests without a key, "other" keys that no instance has done work for.`, "/v1/apps", appsTable),
		get("streams", "Show the open streams by app, class and age", "", "/v1/streams", streamsTable),
		drainCmd,
		undrain.flags(&cobra.Command{
			Use: "undrain ENDPOINT", Short: "Put a drained Dify instance back into service",
			Args: exactlyOne("endpoint", "fournines gateway endpoints"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.gatewayCall(cmd.Context(), &undrain, http.MethodPost, "/v1/endpoints/"+url.PathEscape(args[0])+"/undrain", oneEndpointTable)
			},
		}),
		reload.flags(&cobra.Command{
			Use: "reload", Short: "Make a gateway read its configuration again", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.gatewayCall(cmd.Context(), &reload, http.MethodPost, "/v1/reload", statusTable)
			},
		}),
	}
}

// gatewayCall prints the answer, as it is or as a table.
func (a *app) gatewayCall(ctx context.Context, c *gatewayClient, method, path string, table func(io.Writer, []byte) error) error {
	if c.output != "table" && c.output != "json" {
		return &exitError{code: 2, err: fmt.Errorf("output %q: want table or json", c.output)}
	}
	body, err := c.call(ctx, method, path)
	if err != nil {
		return err
	}
	if c.output == "json" {
		_, err = a.stdout.Write(body)
		return err
	}
	return table(a.stdout, body)
}

func (c *gatewayClient) call(ctx context.Context, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	address, tokenFile := c.address, c.tokenFile
	if c.config != "" {
		if tokenFile != "" || address != gateway.DefaultConfig().AdminListen {
			return nil, &exitError{code: 2, err: errors.New("--config has the admin address and the token: leave --admin and --token-file out")}
		}
		cfg := gateway.DefaultConfig()
		if err := loadConfig(c.config, &cfg); err != nil {
			return nil, err
		}
		if address, tokenFile = cfg.AdminListen, cfg.Admin.TokenFile; address == "" {
			return nil, &exitError{code: 2, err: fmt.Errorf("%s: adminListen is empty: the gateway has no admin API", c.config)}
		}
	}
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		address = net.JoinHostPort("127.0.0.1", port)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return nil, &exitError{code: 2, err: fmt.Errorf("--admin %q: want host:port", c.address)}
	}
	if tokenFile != "" {
		token, err := os.ReadFile(tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	transport := &http.Transport{DisableKeepAlives: true, Proxy: nil}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the gateway: %w: --admin or --config says where one runs", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminAnswer))
	if err != nil {
		return nil, fmt.Errorf("ask the gateway: %w", err)
	}
	if resp.StatusCode < 300 {
		return body, nil
	}
	var said struct{ Code, Message string }
	if json.Unmarshal(body, &said) != nil || said.Message == "" {
		said.Message = strings.TrimSpace(string(body))
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		said.Message += "; give it with --token-file, or with the gateway's --config"
	case http.StatusNotFound:
		switch {
		case !strings.HasPrefix(said.Message, "404"):
		case strings.HasPrefix(path, "/v1/jobs"):
			said.Message = "this gateway has no async lane (jobs.keyFile), or serves no admin API (admin.api)"
		default:
			said.Message = "this gateway serves no admin API (admin.api)"
		}
	case http.StatusConflict:
		if said.Code == "last_endpoint" {
			said.Message = strings.Replace(said.Message, "?force=true", "--force", 1)
		}
	}
	return nil, errors.New(said.Message)
}

// table prints what body holds with a header.
func table[T any](w io.Writer, body []byte, header string, row func(tw io.Writer, v T)) error {
	var rows []T
	if err := json.Unmarshal(body, &rows); err != nil {
		return fmt.Errorf("answer of the gateway: %w", err)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, header)
	for _, v := range rows {
		row(tw, v)
	}
	return tw.Flush()
}

func endpointsTable(w io.Writer, body []byte) error {
	return table(w, body, "ENDPOINT\tZONE\tSTATE\tIN FLIGHT\tWORKING\tLATENCY", func(tw io.Writer, e gateway.EndpointStatus) {
		state := e.State
		if e.EjectedUntil != nil && state == "ejected" {
			state += " until " + e.EjectedUntil.Format(time.TimeOnly)
		}
		working, latency := fmt.Sprint(e.Working), "-"
		if e.WorkingLimit > 0 {
			working += fmt.Sprintf(" of %d", e.WorkingLimit)
		}
		if e.LatencyMS > 0 {
			latency = fmt.Sprintf("%.1f ms", e.LatencyMS)
		}
		zone := e.Zone
		if e.Local {
			zone += " (own)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\n", e.Name, zone, state, e.InFlight, working, latency)
	})
}

func oneEndpointTable(w io.Writer, body []byte) error {
	return endpointsTable(w, append(append([]byte("["), body...), ']'))
}

func appsTable(w io.Writer, body []byte) error {
	return table(w, body, "APP\tREQUESTS\tERRORS\tSTREAMS\tLAST USED", func(tw io.Writer, s gateway.AppStatus) {
		used := "never"
		if s.LastUsed != nil {
			used = s.LastUsed.Format(time.DateTime)
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\n", s.App, s.Requests, s.Errors, s.Streams, used)
	})
}

func streamsTable(w io.Writer, body []byte) error {
	return table(w, body, "APP\tCLASS\tAGE\tSTREAMS", func(tw io.Writer, s gateway.StreamCount) {
		age := "under " + s.Age
		if s.Age == "older" {
			age = "1h and more"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\n", s.App, s.Class, age, s.Count)
	})
}

func statusTable(w io.Writer, body []byte) error {
	var s gateway.Status
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("answer of the gateway: %w", err)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	state := "ready"
	switch {
	case s.Draining:
		state = "draining"
	case !s.Ready:
		state = "not ready: " + s.NotReady
	}
	line("state", "%s", state)
	line("zone", "%s", s.Zone)
	line("version", "%s (pid %d, up %v)", s.Version, s.PID, (time.Duration(s.UptimeSeconds) * time.Second))
	line("in work", "%d requests, %d of them streams; %d wait; %d connections", s.InFlight, s.Streams, s.Waiting, s.Connections)
	switch {
	case s.LastReload == nil:
		line("configuration", "%s, as at the start", s.ConfigHash)
	case s.LastReloadOK:
		line("configuration", "%s, reloaded %s", s.ConfigHash, s.LastReload.Format(time.DateTime))
	default:
		line("configuration", "%s; the reload of %s was refused: %s", s.ConfigHash, s.LastReload.Format(time.DateTime), s.LastReloadSays)
	}
	if s.CertExpires != nil {
		line("certificate", "until %s", s.CertExpires.Format(time.DateTime))
	}
	return tw.Flush()
}
