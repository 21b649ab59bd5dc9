package console

import (
	"fmt"
	"strings"
	"time"
)

// figure is one question to Prometheus. Its expression may hold $w, the window
// of rates, and $s, which selects one component, app or limit, or all.
type figure struct {
	name string
	// kind is the components' kind that the figure belongs to; empty for
	// figures of other things.
	kind string
	// by is the label that names whom a value belongs to. By "slave_ip" it is
	// the host of the component's address, else its name.
	by   string
	expr string
}

// componentFigures are shown beside the components. An exporter that has no such
// metric makes no value, and the page leaves the figure out.
var componentFigures = []figure{
	{"rps", "gateway", "component", `sum by (component) (rate(fournines_gateway_requests_total{$s}[$w]))`},
	{"errors", "gateway", "component", `sum by (component) (rate(fournines_gateway_requests_total{code=~"5..",$s}[$w]))`},
	{"p99", "gateway", "component", `histogram_quantile(0.99, sum by (component, le) (rate(fournines_gateway_first_content_seconds_bucket{$s}[$w])))`},
	{"inFlight", "gateway", "component", `sum by (component) (fournines_gateway_requests_in_flight{$s})`},
	{"streams", "gateway", "component", `sum by (component) (fournines_gateway_streams_open{$s})`},

	{"rps", "dify-api", "component", `sum by (component) (rate(difysim_requests_total{route=~".* /v1/.*",$s}[$w]))`},
	{"inFlight", "dify-api", "endpoint", `sum by (endpoint) (fournines_gateway_endpoint_requests_in_flight{$s})`},
	{"limit", "dify-api", "endpoint", `sum by (endpoint) (fournines_gateway_endpoint_concurrency_limit{$s})`},
	{"trusted", "dify-api", "endpoint", `avg by (endpoint) (fournines_gateway_endpoint_healthy{$s})`},
	{"tasks", "dify-worker", "component", `sum by (component) (rate(difysim_tasks_total{$s}[$w]))`},
	{"tasksActive", "dify-worker", "component", `sum by (component) (difysim_tasks_active{$s})`},

	{"queries", "pgproxy", "component", `sum by (component) (rate(fournines_pgproxy_queries_total{$s}[$w]))`},
	{"clients", "pgproxy", "component", `sum by (component) (fournines_pgproxy_clients{$s})`},
	{"held", "pgproxy", "component", `sum by (component) (fournines_pgproxy_held_clients{$s})`},
	{"connections", "pgproxy", "component", `sum by (component) (fournines_pgproxy_server_connections{state="used",$s})`},

	{"transactions", "postgres", "component", `sum by (component) (rate(pg_stat_database_xact_commit{job="postgres",$s}[$w]))`},
	// Each standby beside the primary as Patroni sees both: this also grows when
	// the receiver is cut off, where times of the last replay stand still.
	{"lagBytes", "postgres", "component", `clamp_min(scalar(max(patroni_xlog_location{job="patroni"})) - max by (component) (patroni_xlog_replayed_location{job="patroni",$s} and on (component) patroni_replica{job="patroni"} == 1), 0)`},
	{"connections", "postgres", "component", `sum by (component) (pg_stat_activity_count{job="postgres",$s})`},

	{"commands", "redisproxy", "component", `sum by (component) (rate(fournines_redisproxy_commands_total{$s}[$w]))`},
	{"clients", "redisproxy", "component", `sum by (component) (fournines_redisproxy_clients{$s})`},
	{"held", "redisproxy", "component", `sum by (component) (fournines_redisproxy_held_commands{$s})`},

	{"commands", "redis", "component", `sum by (component) (rate(redis_commands_processed_total{job="redis",$s}[$w]))`},
	{"dataBytes", "redis", "component", `max by (component) (redis_memory_used_bytes{job="redis",$s})`},
	{"lagBytes", "redis", "slave_ip", `max by (slave_ip) (clamp_min(redis_master_repl_offset{job="redis"} - on (component) group_right () redis_connected_slave_offset_bytes{job="redis",$s}, 0))`},

	{"proposals", "etcd", "component", `sum by (component) (rate(etcd_server_proposals_committed_total{$s}[$w]))`},
	{"dataBytes", "etcd", "component", `max by (component) (etcd_mvcc_db_total_size_in_bytes{$s})`},
	{"rps", "milvus", "component", `sum by (component) (rate(milvus_proxy_req_count{status="total",$s}[$w]))`},
	{"connections", "loadbalancer", "component", `sum by (component) (fournines_loadbalancer_connections{$s})`},
}

var appFigures = []figure{
	{"rps", "", "app", `sum by (app) (rate(fournines_gateway_app_admitted_total{$s}[$w]))`},
	{"inFlight", "", "app", `sum by (app) (fournines_gateway_app_requests_in_flight{$s})`},
	{"queued", "", "app", `sum by (app) (fournines_gateway_app_queue_length{$s})`},
	{"shed", "", "app", `sum by (app) (rate(fournines_gateway_app_shed_total{$s}[$w]))`},
	{"yields", "", "app", `max by (app) (fournines_gateway_app_yields{$s})`},
}

var limitFigures = []figure{
	{"admitted", "", "limit", `sum by (limit) (rate(fournines_gateway_limit_requests_total{outcome="admitted",$s}[$w]))`},
	{"limited", "", "limit", `sum by (limit) (rate(fournines_gateway_limit_requests_total{outcome="limited",$s}[$w]))`},
}

// What failed is the installation's fault, what was refused is a limit's or the
// caller's.
const (
	answered = `fournines_gateway_requests_total`
	failed   = `fournines_gateway_requests_total{code=~"5.."}`
)

// totals are figures of the whole installation.
var totals = []figure{
	{name: "rps", expr: `sum(rate(` + answered + `[$w]))`},
	{name: "failed", expr: `sum(rate(` + failed + `[$w])) or 0 * sum(rate(` + answered + `[$w]))`},
	{name: "limited", expr: `sum(rate(fournines_gateway_requests_total{code="429"}[$w])) or 0 * sum(rate(` + answered + `[$w]))`},
	{name: "p50", expr: `histogram_quantile(0.5, sum by (le) (rate(fournines_gateway_first_content_seconds_bucket[$w])))`},
	{name: "p99", expr: `histogram_quantile(0.99, sum by (le) (rate(fournines_gateway_first_content_seconds_bucket[$w])))`},
	{name: "inFlight", expr: `sum(fournines_gateway_requests_in_flight)`},
	{name: "streams", expr: `sum(fournines_gateway_streams_open)`},
	{name: "waiting", expr: `sum(fournines_gateway_requests_waiting)`},
	{name: "retries", expr: `sum(rate(fournines_gateway_retries_total[$w]))`},
	{name: "shed", expr: `sum(rate(fournines_gateway_shed_total[$w]))`},

	{name: "cacheLookups", expr: `sum(rate(fournines_gateway_cache_requests_total[$w]))`},
	{name: "cacheHits", expr: `sum(rate(fournines_gateway_cache_requests_total{result=~"hit|shared|stale"}[$w]))`},
	{name: "cacheEntries", expr: `sum(fournines_gateway_cache_entries)`},
	{name: "cacheBytes", expr: `sum(fournines_gateway_cache_bytes)`},

	// Every gateway reports all jobs.
	{name: "jobsQueued", expr: `max(fournines_gateway_jobs{state="queued"})`},
	{name: "jobsRunning", expr: `max(fournines_gateway_jobs{state="running"})`},
	{name: "jobsDead", expr: `max(fournines_gateway_jobs{state="dead"})`},
	{name: "jobsOldest", expr: `max(fournines_gateway_jobs_oldest_seconds)`},

	{name: "syncStandbys", expr: `sum(patroni_sync_standby{job="patroni"})`},
	{name: "lagBytes", expr: `max(clamp_min(scalar(max(patroni_xlog_location{job="patroni"})) - (patroni_xlog_replayed_location{job="patroni"} and on (component) patroni_replica{job="patroni"} == 1), 0))`},
	{name: "queries", expr: `sum(rate(fournines_pgproxy_queries_total[$w]))`},
	{name: "commands", expr: `sum(rate(fournines_redisproxy_commands_total[$w]))`},
	{name: "slots", expr: `min(redis_cluster_slots_ok{job="redis"})`},

	{name: "backups", expr: `max(fournines_backup_backups)`},
	{name: "backupBytes", expr: `max(fournines_backup_stored_bytes)`},
	{name: "backupAge", expr: `time() - max(fournines_backup_last_success_timestamp_seconds{operation="backup"} > 0)`},
	{name: "backupMaxAge", expr: `max(fournines_backup_max_age_seconds{operation="backup"})`},
	{name: "backupFailed", expr: `max(fournines_backup_last_run_failed{operation="backup"})`},
	{name: "archiveLag", expr: `max(fournines_backup_archive_lag_seconds)`},
	{name: "drillAge", expr: `time() - max(fournines_backup_last_success_timestamp_seconds{operation="drill"} > 0)`},
	{name: "drillFailed", expr: `max(fournines_backup_last_run_failed{operation="drill"})`},
	{name: "drillRTO", expr: `max(fournines_backup_drill_rto_seconds)`},
	{name: "drillRPO", expr: `max(fournines_backup_drill_rpo_seconds)`},

	{name: "targetsUp", expr: `count(up == 1)`},
	{name: "targetsDown", expr: `count(up == 0) or 0 * count(up)`},
}

const flowQuery = `sum by (zone, exported_zone) (rate(fournines_gateway_requests_total{exported_zone!=""}[$w]))`

// charts are the lines of the overview over time.
var charts = []figure{
	{name: "ok", expr: `sum(rate(fournines_gateway_requests_total{code!~"[45].."}[$w]))`},
	{name: "refused", expr: `sum(rate(fournines_gateway_requests_total{code=~"4.."}[$w]))`},
	{name: "failed", expr: `sum(rate(` + failed + `[$w]))`},
	{name: "p50", expr: `histogram_quantile(0.5, sum by (le) (rate(fournines_gateway_first_content_seconds_bucket[$w])))`},
	{name: "p99", expr: `histogram_quantile(0.99, sum by (le) (rate(fournines_gateway_first_content_seconds_bucket[$w])))`},
	{name: "inFlight", expr: `sum(fournines_gateway_requests_in_flight)`},
	{name: "waiting", expr: `sum(fournines_gateway_requests_waiting)`},
	{name: "jobsQueued", expr: `max(fournines_gateway_jobs{state="queued"})`},
	{name: "queries", expr: `sum(rate(fournines_pgproxy_queries_total[$w]))`},
	{name: "lagBytes", expr: `max(clamp_min(scalar(max(patroni_xlog_location{job="patroni"})) - (patroni_xlog_replayed_location{job="patroni"} and on (component) patroni_replica{job="patroni"} == 1), 0))`},
	{name: "commands", expr: `sum(rate(fournines_redisproxy_commands_total[$w]))`},
	{name: "cacheHitRatio", expr: `sum(rate(fournines_gateway_cache_requests_total{result=~"hit|shared|stale"}[$w])) / (sum(rate(fournines_gateway_cache_requests_total[$w])) > 0)`},
}

// burnWindows are those of the multi-window alerts: 14.4 for 1 h (2% of a
// 30-day budget), 6 for 6 h (5%), 1 for 3 days (10%).
var burnWindows = []struct {
	window string
	alert  float64
}{{"5m", 14.4}, {"1h", 14.4}, {"6h", 6}, {"1d", 3}, {"3d", 1}}

// errorRatio is the share of requests that failed over a window; it has no
// value when there was none.
func errorRatio(window string) string {
	return fmt.Sprintf("(sum(increase(%[1]s[%[3]s])) or 0 * sum(increase(%[2]s[%[3]s]))) / (sum(increase(%[2]s[%[3]s])) > 0)", failed, answered, window)
}

func spenderQuery(window string) string {
	return fmt.Sprintf(`topk(5, sum by (class, code) (increase(%s[%s])) > 0.5)`, failed, window)
}

// coveredQuery is for how long Prometheus has samples.
const coveredQuery = `time() - min(prometheus_tsdb_lowest_timestamp_seconds > 0)`

// fill puts the window of rates and the selection into an expression.
func fill(expr string, window time.Duration, selection string) string {
	return strings.NewReplacer("$w", promDuration(window), "$s", selection).Replace(expr)
}

// everyone selects all that have a value of the figure's label.
func (f figure) everyone() string { return f.by + `!=""` }

// only selects one by its name, whatever is in it.
func (f figure) only(name string) string { return f.by + "=" + quote(name) }

// quote writes a string of PromQL.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// promDuration writes a duration as PromQL wants it.
func promDuration(d time.Duration) string { return fmt.Sprintf("%ds", int64(d.Seconds())) }

// rateWindow is over how much time a rate is taken: four scrapes, so that one
// that is late or lost does not tear a hole, and no less than half a minute.
func rateWindow(scrape time.Duration) time.Duration { return max(4*scrape, 30*time.Second) }
