package postgres

import (
	"encoding/json"
	"fmt"
	"strconv"

	"fournines/component/internal/prepare"
)

// restUser is the account of Patroni's REST interface.
const restUser = "patroni"

// patroniFile renders patroni.yml with all its secrets. JSON is valid YAML, and
// its quoting needs no thought.
func (c *Config) patroniFile() ([]byte, error) {
	var secrets [4]string
	for i, path := range []string{c.Passwords.Superuser, c.Passwords.Replicator, c.Passwords.Rewind, c.Passwords.REST} {
		secret, err := prepare.Secret(path)
		if err != nil {
			return nil, err
		}
		secrets[i] = secret
	}
	return json.MarshalIndent(map[string]any{
		"scope":     c.Cluster,
		"namespace": dcsNamespace,
		"name":      c.Name,
		"log":       map[string]any{"level": c.LogLevel},
		"restapi": map[string]any{
			"listen":          c.restAddress(),
			"connect_address": c.restAddress(),
			"authentication":  map[string]any{"username": restUser, "password": secrets[3]},
		},
		"etcd3": map[string]any{"hosts": c.Etcd},
		"bootstrap": map[string]any{
			"dcs": c.dynamic(),
			"initdb": []any{
				map[string]any{"encoding": "UTF8"},
				map[string]any{"locale": "C.UTF-8"},
				// Checksums find a rotten page before a standby copies it, and
				// pg_rewind needs them or wal_log_hints.
				"data-checksums",
				map[string]any{"auth-host": "scram-sha-256"},
				map[string]any{"auth-local": "scram-sha-256"},
			},
		},
		"postgresql": map[string]any{
			"listen":               c.address(),
			"connect_address":      c.address(),
			"data_dir":             c.path("data"),
			"bin_dir":              c.BinDir,
			"pgpass":               c.path("pgpass"),
			"use_unix_socket":      c.socketDir() != "",
			"use_unix_socket_repl": false,
			"remove_data_directory_on_rewind_failure":     true,
			"remove_data_directory_on_diverged_timelines": true,
			"authentication": map[string]any{
				"superuser":   map[string]any{"username": "postgres", "password": secrets[0]},
				"replication": map[string]any{"username": "replicator", "password": secrets[1]},
				"rewind":      map[string]any{"username": "rewind", "password": secrets[2]},
			},
			"parameters":             c.parameters(),
			"pg_hba":                 c.hba(),
			"basebackup":             []any{map[string]any{"checkpoint": "fast"}},
			"create_replica_methods": []string{"basebackup"},
		},
		"watchdog": map[string]any{"mode": "off"},
		"tags":     map[string]any{},
	}, "", "  ")
}

// dynamic is the cluster-wide configuration. Patroni takes it from the first
// node ever started and keeps it in etcd, where RecoveryTask brings it up to
// date before the nodes of a later start.
func (c *Config) dynamic() map[string]any {
	return map[string]any{
		"ttl":           int(c.TTL.Seconds()),
		"loop_wait":     int(c.LoopWait.Seconds()),
		"retry_timeout": int(c.RetryTimeout.Seconds()),
		// Only a node that has every acknowledged commit is promoted. Not
		// strict: with every standby gone the primary goes on alone.
		"synchronous_mode":        !c.Asynchronous,
		"maximum_lag_on_failover": 16 << 20,
		// A crashed primary is replaced at once instead of being restarted for
		// up to five minutes: the synchronous standby has all it had.
		"primary_start_timeout": 0,
		"primary_stop_timeout":  10,
		// Losing all of etcd must not stop the primary while all nodes see it.
		"failsafe_mode":  true,
		"check_timeline": true,
		"postgresql": map[string]any{
			"use_pg_rewind": true,
			"use_slots":     true,
			// What has to be equal on all nodes, or a standby refuses to start.
			"parameters": map[string]any{
				"max_connections":           c.MaxConnections,
				"max_worker_processes":      8,
				"max_wal_senders":           10,
				"max_replication_slots":     10,
				"max_prepared_transactions": 0,
				"max_locks_per_transaction": 64,
				"wal_level":                 "replica",
				"hot_standby":               "on",
				"wal_log_hints":             "on",
				"wal_keep_size":             "128MB",
			},
		},
	}
}

func (c *Config) parameters() map[string]any {
	p := map[string]any{
		"shared_buffers":               fmt.Sprintf("%dMB", c.SharedBuffersMiB),
		"effective_cache_size":         fmt.Sprintf("%dMB", 4*c.SharedBuffersMiB),
		"work_mem":                     "4MB",
		"maintenance_work_mem":         "64MB",
		"fsync":                        "on",
		"full_page_writes":             "on",
		"synchronous_commit":           "on",
		"hot_standby_feedback":         "on",
		"wal_receiver_status_interval": "1s",
		"wal_receiver_timeout":         "10s",
		"wal_sender_timeout":           "10s",
		// How soon a standby notices that its new primary serves.
		"wal_retrieve_retry_interval": "500ms",
		"min_wal_size":                "80MB",
		"max_wal_size":                "512MB",
		// A standby that stays away must not fill the primary's disk.
		"max_slot_wal_keep_size":       "2GB",
		"checkpoint_timeout":           "5min",
		"checkpoint_completion_target": 0.9,
		"password_encryption":          "scram-sha-256",
		"tcp_keepalives_idle":          15,
		"tcp_keepalives_interval":      5,
		"tcp_keepalives_count":         3,
		// Stop sending to a peer that acknowledges nothing, so that the sessions
		// of a lost zone do not hold locks for the kernel's quarter of an hour.
		"tcp_user_timeout":                20000,
		"jit":                             "off",
		"max_parallel_workers_per_gather": 0,
		"shared_preload_libraries":        "pg_stat_statements",
		"track_io_timing":                 "on",
		"timezone":                        "UTC",
		"log_timezone":                    "UTC",
		"lc_messages":                     "C",
		"log_destination":                 "stderr",
		"logging_collector":               "off",
		"log_line_prefix":                 "%m [%p] %q%u@%d ",
		"log_checkpoints":                 "off",
		"log_lock_waits":                  "on",
		// A statement can hold personal data and keys: psycopg2 sends literals in
		// its text. So none is logged, be it slow or wrong; pg_stat_statements
		// knows the slow ones without their literals.
		"log_min_duration_statement":        -1,
		"log_min_error_statement":           "panic",
		"log_parameter_max_length":          0,
		"log_parameter_max_length_on_error": 0,
		"cluster_name":                      c.Name,
		// Files in the data directory instead of /dev/shm: a killed server
		// leaves nothing behind outside its own directory.
		"dynamic_shared_memory_type": "mmap",
		"unix_socket_directories":    c.socketDir(),
		"unix_socket_permissions":    "0700",
		"archive_mode":               "off",
	}
	if c.ArchiveCommand != "" {
		p["archive_mode"] = "on"
		p["archive_command"] = c.ArchiveCommand
		p["archive_timeout"] = "60s"
	}
	return p
}

// hba allows SCRAM logins only. Whoever is not named may not connect.
func (c *Config) hba() []string {
	lines := []string{"local all all scram-sha-256"}
	networks := []string{c.Host + hostBits(c.Host)}
	for _, n := range c.Networks {
		networks = append(networks, n.String())
	}
	for _, n := range networks {
		lines = append(lines,
			"host replication replicator "+n+" scram-sha-256",
			"host all all "+n+" scram-sha-256")
	}
	return lines
}

func hostBits(host string) string {
	for _, r := range host {
		if r == ':' {
			return "/" + strconv.Itoa(128)
		}
	}
	return "/" + strconv.Itoa(32)
}
