package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"fournines/component/internal/prepare"
)

// Cluster asks the Patroni agents of a running cluster for its members, and
// for a planned change of the primary.
type Cluster struct {
	// REST are the addresses (host:port) of the agents' REST interfaces. One
	// that answers is enough.
	REST []string
	// PasswordFile has the password of the REST interface's user; empty sends none.
	PasswordFile string
	// User of the REST interface; empty means the one that Unit configures.
	User string
}

// Member is one node as Patroni knows it.
type Member struct {
	Name string
	// Address (host:port) of PostgreSQL, REST of the agent.
	Address, REST string
	// Role is RolePrimary, RoleSyncStandby or RoleStandby.
	Role string
	// Running is set for a primary that serves and for a standby that streams or
	// replays; State is Patroni's word for it.
	Running  bool
	State    string
	Timeline int
	// Lag is how many bytes a standby is behind; -1 is unknown.
	Lag int64
}

// Members asks the agents in turn until one answers.
func (c *Cluster) Members(ctx context.Context) ([]Member, error) {
	if len(c.REST) == 0 {
		return nil, errors.New("no address of a Patroni agent is known")
	}
	var errs []error
	for _, address := range c.REST {
		status, body, err := prepare.Get(ctx, "http://"+address+"/cluster")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s answers %d", address, status)
		}
		var members []Member
		if err == nil {
			members, err = parseMembers(body)
		}
		if err == nil {
			return members, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("ask Patroni for its members: %w", errors.Join(errs...))
}

// Synchronous reports whether the cluster promotes only synchronous standbys,
// whether it has one just now or not.
func (c *Cluster) Synchronous(ctx context.Context) (bool, error) {
	var errs []error
	for _, address := range c.REST {
		status, body, err := prepare.Get(ctx, "http://"+address+"/config")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s answers %d", address, status)
		}
		var config struct {
			Mode any `json:"synchronous_mode"` // true, or from Patroni 4 on "quorum"
		}
		if err == nil {
			err = json.Unmarshal(body, &config)
		}
		if err == nil {
			return config.Mode == true || config.Mode == "on" || config.Mode == "quorum", nil
		}
		errs = append(errs, err)
	}
	return false, fmt.Errorf("ask Patroni for its settings: %w", errors.Join(errs...))
}

func parseMembers(body []byte) ([]Member, error) {
	var answer struct {
		Members []struct {
			Name, Role, State, Host string
			APIURL                  string `json:"api_url"`
			Port, Timeline          int
			Lag                     json.RawMessage // a number, or "unknown"
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("list of members from Patroni: %w", err)
	}
	var members []Member
	for _, m := range answer.Members {
		out := Member{
			Name: m.Name, Role: RoleStandby, State: m.State, Timeline: m.Timeline, Lag: -1,
			Address: net.JoinHostPort(m.Host, strconv.Itoa(m.Port)), Running: m.State == "running" || m.State == "streaming",
		}
		switch m.Role {
		case "leader", "master", "primary":
			out.Role, out.Lag = RolePrimary, 0
		case "sync_standby", "quorum_standby":
			out.Role = RoleSyncStandby
		}
		if lag, err := strconv.ParseInt(string(m.Lag), 10, 64); err == nil {
			out.Lag = lag
		}
		_, rest, _ := strings.Cut(m.APIURL, "://")
		out.REST, _, _ = strings.Cut(rest, "/")
		members = append(members, out)
	}
	return members, nil
}

// Switchover asks the agent of the primary to hand over to candidate, and
// returns when Patroni says that it is done or that it failed. Patroni looks
// only once a second, so whoever waits for the new primary asks the servers.
func (c *Cluster) Switchover(ctx context.Context, leader Member, candidate string) error {
	body, err := json.Marshal(map[string]string{"leader": leader.Name, "candidate": candidate})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+leader.REST+"/switchover", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.PasswordFile != "" {
		password, err := prepare.Secret(c.PasswordFile)
		if err != nil {
			return err
		}
		user := c.User
		if user == "" {
			user = restUser
		}
		req.SetBasicAuth(user, password)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask Patroni for the switchover: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("ask Patroni for the switchover: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("switchover refused by Patroni: %s", strings.TrimSpace(string(said)))
	}
	return nil
}

// Checkpoint writes all dirty pages of the server at address, so that its stop
// has little left to write.
func Checkpoint(ctx context.Context, address, superuserPasswordFile string) error {
	conn, err := connect(ctx, address, "postgres", "postgres", superuserPasswordFile)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}
