//go:build cgo

package route

import "strings"

// What pg_proc.provolatile does not tell of functions. The names are judged
// whatever their schema.

// serverState are functions about the server, the session or its transaction,
// whose answers differ from server to server, and those that fail on a standby
// although they count as stable.
var serverState = set(
	"current_setting", "inet_client_addr", "inet_client_port", "inet_server_addr", "inet_server_port",
	"txid_current", "txid_current_if_assigned", "txid_current_snapshot", "txid_status",
	"pg_current_xact_id", "pg_current_xact_id_if_assigned", "pg_current_snapshot", "pg_xact_status", "pg_xact_commit_timestamp",
	"pg_last_committed_xact", "pg_get_multixact_members",
	"pg_backend_pid", "pg_blocking_pids", "pg_safe_snapshot_blocking_pids", "pg_isolation_test_session_is_blocked", "pg_lock_status",
	"pg_is_in_recovery", "pg_is_in_backup", "pg_backup_start_time", "pg_is_wal_replay_paused", "pg_get_wal_replay_pause_state",
	"pg_get_wal_resource_managers", "pg_get_wal_summarizer_state", "pg_available_wal_summaries",
	"pg_current_wal_lsn", "pg_current_wal_insert_lsn", "pg_current_wal_flush_lsn", "pg_last_wal_receive_lsn", "pg_last_wal_replay_lsn",
	"pg_last_xact_replay_timestamp", "pg_walfile_name", "pg_walfile_name_offset",
	"pg_postmaster_start_time", "pg_conf_load_time", "pg_jit_available", "pg_config", "pg_hba_file_rules", "pg_ident_file_mappings",
	"pg_show_all_settings", "pg_show_all_file_settings", "pg_show_replication_origin_status",
	"pg_prepared_statement", "pg_prepared_xact", "pg_cursor", "pg_listening_channels", "pg_notification_queue_usage",
	"pg_my_temp_schema", "pg_is_other_temp_schema", "pg_trigger_depth", "pg_get_replication_slots", "pg_get_backend_memory_contexts",
	"pg_get_shmem_allocations", "pg_current_logfile", "pg_rotate_logfile", "pg_tablespace_location", "pg_tablespace_databases",
	"pg_available_extensions", "pg_available_extension_versions", "pg_extension_update_paths",
	"pg_sequence_last_value", "pg_replication_origin_session_is_setup", "pg_replication_origin_session_progress",
	"pg_replication_origin_progress", "pg_mxid_age", "row_security_active",
	"dblink_get_connections", "postgres_fdw_get_connections",
)

var serverStatePrefixes = []string{
	"pg_stat_", "pg_control_", "pg_ls_", "pg_read_", "pg_logical_", "pg_buffercache", "pg_freespace", "pg_visibility",
}

// advisoryLocks are said to be locks rather than volatile.
var advisoryLocks = set(
	"pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
	"pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared",
	"pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all",
)

// runsText are functions that run SQL given as text, or read a table whose
// name is data, although they count as stable.
var runsText = set(
	"crosstab", "crosstab2", "crosstab3", "crosstab4", "crosstabn", "crosstab_hash", "connectby", "xpath_table", "ts_stat", "ts_rewrite",
	"query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "cursor_to_xml", "cursor_to_xmlschema",
	"table_to_xml", "table_to_xmlschema", "table_to_xml_and_xmlschema",
	"schema_to_xml", "schema_to_xmlschema", "schema_to_xml_and_xmlschema",
	"database_to_xml", "database_to_xmlschema", "database_to_xml_and_xmlschema",
)

// tableless are stable functions without arguments that read no table.
var tableless = set(
	"now", "transaction_timestamp", "statement_timestamp", "version", "current_schema", "current_database", "pg_client_encoding",
)

// nameTypes are types whose input looks up a name of the catalog, by way of
// the search path and of temporary objects.
var nameTypes = set(
	"regclass", "regcollation", "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype",
)

// stateful reports that a function is about a server or a session.
func stateful(name string) bool {
	if serverState[name] {
		return true
	}
	for _, p := range serverStatePrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
