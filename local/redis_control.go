package local

import (
	"fmt"
	"os"
	"path/filepath"

	"fournines/component/rediscluster"
	"fournines/internal/process"
	"fournines/internal/strictyaml"
	"fournines/redisproxy"
)

// OpenRedisControl finds the Redis Cluster of the stack in the data directory
// dir. It reads files only.
func OpenRedisControl(dir string) (rediscluster.OperatorConfig, error) {
	c := rediscluster.OperatorConfig{User: "admin", PasswordFile: OpenSecrets(dir, process.Owner{}).Path("redis-admin")}
	files, err := filepath.Glob(filepath.Join(dir, "redisproxy-*", "config.yaml"))
	if err != nil {
		return c, err
	}
	if len(files) == 0 {
		return c, fmt.Errorf("no stack in %s: there is no redisproxy-*/config.yaml", dir)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return c, err
	}
	cfg := redisproxy.DefaultConfig()
	if err := strictyaml.UnmarshalValid(files[0], data, &cfg); err != nil {
		return c, err
	}
	c.Nodes = cfg.Nodes
	return c, nil
}
