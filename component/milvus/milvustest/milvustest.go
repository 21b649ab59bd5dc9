// Package milvustest starts a real Milvus for tests of what talks to it.
package milvustest

import (
	"os"
	"path/filepath"
	"testing"

	component "fournines/component/milvus"
	"fournines/internal/milvus"
	"fournines/internal/servertest"
)

// Options keep the servers of packages that are tested side by side apart.
type Options struct {
	// Name of the unit.
	Name string
	// Host is a loopback address of the package's own.
	Host string
	// Port is the client port; the two after it are for metrics and Milvus's
	// own parts.
	Port int
}

// New starts Milvus until the test ends and returns how to reach it as root. It
// skips the test, or fails it where servers are required, when there is none.
func New(tb testing.TB, o Options) milvus.Config {
	tb.Helper()
	servertest.Need(tb, binary())
	owner := servertest.Owner(tb)
	dir := servertest.Dir(tb, owner)
	const password = "root-of-the-vectors"
	file := servertest.Secret(tb, owner, dir, "milvus.password", password)
	unit, err := component.Unit(component.Config{
		Name: o.Name, Zone: "a", Host: o.Host, Port: o.Port, MetricsPort: o.Port + 1, InternalPort: o.Port + 2,
		DataDir: filepath.Join(dir, "milvus"), PasswordFile: file, Owner: owner,
	})
	if err != nil {
		tb.Fatal(err)
	}
	servertest.Start(tb, owner, unit)
	task, err := component.AccountTask(component.AccountConfig{Address: unit.Address, PasswordFile: file})
	if err != nil {
		tb.Fatal(err)
	}
	if err := task.Task(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return milvus.Config{Address: unit.Address, User: "root", Password: password}
}

// binary is where the server was installed, or its name for the PATH to find.
func binary() string {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	for _, dir := range component.Dirs(home) {
		path := filepath.Join(dir, "milvus")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "milvus"
}
