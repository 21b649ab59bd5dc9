package milvus_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	component "fournines/component/milvus"
	"fournines/internal/eventually"
	"fournines/internal/milvus"
	"fournines/internal/servertest"
)

func TestServerKeepsVectorsOverAKill(t *testing.T) {
	home, _ := os.UserHomeDir()
	var binary string
	for _, dir := range component.Dirs(home) {
		if _, err := os.Stat(filepath.Join(dir, "milvus")); err == nil {
			binary = filepath.Join(dir, "milvus")
			break
		}
	}
	if binary == "" {
		binary = "milvus"
	}
	servertest.Need(t, binary)
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	const password = "s3cret-of-root"
	file := servertest.Secret(t, owner, dir, "milvus.password", password)
	cfg := component.Config{
		Name: "milvus-test", Zone: "a", Host: "127.64.1.40", Port: 21530, MetricsPort: 21091, InternalPort: 21501,
		DataDir: filepath.Join(dir, "milvus"), PasswordFile: file, Owner: owner,
	}
	unit, err := component.Unit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, file := range component.LockFiles(cfg) {
			_ = os.Remove(file)
		}
	})
	begin := time.Now()
	server := servertest.Start(t, owner, unit)
	t.Logf("first start ready after %v", time.Since(begin).Round(100*time.Millisecond))
	task, err := component.AccountTask(component.AccountConfig{Address: unit.Address, PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finds it done
		if err := task.Task(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Ready(t.Context()); err != nil {
		t.Errorf("not ready with the new password: %v", err)
	}
	eventually.Nil(t, 30*time.Second, func() error {
		for _, wrong := range []milvus.Config{{Address: unit.Address, User: "root", Password: "Milvus"}, {Address: unit.Address}} {
			c, err := milvus.New(wrong)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Collections(t.Context())
			_ = c.Close()
			if err == nil {
				return fmt.Errorf("the server lets in %q with %q", wrong.User, wrong.Password)
			}
		}
		return nil
	})

	client, err := milvus.New(milvus.Config{Address: unit.Address, User: "root", Password: password})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	const collection = "Vector_index_test_Node"
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := client.CreateCollection(ctx, collection, 4); err != nil {
		t.Fatal(err)
	}
	if err := client.Load(ctx, collection); err != nil {
		t.Fatal(err)
	}
	rows := []milvus.Row{
		row(t, "north", "d1", 1, 0, 0, 0), row(t, "east", "d2", 0, 1, 0, 0), row(t, "up", "d3", 0, 0, 1, 0),
	}
	if _, err := client.Insert(ctx, collection, rows); err != nil {
		t.Fatal(err)
	}
	find := func() error {
		hits, err := client.Search(ctx, collection, []float32{0, 0.9, 0.1, 0}, 1, "")
		if err != nil {
			return err
		}
		if len(hits) != 1 || hits[0].Content != "east" {
			return fmt.Errorf("search found %+v, want east", hits)
		}
		return nil
	}
	eventually.Nil(t, time.Minute, find)
	if strings.Contains(server.ArgsOf(), password) || strings.Contains(server.Log(), password) {
		t.Error("the password is in the arguments or the log")
	}

	server.Kill()
	begin = time.Now()
	server.Relaunch()
	server.WaitReady()
	t.Logf("ready %v after a kill", time.Since(begin).Round(100*time.Millisecond))
	eventually.Nil(t, time.Minute, find)
	t.Logf("search works %v after a kill", time.Since(begin).Round(100*time.Millisecond))
	if n, err := client.DeleteWhere(ctx, collection, "doc_id", "d2"); err != nil || n != 1 {
		t.Errorf("deleted %d rows (%v), want 1", n, err)
	}
}

func TestUnitRefusesBadConfig(t *testing.T) {
	_, err := component.Unit(component.Config{Dir: "/nowhere", Port: 100, InternalPort: 99})
	for _, want := range []string{"Name", "Host", "include port 100", "DataDir", "PasswordFile"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func row(t *testing.T, content, doc string, vector ...float32) milvus.Row {
	t.Helper()
	return milvus.Row{Content: content, Metadata: fmt.Appendf(nil, `{"doc_id":%q,"document_id":"D"}`, doc), Vector: vector}
}
