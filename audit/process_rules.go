package audit

import (
	"strings"
)

// processRules look at containers of both worlds: images, processes, Dify's
// environment.
func processRules() []Rule {
	reads := []Kind{KindCompose, KindKubernetes}
	return []Rule{
		{
			ID: "FN220", Title: "image without a fixed version", Severity: High, Reads: reads,
			Why:  "A restart may bring another version, at any hour and on one replica of several: an unplanned release without a test.",
			Cost: costs(perCrash, takesPerson, 0.1),
			Fix:  "Name the version, best with its digest.",
			check: forUnits(func(u *unit) []hit {
				tag, digest := u.tag()
				if !u.image.ok() || digest || tag != "" && tag != "latest" {
					return nil
				}
				return []hit{found(u.image.at(), "%s runs %s", u.title(), u.image.text())}
			}),
		},
		{
			ID: "FN221", Title: "image by tag, not by digest", Severity: Low, Reads: []Kind{KindKubernetes},
			Why:  "A tag can be moved, and two nodes may then run different code under one name.",
			Cost: costs(perMistake, takesPerson, 0.5),
			Fix:  "Append `@sha256:…` of the image that was tested.",
			check: forUnits(func(u *unit) []hit {
				tag, digest := u.tag()
				if u.object == nil || u.role != roleAPI && u.role != roleWorker || digest || tag == "" || tag == "latest" {
					return nil
				}
				return []hit{found(u.image.at(), "%s runs %s", u.title(), u.image.text())}
			}),
		},
		{
			ID: "FN222", Title: "one Python process carries all requests", Severity: High, Reads: reads,
			Why:  "Python's global lock lets one process use one core: an instance of 4 cores and 8 GB is at its limit at 10 requests a second, and every application shares it.",
			Cost: costs(perPeak, takesPeak, 0.5),
			Fix:  "Run at least two instances, or raise `SERVER_WORKER_AMOUNT` (each process takes 40 connections of PostgreSQL).",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleAPI || u.replicas*u.envInt("SERVER_WORKER_AMOUNT", 1) > 1 {
					return nil
				}
				return []hit{found(u.envAt("SERVER_WORKER_AMOUNT"), "%s: %d instance with %d process", u.title(), u.replicas, u.envInt("SERVER_WORKER_AMOUNT", 1))}
			}),
		},
		{
			ID: "FN223", Title: "several instances migrate the database", Severity: High, Reads: reads,
			Why:  "Each replica with MIGRATION_ENABLED runs the migrations when it starts. Dify 0.6.9 takes no lock; later ones hold one for 60 s, and who loses serves on the old schema.",
			Cost: costs(perRelease, takesPerson, 0.1),
			Fix:  "Set `MIGRATION_ENABLED` to false on all of them and run one job with MODE=migration (or `flask upgrade-db`) before a release.",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker || u.replicas < 2 || !isTrue(u.env["MIGRATION_ENABLED"].value) {
					return nil
				}
				return []hit{found(u.envAt("MIGRATION_ENABLED"), "%s: %d replicas with MIGRATION_ENABLED", u.title(), u.replicas)}
			}),
		},
		{
			ID: "FN224", Title: "more than one Celery beat", Severity: Medium, Reads: reads,
			Why:  "Each one sends every scheduled task: mails and indexing are done twice.",
			Cost: costs(perCrash, takesCut, 1),
			Fix:  "Run exactly one, and let it be replaced (`strategy: Recreate`).",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleBeat || u.replicas < 2 {
					return nil
				}
				return []hit{found(u.at, "%s has %d replicas", u.title(), u.replicas)}
			}),
		},
		{
			ID: "FN225", Title: "connections are not checked before use", Severity: Medium, Reads: reads,
			Why:  "After a failover SQLAlchemy hands out the dead connections of its pool, one failed request for each; the default of SQLALCHEMY_POOL_PRE_PING is false.",
			Cost: costs(perFailover, takesCut, 1),
			Fix:  "Set `SQLALCHEMY_POOL_PRE_PING: \"true\"` and `SQLALCHEMY_POOL_RECYCLE` to 300 or less; pgproxy in front makes both unnecessary.",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleAPI && u.role != roleWorker || isTrue(u.env["SQLALCHEMY_POOL_PRE_PING"].value) || strings.Contains(u.env["DB_HOST"].value, "pgproxy") {
					return nil
				}
				return []hit{found(u.envAt("SQLALCHEMY_POOL_PRE_PING"), "%s: SQLALCHEMY_POOL_PRE_PING is not true", u.title())}
			}),
		},
		{
			ID: "FN226", Title: "gunicorn stops streams after 30 s", Severity: Medium, Reads: reads,
			Why:  "Dify's entry point sets no --graceful-timeout, so a stop cuts streams after gunicorn's default of 30 s, however long the container may take.",
			Cost: costs(perRelease, takesCut, 1),
			Fix:  "Set `GUNICORN_CMD_ARGS: \"--graceful-timeout 600\"`.",
			check: forUnits(func(u *unit) []hit {
				if u.role != roleAPI || strings.Contains(u.env["GUNICORN_CMD_ARGS"].value+strings.Join(u.args, " "), "--graceful-timeout") {
					return nil
				}
				return []hit{found(u.envAt("GUNICORN_CMD_ARGS"), "%s: GUNICORN_CMD_ARGS has no --graceful-timeout", u.title())}
			}),
		},
		{
			ID: "FN227", Title: "Dify is pointed at a Redis Cluster that it cannot use", Severity: Critical, Reads: reads,
			Why:  "Celery's broker needs commands over several keys that a cluster refuses (CROSSSLOT), in every version; before 0.11 Dify's own client cannot follow MOVED either.",
			Cost: costs(perRelease, takesUnseen, 1),
			Fix:  "Point `REDIS_HOST` and `CELERY_BROKER_URL` at redisproxy, which shows the cluster as one Redis.",
			check: func(in *Inventory) []hit {
				clustered := map[string]bool{}
				for _, u := range in.units {
					if u.role == roleRedis && u.settingsOf().get("cluster-enabled") == "yes" {
						clustered[u.name] = true
					}
				}
				var out []hit
				for _, u := range in.withRole(roleAPI, roleWorker) {
					switch host := u.env["REDIS_HOST"].value; {
					case clustered[host]:
						out = append(out, found(u.envAt("REDIS_HOST"), "%s: REDIS_HOST %s is a node of a cluster", u.title(), host))
					case isTrue(u.env["REDIS_USE_CLUSTERS"].value) && !isTrue(u.env["CELERY_USE_SENTINEL"].value) && !strings.Contains(u.env["CELERY_BROKER_URL"].value, "redisproxy"):
						out = append(out, found(u.envAt("REDIS_USE_CLUSTERS"), "%s: REDIS_USE_CLUSTERS, and the broker has no address of its own that is no cluster", u.title()))
					}
				}
				return out
			},
		},
		{
			ID: "FN228", Title: "api and workers sign with different keys", Severity: Critical, Reads: reads,
			Why:  "SECRET_KEY signs the URLs of files and the sessions; a replica with another key refuses what its neighbour signed.",
			Cost: costs(perRelease, takesUnseen, 0.5),
			Fix:  "Give all of them the same SECRET_KEY, from one secret.",
			check: func(in *Inventory) []hit {
				var out []hit
				var first *unit
				for _, u := range in.withRole(roleAPI, roleWorker) {
					key := u.env["SECRET_KEY"]
					switch {
					case key.value == "" || !key.literal:
					case first == nil:
						first = u
					case key.value != first.env["SECRET_KEY"].value:
						out = append(out, found(key.node.at(), "%s has another SECRET_KEY than %s", u.title(), first.title()))
					}
				}
				return out
			},
		},
	}
}
