package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// watchdog is the alert that always fires.
const watchdog = "Watchdog"

// alertmanager asks one server.
type alertmanager struct {
	base string
	http *http.Client
}

// alerts returns what fires, the most urgent first, without the watchdog, and
// whether that fires.
func (a *alertmanager) alerts(ctx context.Context) (firing []Alert, alive bool, err error) {
	var list []struct {
		Fingerprint string            `json:"fingerprint"`
		StartsAt    time.Time         `json:"startsAt"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
		Status      struct {
			State string `json:"state"`
		} `json:"status"`
	}
	status, err := getJSON(ctx, a.http, a.base+"/api/v2/alerts", &list)
	if err != nil {
		return nil, false, fmt.Errorf("ask Alertmanager: %w", err)
	}
	if status != "200 OK" {
		return nil, false, fmt.Errorf("ask Alertmanager: status %s", status)
	}
	firing = []Alert{}
	for _, l := range list {
		if l.Labels["alertname"] == watchdog {
			alive = true
			continue
		}
		firing = append(firing, Alert{
			ID: l.Fingerprint, Name: l.Labels["alertname"], Severity: l.Labels["severity"],
			Component: l.Labels["component"], Zone: l.Labels["zone"], Summary: l.Annotations["summary"],
			Since: l.StartsAt.UnixMilli(), Muted: l.Status.State == "suppressed",
		})
	}
	slices.SortFunc(firing, func(x, y Alert) int {
		return cmp.Or(cmp.Compare(urgency(y.Severity), urgency(x.Severity)), cmp.Compare(y.Since, x.Since), cmp.Compare(x.ID, y.ID))
	})
	return firing, alive, nil
}

// urgency orders the severities that rules use.
func urgency(severity string) int {
	switch severity {
	case "page", "critical":
		return 3
	case "ticket", "warning":
		return 2
	case "info":
		return 1
	}
	return 0
}
