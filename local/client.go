package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"fournines/topology"
)

// Client talks to the supervisor of one data directory. It is safe for
// concurrent use.
type Client struct {
	dir, socket string
	http        *http.Client
}

// NewClient makes a client; it does not connect. Close it when done.
func NewClient(dir string) *Client { return newClient(dir, socketFile) }

// NewObserver makes a client that may ask for Status and Events and nothing
// else: the account of the servers may use it, where NewClient's socket is the
// supervisor's alone.
func NewObserver(dir string) *Client { return newClient(dir, statusFile) }

func newClient(dir, socket string) *Client {
	c := &Client{dir: dir, socket: socket}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	path, release, err := socketPath(c.dir, c.socket)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the state of the stack. It returns ErrNotRunning when no
// supervisor answers.
func (c *Client) Status(ctx context.Context) (topology.Status, error) {
	var out topology.Status
	err := c.call(ctx, http.MethodGet, "/status", &out)
	return out, err
}

// Events calls f for each event: first every unit as it is, then one event
// marked Synced, then the changes. It returns nil when the stack has stopped,
// and what f returns when that is an error.
func (c *Client) Events(ctx context.Context, f func(Event) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/events")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		var e Event
		switch err := dec.Decode(&e); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the supervisor went away: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// Down stops the stack and returns when it has stopped and its supervisor is
// gone. With hurry everything is killed at once.
func (c *Client) Down(ctx context.Context, hurry bool) error {
	path := "/down"
	if hurry {
		path += "?hurry=1"
	}
	if err := c.call(ctx, http.MethodPost, path, nil); err != nil {
		return err
	}
	return awaitUnlocked(ctx, c.dir)
}

// Stop stops a component and holds it until Start. It returns when it has stopped.
func (c *Client) Stop(ctx context.Context, name string) error { return c.unit(ctx, name, verbStop) }

// Start starts a component that was stopped. It does not wait until it is ready.
func (c *Client) Start(ctx context.Context, name string) error { return c.unit(ctx, name, verbStart) }

// Restart stops a component and starts it again. It does not wait until it is
// ready. A component that hands over is replaced by a second process instead:
// then Restart returns when that has taken over, or with an error when it could
// not, and the process that ran goes on.
func (c *Client) Restart(ctx context.Context, name string) error {
	return c.unit(ctx, name, verbRestart)
}

// Kill kills a component and its children with SIGKILL, as a crash would; the
// supervisor starts it again.
func (c *Client) Kill(ctx context.Context, name string) error { return c.unit(ctx, name, verbKill) }

// Pause makes a component hang with SIGSTOP.
func (c *Client) Pause(ctx context.Context, name string) error { return c.unit(ctx, name, verbPause) }

// Resume undoes Pause.
func (c *Client) Resume(ctx context.Context, name string) error { return c.unit(ctx, name, verbResume) }

// PowerOff kills everything in a zone at once and holds it. It returns when
// nothing of it runs.
func (c *Client) PowerOff(ctx context.Context, zone string) error { return c.zone(ctx, zone, "off") }

// PowerOn starts what PowerOff killed. It does not wait until it is ready.
func (c *Client) PowerOn(ctx context.Context, zone string) error { return c.zone(ctx, zone, "on") }

// Cut takes the network link of a zone down.
func (c *Client) Cut(ctx context.Context, zone string) error { return c.zone(ctx, zone, "cut") }

// Heal undoes Cut.
func (c *Client) Heal(ctx context.Context, zone string) error { return c.zone(ctx, zone, "heal") }

func (c *Client) unit(ctx context.Context, name string, v verb) error {
	return c.call(ctx, http.MethodPost, "/units/"+url.PathEscape(name)+"/"+string(v), nil)
}

func (c *Client) zone(ctx context.Context, zone, v string) error {
	return c.call(ctx, http.MethodPost, "/zones/"+url.PathEscape(zone)+"/"+v, nil)
}

func (c *Client) call(ctx context.Context, method, path string, out any) error {
	resp, err := c.send(ctx, method, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("answer of the supervisor: %w", err)
	}
	return nil
}

// send returns only answers with status 200.
func (c *Client) send(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the supervisor: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the stack in %s belongs to another user; run as that user, or with sudo: %w", c.dir, fs.ErrPermission)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
		// It may have died with the request in its queue.
		conn, dialErr := c.dial(ctx)
		if dialErr != nil {
			return nil, ErrNotRunning
		}
		_ = conn.Close()
		return nil, fmt.Errorf("ask the supervisor: %w", err)
	default:
		return nil, fmt.Errorf("ask the supervisor: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	re := &RequestError{Code: resp.StatusCode}
	if json.NewDecoder(resp.Body).Decode(re) != nil || re.Message == "" {
		re.Message = "the supervisor answered " + resp.Status
	}
	return nil, re
}
