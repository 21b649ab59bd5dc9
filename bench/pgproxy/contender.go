//go:build linux

package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/netip"

	"github.com/jackc/pgx/v5/pgconn"

	"fournines/bench/postgres"
	"fournines/bench/rig"
)

//go:embed peers
var peerFiles embed.FS

// settings fill the templates in peers/.
type settings struct {
	Listen  netip.AddrPort // for clients
	Admin   netip.AddrPort // for metrics and the like
	Servers []*postgres.Server
	Primary netip.AddrPort
	Dir     string // of files

	User, ProbeUser, Password, PasswordFile string

	// Pool is how many server connections there are in transaction pooling.
	Pool int
	// MaxClients is how many clients may come at all, Clients how many do.
	MaxClients, Clients int
	// Children is how many processes a proxy needs that has one for each client.
	Children int
	// Prepared: the clients use prepared statements.
	Prepared bool
	// Splitting: reads may run on standbys.
	Splitting bool
}

// direct is the name of the contender that is no proxy.
const direct = "direct"

// splitting is the name of ours with reads on standbys, which is an option.
const splitting = "splitting"

// pgpool is the name of one that is treated apart.
const pgpool = "pgpool"

// peers are the others, in the order in which they take turns.
var peers = []rig.Peer{
	{
		Name: "pgbouncer", Version: []string{"--version"},
		Files: map[string]string{"pgbouncer.ini.tmpl": "pgbouncer.ini", "userlist.txt.tmpl": "userlist.txt"},
		Argv:  []string{"-q", "{dir}/pgbouncer.ini"},
	}, {
		Name: pgpool, Version: []string{"--version"},
		Files: map[string]string{"pgpool.conf.tmpl": "pgpool.conf", "pool_hba.conf.tmpl": "pool_hba.conf", "pool_passwd.tmpl": "pool_passwd"},
		Argv:  []string{"-n", "-f", "{dir}/pgpool.conf", "-a", "{dir}/pool_hba.conf"},
	}, {
		Name: "haproxy", Version: []string{"-v"},
		Files: map[string]string{"haproxy.cfg.tmpl": "haproxy.cfg"},
		Argv:  []string{"-db", "-f", "{dir}/haproxy.cfg"},
	},
}

// pools tells if a contender shares server connections between clients.
func pools(c *rig.Contender) bool {
	return c.Name == "ours" || c.Name == splitting || c.Name == "pgbouncer"
}

// ours is the proxy of this repository, under a name.
func ours(name, title, program string) *rig.Contender {
	return &rig.Contender{
		Name: name, Title: title, Program: program,
		Files: map[string]string{"fournines.yaml.tmpl": "pgproxy.yaml"},
		Argv:  []string{"pgproxy", "--config", "{dir}/pgproxy.yaml"},
	}
}

// ask makes a connection of its own and asks which server answers.
func ask(dsn string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := pgconn.Connect(ctx, dsn)
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		return query(ctx, conn)
	}
}

func query(ctx context.Context, conn *pgconn.PgConn) error {
	got, err := conn.Exec(ctx, "SELECT 42").ReadAll()
	if err != nil {
		return err
	}
	if len(got) != 1 || len(got[0].Rows) != 1 || string(got[0].Rows[0][0]) != "42" {
		return errors.New("SELECT 42 was answered with something else")
	}
	return nil
}

// errNoPooling is why somebody has no figure for thousands of idle clients.
func errNoPooling(clients int) error {
	return fmt.Errorf("gives each client a server connection, which is a process of the server; %d would be needed", clients)
}
