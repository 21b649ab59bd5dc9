package route

import (
	"bytes"
	"strings"
	"sync"
)

const (
	defaultVerdicts = 4096
	// maxShape bounds the shapes that are looked up.
	maxShape = 16 << 10
	// maxParsed bounds what is given to PostgreSQL's parser, as parse says.
	maxParsed = 20 << 10
)

// Config of a Router. The zero value is good.
type Config struct {
	// Verdicts bounds how many verdicts are remembered; 0 means 4096. A verdict
	// takes about as much memory as the text that it is about, without its
	// constants and at most 16 KiB.
	Verdicts int
}

// Router decides where texts may run. Create it with New, one per database.
// Its methods may be called from any goroutine.
type Router struct {
	catalog Catalog
	cache   verdicts
	buffers sync.Pool
}

// New makes a router over what is known of a database. A nil catalog is
// NoCatalog.
func New(catalog Catalog, cfg Config) *Router {
	if catalog == nil {
		catalog = NoCatalog{}
	}
	if cfg.Verdicts <= 0 {
		cfg.Verdicts = defaultVerdicts
	}
	return &Router{
		catalog: catalog,
		cache:   newVerdicts(cfg.Verdicts),
		buffers: sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }},
	}
}

// verdict is what is remembered of a shape.
type verdict struct {
	target  Target
	reason  Reason
	hint    Hint
	subject string
	facts   Facts
	// version is that of the catalog that it was made with.
	version uint64
}

func (v *verdict) decision() Decision {
	return Decision{Target: v.target, Reason: v.reason, Hint: v.hint, Subject: v.subject, Facts: v.facts}
}

// hinted is the verdict under the hint of a comment.
func (v verdict) hinted(h Hint) verdict {
	if v.hint = h; h == HintPrimary && v.target != Primary {
		v.target, v.reason, v.subject = Primary, ReasonHint, ""
	}
	return v
}

// Route decides about the text of one simple query or one Parse message. The
// text is not kept. It takes no memory when the shape of the text is known.
//
// It does not know the session: a transaction that is on the primary stays
// there, a pinned session stays on its server, SET TRANSACTION ISOLATION LEVEL
// and the session's defaults for it are the caller's business (see Facts), as
// is standard_conforming_strings = off (see ForeignSetting).
func (r *Router) Route(sql []byte) Decision {
	if bytes.IndexByte(sql, 0) >= 0 {
		return Decision{Reason: ReasonUnparsed, Facts: Scan(sql)}
	}
	buf := r.buffers.Get().(*[]byte)
	s, out := shapeOf((*buf)[:0], sql, maxShape)
	d := r.decide(sql, s)
	*buf = out
	r.buffers.Put(buf)
	return d
}

func (r *Router) decide(sql []byte, s shape) Decision {
	if len(s.key) == 0 {
		facts, hint := scan(sql)
		v := verdict{reason: ReasonUnparsed}
		if s.other != nil || facts.Kind == Empty {
			v = control(facts, s.other, sql)
		}
		v.facts = facts
		v = v.hinted(hint)
		return v.decision()
	}
	version := r.catalog.Version()
	if version == Blind {
		v := verdict{reason: ReasonCatalog, facts: Scan(sql)}
		v = v.hinted(s.hint)
		return v.decision()
	}
	if v := r.cache.get(s.key, version); v != nil {
		return v.decision()
	}
	v := worst(judgeText(r.catalog, canonicalText(s.key)))
	v.facts, v.version = Scan(sql), version
	if v.facts.Kind == Empty { // comments and semicolons only
		v.target, v.reason = Any, ReasonControl
	}
	v = v.hinted(s.hint)
	r.cache.put(string(s.key), &v)
	return v.decision()
}

// worst is the verdict on a text from those on its statements.
func worst(all []verdict) verdict {
	if len(all) == 0 {
		return verdict{reason: ReasonUnparsed}
	}
	w := all[0]
	for _, v := range all[1:] {
		if v.target < w.target {
			w = v
		}
	}
	return w
}

// bounded copies a name for Decision.Subject.
func bounded(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "")
	}
	return strings.Clone(s)
}
