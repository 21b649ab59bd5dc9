package postgresdrill

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fournines/component/postgres"
	"fournines/internal/servertest"
)

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	os.Exit(servertest.WithBinary(func(path string) int {
		binary = path
		code := m.Run()
		if err := goleak.Find(); code == 0 && err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}))
}

// TestFailover is the short form of the failover table: the fault that has once
// cost acknowledged writes, with bounds that a busy machine keeps.
func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	servertest.Need(t, "etcd", "patroni", filepath.Join(postgres.DefaultBinDir, "postgres"))
	c, err := New(Options{Binary: binary, Owner: servertest.Owner(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	name := "zone-cut"
	if ok, why := c.Namespaces(); !ok {
		t.Logf("a hanging node stands in for a zone that is cut off: %s", why)
		name = "node-hang"
	}
	faults, err := FindFaults([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := DefaultPlan()
	p.Rate, p.Warmup, p.Settle, p.Slack = 20, time.Second, time.Second, time.Minute
	out, err := Run(t.Context(), c, faults[0], p, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out.summary())
	for _, check := range out.Report.Checks {
		t.Logf("%s: %t: %s", check.Name, check.OK, check.Detail)
		// A read is sent again once; on a busy machine the second server may be
		// lost, too. The long form insists.
		if !check.OK && check.Name != "read-only-clients" {
			t.Errorf("%s: %s", check.Name, check.Detail)
		}
	}
	if out.To == out.From {
		t.Errorf("the primary is still in zone %s", out.From)
	}
}
