package servertest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"fournines/internal/eventually"
)

// RedisSlots is the number of hash slots of a Redis Cluster.
const RedisSlots = 16384

// redisNodeTimeout is cluster-node-timeout of test clusters: short enough that
// a failover takes about four seconds, long enough for a loaded machine.
const redisNodeTimeout = 2 * time.Second

// redisUsers are the accounts of every test cluster and what each may do.
// They are the ones of the local stack.
var redisUsers = [...]struct{ name, rules string }{
	{"admin", "~* &* +@all"},
	{"replica", "+psync +replconf +ping"},
	{"dify", "~* &* +@all -@admin -@dangerous +info +keys +cluster|slots +cluster|shards +cluster|nodes +cluster|myid"},
	{"monitor", "+@connection +info +cluster|info +cluster|nodes +cluster|slots +config|get +slowlog|get +slowlog|len +latency|latest +dbsize +ping"},
	{"redisproxy", "~* &* +@all -@admin -@dangerous +cluster|nodes +cluster|slots +cluster|shards +cluster|info +cluster|getkeysinslot +cluster|countkeysinslot +info +keys +sort +sort_ro +flushall +restore +config|get +client|unblock +role"},
	{"gateway", "resetkeys ~fournines:gw:* ~asynq:* resetchannels &fournines:gw:* &asynq:* -@all +@connection +@read +@write +@pubsub +@transaction -@admin -@dangerous +eval +evalsha +script|load +script|exists +time +cluster|slots +cluster|shards +cluster|nodes +cluster|keyslot +info"},
}

// RedisNode is one redis-server process.
type RedisNode struct {
	// Addr is host:port.
	Addr string

	dir  string
	args []string
	cmd  *exec.Cmd
	done chan struct{}
}

// RedisCluster is a formed cluster of three masters and three replicas.
type RedisCluster struct {
	// Nodes 0..2 start as masters, node i+3 as the replica of node i.
	Nodes []*RedisNode

	// CAFile verifies the nodes' certificates; empty without TLS.
	CAFile string

	dir       string
	passwords map[string]string
	tls       *tls.Config
}

// NewRedisCluster starts six redis-server processes on loopback addresses,
// forms a cluster and waits until every slot is served and every replica is
// linked (a replica that never synchronised cannot be promoted). Everything is
// stopped when the test ends. Accounts: admin, replica, dify, monitor,
// redisproxy, gateway; the default user is off.
func NewRedisCluster(tb testing.TB) *RedisCluster {
	tb.Helper()
	return newRedisCluster(tb, false)
}

// NewRedisClusterTLS is NewRedisCluster with TLS on every connection, those
// between the nodes too.
func NewRedisClusterTLS(tb testing.TB) *RedisCluster {
	tb.Helper()
	return newRedisCluster(tb, true)
}

func newRedisCluster(tb testing.TB, secure bool) *RedisCluster {
	tb.Helper()
	redisBinary(tb)
	c := &RedisCluster{dir: tb.TempDir(), passwords: make(map[string]string)}
	var acl strings.Builder
	acl.WriteString("user default off\n")
	for _, u := range redisUsers {
		secret := redisSecret(tb)
		c.passwords[u.name] = secret
		fmt.Fprintf(&acl, "user %s on >%s %s\n", u.name, secret, u.rules)
		if err := os.WriteFile(c.PasswordFile(u.name), []byte(secret+"\n"), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	hosts := redisHosts(tb, 6)
	extra := ""
	if secure {
		cert, key := Certificate(tb, c.dir, "redis", hosts...)
		extra = fmt.Sprintf("port 0\ntls-port 6379\ntls-cert-file %s\ntls-key-file %s\ntls-ca-cert-file %s\ntls-auth-clients no\ntls-replication yes\ntls-cluster yes\n", cert, key, cert)
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(cert)
		if err != nil {
			tb.Fatal(err)
		}
		pool.AppendCertsFromPEM(pem)
		c.CAFile, c.tls = cert, &tls.Config{RootCAs: pool}
	}
	for _, host := range hosts {
		dir := filepath.Join(c.dir, host)
		if err := os.Mkdir(dir, 0o700); err != nil {
			tb.Fatal(err)
		}
		aclFile := filepath.Join(dir, "users.acl")
		if err := os.WriteFile(aclFile, []byte(acl.String()), 0o600); err != nil {
			tb.Fatal(err)
		}
		conf := filepath.Join(dir, "redis.conf")
		text := redisConfig(host, dir) + fmt.Sprintf(`aclfile %s
masteruser replica
masterauth %s
cluster-enabled yes
cluster-announce-ip %s
bind-source-addr %s
cluster-config-file nodes.conf
cluster-node-timeout %d
cluster-require-full-coverage no
cluster-replica-validity-factor 0
repl-diskless-sync-delay 0
repl-ping-replica-period 1
`, aclFile, c.passwords["replica"], host, host, redisNodeTimeout.Milliseconds()) + extra
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		n := &RedisNode{Addr: net.JoinHostPort(host, "6379"), dir: dir, args: []string{conf}}
		n.start(tb)
		c.Nodes = append(c.Nodes, n)
	}
	c.form(tb)
	return c
}

// Addrs lists all nodes.
func (c *RedisCluster) Addrs() []string {
	addrs := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		addrs[i] = n.Addr
	}
	return addrs
}

// Password returns the password of one of the accounts.
func (c *RedisCluster) Password(user string) string { return c.passwords[user] }

// PasswordFile returns a file, mode 0600, that holds the password of user.
func (c *RedisCluster) PasswordFile(user string) string {
	return filepath.Join(c.dir, user+".password")
}

// Client connects to node i as admin; the test closes it at its end.
func (c *RedisCluster) Client(tb testing.TB, i int) *redis.Client {
	tb.Helper()
	return c.NodeClient(tb, c.Nodes[i].Addr)
}

// NodeClient connects to the node at addr as admin.
func (c *RedisCluster) NodeClient(tb testing.TB, addr string) *redis.Client {
	tb.Helper()
	cl := redis.NewClient(&redis.Options{
		Addr: addr, Username: "admin", Password: c.passwords["admin"],
		Protocol: 2, MaxRetries: -1, DialTimeout: time.Second, DisableIdentity: true, PoolSize: 2, TLSConfig: c.tls,
	})
	tb.Cleanup(func() { _ = cl.Close() })
	return cl
}

// Owner returns the index of the node that, by the view of the living nodes,
// is master of slot; -1 when none is.
func (c *RedisCluster) Owner(tb testing.TB, slot int) int {
	tb.Helper()
	for i := range c.Nodes {
		if !c.Nodes[i].alive() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		cl := redis.NewClient(&redis.Options{Addr: c.Nodes[i].Addr, Username: "admin", Password: c.passwords["admin"], Protocol: 2, MaxRetries: -1, DisableIdentity: true, TLSConfig: c.tls})
		slots, err := cl.ClusterSlots(ctx).Result() //nolint:staticcheck // one flat list of ranges is what this needs; shards would have to be taken apart
		_ = cl.Close()
		cancel()
		if err != nil {
			continue
		}
		for _, s := range slots {
			if slot < s.Start || slot > s.End {
				continue
			}
			for j, n := range c.Nodes {
				if n.Addr == s.Nodes[0].Addr && n.alive() {
					return j
				}
			}
		}
	}
	return -1
}

// KillMaster kills (SIGKILL) the process that is master of the first slot of
// shard i (0..2) and returns its node index.
func (c *RedisCluster) KillMaster(tb testing.TB, i int) int {
	tb.Helper()
	owner := c.Owner(tb, RedisSlots/3*i+1)
	if owner < 0 {
		tb.Fatalf("shard %d has no living master", i)
	}
	c.Kill(tb, owner)
	return owner
}

// Kill ends node i with SIGKILL and waits for its end.
func (c *RedisCluster) Kill(tb testing.TB, i int) {
	tb.Helper()
	c.Nodes[i].kill()
}

// Restart starts node i again with its old data.
func (c *RedisCluster) Restart(tb testing.TB, i int) {
	tb.Helper()
	c.Nodes[i].start(tb)
}

// Pause stops node i with SIGSTOP: it keeps its connections and answers nothing.
func (c *RedisCluster) Pause(tb testing.TB, i int) {
	tb.Helper()
	if err := c.Nodes[i].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		tb.Fatal(err)
	}
}

// Resume continues a paused node.
func (c *RedisCluster) Resume(tb testing.TB, i int) {
	tb.Helper()
	if err := c.Nodes[i].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		tb.Fatal(err)
	}
}

// WaitHealthy waits until every living node sees all slots served, and every
// living replica is linked to a master.
func (c *RedisCluster) WaitHealthy(tb testing.TB) {
	tb.Helper()
	for i, n := range c.Nodes {
		if !n.alive() {
			continue
		}
		cl := c.Client(tb, i)
		eventually.Nil(tb, time.Minute, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			info, err := cl.Do(ctx, "CLUSTER", "INFO").Text()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:16384") {
				return fmt.Errorf("%s: %s", n.Addr, info)
			}
			repl, err := cl.Info(ctx, "replication").Result()
			if err != nil {
				return err
			}
			if strings.Contains(repl, "role:slave") && !strings.Contains(repl, "master_link_status:up") {
				return fmt.Errorf("%s: link to master is down", n.Addr)
			}
			return nil
		})
	}
}

func (c *RedisCluster) form(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	clients := make([]*redis.Client, len(c.Nodes))
	ids := make([]string, len(c.Nodes))
	for i := range c.Nodes {
		clients[i] = c.Client(tb, i)
		eventually.Nil(tb, 30*time.Second, func() error { return clients[i].Ping(ctx).Err() })
		id, err := clients[i].Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			tb.Fatal(err)
		}
		ids[i] = id
	}
	must := func(i int, args ...any) {
		tb.Helper()
		if err := clients[i].Do(ctx, args...).Err(); err != nil {
			tb.Fatalf("node %d: %v: %v", i, args, err)
		}
	}
	for i := range c.Nodes {
		must(i, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
		if i < 3 {
			first, last := RedisSlots*i/3, RedisSlots*(i+1)/3-1
			must(i, "CLUSTER", "ADDSLOTSRANGE", first, last)
		}
	}
	// Everybody meets everybody: gossip alone may need many seconds. The
	// configuration announces each node's address: on loopback a node's
	// outgoing connections come from 127.0.0.1, which peers would believe.
	for i := range c.Nodes {
		for _, n := range c.Nodes[i+1:] {
			host, port, _ := net.SplitHostPort(n.Addr)
			must(i, "CLUSTER", "MEET", host, port)
		}
	}
	for i := range c.Nodes {
		eventually.Nil(tb, 30*time.Second, func() error {
			nodes, err := clients[i].ClusterNodes(ctx).Result()
			if err != nil {
				return err
			}
			for _, id := range ids {
				if !strings.Contains(nodes, id) {
					return fmt.Errorf("node %d does not know %s yet", i, id)
				}
			}
			if strings.Contains(nodes, "handshake") {
				return fmt.Errorf("node %d is still in handshake", i)
			}
			return nil
		})
	}
	for i := 3; i < len(c.Nodes); i++ {
		must(i, "CLUSTER", "REPLICATE", ids[i-3])
	}
	c.WaitHealthy(tb)
	// A failover needs the replica to be known by the other masters.
	for i := range c.Nodes {
		eventually.Nil(tb, 30*time.Second, func() error {
			nodes, err := clients[i].ClusterNodes(ctx).Result()
			if err != nil {
				return err
			}
			if n := strings.Count(nodes, "slave"); n != 3 {
				return fmt.Errorf("node %d knows %d replicas", i, n)
			}
			return nil
		})
	}
}

// Redis is one plain redis-server without cluster mode.
type Redis struct {
	*RedisNode
}

// NewRedis starts a plain redis-server (no password, 16 databases) on a
// loopback address and stops it when the test ends.
func NewRedis(tb testing.TB) *Redis {
	tb.Helper()
	redisBinary(tb)
	host := redisHosts(tb, 1)[0]
	dir := tb.TempDir()
	conf := filepath.Join(dir, "redis.conf")
	if err := os.WriteFile(conf, []byte(redisConfig(host, dir)+"protected-mode no\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	n := &RedisNode{Addr: net.JoinHostPort(host, "6379"), dir: dir, args: []string{conf}}
	n.start(tb)
	eventually.Nil(tb, 30*time.Second, func() error {
		conn, err := net.DialTimeout("tcp", n.Addr, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return &Redis{RedisNode: n}
}

// Client connects to the server's database db; the test closes it at its end.
func (r *Redis) Client(tb testing.TB, db int) *redis.Client {
	tb.Helper()
	cl := redis.NewClient(&redis.Options{Addr: r.Addr, DB: db, Protocol: 2})
	tb.Cleanup(func() { _ = cl.Close() })
	return cl
}

func redisConfig(host, dir string) string {
	return fmt.Sprintf(`bind %s
port 6379
dir %s
logfile redis.log
daemonize no
appendonly no
save ""
tcp-backlog 511
maxmemory 512mb
maxmemory-policy noeviction
`, host, dir)
}

func (n *RedisNode) start(tb testing.TB) {
	tb.Helper()
	cmd := exec.Command(redisBinary(tb), n.args...)
	cmd.Dir = n.dir
	// A server must not outlive a test binary that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start redis-server: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	first := n.cmd == nil
	n.cmd, n.done = cmd, done
	if first {
		tb.Cleanup(func() {
			n.kill()
			if tb.Failed() {
				n.logTail(tb)
			}
		})
	}
}

func (n *RedisNode) alive() bool {
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

func (n *RedisNode) kill() {
	_ = n.cmd.Process.Kill()
	<-n.done
}

func (n *RedisNode) logTail(tb testing.TB) {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(n.dir, "redis.log"))
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) > 15 {
		lines = lines[len(lines)-15:]
	}
	tb.Logf("redis %s:\n%s", n.Addr, strings.Join(lines, "\n"))
}

func redisBinary(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		missing(tb, "redis-server", err)
	}
	return path
}

func redisSecret(tb testing.TB) string {
	tb.Helper()
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		tb.Fatal(err)
	}
	return hex.EncodeToString(b)
}

// redisHosts finds n loopback addresses of which ports 6379 and 16379 are
// free. Whole addresses, not ports, are chosen at random: no outgoing
// connection of another program can take one in between.
func redisHosts(tb testing.TB, n int) []string {
	tb.Helper()
	for range 100 {
		base := fmt.Sprintf("127.%d.%d.", 64+mathrand.IntN(128), mathrand.IntN(256))
		hosts := make([]string, 0, n)
		for i := 1; i <= n; i++ {
			host := base + fmt.Sprint(i)
			if !redisPortFree(host, "6379") || !redisPortFree(host, "16379") {
				break
			}
			hosts = append(hosts, host)
		}
		if len(hosts) == n {
			return hosts
		}
	}
	tb.Fatal("no free loopback addresses for redis-server")
	return nil
}

func redisPortFree(host, port string) bool {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return false
	}
	return ln.Close() == nil
}
