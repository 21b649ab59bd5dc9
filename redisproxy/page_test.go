package redisproxy

import (
	"testing"

	"fournines/internal/docpage"
)

func TestPageHasAllSettingsAndMetrics(t *testing.T) {
	page := docpage.Read(t, "../docs/redis.md")
	docpage.CheckSettings(t, page, "## Settings", DefaultConfig())
	m := docpage.NewMetrics()
	newMetrics(m)
	m.Check(t, page, "fournines_redisproxy_")
}
