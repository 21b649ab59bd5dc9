package difysim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func environment(kv ...string) func(string) string {
	m := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return func(name string) string { return m[name] }
}

func TestConfigFromFileAndEnvironment(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "password")
	file := filepath.Join(dir, "difysim.yaml")
	if err := os.WriteFile(secret, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	yaml := "listen: 127.0.0.1:5001\ndatabase: {host: db, passwordFile: " + secret + "}\nredis: {host: cache, username: dify, passwordFile: " + secret + "}\ncpu: {cost: 250ms}\n"
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(file, environment())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Database.password != "from-file" || cfg.CPU.Cost != 250*time.Millisecond || cfg.Database.PoolSize != 30 {
		t.Errorf("file: %+v", cfg)
	}
	if cfg.Broker.Host != "cache" || cfg.Broker.DB != 1 || cfg.Broker.Username != "dify" || cfg.Broker.password != "from-file" {
		t.Errorf("broker: %+v", cfg.Broker)
	}
	cfg, err = LoadConfig(file, environment("DB_HOST", "other", "DB_PASSWORD", "p w", "DIFY_PORT", "6001", "DIFY_BIND_ADDRESS", "::1",
		"CELERY_BROKER_URL", "redis://u:p%40ss@broker:6380/2", "MILVUS_URI", "http://vec:19531", "MIGRATION_ENABLED", "true"))
	if err != nil {
		t.Fatal(err)
	}
	got := []any{cfg.Database.Host, cfg.Database.password, cfg.Listen, cfg.Broker.Host, cfg.Broker.Port, cfg.Broker.DB, cfg.Broker.Username, cfg.Broker.password, cfg.Vector.Host, cfg.Vector.Port}
	want := []any{"other", "p w", "[::1]:6001", "broker", 6380, 2, "u", "p@ss", "vec", 19531}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		env        func(string) string
		want       []string
	}{
		{"unknown key", "cpuu: {}\n", environment(), []string{"cpuu"}},
		{"ranges", "cpu: {mode: idle, firstShare: 2, slice: 0s}\nvector: {dimension: 1, store: x}\nserver: {workerConnections: 0}\n", environment(),
			[]string{"cpu.mode", "cpu.firstShare", "cpu.slice", "vector.dimension", "vector.store", "server.workerConnections"}},
		{"no password file", "database: {passwordFile: /nowhere/at/all}\n", environment(), []string{"database.passwordFile"}},
		{"port", "{}\n", environment("DB_PORT", "many"), []string{"DB_PORT"}},
		{"broker", "{}\n", environment("CELERY_BROKER_URL", "amqp://u:geheim@h"), []string{"CELERY_BROKER_URL"}},
		{"vector store", "{}\n", environment("VECTOR_STORE", "weaviate"), []string{"VECTOR_STORE"}},
		{"storage", "{}\n", environment("STORAGE_TYPE", "s3"), []string{"STORAGE_TYPE"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(file, []byte(tc.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := LoadConfig(file, tc.env)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not name %s", err, w)
				}
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Error("the error shows a password")
			}
		})
	}
}

func TestSeedMistakes(t *testing.T) {
	s := Seed{
		Apps:       []SeedApp{{Name: "a", Mode: "chat", Key: "app-12345678", Datasets: []string{"x"}}, {Name: "a", Mode: "oracle", Key: "geheim"}},
		DatasetKey: "nope",
	}
	err := s.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"apps[0].datasets", "apps[1].name", "apps[1].mode", "apps[1].key", "datasetKey"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "geheim") {
		t.Error("the error shows a key")
	}
}

func TestEntrypoint(t *testing.T) {
	for _, tc := range []struct {
		mode, migration string
		role            Role
		migrate, bad    bool
	}{
		{"", "", RoleAPI, false, false},
		{"api", "true", RoleAPI, true, false},
		{"worker", "false", RoleWorker, false, false},
		{"migration", "true", RoleMigrate, false, false},
		{"web", "", "", false, true},
	} {
		role, migrate, err := Entrypoint(environment("MODE", tc.mode, "MIGRATION_ENABLED", tc.migration))
		if role != tc.role || migrate != tc.migrate || (err != nil) != tc.bad {
			t.Errorf("MODE=%q MIGRATION_ENABLED=%q: %q %v %v", tc.mode, tc.migration, role, migrate, err)
		}
	}
}

func TestSplitText(t *testing.T) {
	for _, tc := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{" \n\n ", nil},
		{"one two", []string{"one two"}},
		{"one\ntwo\r\n\r\nthree", []string{"one two", "three"}},
		{"aaaa bbbb cccc", []string{"aaaa bbbb", "cccc"}},
		{"你好世界你好世界你好世界", []string{"你好世界你好世界你好", "世界"}},
	} {
		if diff := cmp.Diff(tc.want, splitText(tc.text, 10)); diff != "" {
			t.Errorf("%q: %s", tc.text, diff)
		}
	}
}
