package pgproxy

import (
	"testing"

	"fournines/internal/docpage"
)

func TestPageHasAllSettings(t *testing.T) {
	docpage.CheckSettings(t, docpage.Read(t, "../docs/postgres.md"), "## Settings", DefaultConfig())
}
