package spec

// Backup configures base backups of PostgreSQL.
type Backup struct {
	// Schedule in cron form (minute hour day month weekday), in the time zone
	// of the machine. Quote it: it starts with a digit or a star.
	Schedule string `yaml:"schedule"`
	// KeepDays is how many days a backup is kept.
	KeepDays int `yaml:"keepDays" range:"1..3650"`
	// Directory for backups, an absolute path; empty means the folder backups
	// in the data directory.
	Directory string `yaml:"directory"`
}

func defaultBackup() Backup {
	return Backup{Schedule: "0 2 * * *", KeepDays: 7}
}
