package postgresdrill

import (
	"fmt"
	"slices"
	"time"

	"fournines/drill"
)

// count fills in what the clients got that are not in the zone without.
func (o *Outcome) count(l *load, f Fault, without string) {
	r := o.Report
	from := r.Window.Fault
	if f.refused {
		from = r.Window.Restored
	}
	o.Unknown, o.Refused, o.ReadErrors = map[string]int{}, map[string]int{}, map[string]int{}
	r.Requests = drill.Requests{ByClass: map[drill.Class]*drill.ClassCount{classWrite: {}, classRead: {}, classIdle: {}}, Reasons: map[string]int{}}
	add := func(class drill.Class, err string, took time.Duration) {
		n := r.Requests.ByClass[class]
		r.Requests.Total++
		n.Total++
		if err != "" {
			r.Requests.Failed++
			n.Failed++
			r.Requests.Reasons[fmt.Sprintf("%s: %s", class, err)]++
			return
		}
		n.MaxMs = max(n.MaxMs, float64(took.Microseconds())/1000)
	}
	var acks []time.Time
	for _, w := range l.writes {
		if w.zone == without {
			continue
		}
		add(classWrite, w.err, w.end.Sub(w.due))
		switch w.effect {
		case done:
			acks = append(acks, w.end)
			if took := w.end.Sub(w.due).Milliseconds(); took > o.LongestWaitMs {
				o.LongestWaitMs = took
			}
		case unknown:
			o.Unknown[w.err]++
		case undone:
			o.Refused[w.err]++
			o.LongestRefusalMs = max(o.LongestRefusalMs, w.end.Sub(w.due).Milliseconds())
		}
		if (w.err != "" || w.end.Sub(w.due) > time.Second) && w.due.After(r.Window.Fault) {
			r.RecoveryMs = max(r.RecoveryMs, w.end.Sub(r.Window.Fault).Milliseconds())
		}
	}
	r.LongestOutageMs = longestGap(acks, from, r.Window.End).Milliseconds()
	r.Requests.ByClass[classWrite].LongestOutageMs = r.LongestOutageMs
	var reads []time.Time
	for _, s := range l.reads {
		if s.zone == without {
			continue
		}
		add(classRead, s.err, s.end.Sub(s.begin))
		if s.err != "" {
			o.ReadErrors[s.err]++
			continue
		}
		reads = append(reads, s.end)
		o.LongestReadMs = max(o.LongestReadMs, s.end.Sub(s.begin).Milliseconds())
	}
	r.Requests.ByClass[classRead].LongestOutageMs = longestGap(reads, r.Window.Fault, r.Window.End).Milliseconds()
	for _, s := range l.idle {
		if s.zone != without {
			add(classIdle, s.err, s.end.Sub(s.begin))
		}
	}
}

// maxRefusal is the goal for the longest time until a write is refused that
// cannot be served.
const maxRefusal = time.Second

// longestGap is the longest time without an event that reaches beyond from.
func longestGap(events []time.Time, from, end time.Time) time.Duration {
	slices.SortFunc(events, time.Time.Compare)
	last := from
	var longest time.Duration
	for _, at := range append(events, end) {
		if at.Before(from) {
			continue
		}
		longest = max(longest, at.Sub(last))
		last = at
	}
	return longest
}

// judge fills in checks and the verdict.
func (o *Outcome) judge(l *load, f Fault, p Plan, ledger map[int64]bool, lists map[int][]int64) {
	r := o.Report
	check := func(name string, ok bool, format string, args ...any) {
		c := drill.Check{Name: name, OK: ok, Detail: fmt.Sprintf(format, args...)}
		r.Checks = append(r.Checks, c)
		if !ok {
			r.Why = append(r.Why, c.Name+": "+c.Detail)
		}
	}
	acked, lost, denied := 0, 0, 0
	for _, w := range l.writes {
		switch {
		case w.effect == done:
			acked++
			if !ledger[w.id] {
				lost++
			}
		case w.effect == undone && ledger[w.id]:
			denied++
		}
	}
	o.Acknowledged, o.Lost = acked, lost
	check("acknowledged-writes", lost == 0 && acked > 0, "%d of %d found", acked-lost, acked)
	check("refused-writes", denied == 0, "%d writes are there that were said not to be made", denied)
	ok, detail := checkRegisters(l.regs, checkLimit)
	check("linearizable-registers", ok, "%s", detail)
	ok, detail = checkLists(l.lists, lists)
	check("append-lists", ok, "%s", detail)
	idle, reads := r.Requests.ByClass[classIdle], r.Requests.ByClass[classRead]
	check("idle-clients", idle.Failed == 0, "%d of %d got an error", idle.Failed, idle.Total)
	check("read-only-clients", reads.Failed == 0, "%d of %d reads got an error", reads.Failed, reads.Total)
	outage := time.Duration(r.LongestOutageMs) * time.Millisecond
	check("write-outage", outage <= f.MaxOutage+p.Slack, "%v, goal at most %v", outage, f.MaxOutage)
	if f.stays {
		check("primary", o.To == o.From, "the primary was in zone %s and is in zone %s, goal: it stays", o.From, o.To)
	}
	if f.refused {
		longest := time.Duration(o.LongestRefusalMs) * time.Millisecond
		check("refused-at-once", longest <= maxRefusal+p.Slack && (o.To != o.From || len(o.Unknown) == 0 && len(o.Refused) == 1),
			"after at most %v, goal %v; reasons %v, with an unknown end %v", longest, maxRefusal, o.Refused, o.Unknown)
	}
	if f.Name == "switchover" {
		writes := r.Requests.ByClass[classWrite]
		check("switchover", writes.Failed == 0, "%d of %d writes failed", writes.Failed, writes.Total)
	}
	check("recovered", r.SteadyStateRestored, "every server is ready again")
	r.Verdict = "pass"
	if len(r.Why) > 0 {
		r.Verdict = "fail"
	}
}
