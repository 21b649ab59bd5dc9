package etcd_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fournines/component/etcd"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

func TestClusterSurvivesItsLeader(t *testing.T) {
	servertest.Need(t, "etcd")
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	var members []etcd.Member
	for i, zone := range []string{"a", "b", "c"} {
		members = append(members, etcd.Member{Name: "etcd-" + zone, Host: fmt.Sprintf("127.61.%d.10", i+1)})
	}
	var units []*servertest.Unit
	for i, m := range members {
		unit, err := etcd.Unit(etcd.Config{
			Name: m.Name, Zone: string("abc"[i]), Members: members, Cluster: "etcd-test",
			DataDir: filepath.Join(dir, m.Name), Owner: owner,
		})
		if err != nil {
			t.Fatal(err)
		}
		units = append(units, servertest.Launch(t, owner, unit))
	}
	for _, u := range units {
		u.WaitReady()
	}
	leader := waitLeader(t, units)
	before := leader
	if moved, err := etcd.LeadElsewhere(t.Context(), members, leader.Name); err != nil || !moved {
		t.Fatalf("leadership moved: %t, error %v; want it moved", moved, err)
	}
	eventually.Nil(t, time.Minute, func() error {
		if leader = waitLeader(t, units); leader == before {
			return fmt.Errorf("%s still leads", leader.Name)
		}
		return nil
	})
	if moved, err := etcd.LeadElsewhere(t.Context(), members, before.Name); err != nil || moved {
		t.Errorf("leadership moved again: %t, error %v; want nothing to do", moved, err)
	}
	leader.Kill()
	if err := leader.Ready(context.Background()); err == nil {
		t.Error("a killed member still calls itself ready")
	}
	var rest []*servertest.Unit
	for _, u := range units {
		if u != leader {
			rest = append(rest, u)
		}
	}
	if second := waitLeader(t, rest); second == leader {
		t.Errorf("the killed %s still leads", leader.Name)
	}
	for _, u := range rest {
		u.WaitReady()
	}

	if _, err := etcd.LeadElsewhere(t.Context(), members, leader.Name); err == nil {
		t.Error("that the member to be avoided does not answer is no error")
	}

	// One of three is no quorum.
	rest[0].Stop()
	eventually.Nil(t, 30*time.Second, func() error {
		if err := rest[1].Ready(t.Context()); err == nil {
			return fmt.Errorf("%s is ready without a quorum", rest[1].Name)
		}
		return nil
	})
	leader.Relaunch()
	leader.WaitReady()
	rest[1].WaitReady()
}

func waitLeader(t *testing.T, units []*servertest.Unit) *servertest.Unit {
	t.Helper()
	var leader *servertest.Unit
	eventually.Nil(t, 30*time.Second, func() error {
		leader = nil
		for _, u := range units {
			if role, err := u.Role(t.Context()); err == nil && role == "leader" {
				leader = u
			}
		}
		if leader == nil {
			return fmt.Errorf("no member leads")
		}
		return nil
	})
	return leader
}

func TestUnitRefusesBadConfig(t *testing.T) {
	_, err := etcd.Unit(etcd.Config{Name: "x", Members: []etcd.Member{{Name: "a", Host: "0.0.0.0"}, {Name: "b", Host: "h"}}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"Cluster", "DataDir", "Members[0].Host", "Members[1].Host", "odd number", "does not have x"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
}
