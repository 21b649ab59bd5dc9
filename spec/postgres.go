package spec

// Postgres configures the database layer.
type Postgres struct {
	// Version is the major version of PostgreSQL. Its binaries must be
	// installed.
	Version int `yaml:"version" range:"13..18"`
	// Patroni is the timing of failure detection and failover. A dead primary
	// is replaced after about ttl. loopWait + 2 × retryTimeout must not exceed
	// ttl, else a slow etcd alone demotes the primary.
	Patroni Patroni `yaml:"patroni"`
	// Synchronous makes every commit wait for a standby in another zone, so
	// that an acknowledged commit survives the loss of any zone. Turned off,
	// commits are faster and a failover may lose the last ones.
	Synchronous bool `yaml:"synchronous"`
	// MaxConnections is PostgreSQL's max_connections.
	MaxConnections int `yaml:"maxConnections" range:"50..10000"`
	// SharedBuffers is PostgreSQL's shared_buffers, for each server.
	SharedBuffers Bytes `yaml:"sharedBuffers" range:"16MiB..1TiB"`
	// Proxy is pgproxy, the address that Dify connects to.
	Proxy PostgresProxy `yaml:"proxy"`
}

// Patroni times failure detection and failover.
type Patroni struct {
	// TTL of the leader key in etcd, in whole seconds: how long a silent
	// primary stays primary.
	TTL Duration `yaml:"ttl" range:"5s..5m"`
	// LoopWait is the pause between two rounds of Patroni, in whole seconds.
	LoopWait Duration `yaml:"loopWait" range:"1s..1m"`
	// RetryTimeout bounds the retries of one operation on etcd or PostgreSQL,
	// in whole seconds.
	RetryTimeout Duration `yaml:"retryTimeout" range:"1s..1m"`
}

// PostgresProxy configures pgproxy.
type PostgresProxy struct {
	// MaxClientConnections is how many clients one pgproxy serves; the next
	// one is refused with SQLSTATE 53300.
	MaxClientConnections int `yaml:"maxClientConnections" range:"1..100000"`
	// PoolSize is how many connections one pgproxy opens to each server for
	// Dify's account. All proxies together must stay 20 below maxConnections,
	// which is left to replication, monitoring and the operator.
	PoolSize int `yaml:"poolSize" range:"1..10000"`
	// HoldTimeout is how long new work waits for a writable primary during a
	// failover before it fails.
	HoldTimeout Duration `yaml:"holdTimeout" range:"0s..5m"`
	// HoldQueue is how many clients may wait so; the next one fails at once.
	HoldQueue int `yaml:"holdQueue" range:"0..100000"`
	// Splitting lets standbys answer reads, and says what such a read may miss:
	// with fence nothing that was acknowledged to anybody before it was sent,
	// with session nothing that the same client has written or read, with
	// bounded at most what is younger than maxStaleness; off sends every
	// statement to the primary.
	Splitting Splitting `yaml:"splitting" enum:"off,fence,session,bounded"`
	// MaxStaleness is how much a read may miss with bounded.
	MaxStaleness Duration `yaml:"maxStaleness" range:"1ms..1m"`
}

// Splitting says which reads run on standbys.
type Splitting string

// SplittingFence lets standbys answer the reads that miss nothing by it.
const SplittingFence Splitting = "fence"

// ReservedConnections is the part of postgres.maxConnections that the proxies
// leave to replication, monitoring and the operator.
const ReservedConnections = 20

func defaultPostgres() Postgres {
	return Postgres{
		Version: 15,
		Patroni: Patroni{
			TTL:          Duration(7 * second),
			LoopWait:     Duration(1 * second),
			RetryTimeout: Duration(3 * second),
		},
		Synchronous:    true,
		MaxConnections: 300,
		SharedBuffers:  128 * mebibyte,
		Proxy: PostgresProxy{
			MaxClientConnections: 5000,
			PoolSize:             90,
			HoldTimeout:          Duration(30 * second),
			HoldQueue:            1000,
			Splitting:            SplittingFence,
			MaxStaleness:         Duration(100 * millisecond),
		},
	}
}
