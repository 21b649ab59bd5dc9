// Package route looks at SQL text and says what a connection proxy must know
// about it: transaction control, tracked settings and session state (Facts, by
// Scan), and whether a standby may run it (Decision, by Router). Router asks
// PostgreSQL's own parser about each shape of a statement once, and a Catalog
// about the names in it; Database is the Catalog of a real database. A build
// without cgo has no parser and sends everything but transaction control to
// the primary. Why it is done so: pgproxy/DESIGN.md, "Read or write".
package route

// Target says which servers may run a statement. The zero value is Primary.
type Target uint8

const (
	// Primary is only the primary. Whatever is not proved to be a read is here.
	Primary Target = iota
	// Standby is a read. Under READ COMMITTED a standby that is fresh enough may
	// run it, alone or in a transaction that has only read so far; so may the
	// primary.
	Standby
	// Any is what reads no table, so that it makes no difference how fresh the
	// server is ("SELECT 1", SHOW of a tracked setting, BEGIN, COMMIT). It runs
	// on the server that the transaction is on, or else on any, without asking
	// for a position first.
	Any
)

// String names the target for logs and metrics.
func (t Target) String() string { return [...]string{"primary", "standby", "any"}[t] }

// Decision is where a text may run, and why. It is valid as long as the text.
type Decision struct {
	Target Target
	Reason Reason
	// Hint is the comment hint of the text: HintPrimary is in Target already;
	// HintStandby means that a read may run on a standby that is not fresh
	// enough. No hint makes a write run on a standby.
	Hint Hint
	// Subject is what decided: the name of a function, relation, type ... as
	// far as there is one. It is bounded (64 bytes), but names come from
	// clients: it is for logs, not for labels.
	Subject string
	Facts   Facts
}

// Hint is what a comment "/* fournines:primary */" or "/* fournines:standby */"
// anywhere in the text, or the setting fournines.route, asks for.
type Hint uint8

// The hints. Auto as a setting takes an earlier one back.
const (
	NoHint Hint = iota
	HintAuto
	HintPrimary
	HintStandby
	// HintInvalid is a fournines.route with another value; the session should
	// answer 22023.
	HintInvalid
)

// String names the hint.
func (h Hint) String() string {
	return [...]string{"none", "auto", "primary", "standby", "invalid"}[h]
}

// RouteSetting is the session setting that clients may SET or RESET to
// primary, standby or auto. It is known to the proxy only by Facts.Kind == Set,
// Facts.Name == RouteSetting and Facts.Hint. PostgreSQL accepts it too, as a
// customized option.
const RouteSetting = "fournines.route"

// Kind is what a statement is as far as pooling cares.
type Kind int

// The kinds of statements. Other covers all that needs no attention; Many is
// a string with more than one statement.
const (
	Other Kind = iota
	Empty
	Begin
	Commit
	Rollback
	Savepoint // also ROLLBACK TO and RELEASE
	Set       // SET name = value, for the session
	Reset     // RESET name
	ResetAll
	DiscardAll
	Deallocate
	DeallocateAll
	Many
	SetTransaction // SET TRANSACTION ...; see Isolation, Access, Deferrable
	SetLocal       // SET LOCAL name = value; also SET CONSTRAINTS
)

// Pin says why a statement ties its session to the server connection.
type Pin int

// The reasons to pin.
const (
	NoPin Pin = iota
	PinListen
	PinPrepare
	PinTemporary
	PinHoldCursor
	PinAdvisoryLock
	PinSessionState // SET ROLE, set_config, LOAD, settings inside a longer string
)

// String names the reason for logs and metrics.
func (p Pin) String() string {
	return [...]string{"none", "listen", "prepare", "temporary", "hold_cursor", "advisory_lock", "session_state"}[p]
}

// Isolation is an isolation level that a statement asks for; the zero value
// means that it says nothing.
type Isolation uint8

// The levels. READ UNCOMMITTED is READ COMMITTED in PostgreSQL.
const (
	IsolationUnset Isolation = iota
	ReadCommitted
	RepeatableRead
	Serializable
	// IsolationUnknown is a level that could not be read: take it as Serializable.
	IsolationUnknown
)

// String names the level.
func (i Isolation) String() string {
	return [...]string{"unset", "read_committed", "repeatable_read", "serializable", "unknown"}[i]
}

// Snapshot reports that statements share one snapshot, so that a transaction
// cannot move from one server to another.
func (i Isolation) Snapshot() bool { return i >= RepeatableRead }

// Access is the access mode that a statement asks for; the zero value means
// that it says nothing.
type Access uint8

// The access modes.
const (
	AccessUnset Access = iota
	ReadWrite
	ReadOnly
)

// String names the mode.
func (a Access) String() string { return [...]string{"unset", "read_write", "read_only"}[a] }

// Facts are what Scan found.
type Facts struct {
	Kind Kind
	Pin  Pin
	// Isolation, Access and Deferrable are what BEGIN, START TRANSACTION, SET
	// TRANSACTION, or SET of transaction_isolation, default_transaction_isolation,
	// transaction_read_only and default_transaction_read_only ask for; the Kind
	// and Name tell which. In a text of several statements the last one counts,
	// and the strictest isolation level.
	Isolation  Isolation
	Access     Access
	Deferrable bool
	// Hint is the value of SET fournines.route, when Kind is Set or SetLocal
	// and Name is RouteSetting.
	Hint Hint
	// DDL is set for CREATE, ALTER, DROP and the like: after it has committed,
	// what is known of functions and relations must be read again.
	DDL bool
	// Foreign is set by SET standard_conforming_strings to anything but on: from
	// then on a quote may end elsewhere than the router thinks, so the session
	// must stay on the primary.
	Foreign bool
	// EndsTransaction is set when some statement in the text is COMMIT, END,
	// PREPARE TRANSACTION, ROLLBACK or ABORT.
	EndsTransaction bool
	// OwnCommits is set when some statement may commit parts of its work by
	// itself (CALL, DO, VACUUM, CREATE INDEX CONCURRENTLY ...), so that an error
	// does not prove that all of it was rolled back.
	OwnCommits bool
	// Name is the setting or prepared statement that Set, SetLocal, Reset and
	// Deallocate name: lower-cased unless it was quoted. It is valid as long
	// as the text.
	Name string
}
