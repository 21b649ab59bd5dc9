package local

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"

	"fournines/component/alertmanager"
	"fournines/component/exporter"
	"fournines/component/prometheus"
	"fournines/observe/routes"
	"fournines/observe/rules"
)

const (
	prometheusPort   = 9090
	alertmanagerPort = 9093
)

// scrapeTarget is one place that Prometheus reads.
type scrapeTarget struct {
	job, path string
	prometheus.Target
}

// scrape has Prometheus read a component's metrics.
func (p *planner) scrape(job, component, zone, address, path string) {
	p.targets = append(p.targets, scrapeTarget{job, path, prometheus.Target{Address: address, Zone: zone, Component: component}})
}

// jobs groups the targets as Prometheus wants them.
func (p *planner) jobs() []prometheus.Job {
	var jobs []prometheus.Job
	at := map[string]int{}
	for _, t := range p.targets {
		i, ok := at[t.job]
		if !ok {
			i = len(jobs)
			at[t.job] = i
			jobs = append(jobs, prometheus.Job{Name: t.job, Path: t.path})
		}
		jobs[i].Targets = append(jobs[i].Targets, t.Target)
	}
	return jobs
}

func (p *planner) addObservers() error {
	if err := p.addExporters(); err != nil {
		return err
	}
	redisJob, err := p.addRedisExporter()
	if err != nil {
		return err
	}
	alertHost, err := p.ip("", hostAlertmanager)
	if err != nil {
		return err
	}
	o := p.Spec.Observability
	alertDir := filepath.Join(p.Dir, "alertmanager")
	alertFile, err := routes.File(routes.Config{Webhook: o.AlertWebhook.Reveal(), TemplateFile: alertmanager.TemplateFile(alertDir)})
	if err != nil {
		return err
	}
	alerts, err := alertmanager.Unit(alertmanager.Config{
		Host: alertHost, File: alertFile, Templates: routes.Templates, DataDir: alertDir, Owner: p.Owner,
	})
	if err := p.add(alerts, err); err != nil {
		return err
	}
	p.scrape("alertmanager", alerts.Name, "", alerts.Address, "/metrics")
	host, err := p.ip("", hostPrometheus)
	if err != nil {
		return err
	}
	file, err := p.rules()
	if err != nil {
		return err
	}
	p.scrape("prometheus", "prometheus", "", net.JoinHostPort(host, strconv.Itoa(prometheusPort)), "/metrics")
	return p.add(prometheus.Unit(prometheus.Config{
		Host: host, Jobs: append(p.jobs(), redisJob), Rules: file, Alertmanagers: []string{alerts.Address},
		ScrapeInterval: o.ScrapeInterval.Std(), Retention: o.Retention.Std(), RetentionMiB: int(o.RetentionSize >> 20),
		DataDir: filepath.Join(p.Dir, "prometheus"), Owner: p.Owner,
	}))
}

// rules are made from the objective of the spec.
func (p *planner) rules() ([]byte, error) {
	o := p.Spec.SLO
	groups, err := rules.Build(rules.Config{
		Objective: o.Objective, Window: o.Window.Std(),
		FirstContent: o.FirstContent.Std(), FirstContentObjective: o.FirstContentObjective,
	})
	if err != nil {
		return nil, err
	}
	return rules.File(groups)
}

func (p *planner) addExporters() error {
	for _, zone := range p.net.Zones() {
		host, err := p.ip(zone, zonePGMetrics)
		if err != nil {
			return err
		}
		target, err := p.addr(zone, zonePostgres, postgresPort)
		if err != nil {
			return err
		}
		name := "postgres-exporter-" + zone
		u, err := exporter.Postgres(exporter.PostgresConfig{
			Config: exporter.Config{Name: name, Zone: zone, Host: host, DataDir: filepath.Join(p.Dir, name), Owner: p.Owner},
			Target: target, PasswordFile: p.secrets.Path("postgres-monitor"),
		})
		u.After = p.names("postgres-bootstrap")
		if err := p.add(u, err); err != nil {
			return err
		}
		p.scrape("postgres", "postgres-"+zone, zone, u.Address, "/metrics")
	}
	host, err := p.ip("", hostNode)
	if err != nil {
		return err
	}
	u, err := exporter.Node(exporter.Config{
		Name: "node-exporter", Host: host, DataDir: filepath.Join(p.Dir, "node-exporter"), Owner: p.Owner,
	})
	if err := p.add(u, err); err != nil {
		return err
	}
	p.scrape("node", u.Name, "", u.Address, "/metrics")
	return nil
}

// addRedisExporter adds the one exporter that asks every Redis node.
func (p *planner) addRedisExporter() (prometheus.Job, error) {
	host, err := p.ip("", hostRedisMetrics)
	if err != nil {
		return prometheus.Job{}, err
	}
	nodes, err := p.redisNodes()
	if err != nil {
		return prometheus.Job{}, err
	}
	job := prometheus.Job{Name: "redis", Path: "/scrape", Scheme: "redis://"}
	var addresses []string
	for _, n := range nodes {
		addresses = append(addresses, n.Address())
		job.Targets = append(job.Targets, prometheus.Target{Address: n.Address(), Zone: n.Zone, Component: n.Name})
	}
	u, err := exporter.Redis(exporter.RedisConfig{
		Config:  exporter.Config{Name: "redis-exporter", Host: host, DataDir: filepath.Join(p.Dir, "redis-exporter"), Owner: p.Owner},
		Targets: addresses, PasswordFile: p.secrets.Path("redis-monitor"),
	})
	u.After = append(u.After, p.names("redis")...)
	job.Exporter = u.Address
	return job, p.add(u, err)
}

// addEndpoints tells users where everything is and writes the file with which
// they get in.
func (p *planner) addEndpoints() error {
	ports := p.Spec.Local.Ports.Effective()
	host := p.Spec.Local.Address
	web := func(port int) string { return "http://" + net.JoinHostPort(host, strconv.Itoa(port)) }
	var c Credentials
	var err error
	c.Gateway.URL = web(ports.Gateway)
	if p.Spec.Dify.Source == "simulator" {
		if c.Gateway.AppKey, c.Gateway.WorkflowKey, c.Gateway.DatasetKey, err = p.demoKeys(); err != nil {
			return err
		}
	}
	c.Postgres = PostgresCredentials{Host: host, Port: ports.Postgres, Database: "dify", User: "dify"}
	if c.Postgres.Password, err = p.secrets.Read("postgres-dify"); err != nil {
		return err
	}
	c.Postgres.URL = (&url.URL{
		Scheme: "postgres", User: url.UserPassword("dify", c.Postgres.Password),
		Host: net.JoinHostPort(host, strconv.Itoa(ports.Postgres)), Path: "/dify",
	}).String()
	c.Redis = ServiceCredentials{Host: host, Port: ports.Redis, User: "dify"}
	if c.Redis.Password, err = p.secrets.Read("redis-dify"); err != nil {
		return err
	}
	c.Milvus = ServiceCredentials{Host: host, Port: ports.Milvus, User: "root"}
	if c.Milvus.Password, err = p.secrets.Read("milvus-root"); err != nil {
		return err
	}
	c.Prometheus.URL, c.Alertmanager.URL = web(ports.Prometheus), web(ports.Alertmanager)
	c.Console.URL = web(ports.Console)
	if !p.onLoopback() {
		if c.Console.Token, err = p.secrets.Read(consoleSecret); err != nil {
			return err
		}
	}
	if p.plan.CredentialsFile, err = c.write(p.Dir); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	p.plan.Endpoints = map[string]string{
		"gateway":      c.Gateway.URL,
		"postgres":     fmt.Sprintf("postgres://dify@%s/dify", net.JoinHostPort(host, strconv.Itoa(ports.Postgres))),
		"redis":        fmt.Sprintf("redis://dify@%s/0", net.JoinHostPort(host, strconv.Itoa(ports.Redis))),
		"milvus":       web(ports.Milvus),
		"prometheus":   c.Prometheus.URL,
		"alertmanager": c.Alertmanager.URL,
		"console":      c.Console.URL,
	}
	return nil
}
