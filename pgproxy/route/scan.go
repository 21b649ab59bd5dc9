package route

import "bytes"

// maxWord is the longest word that matters; longer ones are cut.
const maxWord = 64

// scanner splits SQL into words and marks. Comments, literals and dollar
// quotes yield nothing or a mark, so that their content is never taken for a
// statement.
type scanner struct {
	sql  []byte
	pos  int
	word [maxWord]byte
}

// token kinds: 0 end, 'w' word, 'q' quoted identifier, 'l' literal, or the
// character itself.
func (s *scanner) next() (kind byte, text []byte) {
	b := s.sql
	for s.pos < len(b) {
		c := b[s.pos]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			s.pos++
		case c == '-' && s.at(1) == '-':
			if i := bytes.IndexByte(b[s.pos:], '\n'); i >= 0 {
				s.pos += i + 1
			} else {
				s.pos = len(b)
			}
		case c == '/' && s.at(1) == '*':
			s.comment()
		case c == '\'':
			s.quoted('\'', false)
			return 'l', nil
		case c == '"':
			start := s.pos + 1
			s.quoted('"', false)
			return 'q', b[start:max(start, s.pos-1)]
		case c == '$' && !s.dollar():
			s.pos++
			return '$', nil
		case c == '$':
			return 'l', nil
		case isWordStart(c):
			if (c == 'e' || c == 'E') && s.at(1) == '\'' {
				s.pos++
				s.quoted('\'', true)
				return 'l', nil
			}
			n := 0
			for s.pos < len(b) && isWordPart(b[s.pos]) {
				ch := b[s.pos]
				if ch >= 'A' && ch <= 'Z' {
					ch += 'a' - 'A'
				}
				if n < maxWord {
					s.word[n] = ch
					n++
				}
				s.pos++
			}
			return 'w', s.word[:n]
		case c >= '0' && c <= '9':
			for s.pos < len(b) && (isWordPart(b[s.pos]) || b[s.pos] == '.') {
				s.pos++
			}
			return 'l', nil
		default:
			s.pos++
			return c, nil
		}
	}
	return 0, nil
}

func (s *scanner) at(off int) byte {
	if s.pos+off < len(s.sql) {
		return s.sql[s.pos+off]
	}
	return 0
}

func (s *scanner) comment() {
	depth := 0
	for s.pos < len(s.sql) {
		switch {
		case s.sql[s.pos] == '/' && s.at(1) == '*':
			depth++
			s.pos += 2
		case s.sql[s.pos] == '*' && s.at(1) == '/':
			depth--
			s.pos += 2
			if depth == 0 {
				return
			}
		default:
			s.pos++
		}
	}
}

// quoted moves behind the closing quote; a doubled quote does not close.
func (s *scanner) quoted(q byte, escapes bool) {
	s.pos++
	for s.pos < len(s.sql) {
		switch c := s.sql[s.pos]; {
		case c == '\\' && escapes:
			s.pos += 2
		case c == q && s.at(1) == q:
			s.pos += 2
		case c == q:
			s.pos++
			return
		default:
			s.pos++
		}
	}
	s.pos = len(s.sql)
}

// dollar moves behind a dollar-quoted literal, or returns false.
func (s *scanner) dollar() bool {
	i := s.pos + 1
	for i < len(s.sql) && s.sql[i] != '$' {
		if !isWordPart(s.sql[i]) || (i == s.pos+1 && s.sql[i] >= '0' && s.sql[i] <= '9') {
			return false
		}
		i++
	}
	if i >= len(s.sql) {
		return false
	}
	tag := s.sql[s.pos : i+1]
	end := bytes.Index(s.sql[i+1:], tag)
	if end < 0 {
		s.pos = len(s.sql)
	} else {
		s.pos = i + 1 + end + len(tag)
	}
	return true
}

func isWordStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isWordPart(c byte) bool { return isWordStart(c) || c == '$' || c >= '0' && c <= '9' }

// Scan reads one string of SQL, which may hold several statements. It does
// not allocate unless it returns a Name.
func Scan(sql []byte) Facts {
	s := scanner{sql: sql}
	var all Facts
	count := 0
	for {
		f, more := s.statement()
		if f.Kind != Empty {
			count++
			if count == 1 {
				all.Kind, all.Name = f.Kind, f.Name
			}
		}
		if f.Pin != NoPin {
			all.Pin = f.Pin
		}
		all.EndsTransaction = all.EndsTransaction || f.EndsTransaction
		if count > 1 {
			// A setting inside a longer string cannot be attributed to success or
			// failure of its own statement.
			switch f.Kind {
			case Set, Reset, ResetAll, DiscardAll, Deallocate, DeallocateAll:
				all.Pin = PinSessionState
			}
		}
		if !more {
			break
		}
	}
	switch {
	case count == 0:
		all.Kind = Empty
	case count > 1:
		switch all.Kind {
		case Set, Reset, ResetAll, DiscardAll, Deallocate, DeallocateAll:
			all.Pin = PinSessionState
		}
		all.Kind, all.Name = Many, ""
	}
	return all
}

// statement reads up to the next semicolon outside of literals; more is false
// at the end of the text.
func (s *scanner) statement() (f Facts, more bool) {
	kind, text := s.next()
	switch kind {
	case 0:
		return Facts{Kind: Empty}, false
	case ';':
		return Facts{Kind: Empty}, true
	}
	declare := false
	if kind == 'w' {
		switch string(text) {
		case "begin", "start":
			f.Kind = Begin
		case "commit", "end":
			f.Kind, f.EndsTransaction = Commit, true
		case "rollback", "abort":
			return s.rollback()
		case "savepoint", "release":
			f.Kind = Savepoint
		case "set":
			return s.set()
		case "reset":
			return s.reset()
		case "discard":
			k, w := s.next()
			if k == 'w' && string(w) == "all" {
				f.Kind = DiscardAll
			}
			kind = k
		case "deallocate":
			return s.deallocate()
		case "listen":
			f.Pin = PinListen
		case "load":
			f.Pin = PinSessionState
		case "prepare":
			k, w := s.next()
			if k == 'w' && string(w) == "transaction" {
				f.EndsTransaction = true
			} else {
				f.Pin = PinPrepare
			}
			kind = k
		case "declare":
			declare = true
		}
	}
	return s.rest(f, declare, kind, text)
}

// rest looks for words anywhere in the statement that create session state.
func (s *scanner) rest(f Facts, declare bool, kind byte, text []byte) (Facts, bool) {
	for {
		switch kind {
		case 0:
			return f, false
		case ';':
			return f, true
		case 'w', 'q':
			if p := wordPin(text, declare); p != NoPin {
				f.Pin = p
			}
		}
		kind, text = s.next()
	}
}

func wordPin(w []byte, declare bool) Pin {
	if len(w) < 4 {
		return NoPin
	}
	switch w[0] {
	case 't':
		if string(w) == "temp" || string(w) == "temporary" {
			return PinTemporary
		}
	case 'p':
		switch string(w) {
		case "pg_temp":
			return PinTemporary
		case "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared":
			return PinAdvisoryLock
		}
	case 's':
		if string(w) == "set_config" {
			return PinSessionState
		}
	case 'h':
		if declare && string(w) == "hold" {
			return PinHoldCursor
		}
	}
	return NoPin
}

func (s *scanner) rollback() (Facts, bool) {
	f := Facts{Kind: Rollback, EndsTransaction: true}
	for {
		kind, text := s.next()
		switch {
		case kind == 0:
			return f, false
		case kind == ';':
			return f, true
		case kind == 'w' && string(text) == "to":
			f.Kind, f.EndsTransaction = Savepoint, false
		}
	}
}

func (s *scanner) set() (Facts, bool) {
	f := Facts{Kind: Set}
	kind, text := s.next()
	if kind == 'w' && string(text) == "session" {
		kind, text = s.next()
		if kind == 'w' && (string(text) == "authorization" || string(text) == "characteristics") {
			return s.rest(Facts{Pin: PinSessionState}, false, kind, nil)
		}
	}
	if kind == 'w' {
		switch string(text) {
		case "local", "transaction", "constraints":
			return s.rest(Facts{}, false, kind, nil)
		case "role", "session_authorization":
			return s.rest(Facts{Pin: PinSessionState}, false, kind, nil)
		case "time":
			f.Name = "timezone"
		case "names":
			f.Name = "client_encoding"
		}
	}
	if f.Name == "" && (kind == 'w' || kind == 'q') {
		f.Name = string(text)
	}
	for {
		kind, _ = s.next()
		switch kind {
		case 0:
			return f, false
		case ';':
			return f, true
		case '.':
			if kind, text = s.next(); kind == 'w' || kind == 'q' {
				f.Name += "." + string(text)
			}
		}
	}
}

func (s *scanner) reset() (Facts, bool) {
	f := Facts{Kind: Reset}
	kind, text := s.next()
	for ; kind != 0 && kind != ';'; kind, text = s.next() {
		switch {
		case kind == 'w' && f.Name == "" && string(text) == "all":
			f.Kind = ResetAll
		case kind == 'w' && f.Name == "" && (string(text) == "role" || string(text) == "session"):
			return s.rest(Facts{Pin: PinSessionState}, false, kind, nil)
		case kind == 'w' && f.Name == "" && string(text) == "time":
			f.Name = "timezone"
		case (kind == 'w' || kind == 'q') && f.Name == "":
			f.Name = string(text)
		case (kind == 'w' || kind == 'q') && f.Name != "timezone":
			f.Name += "." + string(text)
		}
	}
	return f, kind == ';'
}

func (s *scanner) deallocate() (Facts, bool) {
	f := Facts{Kind: Deallocate}
	kind, text := s.next()
	if kind == 'w' && string(text) == "prepare" {
		kind, text = s.next()
	}
	switch {
	case kind == 'w' && string(text) == "all":
		f.Kind = DeallocateAll
	case kind == 'w' || kind == 'q':
		f.Name = string(text)
	}
	for ; kind != 0 && kind != ';'; kind, _ = s.next() {
	}
	return f, kind == ';'
}
