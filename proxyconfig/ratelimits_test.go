package proxyconfig

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"fournines/gateway"
	"fournines/internal/strictyaml"
	"fournines/spec"
)

// TestRateLimitsReachTheGateway follows a limit from the spec through the file
// that a gateway is started with.
func TestRateLimitsReachTheGateway(t *testing.T) {
	s, err := spec.Parse("fournines.yaml", []byte(`
gateway:
  trustedProxies: [10.0.0.0/8]
  rateLimits:
    - {name: per-app, rate: 100 per minute, by: app}
    - {name: slow, rate: 0.5/hour, by: all}
    - {name: tokens, rate: 60000.5 per day, burst: 7, by: user, unit: tokens, match: {apps: ["0123456789ab"], classes: [chat], pathPrefix: /v1/}}
`))
	if err != nil {
		t.Fatal(err)
	}
	cfg := gateway.DefaultConfig()
	cfg.Upstreams = []gateway.Upstream{{}}
	cfg.Upstreams[0].Address = "127.0.0.1:5001"
	cfg.TrustedProxies, cfg.RateLimits = s.Gateway.TrustedProxies, rateLimits(s.Gateway.RateLimits)
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	read := gateway.DefaultConfig()
	if err := strictyaml.UnmarshalValid("gateway.yaml", text, &read); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	if diff := cmp.Diff(cfg.RateLimits, read.RateLimits, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the gateway reads other limits (-planned +read):\n%s", diff)
	}
	for i, want := range []string{"100 per minute", "0.5 per hour", "60000.5 per day"} {
		if got := read.RateLimits[i].Rate.String(); got != want {
			t.Errorf("rate %d: %s, want %s", i, got, want)
		}
	}
}
