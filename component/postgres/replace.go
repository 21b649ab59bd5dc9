package postgres

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Agent is what a node's Patroni was configured with.
type Agent struct {
	// Cluster is Patroni's scope, Etcd the client addresses of all members.
	Cluster string
	Etcd    []string
	// Data is PostgreSQL's data directory.
	Data string
}

// LoadAgent reads the configuration that a node whose Config.DataDir is dir was
// last started with.
func LoadAgent(dir string) (Agent, error) {
	path := filepath.Join(dir, "patroni.yml")
	text, err := os.ReadFile(path)
	if err != nil {
		return Agent{}, fmt.Errorf("read Patroni's configuration: %w", err)
	}
	var file struct {
		Scope string `json:"scope"`
		Etcd3 struct {
			Hosts []string `json:"hosts"`
		} `json:"etcd3"`
		PostgreSQL struct {
			DataDir string `json:"data_dir"`
		} `json:"postgresql"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return Agent{}, fmt.Errorf("read Patroni's configuration: %s: %w", path, err)
	}
	a := Agent{Cluster: file.Scope, Etcd: file.Etcd3.Hosts, Data: file.PostgreSQL.DataDir}
	if a.Cluster == "" || len(a.Etcd) == 0 || a.Data == "" {
		return a, fmt.Errorf("read Patroni's configuration: %s names no scope, etcd3.hosts or postgresql.data_dir", path)
	}
	return a, nil
}

// Forget removes from etcd what Patroni knows of the past of a cluster of which
// no node runs: who led it and how far, who was synchronous, and its timelines. A
// data directory that was put back to an earlier time would be refused for not
// having all that. The cluster's identity and settings stay.
func Forget(ctx context.Context, etcd []string, cluster string) error {
	for _, key := range []string{"leader", "status", "optime/leader", "sync", "history", "failsafe", "failover"} {
		in := map[string]any{"key": base64.StdEncoding.EncodeToString([]byte(dcsNamespace + cluster + "/" + key))}
		if err := callEtcd(ctx, etcd, "/v3/kv/deleterange", in, &struct{}{}); err != nil {
			return fmt.Errorf("remove %s of the cluster from etcd: %w", key, err)
		}
	}
	return nil
}

// SetAside renames the data directory of a node that does not run to
// data.SUFFIX and returns that path; empty when there is none. Nothing is deleted:
// Patroni makes a new standby in its place.
func (a Agent) SetAside(suffix string) (string, error) {
	away := a.Data + "." + suffix
	err := os.Rename(a.Data, away)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("set the data directory aside: %w", err)
	}
	return away, nil
}
