package local

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"

	"fournines/backup"
	"fournines/component/postgres"
)

// addRequirements lists the programs of a stack and the versions it was made for.
func (p *planner) addRequirements() {
	pg := postgres.BinDir(p.Spec.Postgres.Version)
	type program struct {
		what, program string
		// major versions from least to most are accepted.
		least, most int
		version     string // pattern with the major version as its group
		args        []string
	}
	programs := []program{
		{"etcd", "etcd", 3, 3, `etcd Version: (\d+)\.`, []string{"--version"}},
		{"Patroni", "patroni", 3, 4, `patroni (\d+)\.`, []string{"--version"}},
		{"PostgreSQL", filepath.Join(pg, "postgres"), p.Spec.Postgres.Version, p.Spec.Postgres.Version, `PostgreSQL\) (\d+)`, []string{"--version"}},
		{"Redis", "redis-server", 7, 8, `v=(\d+)\.`, []string{"--version"}},
		{"Prometheus", "prometheus", 2, 3, `version (\d+)\.`, []string{"--version"}},
		{"Alertmanager", "prometheus-alertmanager", 0, 0, `version (\d+)\.`, []string{"--version"}},
	}
	if p.Spec.Backup.Enabled {
		programs = append(programs, program{"pgBackRest", backup.DefaultPgBackRest, 2, 2, `pgBackRest (\d+)\.`, []string{"version"}})
	}
	for _, r := range programs {
		path := r.program
		if found, err := lookPath(r.program); err == nil {
			path = found
		} else if !filepath.IsAbs(path) {
			// Preflight says in one place what is missing.
			path = filepath.Join("/usr/bin", path)
		}
		pattern := regexp.MustCompile(r.version)
		p.plan.Requirements = append(p.plan.Requirements, Requirement{
			What: r.what, Path: path, VersionArgs: r.args,
			Accept: func(out string) error {
				want := fmt.Sprintf("want version %d", r.least)
				if r.most != r.least {
					want = fmt.Sprintf("want version %d to %d", r.least, r.most)
				}
				m := pattern.FindStringSubmatch(out)
				if m == nil {
					return fmt.Errorf("%s", want)
				}
				if major, err := strconv.Atoi(m[1]); err != nil || major < r.least || major > r.most {
					return fmt.Errorf("%s", want)
				}
				return nil
			},
		})
	}
}
