package backup

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fournines_backup_"+name, help, labels, nil)
}

var (
	descLastSuccess = desc("last_success_timestamp_seconds", "End of the last run that went well; 0 when none did.", "operation")
	descFailed      = desc("last_run_failed", "1 when the last run failed or was killed.", "operation")
	descRuns        = desc("runs_total", "Runs by result: ok or failed.", "operation", "result")
	descMaxAge      = desc("max_age_seconds", "Age from which on the newest success is too old: twice the schedule.", "operation")
	descBackups     = desc("backups", "Backups in the target.")
	descStored      = desc("stored_bytes", "What the backups take in the target, without WAL.")
	descLag         = desc("archive_lag_seconds", "Age of the oldest complete WAL segment that is not archived; 0 when none waits.")
	descWaiting     = desc("archive_waiting_segments", "Complete WAL segments that are not archived.")
	descWAL         = desc("wal_bytes", "What the primary's WAL takes on its disk.")
	descWanted      = desc("wanted", "1 when WAL is missing from the archive since the newest backup, so that no recovery can pass it: a new backup is due at once.")
	descArchived    = desc("archive_segments_total", "WAL segments archived by the present primary.")
	descRejected    = desc("archive_failures_total", "Failed attempts of the present primary to archive.")
	descAsked       = desc("archive_known", "1 when the primary says how far its archive is.")
	descRPO         = desc("drill_rpo_seconds", "What the last good restore drill says is lost at most.")
	descRTO         = desc("drill_rto_seconds", "How long the last good restore drill took until the copy took writes.")
)

// Describe implements prometheus.Collector.
func (s *Scheduler) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLastSuccess, descFailed, descRuns, descMaxAge, descBackups, descStored, descLag, descWaiting, descWAL,
		descWanted, descArchived, descRejected, descAsked, descRPO, descRTO,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Backups that were never taken count
// as infinitely old, so that their alerts fire.
func (s *Scheduler) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	seen := s.seen
	s.mu.Unlock()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	now := s.b.now()
	for _, op := range []string{OpBackup, OpVerify, OpDrill} {
		r := seen.records[op]
		last := r.LastSuccess
		// The target knows better than our own records, which may be lost.
		if newest, ok := seen.inv.Latest(); ok && op == OpBackup {
			last = newest.Ended
		}
		// A drill can be late only when there was something to restore for that long.
		if last.IsZero() && op == OpDrill && len(seen.inv.Backups) > 0 {
			last = seen.inv.Backups[0].Ended
		}
		gauge(descLastSuccess, unix(last), op)
		gauge(descFailed, truth(r.Failed()), op)
		counter(descRuns, float64(r.Successes), op, "ok")
		counter(descRuns, float64(r.Failures), op, "failed")
	}
	for op, schedule := range map[string]interface{ Next(time.Time) time.Time }{OpBackup: s.backup, OpDrill: s.drill} {
		if next := schedule.Next(now); !next.IsZero() {
			gauge(descMaxAge, 2*schedule.Next(next).Sub(next).Seconds(), op)
		}
	}
	stored := int64(0)
	for _, k := range seen.inv.Backups {
		stored += k.Stored
	}
	if seen.asked {
		gauge(descBackups, float64(len(seen.inv.Backups)))
		gauge(descStored, float64(stored))
		gauge(descWanted, truth(seen.wanted))
	}
	gauge(descAsked, truth(seen.lagOK))
	if seen.lagOK {
		gauge(descLag, seen.lag.Oldest.Seconds())
		gauge(descWAL, float64(seen.lag.WAL))
		gauge(descWaiting, float64(seen.lag.Waiting))
		counter(descArchived, float64(seen.lag.Archived))
		counter(descRejected, float64(seen.lag.Failed))
	}
	if r := seen.records[OpDrill]; !r.LastSuccess.IsZero() {
		gauge(descRPO, r.RPO.Seconds())
		gauge(descRTO, r.RTO.Seconds())
	}
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
