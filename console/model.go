package console

import "fournines/topology"

// Snapshot is everything that the page shows live. One is made for all pages
// that are open. Times are Unix milliseconds of this machine.
type Snapshot struct {
	// Seq counts the snapshots of this process.
	Seq int64 `json:"seq"`
	At  int64 `json:"at"`
	// Version is that of fournines.
	Version string `json:"version"`
	// Started tells one process from the next: a page that sees another one
	// loads itself again, since the page itself may be a newer one.
	Started int64  `json:"started"`
	Stack   Stack  `json:"stack"`
	SLO     SLO    `json:"slo"`
	Sources Health `json:"sources"`
	// Totals are figures of the whole installation by name; see totals.
	Totals Figures `json:"totals"`
	// Flows are the answers by the zone of the gateway and that of the instance.
	Flows []Flow `json:"flows"`
	// Spenders are what spends the error budget, the worst first.
	Spenders []Spender `json:"spenders"`
	Apps     []Named   `json:"apps"`
	Limits   []Named   `json:"limits"`
	Alerts   []Alert   `json:"alerts"`
	// Events are the newest of the timeline, the newest first.
	Events []Event `json:"events"`
}

// Figures are numbers by name. A figure that is not known is absent, never 0.
type Figures map[string]float64

// Stack is the state that the supervisor reports.
type Stack struct {
	Name         string            `json:"name"`
	State        topology.State    `json:"state"`
	StartSeconds float64           `json:"startSeconds"`
	Zones        []Zone            `json:"zones"`
	Endpoints    map[string]string `json:"endpoints"`
}

// Zone is a failure domain; the one without a name holds what stands outside.
type Zone struct {
	Name       string      `json:"name"`
	Power      string      `json:"power,omitempty"`
	Link       string      `json:"link,omitempty"`
	Components []Component `json:"components"`
}

// Component is one process with its figures.
type Component struct {
	topology.Component
	Figures Figures `json:"figures"`
}

// SLO is the objective and how much of its budget is left.
type SLO struct {
	Objective     float64 `json:"objective"`
	WindowSeconds float64 `json:"windowSeconds"`
	// CoveredSeconds is how much of the window Prometheus has samples of.
	CoveredSeconds *float64 `json:"coveredSeconds"`
	// Left is the share of the budget that is left; under 0 when more than all
	// of it is spent. Nil while there were no requests.
	Left *float64 `json:"left"`
	// Burn is how fast it is spent, by window: at 1 it lasts exactly the
	// objective's window.
	Burn []Burn `json:"burn"`
}

// Burn is the rate at which the budget is spent over one window.
type Burn struct {
	Window string `json:"window"`
	// Factor is nil when there were no requests.
	Factor *float64 `json:"factor"`
	// Alert is the factor from which on it is too fast; 0 for none.
	Alert float64 `json:"alert"`
}

// Spender is a class of requests and an answer that failed them.
type Spender struct {
	Class  string  `json:"class"`
	Code   string  `json:"code"`
	Failed float64 `json:"failed"`
}

// Flow is the traffic of one zone's gateways to instances of a zone.
type Flow struct {
	From string  `json:"from"`
	To   string  `json:"to"`
	RPS  float64 `json:"rps"`
}

// Named are the figures of an app or a limit.
type Named struct {
	Name    string  `json:"name"`
	Figures Figures `json:"figures"`
}

// Alert is one that Alertmanager knows.
type Alert struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Severity  string `json:"severity"`
	Component string `json:"component,omitempty"`
	Zone      string `json:"zone,omitempty"`
	Summary   string `json:"summary"`
	Since     int64  `json:"since"`
	// Muted says that nobody is told: silenced, or inhibited by another alert.
	Muted bool `json:"muted"`
}

// Source is one of the places that the console asks.
type Source struct {
	// At is when it answered last, 0 for never.
	At int64 `json:"at"`
	// Error says why it does not answer now.
	Error string `json:"error,omitempty"`
}

// Health tells how the sources are.
type Health struct {
	Stack        Source `json:"stack"`
	Prometheus   Source `json:"prometheus"`
	Alertmanager Source `json:"alertmanager"`
	// Watchdog is true while the alert that always fires arrives, which proves
	// the way from the rules to Alertmanager.
	Watchdog bool `json:"watchdog"`
}

// The kinds of events.
const (
	EventStack   = "stack"   // the stack as a whole changed its state
	EventState   = "state"   // a component changed its state
	EventRole    = "role"    // a component got another role
	EventRestart = "restart" // a component was started again
	EventZone    = "zone"    // a zone lost or got power or link
	EventAction  = "action"  // somebody, or a drill, gave an order
	EventAlert   = "alert"   // an alert began to fire, or ended
)

// Event is one line of the timeline.
type Event struct {
	ID        int64  `json:"id"`
	At        int64  `json:"at"`
	Kind      string `json:"kind"`
	Component string `json:"component,omitempty"`
	Zone      string `json:"zone,omitempty"`
	// From and To are states, roles, or "on", "off", "up" and "down"; of an
	// action To is the verb, of an alert "firing" or "resolved".
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Text says more, in the words of its source.
	Text string `json:"text,omitempty"`
}
