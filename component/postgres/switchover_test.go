package postgres

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The answers are Patroni's: of 3.0 in synchronous mode, and of 4.
func TestParseMembers(t *testing.T) {
	tests := []struct {
		name, in string
		want     []Member
		err      string
	}{
		{
			name: "3.0",
			in: `{"members": [
				{"name": "postgres-a", "role": "leader", "state": "running", "api_url": "http://10.0.1.20:8008/patroni", "host": "10.0.1.20", "port": 5432, "timeline": 3},
				{"name": "postgres-b", "role": "sync_standby", "state": "running", "api_url": "http://10.0.2.20:8008/patroni", "host": "10.0.2.20", "port": 5432, "timeline": 3, "lag": 17},
				{"name": "postgres-c", "role": "replica", "state": "starting", "api_url": "http://10.0.3.20:8008/patroni", "host": "10.0.3.20", "port": 5432, "lag": "unknown"}]}`,
			want: []Member{
				{Name: "postgres-a", Address: "10.0.1.20:5432", REST: "10.0.1.20:8008", Role: RolePrimary, Running: true, State: "running", Timeline: 3},
				{Name: "postgres-b", Address: "10.0.2.20:5432", REST: "10.0.2.20:8008", Role: RoleSyncStandby, Running: true, State: "running", Timeline: 3, Lag: 17},
				{Name: "postgres-c", Address: "10.0.3.20:5432", REST: "10.0.3.20:8008", Role: RoleStandby, State: "starting", Lag: -1},
			},
		},
		{
			name: "4",
			in: `{"members": [{"name": "x", "role": "quorum_standby", "state": "streaming", "api_url": "https://[::1]:8008/patroni",
				"host": "::1", "port": 5433, "timeline": 1, "lag": 0}], "scope": "s"}`,
			want: []Member{{Name: "x", Address: "[::1]:5433", REST: "[::1]:8008", Role: RoleSyncStandby, Running: true, State: "streaming", Timeline: 1}},
		},
		{name: "garbage", in: `<html>`, err: "list of members"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMembers([]byte(tt.in))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("%v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Fatal(err, diff)
			}
		})
	}
}

// What Patroni says when it refuses comes through, and the password goes out.
func TestSwitchoverRefused(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusPreconditionFailed)
		_, _ = w.Write([]byte("candidate name does not match with sync_standby"))
	}))
	defer agent.Close()
	file := filepath.Join(t.TempDir(), "rest")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{REST: []string{agent.Listener.Addr().String()}, PasswordFile: file}
	err := c.Switchover(t.Context(), Member{Name: "a", REST: c.REST[0]}, "b")
	if err == nil || !strings.Contains(err.Error(), "candidate name does not match") {
		t.Errorf("%v", err)
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	if _, err := (&Cluster{REST: []string{dead.Addr().String(), c.REST[0]}}).Members(context.Background()); err == nil ||
		!strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "answers 401") {
		t.Errorf("%v", err)
	}
}
