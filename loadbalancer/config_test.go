package loadbalancer

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/internal/strictyaml"
	"fournines/topology"
)

// TestBadConfigs reads testdata/*.bad.yaml: each "# want:" line is a part of
// the error.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var cfg Config
			got := strictyaml.Unmarshal(file, data, &cfg)
			if got == nil {
				got = cfg.Validate()
			}
			if got == nil {
				t.Fatal("no error")
			}
			for line := range strings.Lines(string(data)) {
				if want, ok := strings.CutPrefix(line, "# want: "); ok && !strings.Contains(got.Error(), strings.TrimSpace(want)) {
					t.Errorf("error lacks %q:\n%v", strings.TrimSpace(want), got)
				}
			}
		})
	}
}

func TestGoodConfig(t *testing.T) {
	data, err := os.ReadFile("testdata/full.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cfg Config
	if err := strictyaml.Unmarshal("full.good.yaml", data, &cfg); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	full := cfg.withDefaults()
	s := full.Services[1]
	if s.ConnectTimeout != DefaultConnectTimeout || s.Check.Kind != CheckTCP || s.Check.Interval != DefaultCheckInterval ||
		s.Backends[0].Name != "10.7.1.40:19530" || s.Backends[0].CheckAddress != "10.7.1.40:19530" {
		t.Errorf("defaults: %+v", full)
	}
	if g := full.Services[0]; *cfg.Drain != 0 || g.Check.Interval != 250*time.Millisecond || g.Backends[0].CheckAddress != "10.7.1.50:9101" {
		t.Errorf("values: %+v", g)
	}
}

func TestZoneOf(t *testing.T) {
	table := newZoneTable([]ZoneRange{{"10.7.0.0/16", "wide"}, {"10.7.1.0/24", "a"}, {"fd00::/64", "six"}})
	for _, tt := range []struct{ addr, want string }{
		{"10.7.1.5", "a"}, {"10.7.2.5", "wide"}, {"::ffff:10.7.1.5", "a"}, {"fd00::1", "six"}, {"127.0.0.1", ""},
	} {
		if got := table.zoneOf(&net.TCPAddr{IP: net.ParseIP(tt.addr)}); got != tt.want {
			t.Errorf("zone of %s = %q, want %q", tt.addr, got, tt.want)
		}
	}
	if got := table.zoneOf(&net.UnixAddr{}); got != "" {
		t.Errorf("zone of a unix address = %q", got)
	}
}

func TestOrder(t *testing.T) {
	mk := func(name, zone string, up bool, active int64) *backend {
		b := &backend{Backend: Backend{Endpoint: topology.Endpoint{Name: name, Zone: zone}}}
		b.up.Store(up)
		b.active.Store(active)
		return b
	}
	s := &snapshot{backends: []*backend{
		mk("down-a", "a", false, 0), mk("b2", "b", true, 2), mk("a5", "a", true, 5),
		mk("down-b", "b", false, 0), mk("a3", "a", true, 3), mk("none", "", true, 4),
	}}
	for zone, want := range map[string]string{
		"a": "a3 a5 b2 none down-a down-b",
		"b": "b2 a3 none a5 down-b down-a",
	} {
		var got []string
		for _, b := range s.order(zone) {
			got = append(got, b.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("order from %s = %v, want %s", zone, got, want)
		}
	}
	// A caller or a backend without a zone is local to nobody.
	if got := s.order("")[0].Name; got != "b2" {
		t.Errorf("first for a caller without a zone = %s", got)
	}
	// A failed attempt counts until the next check that passes.
	s.backends[4].failed.Store(10)
	if got := s.order("a")[0].Name; got != "a5" {
		t.Errorf("after a failed attempt: first = %s", got)
	}
	s.backends[4].started.Store(10)
	if got := s.order("a")[0].Name; got != "a3" {
		t.Errorf("after a passed check: first = %s", got)
	}
}
