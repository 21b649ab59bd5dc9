package console

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"fournines/internal/adminhttp"
)

// Config is the configuration file of `fournines console`.
type Config struct {
	// LogLevel is debug, info (the default), warn or error.
	LogLevel string `yaml:"logLevel"`
	// Listen is the host:port that the page is served on.
	Listen string `yaml:"listen"`
	// AdminListen is the host:port of /metrics, /livez and /readyz; empty: none.
	AdminListen string `yaml:"adminListen"`
	// TokenFile holds the token that a browser has to give once; others must
	// not be able to read the file. It is needed when other machines can reach
	// Listen; without it only callers by a loopback name are answered.
	TokenFile string `yaml:"tokenFile"`
	// StackDir is the data directory of the stack that is shown. The console
	// asks its supervisor for the state through a socket that takes no orders.
	StackDir string `yaml:"stackDir"`
	// HistoryFile keeps the timeline over restarts; empty keeps it in memory.
	HistoryFile string `yaml:"historyFile"`
	// Prometheus and Alertmanager are their URLs, http://host:port.
	Prometheus   string `yaml:"prometheus"`
	Alertmanager string `yaml:"alertmanager"`
	// ScrapeInterval is Prometheus', 1 s to 5 min; default 5 s. Asking more
	// often than that shows nothing new.
	ScrapeInterval time.Duration `yaml:"scrapeInterval"`
	// Objective is the share of requests that must succeed, 0.9 to 0.99999.
	Objective float64 `yaml:"objective"`
	// Window over which the objective is measured, 1 to 90 days.
	Window time.Duration `yaml:"window"`
}

// DefaultConfig returns the configuration that a file starts from.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:8490", Prometheus: "http://127.0.0.1:9490", Alertmanager: "http://127.0.0.1:9493",
		ScrapeInterval: 5 * time.Second, Objective: 0.9999, Window: 30 * 24 * time.Hour,
	}
}

// Validate reports every problem, each with its field.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	for _, a := range []struct{ field, address string }{{"listen", c.Listen}, {"adminListen", c.AdminListen}} {
		if a.address == "" && a.field != "listen" {
			continue
		}
		if _, port, err := net.SplitHostPort(a.address); err != nil || port == "" {
			bad(a.field, "%q is not host:port", a.address)
		}
	}
	if c.TokenFile == "" && !adminhttp.Loopback(c.Listen) {
		bad("tokenFile", "needed because other machines can reach listen %q; or listen on a loopback address", c.Listen)
	}
	for _, p := range []struct {
		field, path string
		needed      bool
	}{{"stackDir", c.StackDir, true}, {"historyFile", c.HistoryFile, false}} {
		if p.path == "" && !p.needed {
			continue
		}
		if !filepath.IsAbs(p.path) {
			bad(p.field, "%q is not an absolute path", p.path)
		}
	}
	for _, u := range []struct{ field, url string }{{"prometheus", c.Prometheus}, {"alertmanager", c.Alertmanager}} {
		parsed, err := url.Parse(u.url)
		if err != nil || parsed.Host == "" || parsed.Scheme != "http" && parsed.Scheme != "https" {
			bad(u.field, "%q is not a URL like http://127.0.0.1:9090", u.url)
		}
	}
	if c.ScrapeInterval < time.Second || c.ScrapeInterval > 5*time.Minute {
		bad("scrapeInterval", "%v is not between 1s and 5m", c.ScrapeInterval)
	}
	if !(c.Objective >= 0.9 && c.Objective <= 0.99999) {
		bad("objective", "%v is not between 0.9 and 0.99999", c.Objective)
	}
	if c.Window < 24*time.Hour || c.Window > 90*24*time.Hour {
		bad("window", "%v is not between 24h and 2160h", c.Window)
	}
	return errors.Join(errs...)
}
