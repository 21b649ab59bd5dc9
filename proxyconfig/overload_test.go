package proxyconfig

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"fournines/gateway"
	"fournines/spec"
)

// TestOverloadDefaultsAgree: a stack and a gateway that runs alone treat an
// overload alike.
func TestOverloadDefaultsAgree(t *testing.T) {
	got := gateway.DefaultConfig()
	overload(&got, spec.Default().Gateway)
	if diff := cmp.Diff(gateway.DefaultConfig(), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the spec's defaults change the gateway's: %s", diff)
	}
}

func TestAppsReachTheGateway(t *testing.T) {
	s := spec.Default().Gateway
	s.Apps = []spec.GatewayApp{{Name: "shop", KeyIDs: []string{"0123456789ab"}, Weight: 3, MaxInFlight: 40, MaxQueue: 7, Priority: "batch"}}
	s.Overload.MaxInFlight, s.Overload.QueueTimeout = 9, spec.Duration(2*time.Second)
	cfg := gateway.DefaultConfig()
	overload(&cfg, s)
	want := []gateway.App{{Name: "shop", KeyIDs: []string{"0123456789ab"}, Weight: 3, MaxInFlight: 40, MaxQueue: 7, Priority: gateway.PriorityBatch}}
	if diff := cmp.Diff(want, cfg.Apps); diff != "" {
		t.Error(diff)
	}
	if cfg.Limits.MaxInFlight != 9 || cfg.Limits.QueueTimeout != 2*time.Second {
		t.Errorf("limits: %+v", cfg.Limits)
	}
}
