package audit

import "time"

// Prometheus is what a Prometheus that runs says of itself.
type Prometheus struct {
	// Name is its address without credentials.
	Name string
	// Metrics are the names of all series of the last day.
	Metrics map[string]bool
	// Rules it evaluates.
	Rules []LiveRule
	// Alertmanagers that it sends to.
	Alertmanagers int
	// Targets is how many it scrapes; Down are those that do not answer.
	Targets int
	Down    []string
	// Retention it keeps; 0 when it does not say.
	Retention time.Duration
	// GPUs is how many report their use, GPUUse their mean use of the last day,
	// 0 to 100.
	GPUs   int
	GPUUse float64
}

// LiveRule is one rule of a Prometheus that runs.
type LiveRule struct {
	Name, Query string
	// Alert is false for a recording rule.
	Alert bool
	// Error of the last evaluation; empty for none.
	Error string
	// Lacks are the metric{label} pairs that a selector wants and no series has.
	Lacks []string
}

// Postgres is what a PostgreSQL server that runs says of itself.
type Postgres struct {
	// Name is its address.
	Name string
	// Settings are those of pg_settings that rules read, in base units.
	Settings map[string]string
	// Standby reports whether it is in recovery.
	Standby bool
	// Standbys that stream from it.
	Standbys []PostgresStandby
	// Sessions of clients now.
	Sessions int
	// Archiver: the last failure is newer than the last success.
	ArchiveFailing bool
	ArchiveFailed  int64
	// DeadSlots are replication slots that nobody reads, with the bytes they
	// keep.
	DeadSlots map[string]int64
	// TransactionAge is the age of the oldest transaction id of any database.
	TransactionAge int64
	// Superusers are the accounts of clients now that are superusers.
	Superusers []string
	// TrustLines are lines of pg_hba.conf that let others in without a password.
	TrustLines []string
}

// PostgresStandby is one row of pg_stat_replication.
type PostgresStandby struct {
	Name, State, Sync string
	// Lag is how far replay is behind.
	Lag time.Duration
}

// Redis is what a Redis that runs says of itself.
type Redis struct {
	// Name is its address.
	Name string
	// Info are the fields of INFO.
	Info map[string]string
	// Settings are those of CONFIG GET that rules read.
	Settings map[string]string
	// ClusterInfo are the fields of CLUSTER INFO; empty without a cluster.
	ClusterInfo map[string]string
	// Nodes of the cluster.
	Nodes []RedisNode
}

// RedisNode is one line of CLUSTER NODES.
type RedisNode struct {
	ID, Host, Address string
	// MasterID is empty for a master.
	MasterID string
	Slots    int
	Failed   bool
}

// Gateway is what a fournines gateway that runs says of itself.
type Gateway struct {
	// Name is its admin address.
	Name string
	Zone string
	// NotReady is why it is not; empty when it is.
	NotReady string
	// ReloadError of the last reload; empty for none.
	ReloadError string
	// CertificateExpires; zero without TLS.
	CertificateExpires time.Time
	// Endpoints are the api instances.
	Endpoints []GatewayEndpoint
	// Asked is when it answered.
	Asked time.Time
}

// GatewayEndpoint is one api instance behind a gateway.
type GatewayEndpoint struct{ Name, Zone, State string }
