package spec

// AppendOnly says when Redis writes its log to disk.
type AppendOnly string

// The values of AppendOnly.
const (
	// AppendAlways writes before each answer.
	AppendAlways AppendOnly = "always"
	// AppendEverySecond writes once a second.
	AppendEverySecond AppendOnly = "everysec"
	// AppendOff keeps no log.
	AppendOff AppendOnly = "off"
)

// Redis configures the Redis Cluster.
type Redis struct {
	// Masters is the number of masters, one in each zone.
	Masters int `yaml:"masters" range:"3..3"`
	// ReplicasPerMaster is the number of replicas of each master. A replica
	// never stands in its master's zone.
	ReplicasPerMaster int `yaml:"replicasPerMaster" range:"1..1"`
	// NodeTimeout is the cluster-node-timeout of Redis: how long a node may be silent
	// before the others replace it. Failover takes about this long plus one
	// second.
	NodeTimeout Duration `yaml:"nodeTimeout" range:"500ms..1m"`
	// MaxMemory bounds the data of each node. A full node refuses writes and
	// never evicts, since an evicted key may be a queued task.
	MaxMemory Bytes `yaml:"maxMemory" range:"16MiB..1TiB"`
	// AppendOnly is when a write reaches the disk: always (before the
	// answer), everysec (a crash loses up to a second), off (memory only).
	AppendOnly AppendOnly `yaml:"appendOnly" enum:"always,everysec,off"`
	// Proxy is redisproxy, the address that Dify connects to.
	Proxy RedisProxy `yaml:"proxy"`
}

// RedisProxy configures redisproxy.
type RedisProxy struct {
	// MaxClientConnections is how many clients one redisproxy serves.
	MaxClientConnections int `yaml:"maxClientConnections" range:"1..100000"`
	// FailoverTimeout is how long a command waits for its slot to have a
	// master again before it fails.
	FailoverTimeout Duration `yaml:"failoverTimeout" range:"100ms..5m"`
	// MaxCommand is the largest command, all arguments together.
	MaxCommand Bytes `yaml:"maxCommand" range:"1KiB..512MiB"`
}

func defaultRedis() Redis {
	return Redis{
		Masters:           3,
		ReplicasPerMaster: 1,
		NodeTimeout:       Duration(2 * second),
		MaxMemory:         256 * mebibyte,
		AppendOnly:        AppendEverySecond,
		Proxy: RedisProxy{
			MaxClientConnections: 10000,
			FailoverTimeout:      Duration(15 * second),
			MaxCommand:           64 * mebibyte,
		},
	}
}
