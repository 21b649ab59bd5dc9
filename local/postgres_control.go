package local

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"fournines/component/postgres"
	"fournines/internal/process"
	"fournines/pgproxy"
)

// PostgresControl is what operates the database layer of a stack.
type PostgresControl struct {
	// Proxies are the admin addresses (host:port) of all pgproxies; ProxyToken
	// is the file of their token.
	Proxies    []string
	ProxyToken string
	// Cluster asks the Patroni agents.
	Cluster postgres.Cluster
	// Superuser is the password file of PostgreSQL's superuser.
	Superuser string
}

// OpenPostgresControl finds the database layer of the stack in the data
// directory dir. It reads files only.
func OpenPostgresControl(dir string) (PostgresControl, error) {
	secrets := OpenSecrets(dir, process.Owner{})
	c := PostgresControl{
		ProxyToken: secrets.Path("pgproxy-admin"),
		Cluster:    postgres.Cluster{PasswordFile: secrets.Path("postgres-rest")},
		Superuser:  secrets.Path("postgres-superuser"),
	}
	files, err := filepath.Glob(filepath.Join(dir, "pgproxy-*", "config.yaml"))
	if err != nil {
		return c, err
	}
	if len(files) == 0 {
		return c, fmt.Errorf("no stack in %s: there is no pgproxy-*/config.yaml", dir)
	}
	for i, file := range files {
		cfg, err := pgproxy.LoadConfig(file)
		if err != nil {
			return c, err
		}
		c.Proxies = append(c.Proxies, cfg.AdminListen)
		if i > 0 {
			continue
		}
		for _, b := range cfg.Backends {
			host, _, err := net.SplitHostPort(b.Address)
			if err != nil {
				return c, fmt.Errorf("%s: backend %s: %w", file, b.Name, err)
			}
			c.Cluster.REST = append(c.Cluster.REST, net.JoinHostPort(host, strconv.Itoa(postgres.DefaultRESTPort)))
		}
	}
	return c, nil
}
