package difysim

import (
	"os"
	"path/filepath"
	"testing"

	component "fournines/component/milvus"
	"fournines/internal/milvus"
	"fournines/internal/servertest"
)

// newMilvus starts a real Milvus and returns how to reach it as root.
func newMilvus(t *testing.T) milvus.Config {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	binary := "milvus"
	for _, dir := range component.Dirs(home) {
		if path := filepath.Join(dir, "milvus"); exists(path) {
			binary = path
			break
		}
	}
	servertest.Need(t, binary)
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	const password = "root-of-the-vectors"
	file := servertest.Secret(t, owner, dir, "milvus.password", password)
	cfg := component.Config{
		Name: "milvus-difysim-test", Zone: "a", Host: "127.67.1.40", Port: 25530, MetricsPort: 25091, InternalPort: 25501,
		DataDir: filepath.Join(dir, "milvus"), PasswordFile: file, Owner: owner,
	}
	unit, err := component.Unit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	servertest.Start(t, owner, unit)
	task, err := component.AccountTask(component.AccountConfig{Address: unit.Address, PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Task(t.Context()); err != nil {
		t.Fatal(err)
	}
	return milvus.Config{Address: unit.Address, User: "root", Password: password}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
