package pgproxy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// restartOnly are the settings that a reload cannot change: listeners, what the
// tracker was made with, and what open sessions rest on.
var restartOnly = []string{
	"listen", "adminListen", "admin.api", "zone", "logLevel", "backends", "probe.interval", "probe.timeout", "probe.misses", "pool.mode", "console.database",
}

// configSetting is one setting of a configuration, by the name that it has in
// the file. A list is one setting. There are no secrets among them: a Config
// has the paths of files.
type configSetting struct{ name, value string }

func (c *Config) settings() []configSetting {
	var out []configSetting
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			field := v.Field(i)
			switch {
			case field.Kind() == reflect.Struct:
				walk(field, prefix+name+".")
			case field.Kind() == reflect.Slice:
				var items []string
				for j := range field.Len() {
					items = append(items, fmt.Sprintf("%+v", field.Index(j).Interface()))
				}
				out = append(out, configSetting{prefix + name, strings.Join(items, ", ")})
			default:
				out = append(out, configSetting{prefix + name, fmt.Sprint(field.Interface())})
			}
		}
	}
	walk(reflect.ValueOf(*c), "")
	return out
}

// checkReload refuses what a reload cannot change, each by its name.
func checkReload(old, next *Config) error {
	var errs []error
	before := old.settings()
	for i, s := range next.settings() {
		if s.value != before[i].value && slices.Contains(restartOnly, s.name) {
			errs = append(errs, fmt.Errorf("%s: cannot be reloaded (%q is in force, the file has %q); restart the proxy, or take it back", s.name, before[i].value, s.value))
		}
	}
	return errors.Join(errs...)
}

// reloaded is how the last reload ended.
type reloaded struct {
	at  time.Time
	err error
}

// Reload applies cfg, all or nothing: what is under way goes on, and sees the
// new settings with its next transaction or login. Settings that need a restart
// are refused by name when they have changed.
func (p *Proxy) Reload(cfg Config) (err error) {
	defer func() { p.lastReload.Store(&reloaded{time.Now(), err}) }()
	l, err := load(cfg)
	if err != nil {
		return err
	}
	if err := checkReload(&p.live.Load().cfg, &l.cfg); err != nil {
		return err
	}
	p.live.Store(l)
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, pl := range p.pools {
		pl.Resize(l.cfg.Pool.sizeOf(k), l.cfg.Pool.Queue)
	}
	for k, pl := range p.standbyPools {
		pl.Resize(l.cfg.Pool.sizeOf(k.poolKey), l.cfg.Pool.Queue)
	}
	return nil
}

// ReloadFile reads the configuration again from where it came from.
func (p *Proxy) ReloadFile() error {
	if p.opts.Load == nil {
		return errors.New("the proxy has no configuration file")
	}
	cfg, err := p.opts.Load()
	if err != nil {
		p.lastReload.Store(&reloaded{time.Now(), err})
		return err
	}
	return p.Reload(cfg)
}
