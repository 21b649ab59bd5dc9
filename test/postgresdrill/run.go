package postgresdrill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"fournines/drill"
	"fournines/test/clock"
)

// Plan says how faults are measured.
type Plan struct {
	// Rate is how many writes per second the open-loop clients send, over all
	// proxies.
	Rate float64
	// Clients, Readers and Idle are per proxy: pairs of a client of registers and
	// one of lists, clients that only read, and connections that do nothing.
	Clients, Readers, Idle int
	// Warmup is how long everything must go well before the fault.
	Warmup time.Duration
	// Settle is how long the load goes on in the steady state after the repair.
	Settle time.Duration
	// MaxHold bounds how long a fault lasts when nobody takes over.
	MaxHold time.Duration
	// Slack is added to the goals for outages; a busy machine needs some.
	Slack time.Duration
}

// DefaultPlan is the plan of the failover table.
func DefaultPlan() Plan {
	return Plan{Rate: 50, Clients: 2, Readers: 2, Idle: 10, Warmup: 3 * time.Second, Settle: 3 * time.Second, MaxHold: time.Minute}
}

// checkLimit bounds the check of one register's history.
const checkLimit = time.Minute

// Classes of a report's requests.
const (
	classWrite drill.Class = "write"
	classRead  drill.Class = "read"
	classIdle  drill.Class = "idle"
)

// Outcome is what clients got in one repetition of a fault.
type Outcome struct {
	// Report has the form of every drill's report. Its longest outage is the
	// longest time in which no write was acknowledged to the clients that the
	// fault leaves connected; it counts from the fault, or from the repair where
	// writes cannot be served before.
	Report *drill.Report `json:"report"`
	// Acknowledged counts writes of all clients, Lost those that are not there at
	// the end.
	Acknowledged int `json:"acknowledged"`
	Lost         int `json:"lost"`
	// Unknown counts writes whose effect the client was not told, Refused those
	// that failed and were not made, by reason.
	Unknown map[string]int `json:"unknown"`
	Refused map[string]int `json:"refused"`
	// LongestWaitMs is the longest that an acknowledged write took.
	LongestWaitMs int64 `json:"longestWaitMs"`
	// LongestRefusalMs is the longest that a write took which was not made.
	LongestRefusalMs int64 `json:"longestRefusalMs"`
	// LongestReadMs is the longest that a good read took.
	LongestReadMs int64 `json:"longestReadMs"`
	// ReadErrors counts failed reads by reason.
	ReadErrors map[string]int `json:"readErrors"`
	// From and To are the zones of the primary before and after.
	From string `json:"from"`
	To   string `json:"to"`
	// StallMs is the longest that this process itself got no processor.
	StallMs int64 `json:"stallMs"`
}

// Run breaks the cluster once, in its steady state. An error means that nothing
// was measured. run numbers the repetitions of the cluster's life, from 1.
func Run(ctx context.Context, c *Cluster, f Fault, p Plan, run int) (*Outcome, error) {
	if err := c.AwaitSteady(ctx); err != nil {
		return nil, err
	}
	victim, err := c.primary(ctx)
	if err != nil {
		return nil, err
	}
	l, err := c.begin(ctx, run, p)
	if err != nil {
		return nil, fmt.Errorf("begin the load: %w", err)
	}
	defer l.end(ctx)
	stallCtx, stopStall := context.WithCancel(ctx)
	defer stopStall()
	var stall time.Duration
	var stalls sync.WaitGroup
	stalls.Go(func() { stall = clock.LongestStall(stallCtx) })

	r := &drill.Report{
		Version: 1, Drill: f.Name, Target: "postgres-" + victim, Repetition: run,
		Load: drill.ReportLoad{RPS: p.Rate}, Checks: []drill.Check{}, Alerts: []drill.Alert{},
	}
	without := ""
	if f.takesClients {
		without = victim
	}
	r.Window.Start = time.Now()
	clock.Wait(ctx, p.Warmup)
	if last := l.lastWrite(without); time.Since(last) > time.Second {
		return nil, fmt.Errorf("no write was acknowledged in the last %v before the fault", time.Since(last).Round(time.Millisecond))
	}
	r.Window.Fault = time.Now()
	if err := f.strike(ctx, c, victim); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Name, err), f.mend(ctx, c, victim))
	}
	least := r.Window.Fault.Add(max(f.hold, minHold))
	most := r.Window.Fault.Add(max(f.hold, p.MaxHold))
	if f.refused {
		most = least
	}
	l.awaitWrites(ctx, least, most, without)
	if err := f.mend(ctx, c, victim); err != nil {
		return nil, fmt.Errorf("mend %s: %w", f.Name, err)
	}
	r.Window.Restored = time.Now()
	steadyErr := c.AwaitSteady(ctx)
	clock.Wait(ctx, p.Settle)
	r.SteadyStateRestored = steadyErr == nil
	l.end(ctx)
	r.Window.End = l.ended
	stopStall()
	stalls.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	o := &Outcome{Report: r, From: victim, StallMs: stall.Milliseconds()}
	if o.To, err = c.primary(ctx); err != nil {
		o.To = "none: " + err.Error()
	}
	o.count(l, f, without)
	ledger, final, err := l.final(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at the end: %w", err)
	}
	o.judge(l, f, p, ledger, final)
	if steadyErr != nil {
		r.Why = append(r.Why, steadyErr.Error())
		r.Verdict = "fail"
	}
	return o, nil
}

func (f *Fault) mend(ctx context.Context, c *Cluster, victim string) error {
	if f.repair == nil {
		return nil
	}
	return f.repair(ctx, c, victim)
}

// awaitWrites waits until writes flow, at least until the one time and at most
// until the other.
func (l *load) awaitWrites(ctx context.Context, least, most time.Time, without string) {
	for ctx.Err() == nil && time.Now().Before(most) {
		if time.Now().After(least) && time.Since(l.lastWrite(without)) < 200*time.Millisecond {
			return
		}
		clock.Wait(ctx, 50*time.Millisecond)
	}
}

// final reads what is there at the end.
func (l *load) final(ctx context.Context) (ledger map[int64]bool, items map[int][]int64, err error) {
	conn, err := l.c.connect(ctx, proxyZones[0], modeSimple)
	if err != nil {
		return nil, nil, err
	}
	defer closeSoon(conn)
	ledger, items = map[int64]bool{}, map[int][]int64{}
	rows, err := conn.Query(ctx, "SELECT id FROM ledger WHERE run = $1", l.run)
	if err != nil {
		return nil, nil, err
	}
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, nil, err
		}
		ledger[id] = true
	}
	if err := rows.Err(); err != nil {
		return nil, nil, err
	}
	if rows, err = conn.Query(ctx, "SELECT key, items FROM list WHERE run = $1", l.run); err != nil {
		return nil, nil, err
	}
	for rows.Next() {
		var key int
		var of []int64
		if err := rows.Scan(&key, &of); err != nil {
			return nil, nil, err
		}
		items[key] = of
	}
	return ledger, items, rows.Err()
}
