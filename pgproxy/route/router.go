package route

// Config of a Router. The zero value is good.
type Config struct {
	// Verdicts bounds how many verdicts are remembered; 0 means 4096.
	Verdicts int
}

// Router decides where texts may run. Create it with New, one per database.
// Its methods may be called from any goroutine.
type Router struct {
	catalog Catalog
	cfg     Config
}

// New makes a router over what is known of a database. A nil catalog is
// NoCatalog.
func New(catalog Catalog, cfg Config) *Router {
	if catalog == nil {
		catalog = NoCatalog{}
	}
	return &Router{catalog: catalog, cfg: cfg}
}

// Route decides about the text of one simple query or one Parse message. The
// text is not kept. For now no statement is proved to be a read.
//
// It does not know the session: a transaction that is on the primary stays
// there, a pinned session stays on its server, SET TRANSACTION ISOLATION LEVEL
// and the session's defaults for it are the caller's business (see Facts).
func (r *Router) Route(sql []byte) Decision {
	return Decision{Reason: ReasonUnparsed, Facts: Scan(sql)}
}

// Explanation answers "where would this go, and why".
type Explanation struct {
	Target  Target
	Reason  Reason
	Subject string // the function, relation ... that decided, or ""
	Hint    Hint
	// Sentence says it for a person.
	Sentence string
	// Statements has the same for each statement of a text with several.
	Statements []Explanation
}

// Explain decides like Route, and tells more. It is slow.
func (r *Router) Explain(sql []byte) Explanation {
	d := r.Route(sql)
	return Explanation{Target: d.Target, Reason: d.Reason, Subject: d.Subject, Hint: d.Hint, Sentence: d.Reason.Sentence()}
}
