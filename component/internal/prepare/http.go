package prepare

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ProbeTimeout bounds one question to a server. A server that needs longer is
// not ready.
const ProbeTimeout = 2 * time.Second

// Get asks url and returns the status and up to 1 MiB of the body. Every probe
// opens its own connection: a kept one would say that a server is well which
// no longer accepts anybody.
func Get(ctx context.Context, url string) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}

// OK returns nil when url answers with status 200.
func OK(ctx context.Context, url string) error {
	status, body, err := Get(ctx, url)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s answers %d: %.120s", url, status, body)
	}
	return nil
}
