package gatewaydrill

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

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

// TestFaults is the short form of the fault table: each fault once, with less
// load, and with bounds that a busy machine keeps. What must never happen it
// holds to: a failed idempotent request, a stream that is cut or malformed for
// no reason, anything at all at a restart.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a minute")
	}
	p := DefaultPlan()
	p.Load.Rate, p.Load.Streams, p.Load.Ramp, p.Load.StreamTokens = 50, 50, time.Second, 6
	p.Warmup, p.Settle, p.Hold = time.Second, time.Second, 3*time.Second
	p.Slow, p.Slack, p.MaxOutage = 10*time.Second, 10*time.Second, 10*time.Second
	c, err := New(Options{Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range Faults() {
		t.Run(f.Name, func(t *testing.T) {
			if ok, why := c.Namespaces(); f.Network && !ok {
				t.Skip(why)
			}
			out, err := Run(t.Context(), c, f, p, 1)
			if err == nil {
				err = c.Stop()
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Log(out.summary())
			if out.Report.Verdict != "pass" {
				t.Error("a goal was missed")
			}
		})
	}
}
