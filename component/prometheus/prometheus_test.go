package prometheus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/component/alertmanager"
	"fournines/component/prometheus"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/observe/routes"
	"fournines/observe/rules"
)

// TestAlertReachesWebhook runs both servers: a target that is down becomes an
// alert, and the alert a message.
func TestAlertReachesWebhook(t *testing.T) {
	servertest.Need(t, "prometheus", "prometheus-alertmanager")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	fired := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message struct {
			Alerts []struct {
				Status string            `json:"status"`
				Labels map[string]string `json:"labels"`
			} `json:"alerts"`
		}
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Errorf("webhook: %v", err)
		}
		for _, a := range message.Alerts {
			select {
			case fired <- a.Labels["alertname"] + "/" + a.Labels["component"] + "/" + a.Status:
			default:
			}
		}
	}))
	defer receiver.Close()
	alertDir := filepath.Join(dir, "alertmanager")
	alertFile, err := routes.File(routes.Config{Webhook: receiver.URL, TemplateFile: alertmanager.TemplateFile(alertDir)})
	if err != nil {
		t.Fatal(err)
	}
	manager, err := alertmanager.Unit(alertmanager.Config{
		Host: "127.66.0.3", File: alertFile, Templates: routes.Templates, DataDir: alertDir, Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := rules.Build(rules.Config{Objective: 0.9999, Window: 30 * 24 * time.Hour, FirstContent: 8 * time.Second, FirstContentObjective: 0.99})
	if err != nil {
		t.Fatal(err)
	}
	file, err := rules.File(groups)
	if err != nil {
		t.Fatal(err)
	}
	server, err := prometheus.Unit(prometheus.Config{
		Host: "127.66.0.2", Rules: file, Alertmanagers: []string{manager.Address}, ScrapeInterval: time.Second,
		DataDir: filepath.Join(dir, "prometheus"), Owner: owner,
		Jobs: []prometheus.Job{
			{Name: "prometheus", Targets: []prometheus.Target{{Address: "127.66.0.2:9090", Component: "prometheus"}}},
			{Name: "alertmanager", Targets: []prometheus.Target{{Address: manager.Address, Component: "alertmanager", Zone: "a"}}},
			{Name: "lost", Targets: []prometheus.Target{{Address: "127.66.0.9:1", Component: "lost", Zone: "a"}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	am := servertest.Start(t, owner, manager)
	prom := servertest.Start(t, owner, server)
	t.Logf("both ready after %v", time.Since(begin).Round(100*time.Millisecond))
	eventually.Nil(t, time.Minute, func() error {
		up, err := prometheus.Targets(t.Context(), server.Address)
		if up != 2 || err == nil || !strings.Contains(err.Error(), "1 of 3 targets") {
			return fmt.Errorf("%d targets up, error %w; want 2 and one down", up, err)
		}
		return nil
	})
	eventually.Nil(t, time.Minute, func() error {
		v, err := prometheus.Query(t.Context(), server.Address, `up{component="alertmanager",zone="a"}`)
		if err == nil && v != 1 {
			err = fmt.Errorf("up is %v", v)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	want := map[string]bool{"Watchdog//firing": true, "TargetDown/lost/firing": true}
	for len(want) > 0 {
		select {
		case got := <-fired:
			delete(want, got)
			t.Logf("%s after %v", got, time.Since(begin).Round(100*time.Millisecond))
		case <-ctx.Done():
			t.Fatalf("never reached the webhook: %v", want)
		}
	}
	t.Logf("Alertmanager stopped in %v, Prometheus in %v", am.Stop().Round(time.Millisecond), prom.Stop().Round(time.Millisecond))
}

func TestUnitRefusesBadConfig(t *testing.T) {
	_, err := prometheus.Unit(prometheus.Config{
		Jobs:          []prometheus.Job{{Name: "x"}, {Name: "x", Targets: []prometheus.Target{{Address: "nohost"}}}},
		Alertmanagers: []string{"x:y"},
	})
	for _, want := range []string{"Host", "DataDir", "Alertmanagers[0]", "x is there twice", "Jobs[1].Targets[0].Address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	if _, err := alertmanager.Unit(alertmanager.Config{Host: "127.0.0.1", DataDir: "/x"}); err == nil || !strings.Contains(err.Error(), "File") {
		t.Errorf("alertmanager without a configuration: %v", err)
	}
}
