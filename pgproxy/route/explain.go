package route

import "bytes"

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
	e := explanation(r.Route(sql))
	parts := split(sql)
	if len(parts) > 1 {
		for _, part := range parts {
			e.Statements = append(e.Statements, explanation(r.Route(part)))
		}
	}
	return e
}

func explanation(d Decision) Explanation {
	e := Explanation{Target: d.Target, Reason: d.Reason, Subject: d.Subject, Hint: d.Hint}
	where := map[Target]string{
		Primary: "It goes to the primary",
		Standby: "It may go to a standby",
		Any:     "It may go to any server",
	}[d.Target]
	e.Sentence = where + ": " + d.Reason.Sentence()
	if d.Subject != "" {
		e.Sentence += " (" + d.Subject + ")"
	}
	e.Sentence += "."
	if d.Hint == HintStandby && d.Target == Standby {
		e.Sentence += " The comment asks for a standby, also one that is behind."
	} else if d.Hint == HintStandby && d.Target == Primary {
		e.Sentence += " The comment that asks for a standby has no effect."
	}
	return e
}

// split cuts a text at its semicolons; statements without a token are left out.
func split(sql []byte) [][]byte {
	var parts [][]byte
	s := scanner{sql: sql}
	start, empty := 0, true
	for {
		kind, _ := s.next()
		if kind != 0 && kind != ';' {
			empty = false
			continue
		}
		if !empty {
			parts = append(parts, bytes.TrimSpace(bytes.TrimSuffix(sql[start:s.pos], []byte(";"))))
		}
		if kind == 0 {
			return parts
		}
		start, empty = s.pos, true
	}
}
