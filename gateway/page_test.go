package gateway

import (
	"log/slog"
	"testing"

	"fournines/internal/docpage"
)

const operatorsPage = "../docs/gateway.md"

func TestPageHasAllSettings(t *testing.T) {
	docpage.CheckSettings(t, docpage.Read(t, operatorsPage), "## All settings", DefaultConfig())
}

func TestPageHasAllMetrics(t *testing.T) {
	cfg := DefaultConfig()
	u, err := ParseUpstream("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Upstreams = []Upstream{u}
	cfg.Redis.Nodes = []string{"127.0.0.1:1"} // nobody is asked: it does not run
	cfg.Jobs.KeyFile = jobKeyFile(t)
	m := docpage.NewMetrics()
	if _, err := New(cfg, slog.New(slog.DiscardHandler), m); err != nil {
		t.Fatal(err)
	}
	m.Check(t, docpage.Read(t, operatorsPage), "fournines_gateway_")
}
