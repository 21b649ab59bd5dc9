package route

// Reason says why a text has its target. Names are labels of metrics.
type Reason uint8

// The reasons. Up to ReasonControl they go with Standby or Any, the rest with
// Primary.
const (
	ReasonUnknown Reason = iota
	// ReasonRead: proved to be a read.
	ReasonRead
	// ReasonNoTable: a read that names no table.
	ReasonNoTable
	// ReasonControl: BEGIN, COMMIT, ROLLBACK and empty texts, which run where
	// the transaction is.
	ReasonControl
	// ReasonUnparsed: PostgreSQL's parser did not take it, or there is none in
	// this build, or it is too long.
	ReasonUnparsed
	// ReasonWrite: INSERT, UPDATE, DELETE, MERGE, also inside WITH.
	ReasonWrite
	// ReasonDDL: CREATE, ALTER, DROP, SELECT INTO ...
	ReasonDDL
	// ReasonUtility: another command that is not known to be harmless.
	ReasonUtility
	// ReasonLock: FOR UPDATE, FOR SHARE, LOCK, advisory locks.
	ReasonLock
	// ReasonIsolation: a snapshot that must last, or SERIALIZABLE.
	ReasonIsolation
	// ReasonSession: it makes session state: SET, PREPARE, DECLARE, LISTEN ...
	ReasonSession
	// ReasonServerState: the answer differs from server to server.
	ReasonServerState
	// ReasonVolatile: a volatile function.
	ReasonVolatile
	// ReasonUnknownFunction: a function that is not in the catalog.
	ReasonUnknownFunction
	// ReasonOperator: an operator with a volatile or unknown function.
	ReasonOperator
	// ReasonType: a type that is not known to be harmless, or reg* types.
	ReasonType
	// ReasonRelation: a temporary, unlogged or foreign table, or a view that is
	// not a pure read.
	ReasonRelation
	// ReasonUnknownRelation: a relation that is not in the catalog.
	ReasonUnknownRelation
	// ReasonSyntax: a part of a statement that is not on the list of harmless ones.
	ReasonSyntax
	// ReasonHint: a comment or a setting asks for the primary.
	ReasonHint
	// ReasonMany: several statements in one text, with one that only the server
	// of the transaction may run: BEGIN, COMMIT, SET ...
	ReasonMany
	// ReasonCatalog: the catalog is Blind: not yet read, or not yet read again
	// after a change.
	ReasonCatalog
	reasons // their number
)

// Reasons are all reasons, for metrics.
func Reasons() []Reason {
	all := make([]Reason, 0, reasons)
	for r := range reasons {
		all = append(all, r)
	}
	return all
}

var reasonTexts = [reasons]struct{ label, sentence string }{
	ReasonUnknown:         {"unknown", "no decision was made"},
	ReasonRead:            {"read", "it only reads"},
	ReasonNoTable:         {"no_table", "it reads no table"},
	ReasonControl:         {"control", "it runs where the transaction is"},
	ReasonUnparsed:        {"unparsed", "PostgreSQL's parser does not accept it, or it is too long to be parsed"},
	ReasonWrite:           {"write", "it changes data"},
	ReasonDDL:             {"ddl", "it changes the schema"},
	ReasonUtility:         {"utility", "the command is not known to be a read"},
	ReasonLock:            {"lock", "it takes locks"},
	ReasonIsolation:       {"isolation", "the isolation level needs one snapshot for the whole transaction"},
	ReasonSession:         {"session", "it makes state that belongs to the session"},
	ReasonServerState:     {"server_state", "its answer differs from server to server"},
	ReasonVolatile:        {"volatile_function", "a function is VOLATILE, so it may write"},
	ReasonUnknownFunction: {"unknown_function", "a function is not in the catalog as it was last read"},
	ReasonOperator:        {"operator", "an operator is not known to be harmless"},
	ReasonType:            {"type", "a type is not known to be harmless"},
	ReasonRelation:        {"relation", "a table or view is not readable on standbys, or is more than a read"},
	ReasonUnknownRelation: {"unknown_relation", "a table or view is not in the catalog as it was last read"},
	ReasonSyntax:          {"syntax", "a part of the statement is not known to be harmless"},
	ReasonHint:            {"hint", "a comment or the setting fournines.route asks for the primary"},
	ReasonCatalog:         {"catalog", "the catalog has not yet been read, or a change has just been made to it"},
	ReasonMany:            {"many", "it is several statements in one text, and not all of them are queries"},
}

// String names the reason for logs and metrics.
func (r Reason) String() string { return reasonTexts[r].label }

// Sentence explains the reason to a person.
func (r Reason) Sentence() string { return reasonTexts[r].sentence }
