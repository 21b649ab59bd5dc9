package spec

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// GatewayJobs sets the async lane.
type GatewayJobs struct {
	// Enabled lets callers make jobs; else their preference is ignored and the
	// call is answered as ever.
	Enabled bool `yaml:"enabled"`
	// Workers is how many jobs each gateway runs at a time.
	Workers int `yaml:"workers" range:"0..1000"`
	// MaxAge is how long a job may wait for its turn before it is given up.
	MaxAge Duration `yaml:"maxAge" range:"1s..720h"`
	// Retention is how long a finished job can be asked for; a failed one stays
	// in the dead-letter list for seven days.
	Retention Duration `yaml:"retention" range:"1m..2160h"`
	// Webhooks tell of finished jobs.
	Webhooks GatewayWebhooks `yaml:"webhooks"`
}

// GatewayWebhooks are the calls that a job's sender may ask for. They are signed
// with the secret in <data-dir>/secrets/gateway-webhook.
type GatewayWebhooks struct {
	// Hosts are the names that may be called, exact or like *.example.com. None
	// means that there are no calls. Zones that are network namespaces have no
	// route to the outside.
	Hosts []string `yaml:"hosts" range:"0..100"`
	// AllowHTTP permits http:// addresses too.
	AllowHTTP bool `yaml:"allowHTTP"`
	// AllowNetworks are networks, like 10.0.0.0/8, that may be called though
	// they are private, loopback or otherwise not public.
	AllowNetworks []string `yaml:"allowNetworks" range:"0..100"`
}

func defaultGatewayJobs() GatewayJobs {
	return GatewayJobs{
		Enabled: true, Workers: 16, MaxAge: Duration(60 * minute), Retention: Duration(24 * 60 * minute),
		Webhooks: GatewayWebhooks{Hosts: []string{}, AllowNetworks: []string{}},
	}
}

// gatewayJobs checks what tags cannot say.
func (c *checker) gatewayJobs() {
	hooks := c.spec.Gateway.Jobs.Webhooks
	for i, h := range hooks.Hosts {
		name := strings.TrimPrefix(h, "*.")
		if name == "" || strings.ContainsAny(name, "*/:@ ") && net.ParseIP(name) == nil {
			c.add(fmt.Sprintf("gateway.jobs.webhooks.hosts[%d]", i), "write a name like hooks.example.com or *.example.com", "%q is not a host name", h)
		}
	}
	for i, n := range hooks.AllowNetworks {
		if _, err := netip.ParsePrefix(n); err != nil {
			c.add(fmt.Sprintf("gateway.jobs.webhooks.allowNetworks[%d]", i), "write it like 10.0.0.0/8", "%q is not a network", n)
		}
	}
}
