// Package live asks servers that run what an audit wants to know of them. It
// only reads: PostgreSQL in a read-only session, Redis with INFO, CONFIG GET and
// CLUSTER, Prometheus and the gateway with GET.
package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// askLimit bounds the questions to one server.
const askLimit = 30 * time.Second

// answerLimit bounds one HTTP answer, in bytes.
const answerLimit = 32 << 20

// checkURL refuses what would put a password where others see it.
func checkURL(raw string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("not a URL; write it like %s://host:port", schemes[0])
	}
	known := false
	for _, s := range schemes {
		known = known || u.Scheme == s
	}
	if !known {
		return nil, fmt.Errorf("the URL begins with %s://, want %s://", u.Scheme, strings.Join(schemes, ":// or "))
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("keep the password out of the arguments, where every user of the machine sees it: name a file that holds it")
	}
	return u, nil
}

// client asks one HTTP server.
type client struct {
	http  *http.Client
	base  *url.URL
	token string
}

func newClient(base *url.URL, token string) *client {
	return &client{http: &http.Client{Timeout: askLimit}, base: base, token: token}
}

// get asks a path, and reads the JSON answer into out.
func (c *client) get(ctx context.Context, path string, query url.Values, out any) error {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, answerLimit)).Decode(out); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}
