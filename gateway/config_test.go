package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fournines/internal/strictyaml"
	"fournines/topology"
)

const example = `
listen: 127.0.0.1:8080
zone: zone-a
upstreams:
  - {name: dify-1, zone: zone-a, address: 10.0.1.61:5001}
  - {name: dify-2, zone: zone-b, address: 10.0.2.61:5001, scheme: https}
health: {interval: 500ms, fall: 3}
stream: {heartbeat: 0s}
limits: {maxBodyBytes: 1048576}
drain: {timeout: 5m}
accessLog: true
`

func TestConfigFile(t *testing.T) {
	cfg := DefaultConfig()
	if err := strictyaml.Unmarshal("gateway.yaml", []byte(example), &cfg); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Listen, want.Zone, want.AccessLog = "127.0.0.1:8080", "zone-a", true
	want.Upstreams = []Upstream{
		{Endpoint: topology.Endpoint{Name: "dify-1", Zone: "zone-a", Address: "10.0.1.61:5001"}},
		{Endpoint: topology.Endpoint{Name: "dify-2", Zone: "zone-b", Address: "10.0.2.61:5001"}, Scheme: "https"},
	}
	want.Health.Interval, want.Health.Fall = 500*time.Millisecond, 3
	want.Stream.Heartbeat, want.Limits.MaxBodyBytes, want.Drain.Timeout = 0, 1<<20, 5*time.Minute
	if len(cfg.Upstreams) != 2 || cfg.Upstreams[0] != want.Upstreams[0] || cfg.Upstreams[1] != want.Upstreams[1] {
		t.Fatalf("upstreams %+v", cfg.Upstreams)
	}
	if cfg.Health != want.Health || cfg.Stream != want.Stream || cfg.Limits != want.Limits || cfg.Drain != want.Drain || !cfg.AccessLog {
		t.Fatalf("got %+v", cfg)
	}
}

func TestValidateReportsEverything(t *testing.T) {
	good := func() Config {
		cfg := DefaultConfig()
		u, err := ParseUpstream("http://dify-1:5001@zone-a")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Upstreams = []Upstream{u}
		return cfg
	}
	cfg := good()
	if err := cfg.Validate(); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	for want, spoil := range map[string]func(*Config){
		`listen: "8080" is not host:port`:                    func(c *Config) { c.Listen = "8080" },
		"adminListen: ":                                      func(c *Config) { c.AdminListen = "x" },
		"tls: certFile and keyFile":                          func(c *Config) { c.TLS.CertFile = "x" },
		"upstreams: at least one":                            func(c *Config) { c.Upstreams = nil },
		`upstreams[0].address: "dify/1:80" is not host:port`: func(c *Config) { c.Upstreams[0].Address = "dify/1:80" },
		`upstreams[0].scheme: "ftp"`:                         func(c *Config) { c.Upstreams[0].Scheme = "ftp" },
		"upstreams[1].address: dify-1:5001 is the same":      func(c *Config) { c.Upstreams = append(c.Upstreams, c.Upstreams[0]) },
		"health.path: ":                                      func(c *Config) { c.Health.Path = "health" },
		"health.interval: 1ms is less than 50ms":             func(c *Config) { c.Health.Interval = time.Millisecond },
		"health.rise: 0":                                     func(c *Config) { c.Health.Rise = 0 },
		"balance.localThreshold: 2":                          func(c *Config) { c.Balance.LocalThreshold = 2 },
		"ejection.maxTime: ":                                 func(c *Config) { c.Ejection.MaxTime = time.Second },
		"ejection.errorShare: 1.5":                           func(c *Config) { c.Ejection.ErrorShare = 1.5 },
		"ejection.othersErrorShare: -1":                      func(c *Config) { c.Ejection.OthersErrorShare = -1 },
		"ejection.errorWindow: 0s is less than 100ms":        func(c *Config) { c.Ejection.ErrorWindow = 0 },
		"ejection.minRequests: 0":                            func(c *Config) { c.Ejection.MinRequests = 0 },
		"retry.attempts: 0":                                  func(c *Config) { c.Retry.Attempts = 0 },
		"retry.budgetShare: -1":                              func(c *Config) { c.Retry.BudgetShare = -1 },
		`stream.restart: "always"`:                           func(c *Config) { c.Stream.Restart = "always" },
		"stream.heartbeat: ":                                 func(c *Config) { c.Stream.Heartbeat = -1 },
		"stream.firstContentTimeout: ":                       func(c *Config) { c.Stream.FirstContentTimeout = -1 },
		"stream.hold: 2m0s is more than a minute":            func(c *Config) { c.Stream.Hold = 2 * time.Minute },
		"limits.maxBodyBytes: 0":                             func(c *Config) { c.Limits.MaxBodyBytes = 0 },
		"drain.timeout: ":                                    func(c *Config) { c.Drain.Timeout = -1 },
	} {
		cfg := good()
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := New(cfg, nil, prometheus.NewRegistry()); err == nil {
			t.Errorf("New took a configuration with %q", want)
		}
	}
	cfg = good()
	cfg.Ejection.ErrorShare, cfg.Ejection.ErrorWindow, cfg.Ejection.MinRequests = 0, 0, 0
	if err := cfg.Validate(); err != nil {
		t.Errorf("a rule that is turned off: %v", err)
	}
	cfg = good()
	cfg.Listen, cfg.Retry.Attempts = "x", 0
	if err := cfg.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two mistakes gave %v", err)
	}
}
