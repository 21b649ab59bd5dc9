package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"fournines/component/postgres"
	"fournines/internal/adminhttp"
	"fournines/local"
	"fournines/pgproxy"
)

// switchover is one planned change of the PostgreSQL primary.
type switchover struct {
	control local.PostgresControl
	to      string
	wait    time.Duration // for running transactions
	timeout time.Duration // from the pause to the new primary
	maxLag  int64         // bytes
	check   bool
	out     io.Writer
	begun   time.Time
	token   string
	before  []string // the primary of each proxy at the start
}

func (a *app) switchoverCommand() *cobra.Command {
	var dataDir string
	var proxies, patroni []string
	var proxyToken, patroniPassword, superuser string
	s := switchover{out: a.stdout}
	cmd := &cobra.Command{
		Use:   "switchover",
		Short: "Make another PostgreSQL server the primary; no statement fails",
		Long: `Make another PostgreSQL server the primary; no statement fails.

It checks that a synchronous standby is healthy and close behind, lets every
pgproxy hold new transactions until the running ones have ended, asks Patroni to
hand over, and lets the transactions go on at the new primary. Clients see one
slow transaction. When anything goes wrong the proxies resume; they also do so by
themselves when this command is cut off.

It operates the stack in --data-dir, or with --proxy and --patroni any other
database behind pgproxies with an admin API.

Exit status: 0 when the new primary takes writes, 1 when the old one stayed.`,
		Example: `  fournines switchover --check
  fournines switchover --to postgres-b
  fournines switchover --proxy 10.0.1.5:9102 --proxy 10.0.2.5:9102 --proxy-token-file token \
    --patroni 10.0.1.20:8008 --patroni 10.0.2.20:8008 --patroni-password-file rest`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (len(proxies) == 0) != (len(patroni) == 0) {
				return &exitError{code: 2, err: errors.New("--proxy and --patroni belong together: give every proxy and at least one Patroni agent, or neither")}
			}
			if len(proxies) > 0 {
				s.control = local.PostgresControl{
					Proxies: proxies, ProxyToken: proxyToken, Superuser: superuser,
					Cluster: postgres.Cluster{REST: patroni, PasswordFile: patroniPassword},
				}
				return s.run(cmd.Context())
			}
			dir, err := local.AbsDir(dataDir)
			if err != nil {
				return err
			}
			if s.control, err = local.OpenPostgresControl(dir); err != nil {
				return err
			}
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	dataDirFlag(f, &dataDir)
	f.StringVar(&s.to, "to", "", "name of the next primary; default: the synchronous standby that is closest")
	f.BoolVar(&s.check, "check", false, "only check that a switchover is possible now")
	f.DurationVar(&s.wait, "wait", 2*time.Second, "how long running transactions may go on; if one needs longer the switchover is called off")
	f.DurationVar(&s.timeout, "timeout", 20*time.Second, "how long transactions are held at most, at least 5s; then the proxies resume")
	f.Int64Var(&s.maxLag, "max-lag", 16<<20, "how many bytes the next primary may be behind at the start")
	f.StringArrayVar(&proxies, "proxy", nil, "admin address of a pgproxy, host:port; repeat for all of them")
	f.StringVar(&proxyToken, "proxy-token-file", "", "file with the token of the proxies' admin API")
	f.StringArrayVar(&patroni, "patroni", nil, "REST address of a Patroni agent, host:port; repeat for more")
	f.StringVar(&patroniPassword, "patroni-password-file", "", "file with the password of the REST user \"patroni\"")
	f.StringVar(&superuser, "superuser-password-file", "", "file with the password of the role postgres, for a checkpoint beforehand; without it there is none")
	return cmd
}

// say prints one line of progress.
func (s *switchover) say(what, format string, args ...any) {
	fmt.Fprintf(s.out, "%5.1fs  %-10s %s\n", time.Since(s.begun).Seconds(), what, fmt.Sprintf(format, args...))
}

func (s *switchover) run(ctx context.Context) (err error) {
	s.begun = time.Now()
	if s.wait < 0 || s.wait > pgproxy.MaxPauseWait {
		return &exitError{code: 2, err: fmt.Errorf("--wait: %v is outside of 0s to %v", s.wait, pgproxy.MaxPauseWait)}
	}
	if s.timeout < 5*time.Second || s.timeout > pgproxy.MaxPauseLease {
		return &exitError{code: 2, err: fmt.Errorf("--timeout: %v is outside of 5s to %v", s.timeout, pgproxy.MaxPauseLease)}
	}
	if s.token, err = adminhttp.ReadToken(s.control.ProxyToken); err != nil {
		return fmt.Errorf("token of the proxies: %w", err)
	}
	leader, next, err := s.plan(ctx)
	if err != nil {
		return err
	}
	s.say("checked", "%s is the primary; %s, its %s, is %d bytes behind; %d proxies follow", leader.Name, next.Name, next.Role, next.Lag, len(s.control.Proxies))
	if s.check {
		return nil
	}
	if s.control.Superuser != "" {
		begun := time.Now()
		if err := postgres.Checkpoint(ctx, leader.Address, s.control.Superuser); err != nil {
			return err
		}
		s.say("checkpoint", "done in %.1f s", time.Since(begun).Seconds())
	}
	if err := s.handOver(ctx, leader, next); err != nil {
		return err
	}
	return s.awaitRejoin(ctx, leader, next)
}

// plan finds the primary and its successor, and what speaks against it.
func (s *switchover) plan(ctx context.Context) (leader, next postgres.Member, err error) {
	members, err := s.control.Cluster.Members(ctx)
	if err != nil {
		return leader, next, err
	}
	synchronous, err := s.control.Cluster.Synchronous(ctx)
	if err != nil {
		return leader, next, err
	}
	for _, m := range members {
		if m.Role == postgres.RolePrimary {
			leader = m
		}
	}
	if leader.Name == "" || !leader.Running {
		return leader, next, errors.New("there is no running primary; Patroni has to elect one first")
	}
	if s.to == leader.Name {
		return leader, next, fmt.Errorf("%s is the primary already", s.to)
	}
	var why []string
	for _, m := range members {
		reason := ""
		switch {
		case m.Name == leader.Name, s.to != "" && m.Name != s.to:
			continue
		case synchronous && m.Role != postgres.RoleSyncStandby:
			reason = "is not the synchronous standby, so it may lack commits"
		case !m.Running:
			reason = "is " + m.State
		case m.Timeline != leader.Timeline:
			reason = fmt.Sprintf("is on timeline %d, the primary on %d", m.Timeline, leader.Timeline)
		case m.Lag < 0 || m.Lag > s.maxLag:
			reason = fmt.Sprintf("is %d bytes behind, more than --max-lag %d", m.Lag, s.maxLag)
		}
		switch {
		case reason != "":
			why = append(why, m.Name+" "+reason)
		case next.Name == "" || m.Lag < next.Lag:
			next = m
		}
	}
	if next.Name == "" {
		if len(why) == 0 {
			why = []string{fmt.Sprintf("there is no member %q", s.to)}
		}
		return leader, next, fmt.Errorf("no server can take over from %s: %s", leader.Name, strings.Join(why, "; "))
	}
	s.before = make([]string, len(s.control.Proxies))
	return leader, next, s.each(func(i int, address string) error {
		st, err := s.proxy(ctx, http.MethodGet, address, "/v1/status", nil)
		switch {
		case err != nil:
			return err
		case st.Primary == "":
			return fmt.Errorf("proxy %s has no primary: %s", address, st.NoPrimary)
		case len(st.Paused) > 0:
			return fmt.Errorf("proxy %s is paused by somebody until %s", address, st.Paused[0].Until.Format(time.TimeOnly))
		}
		s.before[i] = st.Primary
		return nil
	})
}

// handOver pauses, switches and resumes.
func (s *switchover) handOver(ctx context.Context, leader, next postgres.Member) (err error) {
	// What must happen at the end happens also after an interrupt.
	after := context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("no new primary within %v", s.timeout))
	defer cancel()
	paused := time.Now()
	defer func() {
		if err == nil {
			return
		}
		s.resumeAll(after)
		s.say("resumed", "transactions go on; they were held for %.1f s", time.Since(paused).Seconds())
		err = fmt.Errorf("%w\nThe proxies have resumed and use whichever server is the primary; see `patronictl list`, or `fournines status`. "+
			"When running transactions were the reason, give them longer (--wait) or end them; else look into the log of %s and try again", err, next.Name)
	}()
	err = s.each(func(_ int, address string) error {
		_, err := s.proxy(ctx, http.MethodPost, address, "/v1/pause", url.Values{
			"wait": {s.wait.String()}, "lease": {s.timeout.String()}, "until": {"primary"},
		})
		return err
	})
	if err != nil {
		return err
	}
	s.say("paused", "new transactions are held; the running ones ended within %.2f s", time.Since(paused).Seconds())
	answer := make(chan error, 1)
	go func() { answer <- s.control.Cluster.Switchover(ctx, leader, next.Name) }()
	if err := s.awaitPrimary(ctx, answer); err != nil {
		return err
	}
	s.say("switched", "%s takes writes; transactions were held for %.2f s", next.Name, time.Since(paused).Seconds())
	return nil
}

// awaitPrimary returns when every proxy has another primary, and with it has
// resumed. Patroni's own answer counts only when it is a refusal: it comes late.
func (s *switchover) awaitPrimary(ctx context.Context, answer <-chan error) error {
	const look = 50 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		waiting := errors.New("still on the old primary")
		err := s.each(func(i int, address string) error {
			st, err := s.proxy(ctx, http.MethodGet, address, "/v1/status", nil)
			if err == nil && (st.Primary == "" || st.Primary == s.before[i] || len(st.Paused) > 0) {
				err = waiting
			}
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case refused := <-answer:
			if refused != nil {
				return refused
			}
			answer = nil
		case <-tick.C:
		}
	}
}

// awaitRejoin waits until the old primary follows the new one. That it takes
// long is no failure of the switchover.
func (s *switchover) awaitRejoin(ctx context.Context, leader, next postgres.Member) error {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		members, err := s.control.Cluster.Members(ctx)
		for _, m := range members {
			if err == nil && m.Name == leader.Name && m.Role != postgres.RolePrimary && m.Running {
				s.say("rejoined", "%s follows %s", leader.Name, next.Name)
				return nil
			}
		}
		select {
		case <-ctx.Done():
			s.say("attention", "%s does not follow %s yet; look into its log", leader.Name, next.Name)
			return nil
		case <-tick.C:
		}
	}
}

// resumeAll ends the pause wherever there is one.
func (s *switchover) resumeAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// Who is not paused any more says so; who cannot be reached resumes by itself.
	_ = s.each(func(_ int, address string) error {
		_, err := s.proxy(ctx, http.MethodPost, address, "/v1/resume", nil)
		return err
	})
}

// each calls do for all proxies at once, and joins what they say.
func (s *switchover) each(do func(i int, address string) error) error {
	errs := make([]error, len(s.control.Proxies))
	var wg sync.WaitGroup
	for i, address := range s.control.Proxies {
		wg.Go(func() { errs[i] = do(i, address) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// proxy calls the admin API of one proxy.
func (s *switchover) proxy(ctx context.Context, method, address, path string, query url.Values) (st pgproxy.Status, err error) {
	if query != nil {
		path += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return st, err
	}
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}, Timeout: pgproxy.MaxPauseWait + 5*time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return st, fmt.Errorf("ask proxy %s: %w", address, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminAnswer))
	if err != nil {
		return st, fmt.Errorf("ask proxy %s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Message string }
		if json.Unmarshal(body, &said) != nil || said.Message == "" {
			said.Message = strings.TrimSpace(string(body))
		}
		return st, fmt.Errorf("proxy %s: %s", address, said.Message)
	}
	if err := json.Unmarshal(body, &st); err != nil {
		return st, fmt.Errorf("proxy %s: %w", address, err)
	}
	return st, nil
}
