// Package alertmanager runs the Alertmanager that tells people of the stack's
// alerts.
package alertmanager

import (
	"context"
	"net"
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
	// File is the content of alertmanager.yml. It may hold secrets.
	File []byte
	// Templates is the content of TemplateFile, to which File may refer.
	Templates []byte
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
	if c.LogLevel == "" {
		c.LogLevel = "warn"
	}
}

func (c *Config) validate() error {
	var f prepare.Fields
	f.IP("Host", c.Host)
	f.Port("Port", c.Port)
	f.Path("DataDir", c.DataDir)
	f.Check(len(c.File) > 0, "File", "is empty")
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
			if err := prepare.File(TemplateFile(cfg.DataDir), cfg.Templates, cfg.Owner); err != nil {
				return err
			}
			return prepare.File(file, cfg.File, cfg.Owner)
		},
		Ready:        func(ctx context.Context) error { return prepare.OK(ctx, "http://"+address+"/-/ready") },
		ReadyTimeout: 60 * time.Second,
	}, nil
}

// TemplateFile is where the templates of a server with that data directory lie.
func TemplateFile(dataDir string) string { return filepath.Join(dataDir, "messages.tmpl") }
