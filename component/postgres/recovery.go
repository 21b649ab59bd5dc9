package postgres

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"syscall"
	"time"

	"fournines/component/internal/prepare"
	"fournines/internal/process"
)

// dcsNamespace is where Patroni keeps its keys in etcd.
const dcsNamespace = "/fournines/"

// RecoveryConfig describes the cluster that a RecoveryTask looks at.
type RecoveryConfig struct {
	// Name of the task in the plan; empty means "postgres-recovery".
	Name string
	// Nodes are all nodes of the cluster, as they will be started.
	Nodes []Config
	// After names the units that have to be ready before, usually all of etcd.
	After []string
}

// RecoveryTask returns the plan's line that prepares etcd for the nodes: it
// brings the cluster-wide settings of an existing cluster up to date, and cleans
// up after a first start that was interrupted. The node that makes the cluster writes an
// empty key "initialize" into etcd and fills it when it is done. When that node
// is killed in between, all wait for it for ever, or take a server without
// roles for a finished one. The nodes must come after the task.
func RecoveryTask(cfg RecoveryConfig) (process.Unit, error) {
	if cfg.Name == "" {
		cfg.Name = "postgres-recovery"
	}
	var f prepare.Fields
	f.Check(len(cfg.Nodes) > 0, "Nodes", "needs at least one node")
	for i := range cfg.Nodes {
		n := &cfg.Nodes[i]
		n.setDefaults()
		f.NotEmpty("Cluster", n.Cluster)
		f.IP("Host", n.Host)
		f.Path("DataDir", n.DataDir)
		f.Check(len(n.Etcd) > 0, "Etcd", "needs at least one address")
	}
	if err := f.Err("postgres recovery"); err != nil {
		return process.Unit{}, err
	}
	return process.Unit{Name: cfg.Name, Kind: "postgres-recovery", After: cfg.After, Task: cfg.recover}, nil
}

// recover moves the data directories of an interrupted first start away and
// removes the key that announces it. No write was ever acknowledged there:
// nobody but the initialising node knew the cluster.
func (c *RecoveryConfig) recover(ctx context.Context) error {
	etcd := c.Nodes[0].Etcd
	key := []byte(dcsNamespace + c.Nodes[0].Cluster + "/initialize")
	found, value, revision, err := readKey(ctx, etcd, key)
	if err != nil {
		return fmt.Errorf("look for an interrupted first start: %w", err)
	}
	if !found {
		return nil
	}
	if len(value) > 0 {
		return c.settings(ctx)
	}
	for i := range c.Nodes {
		// Patroni serves its REST interface from its first moment on.
		alive, err := serves(ctx, c.Nodes[i].restAddress())
		if err != nil {
			return fmt.Errorf("see if Patroni runs: %w", err)
		}
		if alive {
			return nil // it is just now making the cluster
		}
	}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		entries, err := os.ReadDir(n.path("data"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look into %s: %w", n.path("data"), err)
		}
		if len(entries) == 0 {
			continue
		}
		if err := n.moveAway(); err != nil {
			return err
		}
	}
	return deleteKey(ctx, etcd, key, revision)
}

// settings changes in Patroni's cluster-wide configuration what differs from
// the nodes' configuration. What others have added to it stays.
func (c *RecoveryConfig) settings(ctx context.Context) error {
	n := &c.Nodes[0]
	key := []byte(dcsNamespace + n.Cluster + "/config")
	found, value, revision, err := readKey(ctx, n.Etcd, key)
	if err != nil {
		return fmt.Errorf("read the cluster's settings: %w", err)
	}
	if !found {
		return nil
	}
	var have map[string]any
	if err := json.Unmarshal(value, &have); err != nil {
		return fmt.Errorf("read the cluster's settings: %w", err)
	}
	// Through JSON, so that numbers compare as they are stored.
	text, err := json.Marshal(n.dynamic())
	if err != nil {
		return err
	}
	var want map[string]any
	if err := json.Unmarshal(text, &want); err != nil {
		return err
	}
	if !merge(have, want) {
		return nil
	}
	if value, err = json.Marshal(have); err != nil {
		return err
	}
	name := base64.StdEncoding.EncodeToString(key)
	err = changeKey(ctx, n.Etcd, key, revision, map[string]any{
		"request_put": map[string]any{"key": name, "value": base64.StdEncoding.EncodeToString(value)},
	})
	if err != nil {
		return fmt.Errorf("change the cluster's settings: %w", err)
	}
	return nil
}

// merge sets in have what want says, section by section, and reports if that
// changed anything.
func merge(have, want map[string]any) (changed bool) {
	for key, value := range want {
		section, isSection := value.(map[string]any)
		old, wasSection := have[key].(map[string]any)
		switch {
		case isSection && wasSection:
			changed = merge(old, section) || changed
		case !reflect.DeepEqual(have[key], value):
			have[key], changed = value, true
		}
	}
	return changed
}

// moveAway renames the data directory. Nothing is deleted.
func (c *Config) moveAway() error {
	data := c.path("data")
	away := fmt.Sprintf("%s.incomplete-%s", data, time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Rename(data, away); err != nil {
		return fmt.Errorf("move the incomplete %s away: %w", filepath.Clean(data), err)
	}
	return nil
}

func serves(ctx context.Context, address string) (bool, error) {
	d := net.Dialer{Timeout: prepare.ProbeTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
		return true, conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		return false, nil
	}
	return false, err
}

// readKey asks for one key through etcd's JSON gateway. The revision is that
// of the key's last change.
func readKey(ctx context.Context, etcd []string, key []byte) (found bool, value []byte, revision int64, err error) {
	var answer struct {
		Kvs []struct {
			Value       []byte `json:"value"`
			ModRevision string `json:"mod_revision"`
		} `json:"kvs"`
	}
	if err := callEtcd(ctx, etcd, "/v3/kv/range", map[string]any{"key": key}, &answer); err != nil {
		return false, nil, 0, err
	}
	if len(answer.Kvs) == 0 {
		return false, nil, 0, nil
	}
	revision, err = strconv.ParseInt(answer.Kvs[0].ModRevision, 10, 64)
	if err != nil {
		return false, nil, 0, fmt.Errorf("revision of %s: %w", key, err)
	}
	return true, answer.Kvs[0].Value, revision, nil
}

// Leader returns the name of the node that holds the leader key of a cluster,
// asked of etcd by its client addresses (host:port); empty while nobody does.
func Leader(ctx context.Context, etcd []string, cluster string) (string, error) {
	_, value, _, err := readKey(ctx, etcd, []byte(dcsNamespace+cluster+"/leader"))
	if err != nil {
		return "", fmt.Errorf("read the leader key: %w", err)
	}
	return string(value), nil
}

// deleteKey deletes the key unless it has changed since revision.
func deleteKey(ctx context.Context, etcd []string, key []byte, revision int64) error {
	err := changeKey(ctx, etcd, key, revision, map[string]any{
		"request_delete_range": map[string]any{"key": base64.StdEncoding.EncodeToString(key)},
	})
	if err != nil {
		return fmt.Errorf("remove the key of the interrupted first start: %w", err)
	}
	return nil
}

// changeKey carries out the operation unless the key has changed since revision.
func changeKey(ctx context.Context, etcd []string, key []byte, revision int64, operation map[string]any) error {
	name := base64.StdEncoding.EncodeToString(key)
	var answer struct {
		Succeeded bool `json:"succeeded"`
	}
	err := callEtcd(ctx, etcd, "/v3/kv/txn", map[string]any{
		"compare": []any{map[string]any{"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": strconv.FormatInt(revision, 10)}},
		"success": []any{operation},
	}, &answer)
	if err != nil {
		return err
	}
	if !answer.Succeeded {
		return fmt.Errorf("%s has changed meanwhile", key)
	}
	return nil
}

// callEtcd asks one member after the other.
func callEtcd(ctx context.Context, etcd []string, path string, in, out any) error {
	var errs []error
	for _, address := range etcd {
		err := prepare.PostJSON(ctx, "http://"+address+path, in, out)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
