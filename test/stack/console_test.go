package stack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fournines/console"
	"fournines/internal/eventually"
)

// TestConsoleSeesTheStack: each layer's figures come from metrics that the real
// servers have, and no answer holds a secret.
func TestConsoleSeesTheStack(t *testing.T) {
	url := theStack.status(t).Endpoints["console"]
	if url == "" {
		t.Fatal("the status names no console")
	}
	c := theStack.credentials(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// A request now and then, so that there are rates.
	chat := make(chan struct{})
	go func() {
		defer close(chat)
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Gateway.URL+"/v1/parameters", nil)
			if err != nil {
				return
			}
			req.Header.Set("Authorization", "Bearer "+c.Gateway.AppKey)
			req.Close = true // so that each gateway gets some
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	defer func() { <-chat }()
	defer cancel()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	text, missing := "", ""
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var s console.Snapshot
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			t.Fatal(err)
		}
		text = data
		if missing = missingFigures(s); missing == "" {
			break
		}
	}
	if missing != "" || text == "" {
		t.Fatalf("not shown: %s; the last snapshot was %s", missing, text)
	}

	for _, path := range []string{"/api/events", "/api/series?range=15m", "/api/series?range=15m&component=postgres-a"} {
		eventually.Nil(t, time.Minute, func() error {
			resp, err := http.Get(url + path)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s: %s: %s", path, resp.Status, body)
			}
			text += string(body)
			return err
		})
	}
	secrets, err := filepath.Glob(filepath.Join(theStack.data, "secrets", "*"))
	if err != nil || len(secrets) == 0 {
		t.Fatalf("no secrets found: %v", err)
	}
	for _, file := range secrets {
		secret, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, strings.TrimSpace(string(secret))) {
			t.Errorf("the console shows the secret %s", filepath.Base(file))
		}
	}
}

// missingFigures names what a snapshot of a whole stack lacks.
func missingFigures(s console.Snapshot) string {
	want := map[string][]string{
		"gateway":      {"rps", "inFlight", "streams", "p99"},
		"dify-api":     {"inFlight", "limit", "trusted", "rps"},
		"dify-worker":  {"tasksActive"},
		"pgproxy":      {"queries", "clients", "held", "connections"},
		"postgres":     {"transactions", "connections"},
		"redisproxy":   {"commands", "clients", "held"},
		"redis":        {"commands", "dataBytes"},
		"etcd":         {"proposals", "dataBytes"},
		"milvus":       {},
		"loadbalancer": {"connections"},
	}
	var missing []string
	kinds := map[string]bool{}
	for _, z := range s.Stack.Zones {
		for _, c := range z.Components {
			figures := slices.Clone(want[c.Kind])
			kinds[c.Kind] = true
			if c.Role == "standby" || c.Role == "sync standby" || c.Role == "replica" {
				figures = append(figures, "lagBytes")
			}
			for _, f := range figures {
				if _, known := c.Figures[f]; !known {
					missing = append(missing, c.Name+": "+f)
				}
			}
		}
	}
	for kind := range want {
		if !kinds[kind] {
			missing = append(missing, "any "+kind)
		}
	}
	for _, f := range []string{"rps", "failed", "limited", "p50", "p99", "inFlight", "streams", "waiting", "queries", "commands", "lagBytes", "slots", "syncStandbys", "targetsUp", "targetsDown", "backups", "archiveLag"} {
		if _, known := s.Totals[f]; !known {
			missing = append(missing, "total "+f)
		}
	}
	if s.SLO.Left == nil || s.SLO.CoveredSeconds == nil {
		missing = append(missing, "error budget")
	}
	if !s.Sources.Watchdog {
		missing = append(missing, "watchdog")
	}
	return strings.Join(missing, ", ")
}
