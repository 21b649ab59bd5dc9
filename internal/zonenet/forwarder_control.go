package zonenet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxLinksBytes bounds the body of PUT /links.
const maxLinksBytes = 4 << 20

// ListenControl opens the control socket at path with mode 0600. It replaces
// what a dead forwarder left there and refuses to take the place of a live one.
func ListenControl(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("control socket %s: another forwarder is running", path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("control socket %s: the path is taken by a file that is no socket", path)
	}
	// A directory that nobody else can enter keeps the socket out of reach
	// until it has its mode.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".z")
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	defer os.RemoveAll(dir)
	private := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", private)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	err = os.Chmod(private, 0o600)
	if err == nil {
		err = os.Rename(private, path)
	}
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return &controlListener{Listener: ln, path: path}, nil
}

// controlListener removes its socket when it is closed.
type controlListener struct {
	net.Listener
	path string
}

func (l *controlListener) Close() error {
	_ = os.Remove(l.path)
	return l.Listener.Close()
}

// Connected tells what is missing until the forwarder carries the traffic.
func (f *Forwarder) Connected() error {
	select {
	case <-f.Ready():
		return nil
	default:
		return errors.New("the zones are not connected yet")
	}
}

// AskConnected returns nil when a forwarder behind the control socket carries
// the traffic of its zones.
func AskConnected(ctx context.Context, socket string) error {
	_, err := control(ctx, socket, http.MethodGet, "/readyz", nil)
	return err
}

// LinksHandlers are the control API of a forwarder, for an admin server.
func LinksHandlers(f *Forwarder) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /links": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeLinks(w, f.Links())
		}),
		"PUT /links": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLinksBytes))
			d.DisallowUnknownFields()
			var links Links
			if err := d.Decode(&links); err != nil {
				http.Error(w, "links: "+err.Error(), http.StatusBadRequest)
				return
			}
			if err := f.SetLinks(links); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			writeLinks(w, f.Links())
		}),
	}
}

func writeLinks(w http.ResponseWriter, links Links) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(links)
}

// PutLinks replaces the links of the forwarder behind the control socket.
func PutLinks(ctx context.Context, socket string, links Links) error {
	body, err := json.Marshal(links)
	if err != nil {
		return fmt.Errorf("encode links: %w", err)
	}
	_, err = control(ctx, socket, http.MethodPut, "/links", body)
	return err
}

// GetLinks asks the forwarder behind the control socket for its links.
func GetLinks(ctx context.Context, socket string) (Links, error) {
	body, err := control(ctx, socket, http.MethodGet, "/links", nil)
	if err != nil {
		return nil, err
	}
	var links Links
	if err := json.Unmarshal(body, &links); err != nil {
		return nil, fmt.Errorf("decode links: %w", err)
	}
	return links, nil
}

func control(ctx context.Context, socket, method, path string, body []byte) ([]byte, error) {
	if socket == "" {
		return nil, errors.New("the forwarder has no control socket")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://zonelink"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make control request: %w", err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the forwarder (is `fournines zonelink` running?): %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxLinksBytes))
	if err != nil {
		return nil, fmt.Errorf("read the forwarder's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the forwarder refused: %s", strings.TrimSpace(string(answer)))
	}
	return answer, nil
}
