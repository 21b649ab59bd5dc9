package local

import (
	"net"
	"path/filepath"
	"strconv"

	"fournines/console"
	"fournines/internal/adminhttp"
	"fournines/internal/process"
)

// consoleSecret is the token of the console where other machines can reach it.
const consoleSecret = "console"

// onLoopback reports if only this machine can reach the public ports.
func (p *planner) onLoopback() bool {
	return adminhttp.Loopback(net.JoinHostPort(p.Spec.Local.Address, "0"))
}

// addConsole adds the web page. It stands outside the zones, beside what it asks,
// and nothing waits for it.
func (p *planner) addConsole() error {
	admin, err := p.addr("", hostConsole, consoleAdminPort)
	if err != nil {
		return err
	}
	server, err := p.addr("", hostPrometheus, prometheusPort)
	if err != nil {
		return err
	}
	alerts, err := p.addr("", hostAlertmanager, alertmanagerPort)
	if err != nil {
		return err
	}
	listen := net.JoinHostPort(p.Spec.Local.Address, strconv.Itoa(p.Spec.Local.Ports.Effective().Console))
	u := process.Unit{Name: "console", Kind: "console", Address: listen, Ready: httpReady(admin)}
	cfg := console.DefaultConfig()
	cfg.Listen, cfg.AdminListen = listen, admin
	cfg.StackDir, cfg.HistoryFile = p.Dir, filepath.Join(p.Dir, u.Name, "timeline.jsonl")
	cfg.Prometheus, cfg.Alertmanager = "http://"+server, "http://"+alerts
	cfg.ScrapeInterval = p.Spec.Observability.ScrapeInterval.Std()
	cfg.Objective, cfg.Window = p.Spec.SLO.Objective, p.Spec.SLO.Window.Std()
	if !p.onLoopback() {
		cfg.TokenFile = p.secrets.Path(consoleSecret)
	}
	u = p.own(u, []string{"console"}, cfg)
	p.plan.Ports = append(p.plan.Ports, Port{listen, "local.ports.console"})
	p.scrape("console", u.Name, "", admin, "/metrics")
	return p.add(u, nil)
}
