package live

import (
	"context"
	"fmt"
	"time"

	"fournines/audit"
)

// Gateway asks the admin API of a fournines gateway at rawURL. token may be
// empty on loopback.
func Gateway(ctx context.Context, rawURL, token string) (audit.Gateway, error) {
	u, err := checkURL(rawURL, "http", "https")
	if err != nil {
		return audit.Gateway{}, fmt.Errorf("gateway: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	c := newClient(u, token)
	var status struct {
		Zone        string     `json:"zone"`
		Ready       bool       `json:"ready"`
		NotReady    string     `json:"notReady"`
		ReloadError string     `json:"lastReloadError"`
		Expires     *time.Time `json:"certificateExpires"`
	}
	if err := c.get(ctx, "/v1/status", nil, &status); err != nil {
		return audit.Gateway{}, fmt.Errorf("gateway %s: %w", u.Host, err)
	}
	var endpoints []struct {
		Name  string `json:"name"`
		Zone  string `json:"zone"`
		State string `json:"state"`
	}
	if err := c.get(ctx, "/v1/endpoints", nil, &endpoints); err != nil {
		return audit.Gateway{}, fmt.Errorf("gateway %s: %w", u.Host, err)
	}
	out := audit.Gateway{Name: u.Host, Zone: status.Zone, NotReady: status.NotReady, ReloadError: status.ReloadError, Asked: time.Now()}
	if !status.Ready && out.NotReady == "" {
		out.NotReady = "it gives no reason"
	}
	if status.Expires != nil {
		out.CertificateExpires = *status.Expires
	}
	for _, e := range endpoints {
		out.Endpoints = append(out.Endpoints, audit.GatewayEndpoint{Name: e.Name, Zone: e.Zone, State: e.State})
	}
	return out, nil
}
