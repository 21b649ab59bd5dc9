package route

// Volatility is what PostgreSQL knows of a function, the worst of all with one
// name: overloads are not told apart.
type Volatility uint8

// From good to bad. The zero value is Unknown.
const (
	UnknownFunction Volatility = iota
	Immutable
	Stable
	// Harmless is volatile but without effect, and on no standby different:
	// random(), gen_random_uuid(), uuid-ossp's functions.
	Harmless
	Volatile
)

// RelationKind is what a name in FROM is.
type RelationKind uint8

// The kinds of relations. The zero value is Unknown.
const (
	UnknownRelation RelationKind = iota
	Table                        // also partitioned tables and materialized views
	View
	Unreadable // temporary, unlogged and foreign tables, sequences
)

// Relation is what is known of all relations with one name.
type Relation struct {
	Kind RelationKind
	// Definitions are the queries of the views and the row security
	// expressions of the tables with that name, as SELECT statements; they are
	// judged like the query itself.
	Definitions []string
}

// Catalog knows the names of one database. Its methods are called on a miss of
// the cache of verdicts only, from any goroutine. An empty schema asks for the
// worst answer of all schemas, since the search path is the session's.
type Catalog interface {
	// Function answers for all functions, aggregates and procedures of a name.
	Function(schema, name string) Volatility
	// Operator answers with the worst function behind an operator's name.
	Operator(schema, name string) Volatility
	// SafeType reports that reading, writing and casting to a type run no code
	// but that of PostgreSQL and of extensions' immutable functions.
	SafeType(schema, name string) bool
	Relation(schema, name string) Relation
	// Version changes whenever an answer may have changed, and is Blind while
	// there is none. It is read for every statement, so it must be cheap.
	Version() uint64
	// Missed tells that something was not known, so that the catalog may be
	// read again soon. It must not block.
	Missed()
}

// NoCatalog knows nothing: only statements without functions, operators, types
// and tables leave the primary.
type NoCatalog struct{}

// Function implements Catalog.
func (NoCatalog) Function(string, string) Volatility { return UnknownFunction }

// Operator implements Catalog.
func (NoCatalog) Operator(string, string) Volatility { return UnknownFunction }

// SafeType implements Catalog.
func (NoCatalog) SafeType(string, string) bool { return false }

// Relation implements Catalog.
func (NoCatalog) Relation(string, string) Relation { return Relation{} }

// Version implements Catalog.
func (NoCatalog) Version() uint64 { return 0 }

// Missed implements Catalog.
func (NoCatalog) Missed() {}
