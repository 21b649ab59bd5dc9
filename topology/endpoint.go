// Package topology says what runs where: zones, endpoints and the health of
// each. Its values are immutable; those who route swap whole snapshots.
package topology

import (
	"fmt"
	"net"
	"strings"
)

// Endpoint is one address that serves requests, and the zone it stands in.
type Endpoint struct {
	// Name identifies the endpoint in logs and metrics; it defaults to Address.
	Name string `yaml:"name" json:"name"`
	// Zone is the failure domain; empty means unknown, which is local to nobody.
	Zone string `yaml:"zone" json:"zone"`
	// Address is host:port.
	Address string `yaml:"address" json:"address"`
}

// ParseEndpoint reads "host:port@zone" or "scheme://host:port@zone"; the
// scheme and "@zone" are optional. The error names the part that is wrong.
func ParseEndpoint(s string) (scheme string, e Endpoint, err error) {
	rest := s
	if i := strings.Index(rest, "://"); i >= 0 {
		scheme, rest = rest[:i], rest[i+3:]
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest, e.Zone = rest[:i], rest[i+1:]
		if e.Zone == "" {
			return "", Endpoint{}, fmt.Errorf("endpoint %q: nothing after \"@\"; write the zone's name or leave \"@\" out", s)
		}
	}
	rest = strings.TrimSuffix(rest, "/")
	host, port, splitErr := net.SplitHostPort(rest)
	if splitErr != nil || host == "" || port == "" {
		return "", Endpoint{}, fmt.Errorf("endpoint %q: want host:port, for example 10.0.0.7:5001@zone-a", s)
	}
	e.Address, e.Name = rest, rest
	return scheme, e, nil
}
