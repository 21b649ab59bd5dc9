package local

import (
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fournines/gateway"
	"fournines/internal/process"
	"fournines/spec"
)

// TestWebhooksReachTheGateway: a gateway starts with what a stack's spec says
// of webhooks and with the secret that the stack has made for them.
func TestWebhooksReachTheGateway(t *testing.T) {
	s := spec.Default()
	s.Gateway.Jobs.Webhooks = spec.GatewayWebhooks{Hosts: []string{"*.example.com"}, AllowHTTP: true, AllowNetworks: []string{"10.0.0.0/8"}}
	p := &planner{PlanConfig: PlanConfig{Spec: &s}, secrets: OpenSecrets(t.TempDir(), process.Owner{})}
	if err := p.secrets.Ensure(secretNames()...); err != nil {
		t.Fatal(err)
	}
	cfg := gateway.DefaultConfig()
	cfg.Upstreams = []gateway.Upstream{{}}
	cfg.Upstreams[0].Address = "127.0.0.1:5001"
	cfg.Redis.Nodes = []string{"127.0.0.1:1"}
	p.gatewaySettings(&cfg)
	hooks := cfg.Jobs.Webhook
	if diff := cmp.Diff([]any{[]string{"*.example.com"}, true, []string{"10.0.0.0/8"}}, []any{hooks.Hosts, hooks.AllowHTTP, hooks.AllowNetworks}); diff != "" {
		t.Error(diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		t.Error(err)
	}
}
