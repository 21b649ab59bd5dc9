package audit

import (
	"regexp"
	"strings"
)

// command is one logical line of a script: continued lines are joined, comments
// are left out.
type command struct {
	text string
	line int
}

func (f *file) commands() []command {
	var out []command
	joined, start := "", 0
	for i, line := range f.lines {
		text := strings.TrimSpace(line)
		if joined == "" {
			start = i + 1
			if strings.HasPrefix(text, "#") {
				continue
			}
		}
		if rest, ok := strings.CutSuffix(text, `\`); ok {
			joined += rest + " "
			continue
		}
		if joined += text; joined != "" {
			out = append(out, command{joined, start})
		}
		joined = ""
	}
	return out
}

var (
	takesBackup   = regexp.MustCompile(`\b(pg_basebackup|pg_dump|pg_dumpall|redis-cli .*--rdb|milvus-backup create)\b`)
	deletesOld    = regexp.MustCompile(`\bfind\b.*(-delete|-exec ?rm|-execrm)|\brm\s+-[a-z]*r|\bls\b.*\|\s*xargs\s+rm`)
	runTogether   = regexp.MustCompile(`\s-(type[a-z]{2,}|exec(rm|mv|sh|echo)\S*|mtime[+\d]\S*|name["'*]\S*|mmin[+\d]\S*)`)
	dateWithout   = regexp.MustCompile(`\bdate\+["']?%`)
	archivesWAL   = regexp.MustCompile(`\b(pg_receivewal|wal-g|pgbackrest|barman|archive_command|fournines backup)\b`)
	verifies      = regexp.MustCompile(`\b(pg_verifybackup|pg_restore|pgbackrest .*(restore|verify|check)|barman (check|recover)|fournines backup (verify|drill))\b|psql\b.*restore`)
	stopsOnErrors = regexp.MustCompile(`^set\s+-[a-z]*e|^set\s+-o\s+errexit|^#!.*sh\s+-[a-z]*e`)
	pipesBackup   = regexp.MustCompile(`\b(pg_basebackup|pg_dump|pg_dumpall)\b[^|]*\|`)
	pipefail      = regexp.MustCompile(`pipefail`)
	takesBackupOf = regexp.MustCompile(`(?i)backup|pgbackrest|wal-g|barman|velero`)
)

// script is what a shell script does about backups.
type script struct {
	*file
	backup, deletes, archives, verifies, stops *command
}

func (in *Inventory) backupScripts() []script {
	var out []script
	for _, f := range in.scripts {
		s := script{file: f}
		first := func(at **command, pattern *regexp.Regexp, c command) {
			if *at == nil && pattern.MatchString(c.text) {
				*at = &c
			}
		}
		for _, c := range f.commands() {
			first(&s.backup, takesBackup, c)
			first(&s.deletes, deletesOld, c)
			first(&s.archives, archivesWAL, c)
			first(&s.verifies, verifies, c)
			first(&s.stops, stopsOnErrors, c)
		}
		if line, _ := f.line(1); stopsOnErrors.MatchString(line) {
			s.stops = &command{line, 1}
		}
		if s.backup != nil {
			out = append(out, s)
		}
	}
	return out
}

func backupRules() []Rule {
	reads := []Kind{KindScript}
	forLines := func(pattern *regexp.Regexp, format string) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, f := range in.scripts {
				for _, c := range f.commands() {
					if all := pattern.FindAllString(c.text, -1); len(all) > 0 {
						out = append(out, found(f.at(c.line), format, strings.TrimSpace(strings.Join(all, ""))))
					}
				}
			}
			return out
		}
	}
	forScripts := func(check func(s script) []hit) func(in *Inventory) []hit {
		return func(in *Inventory) []hit {
			var out []hit
			for _, s := range in.backupScripts() {
				out = append(out, check(s)...)
			}
			return out
		}
	}
	return []Rule{
		{
			ID: "FN801", Title: "find's options run together", Severity: Critical, Reads: reads,
			Why:   "find stops with `unknown predicate`, so nothing is ever deleted; the disk fills, and then no backup is taken and the database on the same disk stops.",
			Cost:  costs(perMistake, takesRestore, 1),
			Fix:   "Put the spaces in: `find DIR -maxdepth 1 -type d -mtime +7 -exec rm -rf {} +`.",
			check: forLines(runTogether, "%s"),
		},
		{
			ID: "FN802", Title: "date without a space before its format", Severity: High, Reads: reads,
			Why:   "The shell looks for a command of that name; the folder's name stays empty and every backup goes to the same place.",
			Cost:  costs(perMistake, takesRecreate, 0.5),
			Fix:   "Write `date +%Y%m%d`.",
			check: forLines(dateWithout, "%s"),
		},
		{
			ID: "FN803", Title: "base backups without a WAL archive", Severity: High, Reads: reads,
			Why:  "A daily backup alone loses up to a day: whatever was written since is gone.",
			Cost: costs(perMistake, takesRecreate, 0.5),
			Fix:  "Archive WAL as well (pgBackRest, WAL-G, Barman, `fournines backup`), which also allows recovery to a minute.",
			check: func(in *Inventory) []hit {
				own, _ := in.postgresSettings()
				for _, s := range own {
					if v := s.get("archive_mode"); v == "on" || v == "always" {
						return nil
					}
				}
				var out []hit
				for _, s := range in.backupScripts() {
					if s.archives == nil {
						out = append(out, found(s.at(s.backup.line), "%s", short(s.backup.text)))
					}
				}
				return out
			},
		},
		{
			ID: "FN804", Title: "retention without a restore test", Severity: High, Reads: reads,
			Why:  "Old backups are deleted, and nobody has ever seen that a new one can be restored. The first test is the disaster.",
			Cost: costs(perMistake, takesRecreate, 1),
			Fix:  "Verify (`pg_verifybackup`) and restore on a schedule: `fournines backup drill`.",
			check: forScripts(func(s script) []hit {
				if s.verifies != nil {
					return nil
				}
				at := s.backup
				if s.deletes != nil {
					at = s.deletes
				}
				return []hit{found(s.at(at.line), "nothing verifies or restores what was taken")}
			}),
		},
		{
			ID: "FN805", Title: "old backups go though the new one failed", Severity: High, Reads: reads,
			Why:  "The script goes on after an error. After a week of failures the last good backup is deleted.",
			Cost: costs(perMistake, takesRecreate, 0.5),
			Fix:  "Begin with `set -euo pipefail`, and delete only after the new backup has been verified.",
			check: forScripts(func(s script) []hit {
				if s.deletes == nil || s.stops != nil || strings.Contains(s.deletes.text, "&&") || strings.Contains(s.backup.text, "||") || strings.Contains(s.backup.text, "&&") {
					return nil
				}
				return []hit{found(s.at(s.deletes.line), "%s", short(s.deletes.text))}
			}),
		},
		{
			ID: "FN806", Title: "a failure hidden by a pipe", Severity: High, Reads: reads,
			Why:  "`pg_dump | gzip` succeeds when gzip does: half a dump with status 0.",
			Cost: costs(perMistake, takesRecreate, 0.5),
			Fix:  "Set `-o pipefail`.",
			check: forScripts(func(s script) []hit {
				var at *command
				for _, c := range s.commands() {
					if pipefail.MatchString(c.text) {
						return nil
					}
					if at == nil && pipesBackup.MatchString(c.text) {
						at = &c
					}
				}
				if at == nil {
					return nil
				}
				return []hit{found(s.at(at.line), "%s", short(at.text))}
			}),
		},
		{
			ID: "FN807", Title: "a database that nobody backs up", Severity: Critical, Reads: []Kind{KindCompose, KindKubernetes},
			Why:  "Neither a job, a service nor a script here takes a backup. A DROP TABLE, a bad migration or a lost disk is final.",
			Cost: costs(perMistake, takesRecreate, 1),
			Fix:  "Run `fournines backup schedule`, pgBackRest, WAL-G or a CronJob, and restore from it on a schedule.",
			check: func(in *Inventory) []hit {
				if len(in.backupScripts()) > 0 || len(in.ofKind("ScheduledBackup")) > 0 {
					return nil
				}
				for _, u := range in.units {
					if takesBackupOf.MatchString(u.image.text() + " " + u.name + " " + strings.Join(u.args, " ")) {
						return nil
					}
				}
				for _, o := range in.ofKind("CronJob") {
					if takesBackupOf.MatchString(o.name) {
						return nil
					}
				}
				var out []hit
				for _, u := range in.withRole(rolePostgres) {
					own := u.settingsOf()
					if takesBackupOf.MatchString(own.get("archive_command")) {
						continue
					}
					out = append(out, found(u.at, "%s", u.title()))
				}
				return out
			},
		},
	}
}

// short cuts a long command.
func short(s string) string {
	if len(s) > 100 {
		return s[:97] + "..."
	}
	return s
}
