package rules

import "time"

var postgresAlerts = []Alert{
	{
		// patroni_primary is 1 on a node that holds the leader lock (Patroni 3).
		// "or vector(0)" keeps the rule alive when no node answers at all. A failover
		// is over before it fires.
		Name: "PostgresNoPrimary", Severity: Critical, For: 15 * time.Second,
		Expr:        `(sum(patroni_primary{job="patroni"}) or vector(0)) < 1 and on () count(up{job="patroni"})`,
		Summary:     `PostgreSQL has no primary; every write of the application waits.`,
		Description: `{{ $value }} nodes hold the leader's lock. pgproxy holds clients until its limit, then refuses them.`,
	},
	{
		Name: "PostgresMoreThanOnePrimary", Severity: Critical, For: 10 * time.Second,
		Expr:        `sum(patroni_primary{job="patroni"}) > 1`,
		Summary:     `More than one PostgreSQL node calls itself primary.`,
		Description: `{{ $value }} nodes say that they are the primary. pgproxy uses the one on the newest timeline; whoever goes round it may write to the other.`,
	},
	{
		Name: "PatroniNoLeader", Severity: Critical, For: 15 * time.Second,
		Expr:        `max(patroni_cluster_unlocked{job="patroni"}) == 1`,
		Summary:     `Patroni has no leader, and no failover has filled the place.`,
		Description: `For 15 seconds a node has seen the leader's lock free. Either etcd cannot be written or no standby may be promoted.`,
	},
	{
		Name: "PatroniPaused", Severity: Warning, For: 15 * time.Minute,
		Expr:        `max(patroni_is_paused{job="patroni"}) == 1`,
		Summary:     `Automatic failover of PostgreSQL is switched off.`,
		Description: `Patroni has been paused for 15 minutes: if the primary dies now, nobody takes over.`,
	},
	{
		Name: "PatroniCutFromEtcd", Severity: Warning, For: 10 * time.Second,
		Expr:        `time() - (patroni_dcs_last_seen{job="patroni"} > 0) > 30`,
		Summary:     `Patroni of {{ $labels.component }} has not reached etcd for {{ $value | humanizeDuration }}.`,
		Description: `{{ $labels.component }} last heard from etcd {{ $value | humanizeDuration }} ago: it can neither be promoted nor, as the primary, keep its lock.`,
	},
	{
		// Nobody is promoted because of a full disk: docs/postgres.md, "A full disk".
		Name: "PostgresDiskFull", Severity: Critical,
		Expr:        `sum(increase(fournines_pgproxy_disk_full_total[1m])) > 0`,
		Summary:     `PostgreSQL refuses writes because its disk is full (53100); reads go on. Make room on the primary's disk.`,
		Description: `{{ $value | printf "%.0f" }} statements within a minute were refused for lack of space. A failover does not help: the standbys have the same data.`,
	},
	{
		Name: "PostgresNoSynchronousStandby", Severity: Warning, For: 30 * time.Second,
		Expr:        `(sum(patroni_sync_standby{job="patroni"}) or vector(0)) < 1 and on () count(up{job="patroni"})`,
		Summary:     `No synchronous standby; losing the primary now could lose commits.`,
		Description: `{{ $value }} standbys have been synchronous for 30 seconds.`,
	},
	{
		// The alert of the article. The primary measures it: what a standby measures
		// of itself is 0 when it is cut off.
		Name: "PostgresReplicationLag", Severity: Warning, For: time.Minute,
		Expr:        `max by (application_name) (fournines_postgres_replication_lag_seconds{job="postgres"}) > 0.1`,
		Summary:     `Standby {{ $labels.application_name }} lags {{ $value | humanizeDuration }} behind.`,
		Description: `For a minute {{ $labels.application_name }} has replayed only what the primary wrote {{ $value | humanizeDuration }} before; 100 ms is the limit. Reads go to the primary instead.`,
	},
	{
		Name: "PostgresStandbyBehind", Severity: Warning, For: 30 * time.Second,
		Expr: `scalar(max(patroni_xlog_location{job="patroni"} offset 15s)) - patroni_xlog_replayed_location{job="patroni"} > 0
			and on (component) patroni_replica{job="patroni"} == 1`,
		Summary:     `{{ $labels.component }} has not replayed what the primary wrote long ago.`,
		Description: `{{ $labels.component }} lacks {{ $value | humanize1024 }}B of what the primary had written 15 seconds before, for 30 seconds by now: it is cut off, or its replay stands still.`,
	},
	{
		Name: "PostgresSlotGrowth", Severity: Warning, For: time.Minute,
		Expr:        `max by (slot_name) (pg_replication_slots_pg_wal_lsn_diff{job="postgres"}) > 1073741824`,
		Summary:     `Replication slot {{ $labels.slot_name }} keeps {{ $value | humanize1024 }}B of WAL.`,
		Description: `Whoever reads {{ $labels.slot_name }} has not done so for {{ $value | humanize1024 }}B. PostgreSQL keeps that WAL until its disk is full.`,
	},
	{
		Name: "DatabaseClientsHeld", Severity: Critical, For: 15 * time.Second,
		Expr:        `sum(fournines_pgproxy_held_clients) > 0`,
		Summary:     `{{ $value }} database clients wait for a primary.`,
		Description: `pgproxy has held {{ $value }} clients for 15 seconds, longer than a failover takes: there is no primary, or a pause was not ended.`,
	},
	{
		Name: "DatabasePoolExhausted", Severity: Warning, For: time.Minute,
		Expr:        `sum by (component) (fournines_pgproxy_waiting_clients) > 0`,
		Summary:     `{{ $value }} clients wait for a database connection at {{ $labels.component }}.`,
		Description: `For a minute all server connections of {{ $labels.component }} have been in use, and {{ $value }} clients wait for one.`,
	},
	{
		Name: "ProxyPanics", Severity: Warning,
		Expr: `sum by (component) (increase(fournines_pgproxy_panics_total[10m])) > 0
			or sum by (component) (increase(fournines_redisproxy_panics_total[10m])) > 0`,
		Summary:     `{{ $labels.component }} has a defect that ended a session.`,
		Description: `{{ $value | printf "%.0f" }} sessions of {{ $labels.component }} ended by a defect of the proxy within 10 minutes; the others went on. Its log has the stack.`,
	},
	{
		Name: "EtcdNoLeader", Severity: Critical, For: 10 * time.Second,
		Expr:        `etcd_server_has_leader{job="etcd"} == 0`,
		Summary:     `{{ $labels.component }} sees no etcd leader; PostgreSQL cannot fail over.`,
		Description: `{{ $labels.component }} has been without a leader for 10 seconds. The primary keeps serving only while it can renew its lock.`,
	},
}
