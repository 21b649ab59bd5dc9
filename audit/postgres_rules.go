package audit

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// postgresSettings are the settings of every PostgreSQL in the inputs. Those of
// an operator are managed: what they do not say is set by the operator.
func (in *Inventory) postgresSettings() (own, managed []settings) {
	for _, c := range in.postgresConfs {
		own = append(own, c.settings)
	}
	for _, u := range in.withRole(rolePostgres) {
		own = append(own, u.settingsOf())
	}
	for i := range in.Postgres {
		p := &in.Postgres[i]
		s := settings{name: p.Name, at: Place{File: p.Name, Query: "SHOW ALL"}, values: map[string]setting{}}
		for name, v := range p.Settings {
			s.values[name] = setting{value: v, place: Place{File: p.Name, Query: "SHOW " + name}}
		}
		own = append(own, s)
	}
	for _, o := range in.ofKind("Cluster") {
		s := settings{name: o.title(), at: o.place(), values: map[string]setting{}, partial: true}
		for _, p := range o.get("spec", "postgresql", "parameters").pairs() {
			s.values[p.name()] = setting{value: p.text(), place: p.at(), node: p}
		}
		managed = append(managed, s)
	}
	return own, managed
}

func postgresRules() []Rule {
	static := []Kind{KindPostgresConf, KindCompose, KindKubernetes, KindLivePostgres}
	reads := []Kind{KindLivePostgres}
	everywhere := func(check func(s settings) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			own, managed := in.postgresSettings()
			for _, s := range append(own, managed...) {
				out = append(out, check(s)...)
			}
			return out
		}
	}
	whole := func(check func(s settings) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			own, _ := in.postgresSettings()
			for _, s := range own {
				out = append(out, check(s)...)
			}
			return out
		}
	}
	running := func(check func(p *Postgres) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for i := range in.Postgres {
				out = append(out, check(&in.Postgres[i])...)
			}
			return out
		}
	}
	ask := func(p *Postgres, query string) Place { return Place{File: p.Name, Query: query} }
	return []Rule{
		{
			ID: "FN501", Title: "more connections than the database takes", Severity: High, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "Each process of Dify opens up to SQLALCHEMY_POOL_SIZE + MAX_OVERFLOW connections, 40 by default. At the peak, when all are needed, new ones are refused: `too many clients`.",
			Cost: costs(perPeak, takesPeak, 0.3),
			Fix:  "Put pgproxy or PgBouncer in between, lower the pools, or raise max_connections.",
			check: func(in *Inventory) []hit {
				own, managed := in.postgresSettings()
				limit, where := 100, ""
				for _, s := range append(own, managed...) {
					if v, err := strconv.Atoi(s.get("max_connections")); err == nil {
						limit = v
					}
					where = s.name
				}
				if where == "" {
					return nil
				}
				need := 0
				var first *unit
				for _, u := range in.withRole(roleAPI, roleWorker) {
					host := u.env["DB_HOST"].value
					if strings.Contains(host, "pgproxy") || strings.Contains(host, "bouncer") || strings.Contains(host, "pooler") {
						continue
					}
					if first == nil {
						first = u
					}
					replicas := u.replicas
					if u.object != nil {
						if a := in.autoscaler(u.object); a != nil {
							replicas = max(replicas, a.get("spec", "maxReplicas").intOr(a.get("spec", "maxReplicaCount").intOr(replicas)))
						}
					}
					processes := 1
					if u.role == roleAPI {
						processes = u.envInt("SERVER_WORKER_AMOUNT", 1)
					}
					need += replicas * processes * (u.envInt("SQLALCHEMY_POOL_SIZE", 30) + u.envInt("SQLALCHEMY_MAX_OVERFLOW", 10))
				}
				// Three are kept for superusers.
				if first == nil || need <= limit-3 {
					return nil
				}
				return []hit{found(first.at, "Dify may open %d connections, %s takes %d", need, where, limit-3)}
			},
		},
		{
			ID: "FN502", Title: "a setting that loses data", Severity: Critical, Reads: static,
			Why:  "With fsync or full_page_writes off a crash of the host leaves a corrupt database; without autovacuum it stops taking writes after two billion transactions.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Set fsync, full_page_writes and autovacuum to on.",
			check: everywhere(func(s settings) []hit {
				var out []hit
				for _, name := range []string{"fsync", "full_page_writes", "autovacuum"} {
					if v := s.get(name); v != "" && !isTrue(v) {
						h := found(s.place(name), "%s: %s = %s", s.name, name, v)
						h.edits = s.values[name].node.replace(`"on"`)
						out = append(out, h)
					}
				}
				return out
			}),
		},
		{
			ID: "FN503", Title: "commits that are not on disk", Severity: Medium, Reads: static,
			Why:  "With synchronous_commit off a crash loses up to a second of commits that users saw accepted.",
			Cost: costs(perCrash, takesPerson, 0.05),
			Fix:  "Set synchronous_commit to on.",
			check: everywhere(func(s settings) []hit {
				if v := s.get("synchronous_commit"); v == "off" || v == "false" {
					h := found(s.place("synchronous_commit"), "%s: synchronous_commit is off", s.name)
					h.edits = s.values["synchronous_commit"].node.replace(`"on"`)
					return []hit{h}
				}
				return nil
			}),
		},
		{
			ID: "FN504", Title: "no WAL archive", Severity: High, Reads: static,
			Why:  "Without it a backup brings back the state of its hour, not of the minute before the fault: up to a day of conversations is lost.",
			Cost: costs(perMistake, takesRecreate, 0.3),
			Fix:  "Set `archive_mode = on` and an archive_command of pgBackRest (`fournines backup`), WAL-G or Barman.",
			check: whole(func(s settings) []hit {
				if v := s.get("archive_mode"); v == "on" || v == "always" {
					return nil
				}
				return []hit{found(s.place("archive_mode"), "%s: archive_mode is off", s.name)}
			}),
		},
		{
			ID: "FN505", Title: "replication is prepared and nobody can use it", Severity: High, Reads: []Kind{KindCompose},
			Why:  "wal_level and max_wal_senders are set, but there is no standby, and neither a role for it nor a line in pg_hba.conf: it looks replicated and is not.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Create a role with REPLICATION, mount a pg_hba.conf with a line for it, and run the standby; or let Patroni do all of it.",
			check: func(in *Inventory) []hit {
				var out []hit
				for _, u := range in.withRole(rolePostgres) {
					s := u.settingsOf()
					if u.compose == nil || s.get("wal_level") == "" && s.get("max_wal_senders") == "" || len(u.compose.peers(u)) > 0 || s.get("hba_file") != "" {
						continue
					}
					mounts := strings.Join(u.node.get("volumes").texts(), " ")
					if strings.Contains(mounts, "pg_hba") || strings.Contains(mounts, "initdb") {
						continue
					}
					at := s.place("wal_level")
					if s.get("wal_level") == "" {
						at = s.place("max_wal_senders")
					}
					out = append(out, found(at, "%s: wal_level %s, max_wal_senders %s, and no standby, role or pg_hba.conf", u.title(), orNone(s.get("wal_level")), orNone(s.get("max_wal_senders"))))
				}
				return out
			},
		},
		{
			ID: "FN506", Title: "no standby can connect", Severity: High, Reads: static,
			Why:  "wal_level minimal or max_wal_senders 0 allows neither a standby nor an online backup.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Set `wal_level = replica` and `max_wal_senders = 10`.",
			check: everywhere(func(s settings) []hit {
				var out []hit
				if s.get("wal_level") == "minimal" {
					out = append(out, found(s.place("wal_level"), "%s: wal_level is minimal", s.name))
				}
				if s.get("max_wal_senders") == "0" {
					out = append(out, found(s.place("max_wal_senders"), "%s: max_wal_senders is 0", s.name))
				}
				return out
			}),
		},
		{
			ID: "FN507", Title: "a dead replication slot may fill the disk", Severity: Medium, Reads: []Kind{KindPostgresConf, KindLivePostgres},
			Why:  "max_slot_wal_keep_size is unlimited by default: a standby that is gone makes the primary keep its WAL until the disk is full, and then it stops.",
			Cost: costs(perMistake, takesPerson, 1),
			Fix:  "Set max_slot_wal_keep_size to less than the free disk, for example 20GB.",
			check: func(in *Inventory) []hit {
				own, _ := in.postgresSettings()
				var out []hit
				for _, s := range own {
					if v := s.get("max_slot_wal_keep_size"); !s.partial && (v == "" || v == "-1") && s.get("max_replication_slots") != "0" {
						out = append(out, found(s.place("max_slot_wal_keep_size"), "%s: max_slot_wal_keep_size is unlimited", s.name))
					}
				}
				return out
			},
		},
		{
			ID: "FN508", Title: "passwords as MD5", Severity: Medium, Reads: static,
			Why:  "An MD5 hash is as good as the password: whoever reads pg_authid or a backup can log in.",
			Cost: costs(perMistake, takesRestore, 0.2),
			Fix:  "Set `password_encryption = scram-sha-256` and set the passwords again.",
			check: everywhere(func(s settings) []hit {
				if s.get("password_encryption") == "md5" {
					return []hit{found(s.place("password_encryption"), "%s: password_encryption is md5", s.name)}
				}
				return nil
			}),
		},
		{
			ID: "FN510", Title: "the database has no standby", Severity: Critical, Reads: reads,
			Why:  "Nothing takes over, and no second copy exists.",
			Cost: costs(perHost, takesRestore, 1),
			Fix:  "Add a standby in another zone.",
			check: running(func(p *Postgres) []hit {
				if p.Standby || len(p.Standbys) > 0 {
					return nil
				}
				return []hit{found(ask(p, "SELECT * FROM pg_stat_replication"), "no row: nobody streams from this primary")}
			}),
		},
		{
			ID: "FN511", Title: "no standby is synchronous", Severity: High, Reads: reads,
			Why:  "A failover loses what was acknowledged and not yet sent.",
			Cost: costs(perFailover, takesPerson, 0.1),
			Fix:  "Set synchronous_standby_names (Patroni: `synchronous_mode: true`).",
			check: running(func(p *Postgres) []hit {
				if p.Standby || len(p.Standbys) == 0 || slices.ContainsFunc(p.Standbys, func(s PostgresStandby) bool { return s.Sync == "sync" || s.Sync == "quorum" }) {
					return nil
				}
				return []hit{found(ask(p, "SELECT application_name, sync_state FROM pg_stat_replication"), "%d standbys, all asynchronous", len(p.Standbys))}
			}),
		},
		{
			ID: "FN512", Title: "a standby is far behind", Severity: High, Reads: reads,
			Why:  "It cannot be promoted without a loss, and reads from it are old. The article wants less than 100 ms.",
			Cost: costs(perFailover, takesPerson, 0.1),
			Fix:  "Look for its disk, its network, and queries that hold replay back.",
			check: running(func(p *Postgres) []hit {
				var out []hit
				for _, s := range p.Standbys {
					if s.Lag > 10*time.Second || s.State != "streaming" {
						out = append(out, found(ask(p, "SELECT application_name, state, replay_lag FROM pg_stat_replication"), "%s: %s, %v behind", s.Name, s.State, s.Lag.Round(time.Millisecond)))
					}
				}
				return out
			}),
		},
		{
			ID: "FN513", Title: "the WAL archive fails", Severity: Critical, Reads: reads,
			Why:  "Backups end at the last file that was archived, and the disk fills with those that were not.",
			Cost: costs(perMistake, takesRecreate, 0.5),
			Fix:  "Read the server's log for archive_command, and mend its target.",
			check: running(func(p *Postgres) []hit {
				if !p.ArchiveFailing {
					return nil
				}
				return []hit{found(ask(p, "SELECT * FROM pg_stat_archiver"), "the last attempt failed, %d failures", p.ArchiveFailed)}
			}),
		},
		{
			ID: "FN514", Title: "a replication slot that nobody reads", Severity: High, Reads: reads,
			Why:  "It keeps WAL until the disk is full.",
			Cost: costs(perMistake, takesPerson, 1),
			Fix:  "Bring its standby back, or drop it: `SELECT pg_drop_replication_slot('…')`.",
			check: running(func(p *Postgres) []hit {
				var out []hit
				for _, name := range slices.Sorted(maps.Keys(p.DeadSlots)) {
					out = append(out, found(ask(p, "SELECT slot_name, active FROM pg_replication_slots"), "%s is inactive and keeps %d MiB", name, p.DeadSlots[name]>>20))
				}
				return out
			}),
		},
		{
			ID: "FN515", Title: "connections are nearly used up", Severity: High, Reads: reads,
			Why:  "The next instance or the next peak gets `too many clients`.",
			Cost: costs(perPeak, takesPeak, 0.3),
			Fix:  "Put pgproxy in between, or raise max_connections.",
			check: running(func(p *Postgres) []hit {
				limit, err := strconv.Atoi(p.Settings["max_connections"])
				if err != nil || p.Sessions*5 < limit*4 {
					return nil
				}
				return []hit{found(ask(p, "SELECT count(*) FROM pg_stat_activity"), "%d of %d", p.Sessions, limit)}
			}),
		},
		{
			ID: "FN516", Title: "transaction ids run out", Severity: Critical, Reads: reads,
			Why:  "At two billion the server refuses every write until it has been vacuumed, which takes hours.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Find what holds autovacuum back (old transactions, slots, prepared transactions) and run VACUUM FREEZE.",
			check: running(func(p *Postgres) []hit {
				if p.TransactionAge < 1_000_000_000 {
					return nil
				}
				return []hit{found(ask(p, "SELECT max(age(datfrozenxid)) FROM pg_database"), "%d", p.TransactionAge)}
			}),
		},
		{
			ID: "FN517", Title: "the application is a superuser", Severity: Medium, Reads: reads,
			Why:  "A hole in one plugin becomes COPY PROGRAM on the server; and superusers take the connections that are kept for repair.",
			Cost: costs(perMistake, takesRestore, 0.3),
			Fix:  "Give Dify an account that owns its database and nothing else.",
			check: running(func(p *Postgres) []hit {
				if len(p.Superusers) == 0 {
					return nil
				}
				return []hit{found(ask(p, "SELECT usename FROM pg_stat_activity JOIN pg_roles ON rolname = usename WHERE rolsuper"), "connected: %s", strings.Join(p.Superusers, ", "))}
			}),
		},
		{
			ID: "FN518", Title: "corruption stays unseen", Severity: Medium, Reads: reads,
			Why:  "Without checksums a page that the disk has spoilt is returned as data, copied to backups, and found when it is too late.",
			Cost: costs(perMistake, takesRecreate, 0.1),
			Fix:  "Enable them: `pg_checksums --enable` on a stopped standby, then switch over.",
			check: running(func(p *Postgres) []hit {
				if p.Settings["data_checksums"] != "off" {
					return nil
				}
				return []hit{found(ask(p, "SHOW data_checksums"), "off")}
			}),
		},
		{
			ID: "FN519", Title: "others get in without a password", Severity: Critical, Reads: reads,
			Why:  "A line of pg_hba.conf trusts addresses of other machines.",
			Cost: costs(perMistake, takesRestore, 1),
			Fix:  "Write scram-sha-256 in that line and reload.",
			check: running(func(p *Postgres) []hit {
				if len(p.TrustLines) == 0 {
					return nil
				}
				return []hit{found(ask(p, "SELECT * FROM pg_hba_file_rules WHERE auth_method = 'trust'"), "%s", strings.Join(p.TrustLines, "; "))}
			}),
		},
	}
}
