// Package alertmanager runs the Alertmanager that sends the stack's alerts to a
// webhook.
package alertmanager

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
const DefaultPort = 9093

// Config describes the server.
type Config struct {
	// Name is unique in the stack; empty means "alertmanager".
	Name string
	// Zone is empty for a server outside all zones.
	Zone string
	// Host is the IP address to listen on.
	Host string
	// Port to listen on; 0 means DefaultPort.
	Port int
	// Webhook receives the alerts as HTTP POST; empty keeps them in
	// Alertmanager's own page.
	Webhook string
	// GroupWait is how long the first alert of a group waits for company; 0
	// means 1 s.
	GroupWait time.Duration
	// GroupInterval is between two messages about one group; 0 means 15 s.
	GroupInterval time.Duration
	// RepeatInterval is when a message about an alert that goes on is sent again;
	// 0 means 1 h.
	RepeatInterval time.Duration
	// DataDir is the directory for everything the server keeps.
	DataDir string
	// Executable is the server's path; empty looks up Debian's name.
	Executable string
	// LogLevel is debug, info, warn or error; empty means warn.
	LogLevel string
	// Owner is the account the server runs as.
	Owner process.Owner
}

func (c *Config) setDefaults() {
	if c.Name == "" {
		c.Name = "alertmanager"
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.GroupWait == 0 {
		c.GroupWait = time.Second
	}
	if c.GroupInterval == 0 {
		c.GroupInterval = 15 * time.Second
	}
	if c.RepeatInterval == 0 {
		c.RepeatInterval = time.Hour
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
	if c.Webhook != "" {
		u, err := url.Parse(c.Webhook)
		f.Check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "Webhook",
			fmt.Sprintf("%q is not an http or https URL", c.Webhook))
	}
	return f.Err("alertmanager")
}

// Unit returns the plan's line for the server.
func Unit(cfg Config) (process.Unit, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return process.Unit{}, err
	}
	name := "prometheus-alertmanager" // Debian's
	if _, err := prepare.Executable(cfg.Executable, name); err != nil && cfg.Executable == "" {
		name = "alertmanager" // everybody else's
	}
	path, err := prepare.Executable(cfg.Executable, name)
	if err != nil {
		return process.Unit{}, err
	}
	address := net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port))
	file := filepath.Join(cfg.DataDir, "alertmanager.yml")
	return process.Unit{
		Name: cfg.Name, Kind: "alertmanager", Zone: cfg.Zone, Address: address,
		Process: &process.Spec{
			Path: path,
			Args: []string{
				"--config.file=" + file,
				"--storage.path=" + filepath.Join(cfg.DataDir, "data"),
				"--web.listen-address=" + address,
				"--cluster.listen-address=", // one server, no gossip
				"--log.level=" + cfg.LogLevel, "--log.format=json",
			},
			Env: prepare.Env(cfg.DataDir),
			Dir: cfg.DataDir,
		},
		Prepare: func(context.Context) error {
			if err := prepare.Dirs(cfg.Owner, cfg.DataDir); err != nil {
				return err
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

// file renders alertmanager.yml. JSON is valid YAML, and its quoting needs no
// thought.
func (c *Config) file() ([]byte, error) {
	type object = map[string]any
	receiver := object{"name": "default"}
	if c.Webhook != "" {
		receiver["webhook_configs"] = []object{{"url": c.Webhook, "send_resolved": true}}
	}
	return json.MarshalIndent(object{
		"route": object{
			"receiver": "default", "group_by": []string{"alertname", "zone"},
			"group_wait": c.GroupWait.String(), "group_interval": c.GroupInterval.String(),
			"repeat_interval": c.RepeatInterval.String(),
		},
		"receivers": []object{receiver},
	}, "", "  ")
}
