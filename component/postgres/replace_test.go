package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadAgent(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
	}{
		{"whole", `{"scope": "dify", "etcd3": {"hosts": ["10.0.1.10:2379"]}, "postgresql": {"data_dir": "/var/lib/x/data"}}`, ""},
		{"no JSON", "scope: dify", "patroni.yml: invalid character"},
		{"another's", `{"scope": "dify"}`, "names no scope, etcd3.hosts or postgresql.data_dir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "patroni.yml"), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			a, err := LoadAgent(dir)
			switch {
			case tt.want == "" && (err != nil || a.Cluster != "dify" || a.Data != "/var/lib/x/data" || len(a.Etcd) != 1):
				t.Errorf("agent %+v, %v", a, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestSetAside(t *testing.T) {
	a := Agent{Data: filepath.Join(t.TempDir(), "data")}
	if path, err := a.SetAside("before"); path != "" || err != nil {
		t.Errorf("without a directory: %q, %v", path, err)
	}
	if err := os.Mkdir(a.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	path, err := a.SetAside("before")
	if err != nil || path != a.Data+".before" {
		t.Errorf("set aside to %q, %v", path, err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
