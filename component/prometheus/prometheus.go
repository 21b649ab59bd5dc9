// Package prometheus runs the Prometheus server that scrapes every part of a
// stack and evaluates its rules.
package prometheus

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// DefaultPort is the server's port unless the configuration says otherwise.
const DefaultPort = 9090

// Target is one address to scrape.
type Target struct {
	// Address is host:port.
	Address string
	// Zone and Component become labels. Component is the unit's name in the
	// stack, "postgres-a".
	Zone, Component string
	// Labels are more labels for this target.
	Labels map[string]string
}

// Job is a group of targets that are scraped the same way. Its name becomes the
// label "job", which rules ask for.
type Job struct {
	Name string
	// Path of the metrics; empty means /metrics.
	Path string
	// Exporter is the host:port of a multi-target exporter. When set, the
	// targets are what it shall ask, and Path is usually /scrape.
	Exporter string
	// Scheme goes before a target handed to the exporter, "redis://".
	Scheme string
	// Targets of the job.
	Targets []Target
}

// Config describes the server.
type Config struct {
	// Name is unique in the stack; empty means "prometheus".
	Name string
	// Zone is empty for a server outside all zones.
	Zone string
	// Host is the IP address to listen on.
	Host string
	// Port to listen on; 0 means DefaultPort.
	Port int
	// Jobs are what to scrape.
	Jobs []Job
	// Rules is the content of the file of rules; empty: none.
	Rules []byte
	// Alertmanagers are host:port of the Alertmanagers.
	Alertmanagers []string
	// ScrapeInterval is also the pace of the rules; 0 means 5 s.
	ScrapeInterval time.Duration
	// Retention is how long samples are kept; 0 means 2 days.
	Retention time.Duration
	// RetentionMiB bounds the samples' size on disk; 0 means 512.
	RetentionMiB int
	// DataDir is the directory for everything the server keeps.
	DataDir string
	// Executable is prometheus' path; empty looks it up.
	Executable string
	// LogLevel is debug, info, warn or error; empty means warn.
	LogLevel string
	// Owner is the account the server runs as.
	Owner process.Owner
}

func (c *Config) setDefaults() {
	if c.Name == "" {
		c.Name = "prometheus"
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.ScrapeInterval == 0 {
		c.ScrapeInterval = 5 * time.Second
	}
	if c.Retention == 0 {
		c.Retention = 48 * time.Hour
	}
	if c.RetentionMiB == 0 {
		c.RetentionMiB = 512
	}
	if c.LogLevel == "" {
		c.LogLevel = "warn"
	}
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Path("DataDir", c.DataDir)
	f.Check(c.ScrapeInterval >= time.Second, "ScrapeInterval", "must be at least 1s")
	f.Check(c.Retention >= time.Hour, "Retention", "must be at least 1h")
	f.Check(c.RetentionMiB >= 64, "RetentionMiB", "must be at least 64")
	for i, a := range c.Alertmanagers {
		f.HostPort(fmt.Sprintf("Alertmanagers[%d]", i), a)
	}
	seen := make(map[string]bool)
	for i, j := range c.Jobs {
		f.NotEmpty(fmt.Sprintf("Jobs[%d].Name", i), j.Name)
		f.Check(!seen[j.Name], fmt.Sprintf("Jobs[%d].Name", i), j.Name+" is there twice")
		seen[j.Name] = true
		for k, t := range j.Targets {
			f.HostPort(fmt.Sprintf("Jobs[%d].Targets[%d].Address", i, k), t.Address)
		}
	}
	return f.Err("prometheus")
}

// Unit returns the plan's line for the server.
func Unit(cfg Config) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	path, err := prepare.Executable(cfg.Executable, "prometheus")
	if err != nil {
		return process.Unit{}, err
	}
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port))
	file := filepath.Join(cfg.DataDir, "prometheus.yml")
	return process.Unit{
		Name: cfg.Name, Kind: "prometheus", Zone: cfg.Zone, Address: address,
		Process: &process.Spec{
			Path: path,
			Args: []string{
				"--config.file=" + file,
				"--web.listen-address=" + address,
				"--storage.tsdb.path=" + filepath.Join(cfg.DataDir, "tsdb"),
				"--storage.tsdb.retention.time=" + strconv.FormatInt(int64(cfg.Retention/time.Hour), 10) + "h",
				"--storage.tsdb.retention.size=" + strconv.Itoa(cfg.RetentionMiB) + "MB",
				// An alert sent before the Alertmanager was known is sent again; the
				// default lets it wait a minute.
				"--rules.alert.resend-delay=10s",
				"--log.level=" + cfg.LogLevel, "--log.format=json",
			},
			Env: prepare.Env(cfg.DataDir, "GOGC=50"),
			Dir: cfg.DataDir,
		},
		Prepare: func(context.Context) error {
			if err := prepare.Dirs(cfg.Owner, cfg.DataDir); err != nil {
				return err
			}
			if len(cfg.Rules) > 0 {
				if err := prepare.File(cfg.rulesFile(), cfg.Rules, cfg.Owner); err != nil {
					return err
				}
			}
			content, err := cfg.file()
			if err != nil {
				return err
			}
			return prepare.File(file, content, cfg.Owner)
		},
		Ready:        func(ctx context.Context) error { return prepare.OK(ctx, "http://"+address+"/-/ready") },
		ReadyTimeout: 60 * time.Second,
	}, nil
}

func (c *Config) rulesFile() string { return filepath.Join(c.DataDir, "rules.yml") }

type object = map[string]any

// file renders prometheus.yml. JSON is valid YAML, and its quoting needs no
// thought.
func (c *Config) file() ([]byte, error) {
	interval := c.ScrapeInterval.String()
	jobs := make([]object, 0, len(c.Jobs))
	for _, j := range c.Jobs {
		jobs = append(jobs, j.file())
	}
	out := object{
		"global": object{
			"scrape_interval": interval, "evaluation_interval": interval,
			// An answer later than this is an answer from a broken server.
			"scrape_timeout": min(c.ScrapeInterval, 4*time.Second).String(),
		},
		"scrape_configs": jobs,
	}
	if len(c.Rules) > 0 {
		out["rule_files"] = []string{c.rulesFile()}
	}
	if len(c.Alertmanagers) > 0 {
		out["alerting"] = object{"alertmanagers": []object{{"static_configs": []object{{"targets": c.Alertmanagers}}}}}
	}
	return json.MarshalIndent(out, "", "  ")
}

func (j *Job) file() object {
	groups := make([]object, 0, len(j.Targets))
	for _, t := range j.Targets {
		labels := object{}
		for k, v := range t.Labels {
			labels[k] = v
		}
		labels["component"] = t.Component
		if t.Zone != "" {
			labels["zone"] = t.Zone
		}
		groups = append(groups, object{"targets": []string{j.Scheme + t.Address}, "labels": labels})
	}
	out := object{"job_name": j.Name, "static_configs": groups}
	if j.Path != "" {
		out["metrics_path"] = j.Path
	}
	if j.Exporter != "" {
		out["relabel_configs"] = []object{
			{"source_labels": []string{"__address__"}, "target_label": "__param_target"},
			{"source_labels": []string{"__address__"}, "regex": "(?:.*://)?(.*)", "target_label": "instance", "replacement": "$1"},
			{"target_label": "__address__", "replacement": j.Exporter},
		}
	}
	return out
}

// Targets asks a running server for its targets and returns an error that names
// those that are not up.
func Targets(ctx context.Context, address string) (up int, err error) {
	status, body, err := prepare.Get(ctx, "http://"+address+"/api/v1/targets?state=active")
	if err != nil {
		return 0, fmt.Errorf("ask Prometheus for its targets: %w", err)
	}
	var answer struct {
		Data struct {
			ActiveTargets []struct {
				ScrapeURL string `json:"scrapeUrl"`
				Health    string `json:"health"`
				LastError string `json:"lastError"`
			} `json:"activeTargets"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("ask Prometheus for its targets (status %d): %w", status, err)
	}
	var first error
	down := 0
	for _, t := range answer.Data.ActiveTargets {
		if t.Health == "up" {
			up++
			continue
		}
		down++
		if first == nil {
			first = fmt.Errorf("%s is %s: %s", t.ScrapeURL, t.Health, t.LastError)
		}
	}
	if down > 0 {
		return up, fmt.Errorf("%d of %d targets are not up: %w", down, up+down, first)
	}
	return up, nil
}

// Query returns the value of an instant query that has exactly one sample.
func Query(ctx context.Context, address, expr string) (float64, error) {
	status, body, err := prepare.Get(ctx, "http://"+address+"/api/v1/query?query="+url.QueryEscape(expr))
	if err != nil {
		return 0, fmt.Errorf("query Prometheus: %w", err)
	}
	var answer struct {
		Error string `json:"error"`
		Data  struct {
			Result []struct {
				Value [2]any `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("query Prometheus (status %d): %w", status, err)
	}
	if answer.Error != "" {
		return 0, fmt.Errorf("query Prometheus: %s", answer.Error)
	}
	if n := len(answer.Data.Result); n != 1 {
		return 0, fmt.Errorf("query %q has %d results, want 1", expr, n)
	}
	text, ok := answer.Data.Result[0].Value[1].(string)
	if !ok {
		return 0, fmt.Errorf("query %q: answer is no number", expr)
	}
	return strconv.ParseFloat(text, 64)
}
