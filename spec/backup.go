package spec

// Backup configures base backups and the WAL archive of PostgreSQL.
type Backup struct {
	// Enabled archives the WAL, takes base backups and proves them with restore
	// drills. Turned off, what the cluster holds is lost with it.
	Enabled bool `yaml:"enabled"`
	// Schedule of base backups in cron form (minute hour day month weekday), in
	// the time zone of the machine. Quote it: it starts with a digit or a star.
	// The first one is taken as soon as the stack is up.
	Schedule string `yaml:"schedule"`
	// DrillSchedule is when the newest backup is restored aside and compared with
	// the cluster, in cron form. It needs the room and the time of a whole
	// restore; empty means never.
	DrillSchedule string `yaml:"drillSchedule"`
	// KeepDays is how many days one can go back.
	KeepDays int `yaml:"keepDays" range:"1..3650"`
	// WALLimit is how much WAL may wait for an archive that takes none, because
	// its disk is full or gone. What comes then is dropped, so that PostgreSQL's
	// own disk does not fill up: no recovery can pass that point, an alert says
	// so, and a new backup is taken as soon as the archive works again.
	WALLimit Bytes `yaml:"walLimit" range:"64MiB..16TiB"`
	// Directory for backups and WAL, an absolute path; empty means the folder
	// backups in the data directory, which `fournines down --delete-data` keeps.
	// It stands outside all zones: no zone's loss stops the archive. A disk of
	// its own lets the backups survive the machine's.
	Directory string `yaml:"directory"`
}

func defaultBackup() Backup {
	return Backup{Enabled: true, Schedule: "0 2 * * *", DrillSchedule: "0 3 * * *", KeepDays: 7, WALLimit: 4 * gibibyte}
}
