package cli

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"fournines/internal/eventually"
	"fournines/internal/zonenet"
)

func TestZonelinkCommand(t *testing.T) {
	if err := zonenet.Probe(); err != nil {
		t.Skip(err)
	}
	if err := zonenet.ProbeTUN(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "zonelink.sock")
	n, err := zonenet.New(zonenet.Config{
		ID: fmt.Sprintf("c%04x", rand.N(0x10000)), Mode: zonenet.Namespaces, Zones: []string{"a", "b"},
		Delay: 30 * time.Millisecond, ControlSocket: socket,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := n.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "zonelink.yaml")
	cfg, err := n.ForwarderConfig()
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		t.Helper()
		data, err := yaml.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	background(t, "zonelink", "--config", path)
	eventually.Nil(t, 30*time.Second, func() error { return zonenet.AskConnected(t.Context(), socket) })
	delay := func() time.Duration {
		t.Helper()
		links, err := zonenet.GetLinks(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(links.Get("a", "b").Delay)
	}
	if got := delay(); got != 15*time.Millisecond {
		t.Errorf("delay of one way = %v", got)
	}
	cfg.Links.Set("a", "b", zonenet.Link{Delay: zonenet.Duration(40 * time.Millisecond)})
	write()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually.Nil(t, 30*time.Second, func() error {
		if delay() != 40*time.Millisecond {
			return errors.New("the file is not read again")
		}
		return nil
	})
	if err := zonenet.PutLinks(t.Context(), socket, zonenet.Links{}); err != nil || delay() != 0 {
		t.Errorf("PutLinks: %v, delay %v", err, delay())
	}
}
