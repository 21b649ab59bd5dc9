// Package route looks at SQL text and says what a connection proxy must know
// about it. For now every statement goes to the primary, and the facts here
// are those that pooling needs: transaction control, tracked settings, and
// session state that ties a client to one server connection. The choice
// between primary and standbys has its place in Target.
package route

// Target says which servers may run a statement.
type Target int

// Primary is the only target while statements are not split.
const Primary Target = 0

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

// Facts are what Scan found.
type Facts struct {
	Kind   Kind
	Pin    Pin
	Target Target
	// EndsTransaction is set when some statement in the text is COMMIT, END,
	// PREPARE TRANSACTION, ROLLBACK or ABORT.
	EndsTransaction bool
	// Name is the setting or prepared statement that Set, Reset and
	// Deallocate name: lower-cased unless it was quoted. It is valid as long
	// as the text.
	Name string
}
