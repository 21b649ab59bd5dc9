package catalogue

import "slices"

// ExternalMetric is a metric of a server that is not ours. Only what a rule, a
// panel or a command reads is listed: a server has hundreds.
type ExternalMetric struct {
	// Job of Prometheus that has it.
	Job string
	// Name as it is stored; parts of a histogram stand for themselves.
	Name string
	// When says what has to happen before it appears; empty: it is there from
	// the start.
	When string
	// Elsewhere says where it comes from when the local engine has it not.
	Elsewhere string
}

// Names of the jobs of servers that are not ours.
const (
	JobPatroni      = "patroni"
	JobPostgres     = "postgres"
	JobRedis        = "redis"
	JobEtcd         = "etcd"
	JobMilvus       = "milvus"
	JobNode         = "node"
	JobPrometheus   = "prometheus"
	JobAlertmanager = "alertmanager"
	JobCelery       = "celery"
)

var external = []ExternalMetric{
	{Job: JobPatroni, Name: "patroni_primary"},
	{Job: JobPatroni, Name: "patroni_replica"},
	{Job: JobPatroni, Name: "patroni_sync_standby"},
	{Job: JobPatroni, Name: "patroni_cluster_unlocked"},
	{Job: JobPatroni, Name: "patroni_is_paused"},
	{Job: JobPatroni, Name: "patroni_dcs_last_seen"},
	{Job: JobPatroni, Name: "patroni_xlog_location"},
	{Job: JobPatroni, Name: "patroni_xlog_replayed_location"},
	// The query of component/exporter, which asks the primary.
	{Job: JobPostgres, Name: "fournines_postgres_replication_lag_seconds"},
	{Job: JobPostgres, Name: "pg_replication_slots_pg_wal_lsn_diff"},
	{Job: JobPostgres, Name: "pg_up"},
	{Job: JobRedis, Name: "redis_up"},
	{Job: JobRedis, Name: "redis_cluster_state"},
	{Job: JobRedis, Name: "redis_cluster_slots_ok"},
	{Job: JobRedis, Name: "redis_cluster_slots_pfail"},
	{Job: JobRedis, Name: "redis_connected_slaves"},
	{Job: JobRedis, Name: "redis_instance_info"},
	{Job: JobRedis, Name: "redis_master_link_up"},
	{Job: JobRedis, Name: "redis_memory_used_bytes"},
	{Job: JobRedis, Name: "redis_memory_max_bytes"},
	{Job: JobEtcd, Name: "etcd_server_has_leader"},
	{Job: JobMilvus, Name: "milvus_proxy_req_count", When: "a request"},
	{Job: JobMilvus, Name: "milvus_proxy_sq_latency_bucket", When: "a search"},
	{Job: JobNode, Name: "node_filesystem_avail_bytes"},
	{Job: JobNode, Name: "node_filesystem_size_bytes"},
	{Job: JobNode, Name: "node_memory_MemAvailable_bytes"},
	{Job: JobNode, Name: "node_memory_MemTotal_bytes"},
	{Job: JobNode, Name: "node_time_seconds"},
	{Job: JobPrometheus, Name: "prometheus_rule_evaluation_failures_total"},
	{Job: JobPrometheus, Name: "prometheus_notifications_dropped_total"},
	{Job: JobAlertmanager, Name: "alertmanager_notifications_failed_total"},
	{Job: JobCelery, Name: "celery_queue_length", Elsewhere: "danihodovic/celery-exporter, beside a real Dify"},
}

// External lists the metrics of other servers that may be read.
func External() []ExternalMetric { return slices.Clone(external) }
