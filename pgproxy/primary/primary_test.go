package primary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
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
	lacks := map[bool]error{true: errors.New("too little")}
	s := func(name string, tl uint32, flags string) Status {
		return Status{Endpoint: topology.Endpoint{Name: name}, Timeline: tl, Up: !strings.Contains(flags, "d"),
			InRecovery: strings.Contains(flags, "r"), ReadOnly: strings.Contains(flags, "o"), lacks: lacks[strings.Contains(flags, "l")]}
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
		{"lacks WAL", []Status{s("a", 1, "l"), s("b", 1, "r")}, 1, "", "a claims to be the primary and lacks WAL: too little"},
		{"lacks WAL beside another", []Status{s("a", 1, "l"), s("b", 1, "")}, 1, "b", ""},
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

func TestProvenWAL(t *testing.T) {
	primary := func(tl uint32, lsn, flushed uint64) Status {
		return Status{Endpoint: topology.Endpoint{Name: "p"}, Up: true, SystemID: "x", Timeline: tl, LSN: lsn, flushed: flushed}
	}
	standby := func(tl uint32, lsn uint64) Status {
		return Status{Endpoint: topology.Endpoint{Name: "s"}, Up: true, SystemID: "x", Timeline: tl, LSN: lsn, InRecovery: true}
	}
	other := standby(1, 9999)
	other.SystemID = "y"
	tests := []struct {
		name  string
		seen  []Status
		claim Status
		want  string
	}{
		{"nothing seen", nil, primary(1, 100, 100), ""},
		{"a standby has the same", []Status{standby(1, 100)}, primary(1, 100, 100), ""},
		{"a standby has more", []Status{standby(1, 101)}, primary(1, 100, 100), "its WAL ends at 0/64, and s has had it up to 0/65 on the same timeline"},
		{"a standby has had more", []Status{standby(1, 101), standby(1, 50)}, primary(1, 100, 100), "up to 0/65"},
		{"on an older timeline", []Status{standby(1, 500)}, primary(2, 100, 100), ""},
		{"on a newer timeline", []Status{standby(2, 500)}, primary(1, 100, 100), ""}, // stale anyhow
		{"the newer timeline counts", []Status{standby(1, 500), standby(2, 50), standby(1, 600)}, primary(2, 40, 40), "up to 0/32"},
		{"it has flushed more itself", []Status{primary(1, 300, 200)}, primary(1, 100, 100), "and p has had it up to 0/C8"},
		{"it had written more and not flushed", []Status{primary(1, 300, 90)}, primary(1, 100, 100), ""},
		{"it had flushed a part of a record", []Status{primary(1, 9000, 8192)}, primary(1, 8100, 8100), ""},
		{"another cluster", []Status{standby(1, 90), other}, primary(1, 100, 100), ""},
		{"a standby is behind", []Status{standby(1, 500)}, standby(1, 100), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p proven
			for _, s := range tt.seen {
				p.add(&s)
			}
			err := p.lacking(&tt.claim)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want %q", err, tt.want)
			}
		})
	}
}

// A standby that somebody starts as a primary without a promotion has the
// timeline of the primary and not its last commits.
func TestPrimaryWithoutTheLastCommitsIsRefused(t *testing.T) {
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
	await := func(name, why string) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			v := tr.View()
			if v.Primary == nil && name == "" && strings.Contains(v.Why, why) || v.Primary != nil && v.Primary.Endpoint.Name == name {
				return nil
			}
			return fmt.Errorf("primary %+v (%s), want %q (%s)", v.Primary, v.Why, name, why)
		})
	}
	await("a", "")
	b.Stop()
	a.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000)")
	var end string
	if err := a.QueryRow("SELECT pg_current_wal_flush_lsn()::text").Scan(&end); err != nil {
		t.Fatal(err)
	}
	want, err := ParseLSN(end)
	if err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, time.Minute, func() error {
		if tr.View().Servers[0].LSN < want {
			return errors.New("the commits were not seen")
		}
		return nil
	})
	a.Kill()
	await("", "no server answers")
	b.StartAsPrimary()
	await("", "b claims to be the primary and lacks WAL: its WAL ends at")
	b.Exec("CREATE TABLE t2 AS SELECT generate_series(1, 100000)") // more than a wrote
	eventually.Nil(t, time.Minute, func() error {
		if tr.View().Servers[1].LSN <= want {
			return errors.New("not seen yet")
		}
		return nil
	})
	await("", "b claims to be the primary and lacks WAL: its WAL ends at")
	b.Stop()
	a.Start()
	await("a", "")
}

// A standby whose data directory somebody has written to has WAL that its
// primary never wrote. The primary has run on, so it is not the one to blame.
func TestStandbyWithWALOfItsOwnIsNotUsed(t *testing.T) {
	a := servertest.NewPostgres(t, servertest.PostgresOptions{})
	b := servertest.NewStandby(t, a)
	b.Stop()
	b.StartAsPrimary()
	b.Exec("CREATE TABLE t AS SELECT generate_series(1, 100000)")
	var visible atomic.Bool
	tr := New(Options{
		Endpoints: []topology.Endpoint{{Name: "a", Address: a.Address()}, {Name: "b", Address: b.Address()}},
		Connect: func(ctx context.Context, e topology.Endpoint) (*pgconn.PgConn, error) {
			if e.Name == "b" && !visible.Load() {
				return nil, errors.New("not yet")
			}
			return pgconn.Connect(ctx, strings.Replace(a.DSNVia(e.Address, "pgproxy"), "/dify", "/postgres", 1))
		},
		Interval: 50 * time.Millisecond, Timeout: 15 * time.Second, Misses: 3,
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	defer func() { cancel(); <-done }()
	primary := func() (p *Target) {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			v := tr.View()
			if p = v.Primary; p == nil {
				return errors.New(v.Why)
			}
			return nil
		})
		return p
	}
	before := primary()
	b.Demote(a)
	visible.Store(true)
	distrusted := func() {
		t.Helper()
		eventually.Nil(t, time.Minute, func() error {
			v := tr.View()
			if s := v.Servers[1]; s.Distrust() == nil || !strings.Contains(s.Distrust().Error(), "make it anew") {
				return fmt.Errorf("standby up %t at %s: %w", s.Up, FormatLSN(s.LSN), s.Distrust())
			}
			if len(v.Standbys) != 0 {
				return fmt.Errorf("%d standbys are used", len(v.Standbys))
			}
			return nil
		})
	}
	distrusted()
	select {
	case <-before.Lost:
		t.Error("the primary was left for what a standby said")
	default:
	}
	// What it has does not count either when the primary has to be found again.
	a.Kill()
	<-before.Lost
	a.Start()
	if after := primary(); after.Generation == before.Generation {
		t.Errorf("the reign %+v goes on", after)
	}
	distrusted()
}

func TestFollows(t *testing.T) {
	p := Status{Up: true, Timeline: 2, SystemID: "7"}
	tests := []struct {
		name string
		s    Status
		want bool
	}{
		{"a standby", Status{Up: true, InRecovery: true, Timeline: 2, SystemID: "7"}, true},
		{"down", Status{InRecovery: true, Timeline: 2, SystemID: "7"}, false},
		{"another primary", Status{Up: true, Timeline: 2, SystemID: "7"}, false},
		{"on an older timeline", Status{Up: true, InRecovery: true, Timeline: 1, SystemID: "7"}, false},
		{"of another cluster", Status{Up: true, InRecovery: true, Timeline: 2, SystemID: "8"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.s.follows(&p); got != tt.want {
				t.Fatal(got)
			}
		})
	}
}

func TestStandbys(t *testing.T) {
	a := servertest.NewPostgres(t, servertest.PostgresOptions{})
	b := servertest.NewStandby(t, a)
	c := servertest.NewStandby(t, a)
	named := map[string]*servertest.Postgres{"a": a, "b": b, "c": c}
	var opts Options
	for _, name := range []string{"a", "b", "c"} {
		opts.Endpoints = append(opts.Endpoints, topology.Endpoint{Name: name, Address: named[name].Address()})
	}
	opts.Connect = func(ctx context.Context, e topology.Endpoint) (*pgconn.PgConn, error) {
		return pgconn.Connect(ctx, strings.Replace(named[e.Name].DSN("pgproxy"), "/dify", "/postgres", 1))
	}
	opts.Interval, opts.Timeout, opts.Misses = 50*time.Millisecond, time.Second, 3
	tr := New(opts, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	defer func() { cancel(); <-done }()

	want := func(names string) []*Target {
		t.Helper()
		var got []*Target
		eventually.Nil(t, time.Minute, func() error {
			v := tr.View()
			got = v.Standbys
			var list []string
			for _, s := range got {
				list = append(list, s.Endpoint.Name)
				if !s.Standby || s.Generation != v.Primary.Generation {
					t.Fatalf("standby %+v of primary %+v", s, v.Primary)
				}
			}
			if strings.Join(list, " ") != names {
				return fmt.Errorf("standbys %v, want %q", list, names)
			}
			return nil
		})
		return got
	}
	lost := func(target *Target) bool {
		select {
		case <-target.Lost:
			return true
		default:
			return false
		}
	}
	first := want("b c")
	b.Pause()
	want("c")
	if !lost(first[0]) || lost(first[1]) {
		t.Fatal("the end of one standby must be told, and of no other")
	}
	b.Resume()
	if again := want("b c"); again[1] != first[1] || again[0] == first[0] {
		t.Fatal("a standby that comes back must be a new target, and the other one must stay")
	}
	// A standby of a lost primary has a history of its own until it follows the
	// new one.
	a.Kill()
	b.Promote()
	want("")
	c.Follow(b)
	if got := want("c"); got[0].Timeline != 2 {
		t.Fatalf("timeline %d", got[0].Timeline)
	}
}

func TestParseLSN(t *testing.T) {
	for in, want := range map[string]uint64{"": 0, "0/0": 0, "16/B374D848": 0x16_B374D848, "FFFFFFFF/FFFFFFFF": 1<<64 - 1} {
		if got, err := ParseLSN(in); err != nil || got != want {
			t.Errorf("%s: %x, %v", in, got, err)
		}
	}
	for _, in := range []string{"1", "/", "1/", "x/1", "1/100000000"} {
		if got, err := ParseLSN(in); err == nil {
			t.Errorf("%q: %x", in, got)
		}
	}
}
