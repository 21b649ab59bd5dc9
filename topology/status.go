package topology

// State is the condition of a component or of a whole stack.
type State string

// The states of a stack and of its components. A stack is Degraded when it
// serves but at least one component does not.
const (
	Ready    State = "ready"
	Starting State = "starting"
	Degraded State = "degraded"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Status is what `fournines status -o json` prints. Other programs read it:
// fields are added, never renamed or removed.
type Status struct {
	State           State             `json:"state"`
	Name            string            `json:"name"`
	Zones           []Zone            `json:"zones"`
	Endpoints       map[string]string `json:"endpoints"`
	CredentialsFile string            `json:"credentialsFile"`
	DataDir         string            `json:"dataDir"`
	// StartSeconds is how long the last start took until every component was ready.
	StartSeconds float64 `json:"startSeconds,omitempty"`
	// Backup is how PostgreSQL is backed up; nil when it is not.
	Backup *Backup `json:"backup,omitempty"`
	// Actions are the last orders that the supervisor got for components and
	// zones, the newest last.
	Actions []Action `json:"actions,omitempty"`
}

// Action is an order for one component or one zone.
type Action struct {
	// Seq counts the orders since the supervisor started.
	Seq int64 `json:"seq"`
	// Verb is stop, start, restart, kill, pause or resume for a component, and
	// on, off, cut or heal for a zone.
	Verb      string `json:"verb"`
	Component string `json:"component,omitempty"`
	Zone      string `json:"zone,omitempty"`
	// AgeSeconds is how long ago it came.
	AgeSeconds float64 `json:"ageSeconds"`
}

// Backup is the state of the backups of PostgreSQL.
type Backup struct {
	// AgeSeconds is how long ago the newest backup ended; nil when there is none yet.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	// Error is why the last backup failed; empty when it went well.
	Error string `json:"error,omitempty"`
}

// Zone is a failure domain and what runs in it. The zone with the empty name
// holds what stands outside all zones.
type Zone struct {
	Name       string      `json:"name"`
	Power      string      `json:"power,omitempty"` // "on" or "off"
	Link       string      `json:"link,omitempty"`  // "up" or "down"
	Components []Component `json:"components"`
}

// Component is one process or one-shot task of a stack.
type Component struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Role    string `json:"role,omitempty"`
	State   State  `json:"state"`
	Address string `json:"address,omitempty"`
	PID     int    `json:"pid,omitempty"`
	// Restarts counts the starts after the first one since `up`.
	Restarts int `json:"restarts"`
	// Reason says why State is not ready, in words for the operator.
	Reason string `json:"reason,omitempty"`
	// MemoryBytes is the resident memory of the process and its children.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
}
