package rules

import "time"

var backupAlerts = []Alert{
	{
		// A backup that fails is tried again after a pause of at most ten minutes.
		Name: "BackupFailed", Severity: Warning, For: 5 * time.Minute,
		Expr:        `fournines_backup_last_run_failed{operation="backup"} == 1`,
		Summary:     "The last backup of PostgreSQL failed; `fournines backup list` says why.",
		Description: `The last attempt failed more than 5 minutes ago and none has gone well since.`,
	},
	{
		// 0 when there never was one, which is as old as can be.
		Name: "BackupTooOld", Severity: Critical, For: 5 * time.Minute,
		Expr:        `time() - fournines_backup_last_success_timestamp_seconds{operation="backup"} > on (operation) fournines_backup_max_age_seconds`,
		Summary:     `The newest backup of PostgreSQL is older than two intervals of its schedule.`,
		Description: `The newest backup is {{ $value | humanizeDuration }} old.`,
	},
	{
		Name: "BackupArchiveLag", Severity: Critical, For: time.Minute,
		Expr:        `fournines_backup_archive_lag_seconds > 120`,
		Summary:     `PostgreSQL cannot archive its WAL; what was written since would be lost with the cluster, and its disk fills up.`,
		Description: `The oldest WAL that is not in the archive has waited {{ $value | humanizeDuration }}; 2 minutes is the limit.`,
	},
	{
		// The scheduler takes one at once, so this lasts only when it cannot.
		Name: "BackupWanted", Severity: Critical, For: 5 * time.Minute,
		Expr:        `fournines_backup_wanted == 1`,
		Summary:     `WAL is missing from the archive and no backup has been taken since; PostgreSQL can be restored to no moment after that.`,
		Description: `A backup has been due at once for 5 minutes and could not be taken.`,
	},
	{
		Name: "RestoreDrillFailed", Severity: Critical,
		Expr:        `fournines_backup_last_run_failed{operation="drill"} == 1`,
		Summary:     "A restore drill failed; the backups of PostgreSQL may be worthless. `fournines backup list` says why.",
		Description: `The newest backup was restored aside and did not hold what it should, or could not be restored at all.`,
	},
	{
		Name: "RestoreDrillTooOld", Severity: Warning, For: time.Hour,
		Expr:        `time() - fournines_backup_last_success_timestamp_seconds{operation="drill"} > on (operation) fournines_backup_max_age_seconds`,
		Summary:     `No restore drill has passed for two intervals of its schedule.`,
		Description: `The last good restore drill was {{ $value | humanizeDuration }} ago.`,
	},
}
