//go:build linux

package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
)

//go:embed peers
var peerFiles embed.FS

// settings fill the templates in peers/.
type settings struct {
	Listen   netip.AddrPort // for clients
	Admin    netip.AddrPort // for metrics and the like
	Backends []netip.AddrPort
	Dir      string // of files
	Root     bool
	// Descriptors is how many files a process may have open.
	Descriptors uint64
}

// contender is a proxy that takes part.
type contender struct {
	name    string // as a flag names it
	title   string // with its version
	program string
	// files are templates in peers/, each with the name it is written to.
	files map[string]string
	// argv is the command line behind the program; "{dir}" stands for the directory.
	argv []string
	env  []string
}

// peers are the others, in the order in which they take turns.
var peers = []struct {
	name string
	// places are where its program may be, below the tools' directory; then PATH counts.
	places  []string
	version []string // arguments that make it say its version
	module  string   // of a program in Go
	files   map[string]string
	argv    []string
	env     []string
}{
	{
		name: "nginx", version: []string{"-v"},
		files: map[string]string{"nginx.conf.tmpl": "nginx.conf"},
		argv:  []string{"-p", "{dir}", "-c", "{dir}/nginx.conf", "-e", "stderr"},
	}, {
		name: "haproxy", version: []string{"-v"},
		files: map[string]string{"haproxy.cfg.tmpl": "haproxy.cfg"},
		argv:  []string{"-db", "-f", "{dir}/haproxy.cfg"},
	}, {
		name: "envoy", version: []string{"--version"},
		places: []string{"venv-bench/lib/python*/site-packages/envoy/_bin/envoy"},
		files:  map[string]string{"envoy.yaml.tmpl": "envoy.yaml"},
		argv:   []string{"-c", "{dir}/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"},
	}, {
		name: "caddy", version: []string{"version"}, module: "github.com/caddyserver/caddy/v2",
		places: []string{"bin/caddy"},
		files:  map[string]string{"Caddyfile.tmpl": "Caddyfile"},
		argv:   []string{"run", "--adapter", "caddyfile", "--config", "{dir}/Caddyfile"},
		env:    []string{"HOME={dir}", "XDG_CONFIG_HOME={dir}", "XDG_DATA_HOME={dir}"},
	}, {
		name: "traefik", version: []string{"version"}, module: "github.com/traefik/traefik/v3",
		places: []string{"bin/traefik"},
		files:  map[string]string{"traefik.yaml.tmpl": "traefik.yaml", "traefik-routes.yaml.tmpl": "routes.yaml"},
		argv:   []string{"--configfile={dir}/traefik.yaml"},
		env:    []string{"HOME={dir}"},
	},
}

// ours is the gateway of this repository.
func ours(program string) *contender {
	return &contender{
		name: "ours", title: "ours", program: program,
		files: map[string]string{"fournines.yaml.tmpl": "gateway.yaml"},
		argv:  []string{"gateway", "--config", "{dir}/gateway.yaml"},
	}
}

// findPeer returns the peer of that name, or why it is not there.
func findPeer(ctx context.Context, name, tools string) (*contender, error) {
	for _, p := range peers {
		if p.name != name {
			continue
		}
		c := &contender{name: p.name, files: p.files, argv: p.argv, env: p.env}
		for _, place := range p.places {
			if found, _ := filepath.Glob(filepath.Join(tools, place)); len(found) > 0 {
				c.program = found[0]
			}
		}
		if c.program == "" {
			c.program = inPath(p.name)
		}
		if c.program == "" {
			return nil, errors.New("not installed; see make setup-bench")
		}
		version, err := peerVersion(ctx, c.program, p.module, p.version)
		if err != nil {
			return nil, err
		}
		c.title = p.name + " " + version
		return c, nil
	}
	return nil, fmt.Errorf("unknown; the peers are %s", strings.Join(peerNames(), ", "))
}

// peerVersion asks a program for its version. One that was built from a Go
// module may not know it; what was built into it does.
func peerVersion(ctx context.Context, program, module string, args []string) (string, error) {
	number := regexp.MustCompile(`\d+\.\d+\.\d+`)
	if info, err := buildinfo.ReadFile(program); err == nil && module != "" {
		for _, m := range append(info.Deps, &info.Main) {
			if v := number.FindString(m.Version); m.Path == module && v != "" {
				return v, nil
			}
		}
	}
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %.200s", program, strings.Join(args, " "), err, out)
	}
	v := number.Find(out)
	if v == nil {
		return "", fmt.Errorf("%s %s tells no version: %.200s", program, strings.Join(args, " "), out)
	}
	return string(v), nil
}

// inPath finds a program, also where a user's PATH has no system programs.
func inPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

func peerNames() []string {
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
	}
	return names
}

// start writes the contender's files into dir, starts it and waits until it
// answers rightly.
func (c *contender) start(ctx context.Context, dir string, cpus []int, s settings) (*child, error) {
	s.Dir = dir
	for from, to := range c.files {
		t, err := template.ParseFS(peerFiles, "peers/"+from)
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		if err := t.Execute(&text, s); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, to), text.Bytes(), 0o644); err != nil {
			return nil, err
		}
	}
	fill := func(in []string) []string {
		out := slices.Clone(in)
		for i := range out {
			out[i] = strings.ReplaceAll(out[i], "{dir}", dir)
		}
		return out
	}
	p, err := startChild(c.name, dir, cpus, append([]string{c.program}, fill(c.argv)...), fill(c.env), nil, nil)
	if err != nil {
		return nil, err
	}
	if err := serves(ctx, p, s.Listen); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// startTime is how long a contender may take until it serves.
const startTime = 30 * time.Second

// serves waits until plain requests are answered, several in a row: until a
// proxy has heard of the health of its backends, it may refuse some.
func serves(ctx context.Context, p *child, at netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	text, _ := request(at.String(), -1)
	_, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	ask := func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.String()+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := transport.RoundTrip(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d: %.200q", resp.StatusCode, got)
		}
		return checkAnswer(got, 0)
	}
	for good := 0; good < 8; {
		err := ask()
		if err == nil {
			good++
			continue
		}
		good = 0
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not serve: %w: %s", p.name, err, p.lastWords())
		}
		if err := p.pause(ctx, 50*time.Millisecond); err != nil && p.alive() != nil {
			return err
		}
	}
	return nil
}

// freeAddress finds a loopback address for a server, below the ports that
// outgoing connections get.
func freeAddress(taken map[uint16]bool) (netip.AddrPort, error) {
	for port := uint16(21000); port < 29000; port++ {
		if taken[port] {
			continue
		}
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		ln, err := net.Listen("tcp4", a.String())
		if err != nil {
			continue
		}
		taken[port] = true
		return a, ln.Close()
	}
	return netip.AddrPort{}, errors.New("no free port between 21000 and 29000")
}
