package primary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"fournines/internal/eventually"
	"fournines/internal/servertest"
	"fournines/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestChoose(t *testing.T) {
	s := func(name string, tl uint32, flags string) Status {
		return Status{Endpoint: topology.Endpoint{Name: name}, Timeline: tl, Up: !strings.Contains(flags, "d"),
			InRecovery: strings.Contains(flags, "r"), ReadOnly: strings.Contains(flags, "o")}
	}
	tests := []struct {
		name    string
		servers []Status
		highest uint32
		want    string
		why     string
	}{
		{"normal", []Status{s("a", 1, ""), s("b", 1, "r")}, 0, "a", ""},
		{"promoted beside the old one", []Status{s("a", 1, ""), s("b", 2, "")}, 1, "b", ""},
		{"two on one timeline", []Status{s("b", 2, ""), s("a", 2, "")}, 1, "", "more than one server claims to be the primary on the same timeline: a, b"},
		{"old one comes back alone", []Status{s("a", 1, ""), s("b", 2, "d")}, 2, "", "the only server out of recovery is on an old timeline"},
		{"a standby has seen a later timeline", []Status{s("a", 1, ""), s("b", 2, "r")}, 1, "", "the only server out of recovery is on an old timeline"},
		{"read-only", []Status{s("a", 1, "o")}, 1, "", "the primary is read-only"},
		{"standbys", []Status{s("a", 1, "r"), s("b", 1, "d")}, 1, "", "every server that answers is a standby"},
		{"nobody", []Status{s("a", 1, "d")}, 1, "", "no server answers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			best, _, why := choose(tt.servers, tt.highest)
			got := ""
			if best != nil {
				got = best.Endpoint.Name
			}
			if got != tt.want || why != tt.why {
				t.Fatalf("got %q (%s) want %q (%s)", got, why, tt.want, tt.why)
			}
		})
	}
}

func TestFollowsRealServers(t *testing.T) {
	a := servertest.NewPostgres(t, servertest.PostgresOptions{})
	b := servertest.NewStandby(t, a)
	tr := New(Options{
		Endpoints: []topology.Endpoint{{Name: "a", Address: a.Address()}, {Name: "b", Address: b.Address()}},
		Connect: func(ctx context.Context, e topology.Endpoint) (*pgconn.PgConn, error) {
			return pgconn.Connect(ctx, strings.Replace(a.DSNVia(e.Address, "pgproxy"), "/dify", "/postgres", 1))
		},
		Interval: 50 * time.Millisecond, Timeout: time.Second, Misses: 3,
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	defer func() { cancel(); <-done }()

	want := func(name string) *Target {
		t.Helper()
		var got *Target
		eventually.Nil(t, time.Minute, func() error {
			got = tr.View().Primary
			if got == nil && name == "" || got != nil && got.Endpoint.Name == name {
				return nil
			}
			return fmt.Errorf("primary %+v (%s), want %q", got, tr.View().Why, name)
		})
		return got
	}
	first := want("a")
	a.Pause()
	want("")
	select {
	case <-first.Lost:
	default:
		t.Fatal("the end of the reign was not told")
	}
	a.Resume()
	if again := want("a"); again.Generation <= first.Generation {
		t.Fatal("a regained role must be a new reign")
	}
	a.Kill()
	want("")
	b.Promote()
	if got := want("b"); got.Timeline != 2 {
		t.Fatalf("timeline %d", got.Timeline)
	}
	// The old primary comes back without knowing that it was replaced.
	a.Start()
	eventually.Nil(t, time.Minute, func() error {
		if s := tr.View().Servers[0]; !s.Up {
			return errors.New("not seen yet")
		}
		return nil
	})
	want("b")
	b.Kill()
	want("")
	if why := tr.View().Why; !strings.Contains(why, "old timeline") {
		t.Fatalf("why: %s", why)
	}
}
