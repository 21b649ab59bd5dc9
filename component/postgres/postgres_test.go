package postgres_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"fournines/component/etcd"
	"fournines/component/postgres"
	"fournines/internal/eventually"
	"fournines/internal/process"
	"fournines/internal/servertest"
)

// cluster is a full cluster: three etcd members and three nodes.
type cluster struct {
	nodes     []*servertest.Unit
	addresses []string
	bootstrap process.Unit
	secrets   map[string]string // account to password file
	passwords map[string]string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	servertest.Need(t, "etcd", "patroni", filepath.Join(postgres.DefaultBinDir, "postgres"))
	owner := servertest.Owner(t)
	dir := servertest.Dir(t, owner)
	c := &cluster{secrets: map[string]string{}, passwords: map[string]string{}}
	for _, name := range []string{"postgres", "replicator", "rewind", "rest", "dify", "monitor", "pgproxy"} {
		c.passwords[name] = "s3cret:" + name + `"'\`
		c.secrets[name] = servertest.Secret(t, owner, dir, name+".password", c.passwords[name])
	}
	var members []etcd.Member
	var endpoints []string
	for i, zone := range []string{"a", "b", "c"} {
		host := fmt.Sprintf("127.62.%d.10", i+1)
		members = append(members, etcd.Member{Name: "etcd-" + zone, Host: host})
		endpoints = append(endpoints, host+":2379")
	}
	for i, m := range members {
		unit, err := etcd.Unit(etcd.Config{
			Name: m.Name, Zone: string("abc"[i]), Members: members, Cluster: "postgres-test",
			DataDir: filepath.Join(dir, m.Name), Owner: owner,
		})
		if err != nil {
			t.Fatal(err)
		}
		servertest.Launch(t, owner, unit)
	}
	var names []string
	for i, zone := range []string{"a", "b", "c"} {
		host := fmt.Sprintf("127.62.%d.20", i+1)
		unit, err := postgres.Unit(postgres.Config{
			Name: "postgres-" + zone, Zone: zone, Cluster: "test", Host: host, Etcd: endpoints,
			Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
			DataDir:  filepath.Join(dir, "postgres-"+zone), Owner: owner, MaxConnections: 50,
			Passwords: postgres.NodePasswords{
				Superuser: c.secrets["postgres"], Replicator: c.secrets["replicator"],
				Rewind: c.secrets["rewind"], REST: c.secrets["rest"],
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			// What an interrupted initdb leaves; the start must cope with it.
			half := filepath.Join(dir, unit.Name, "data")
			if err := process.MkdirAll(half, 0o700, owner); err != nil {
				t.Fatal(err)
			}
			if err := process.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600, owner); err != nil {
				t.Fatal(err)
			}
		}
		names = append(names, unit.Name)
		c.nodes = append(c.nodes, servertest.Launch(t, owner, unit))
		c.addresses = append(c.addresses, unit.Address)
	}
	task, err := postgres.BootstrapTask(postgres.BootstrapConfig{
		Nodes: c.addresses, After: names, Superuser: c.secrets["postgres"],
		Dify: c.secrets["dify"], Monitor: c.secrets["monitor"], PGProxy: c.secrets["pgproxy"],
	})
	if err != nil {
		t.Fatal(err)
	}
	c.bootstrap = task
	return c
}

func (c *cluster) waitReady() {
	for _, n := range c.nodes {
		n.WaitReady()
	}
}

func (c *cluster) connect(ctx context.Context, address, role, database string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("postgres://" + address + "/" + database + "?sslmode=disable&connect_timeout=2")
	if err != nil {
		return nil, err
	}
	cfg.User, cfg.Password = role, c.passwords[role]
	return pgx.ConnectConfig(ctx, cfg)
}

func (c *cluster) primary(t *testing.T) *servertest.Unit {
	t.Helper()
	for _, n := range c.nodes {
		if role, err := n.Role(t.Context()); err == nil && role == postgres.RolePrimary {
			return n
		}
	}
	t.Fatal("no node says that it is primary")
	return nil
}

func (c *cluster) waitSync(t *testing.T) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		for _, n := range c.nodes {
			if role, err := n.Role(t.Context()); err == nil && role == postgres.RoleSyncStandby {
				return nil
			}
		}
		return fmt.Errorf("no synchronous standby")
	})
}

func TestFailoverKeepsAcknowledgedRows(t *testing.T) {
	begin := time.Now()
	c := newCluster(t)
	c.waitReady()
	t.Logf("cluster ready after %v", time.Since(begin).Round(100*time.Millisecond))
	for range 2 { // the second time finds all done
		if err := c.bootstrap.Task(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.waitSync(t)
	first := c.primary(t)
	conn, err := c.connect(t.Context(), first.Address, "dify", "dify")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `CREATE TABLE acknowledged (id bigint PRIMARY KEY, note uuid DEFAULT uuid_generate_v4())`); err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for ; acknowledged < 200; acknowledged++ {
		if _, err := conn.Exec(t.Context(), "INSERT INTO acknowledged VALUES ($1)", acknowledged); err != nil {
			t.Fatal(err)
		}
	}
	c.checkRights(t, first)
	for _, password := range c.passwords {
		for _, n := range c.nodes {
			if strings.Contains(n.ArgsOf(), password) {
				t.Errorf("a password is in the arguments of %s", n.Name)
			}
			if strings.Contains(n.Log(), password) {
				t.Errorf("a password is in the log of %s", n.Name)
			}
		}
	}

	killed := time.Now()
	first.Kill() // Patroni and PostgreSQL at once, as a power cut does
	_ = conn.Close(context.Background())
	next := -1
	eventually.Nil(t, 2*time.Minute, func() error {
		for i, address := range c.addresses {
			if c.nodes[i] == first {
				continue
			}
			conn, err := c.connect(t.Context(), address, "dify", "dify")
			if err != nil {
				return err
			}
			_, err = conn.Exec(t.Context(), "INSERT INTO acknowledged VALUES ($1)", acknowledged)
			_ = conn.Close(context.Background())
			if err == nil {
				next = i
				return nil
			}
		}
		return fmt.Errorf("no node takes writes")
	})
	t.Logf("power cut of %s: %s takes writes after %v", first.Name, c.nodes[next].Name, time.Since(killed).Round(100*time.Millisecond))
	acknowledged++
	if got := c.count(t, c.addresses[next]); got != acknowledged {
		t.Errorf("%d of %d acknowledged rows on the new primary", got, acknowledged)
	}

	back := time.Now()
	first.Relaunch()
	first.WaitReady()
	t.Logf("old primary streams again %v after its return", time.Since(back).Round(100*time.Millisecond))
	if role, err := first.Role(t.Context()); err != nil || role == postgres.RolePrimary {
		t.Errorf("old primary came back as %q (%v), want a standby", role, err)
	}
	eventually.Nil(t, time.Minute, func() error {
		if got := c.count(t, first.Address); got != acknowledged {
			return fmt.Errorf("%d of %d rows on the old primary", got, acknowledged)
		}
		return nil
	})

	// PostgreSQL alone dies, Patroni lives: the lease is released at once.
	c.waitSync(t)
	second := c.primary(t)
	killed = time.Now()
	killPostmaster(t, second)
	eventually.Nil(t, 2*time.Minute, func() error {
		found, err := postgres.FindPrimary(t.Context(), c.addresses, c.secrets["postgres"])
		if err == nil && found == second.Address {
			return fmt.Errorf("%s is still primary", found)
		}
		return err
	})
	t.Logf("kill -9 of PostgreSQL on %s: new primary after %v", second.Name, time.Since(killed).Round(100*time.Millisecond))
	if got := c.count(t, c.primaryAddress(t)); got != acknowledged {
		t.Errorf("%d of %d acknowledged rows after the second failover", got, acknowledged)
	}
	c.waitReady()
	for _, n := range c.nodes {
		if took := n.Stop(); took > 0 {
			t.Logf("%s stopped in %v", n.Name, took.Round(100*time.Millisecond))
		}
	}
}

// checkRights proves that accounts can do what they need and little else.
func (c *cluster) checkRights(t *testing.T, primary *servertest.Unit) {
	t.Helper()
	for _, tt := range []struct {
		role, database, sql string
		ok                  bool
	}{
		{"dify", "dify", "CREATE TABLE probe (); DROP TABLE probe", true},
		{"dify", "dify", "SELECT rolpassword FROM pg_authid", false},
		{"dify", "dify", "COPY (SELECT 1) TO PROGRAM 'true'", false},
		{"monitor", "postgres", "SELECT count(*) FROM pg_stat_replication WHERE state IS NOT NULL", true},
		{"monitor", "dify", "SELECT * FROM acknowledged", false},
		{"monitor", "dify", "CREATE TABLE probe ()", false},
		{"pgproxy", "postgres", "SELECT pg_is_in_recovery(), pg_current_wal_lsn(), (pg_control_checkpoint()).timeline_id", true},
		{"pgproxy", "dify", "SELECT * FROM acknowledged", false},
		{"pgproxy", "postgres", "CREATE TABLE probe ()", false},
	} {
		conn, err := c.connect(t.Context(), primary.Address, tt.role, tt.database)
		if err != nil {
			t.Errorf("%s cannot log in to %s: %v", tt.role, tt.database, err)
			continue
		}
		_, err = conn.Exec(t.Context(), tt.sql)
		_ = conn.Close(context.Background())
		if (err == nil) != tt.ok {
			t.Errorf("%s: %s: error %v, want success %t", tt.role, tt.sql, err, tt.ok)
		}
	}
	if conn, err := pgx.Connect(t.Context(), "postgres://postgres:wrong@"+primary.Address+"/postgres?sslmode=disable"); err == nil {
		_ = conn.Close(context.Background())
		t.Error("a wrong password was accepted")
	}
	host, _, err := net.SplitHostPort(primary.Address)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+net.JoinHostPort(host, "8008")+"/restart", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("Patroni's restart without a password answers %d, want 401", resp.StatusCode)
	}
}

func (c *cluster) primaryAddress(t *testing.T) string {
	t.Helper()
	address, err := postgres.FindPrimary(t.Context(), c.addresses, c.secrets["postgres"])
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (c *cluster) count(t *testing.T, address string) int {
	t.Helper()
	conn, err := c.connect(t.Context(), address, "dify", "dify")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM acknowledged").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// killPostmaster kills the PostgreSQL server that the node's Patroni manages.
func killPostmaster(t *testing.T, node *servertest.Unit) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(node.Process.Dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	server, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
}
