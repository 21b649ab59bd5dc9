//go:build linux

package main

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"fournines/bench/rig"
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

// peers are the others, in the order in which they take turns.
var peers = []rig.Peer{
	{
		Name: "nginx", Version: []string{"-v"},
		Files: map[string]string{"nginx.conf.tmpl": "nginx.conf"},
		Argv:  []string{"-p", "{dir}", "-c", "{dir}/nginx.conf", "-e", "stderr"},
	}, {
		Name: "haproxy", Version: []string{"-v"},
		Files: map[string]string{"haproxy.cfg.tmpl": "haproxy.cfg"},
		Argv:  []string{"-db", "-f", "{dir}/haproxy.cfg"},
	}, {
		Name: "envoy", Version: []string{"--version"},
		Places: []string{"venv-bench/lib/python*/site-packages/envoy/_bin/envoy"},
		Files:  map[string]string{"envoy.yaml.tmpl": "envoy.yaml"},
		Argv:   []string{"-c", "{dir}/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"},
	}, {
		Name: "caddy", Version: []string{"version"}, Module: "github.com/caddyserver/caddy/v2",
		Places: []string{"bin/caddy"},
		Files:  map[string]string{"Caddyfile.tmpl": "Caddyfile"},
		Argv:   []string{"run", "--adapter", "caddyfile", "--config", "{dir}/Caddyfile"},
		Env:    []string{"HOME={dir}", "XDG_CONFIG_HOME={dir}", "XDG_DATA_HOME={dir}"},
	}, {
		Name: "traefik", Version: []string{"version"}, Module: "github.com/traefik/traefik/v3",
		Places: []string{"bin/traefik"},
		Files:  map[string]string{"traefik.yaml.tmpl": "traefik.yaml", "traefik-routes.yaml.tmpl": "routes.yaml"},
		Argv:   []string{"--configfile={dir}/traefik.yaml"},
		Env:    []string{"HOME={dir}"},
	},
}

// ours is the gateway of this repository.
func ours(program string) *rig.Contender {
	return &rig.Contender{
		Name: "ours", Title: "ours", Program: program,
		Files: map[string]string{"fournines.yaml.tmpl": "gateway.yaml"},
		Argv:  []string{"gateway", "--config", "{dir}/gateway.yaml"},
	}
}

// serves waits until plain requests are answered, several in a row: until a
// proxy has heard of the health of its backends, it may refuse some.
func serves(ctx context.Context, p *rig.Process, at netip.AddrPort) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	text, _ := request(at.String(), -1)
	_, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	ask := func(ctx context.Context) error {
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
	return rig.AwaitService(ctx, p, 8, ask)
}
