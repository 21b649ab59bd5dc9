package route

import (
	"bytes"
	"strings"
)

// maxWord is the longest word that matters; longer ones are cut.
const maxWord = 64

// scanner splits SQL into words and marks. Comments, constants and dollar
// quotes yield nothing or a mark, so that their content is never taken for a
// statement.
type scanner struct {
	sql  []byte
	pos  int
	word [maxWord]byte
	// constant is the span of the last 'l' token.
	constant []byte
	// hint is what the comments so far asked for.
	hint Hint
	// escaped is set when an identifier U&"..." hid its name.
	escaped bool
}

// token kinds: 0 end, 'w' word, 'q' quoted identifier, 'l' constant, or the
// character itself.
func (s *scanner) next() (kind byte, text []byte) {
	b := s.sql
	for s.pos < len(b) {
		start := s.pos
		c := b[start]
		switch classes[c] {
		case dash:
			if byteAt(b, start+1) != '-' {
				s.pos++
				return c, nil
			}
			s.pos = endOfLineComment(b, start)
		case slash:
			if byteAt(b, start+1) != '*' {
				s.pos++
				return c, nil
			}
			s.pos, _ = endOfComment(b, start)
			if h := commentHint(b[start:s.pos]); h != NoHint && s.hint != HintPrimary {
				s.hint = h
			}
		case quote:
			s.pos, _ = endOfString(b, start, false)
			return s.literal(start)
		case doubleQuote:
			s.pos, _ = endOfQuoted(b, start, '"')
			return 'q', b[start+1 : max(start+1, s.pos-1)]
		case dollar:
			end, quoted, _ := endOfDollar(b, start)
			if !quoted {
				s.pos++
				return c, nil
			}
			s.pos = end
			return s.literal(start)
		case digit:
			s.pos, _ = endOfNumber(b, start)
			return s.literal(start)
		case dot:
			if next := byteAt(b, start+1); next >= '0' && next <= '9' {
				s.pos, _ = endOfNumber(b, start)
				return s.literal(start)
			}
			s.pos++
			return c, nil
		case wordByte:
			if end := s.prefixed(start); end > 0 {
				s.pos = end
				return s.literal(start)
			}
			s.pos = endOfWord(b, start)
			n := copy(s.word[:], b[start:s.pos])
			for i, ch := range s.word[:n] {
				if ch >= 'A' && ch <= 'Z' {
					s.word[i] += 'a' - 'A'
				}
			}
			return 'w', s.word[:n]
		default:
			s.pos++
			if c > ' ' {
				return c, nil
			}
		}
	}
	return 0, nil
}

func (s *scanner) literal(start int) (byte, []byte) {
	s.constant = s.sql[start:s.pos]
	return 'l', nil
}

// prefixed returns the end of a constant like E'...' that starts at start, or 0.
func (s *scanner) prefixed(start int) int {
	i := start + 1
	end := 0
	switch c := s.sql[start]; {
	case byteAt(s.sql, i) == '\'' && (c == 'e' || c == 'E'):
		end, _ = endOfString(s.sql, i, true)
	case byteAt(s.sql, i) == '\'' && (c == 'b' || c == 'B' || c == 'x' || c == 'X' || c == 'n' || c == 'N'):
		end, _ = endOfString(s.sql, i, false)
	case byteAt(s.sql, i) == '&' && (c == 'u' || c == 'U'):
		switch byteAt(s.sql, i+1) {
		case '\'':
			end, _ = endOfString(s.sql, i+1, false)
		case '"':
			s.escaped = true
			end, _ = endOfQuoted(s.sql, i+1, '"')
		}
	}
	return end
}

// Scan reads one string of SQL, which may hold several statements. It does
// not allocate unless it returns a Name.
func Scan(sql []byte) Facts {
	f, _ := scan(sql)
	return f
}

// scan returns the hint of the text's comments too.
func scan(sql []byte) (Facts, Hint) {
	s := scanner{sql: sql}
	var all Facts
	count := 0
	for {
		f, more := s.statement()
		if f.Kind != Empty {
			count++
			if count == 1 {
				all.Kind, all.Name, all.Hint = f.Kind, f.Name, f.Hint
			}
		}
		all.Isolation = max(all.Isolation, f.Isolation)
		if f.Access != AccessUnset {
			all.Access = f.Access
		}
		all.Deferrable = all.Deferrable || f.Deferrable
		all.DDL = all.DDL || f.DDL
		all.Foreign = all.Foreign || f.Foreign
		if f.Pin != NoPin {
			all.Pin = f.Pin
		}
		all.EndsTransaction = all.EndsTransaction || f.EndsTransaction
		all.OwnCommits = all.OwnCommits || f.OwnCommits
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
		all.Kind, all.Name, all.Hint = Many, "", NoHint
	}
	if s.escaped && all.Pin == NoPin {
		// The name may be one of those that make session state.
		all.Pin = PinSessionState
	}
	return all, s.hint
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
			return s.modes(Facts{Kind: Begin})
		case "commit", "end":
			return s.commit()
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
		case "create", "alter", "drop", "import":
			f.DDL = true
		case "do":
			f.DDL, f.OwnCommits = true, true
		case "call", "vacuum", "cluster", "reindex":
			f.OwnCommits = true
		}
	}
	return s.rest(f, declare, kind, text)
}

// rest looks for words anywhere in the statement that create session state.
func (s *scanner) rest(f Facts, declare bool, kind byte, text []byte) (Facts, bool) {
	inserts := false
	for {
		switch kind {
		case 0, ';':
			// A temporary table is its session's alone, which is pinned.
			f.DDL = f.DDL && f.Pin != PinTemporary
			return f, kind == ';'
		case 'w', 'q':
			if p := wordPin(text, declare); p != NoPin {
				f.Pin = p
			}
			// Both words are reserved: SELECT ... INTO, EXPLAIN ANALYZE CREATE TABLE.
			if kind == 'w' && (string(text) == "into" && !inserts || string(text) == "create") {
				f.DDL = true
			}
			f.OwnCommits = f.OwnCommits || kind == 'w' && string(text) == "concurrently"
			inserts = kind == 'w' && (string(text) == "insert" || string(text) == "merge")
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
		case kind != 'w':
		case string(text) == "to":
			f.Kind, f.EndsTransaction = Savepoint, false
		case f.Kind != Rollback:
		case string(text) == "prepared", string(text) == "chain":
			f.Kind = Other
		case string(text) == "no":
			s.next() // AND NO CHAIN is the default
		}
	}
}

// commit reads behind COMMIT. COMMIT PREPARED runs outside of transactions, and
// COMMIT AND CHAIN begins the next one: neither is a plain end.
func (s *scanner) commit() (Facts, bool) {
	f := Facts{Kind: Commit, EndsTransaction: true}
	for {
		kind, text := s.next()
		switch {
		case kind == 0:
			return f, false
		case kind == ';':
			return f, true
		case kind != 'w':
		case string(text) == "prepared", string(text) == "chain":
			f.Kind = Other
		case string(text) == "no":
			s.next() // AND NO CHAIN is the default
		}
	}
}

// modes reads the transaction modes of BEGIN and SET TRANSACTION to the end of
// the statement.
func (s *scanner) modes(f Facts) (Facts, bool) {
	negated := false
	for {
		kind, text := s.next()
		switch kind {
		case 0:
			return f, false
		case ';':
			return f, true
		case 'w':
			switch string(text) {
			case "level":
				kind, text = s.next()
				first := levelWord(kind, text)
				switch first {
				case "read", "repeatable":
					kind, text = s.next()
					f.Isolation = isolation(first + " " + levelWord(kind, text))
				default:
					f.Isolation = isolation(first)
				}
			case "snapshot":
				f.Isolation = IsolationUnknown
			case "only":
				f.Access = ReadOnly
			case "write":
				f.Access = ReadWrite
			case "deferrable":
				f.Deferrable = !negated
			}
			negated = string(text) == "not"
		}
	}
}

func levelWord(kind byte, text []byte) string {
	if kind != 'w' {
		return ""
	}
	switch string(text) { // without allocating
	case "read":
		return "read"
	case "repeatable":
		return "repeatable"
	case "serializable":
		return "serializable"
	case "committed":
		return "committed"
	case "uncommitted":
		return "uncommitted"
	}
	return ""
}

func isolation(level string) Isolation {
	switch level {
	case "read committed", "read uncommitted":
		return ReadCommitted
	case "repeatable read":
		return RepeatableRead
	case "serializable":
		return Serializable
	}
	return IsolationUnknown
}

func (s *scanner) set() (Facts, bool) {
	f := Facts{Kind: Set}
	kind, text := s.next()
	if kind == 'w' && string(text) == "session" {
		kind, text = s.next()
		switch {
		case kind == 'w' && string(text) == "authorization":
			return s.rest(Facts{Pin: PinSessionState}, false, kind, nil)
		case kind == 'w' && string(text) == "characteristics":
			return s.modes(Facts{Pin: PinSessionState})
		}
	} else if kind == 'w' && string(text) == "local" {
		f.Kind = SetLocal
		kind, text = s.next()
	}
	if kind == 'w' {
		switch string(text) {
		case "transaction":
			return s.modes(Facts{Kind: SetTransaction})
		case "constraints":
			return s.rest(Facts{Kind: SetLocal}, false, kind, nil)
		case "role", "session_authorization":
			if f.Kind == Set {
				f = Facts{Pin: PinSessionState}
			}
			return s.rest(f, false, kind, nil)
		case "time":
			f.Name = "timezone"
		case "names":
			f.Name = "client_encoding"
		}
	}
	named := f.Name != ""
	if !named && (kind == 'w' || kind == 'q') {
		f.Name = string(text)
	}
	var v value
	for {
		kind, text = s.next()
		switch {
		case kind == 0:
			f.setting(v)
			return f, false
		case kind == ';':
			f.setting(v)
			return f, true
		case kind == '.' && !named:
			if kind, text = s.next(); kind == 'w' || kind == 'q' {
				f.Name += "." + string(text)
			}
		case kind == '=' && !named, kind == 'w' && string(text) == "to" && !named:
			named = true
		case kind == 'w' && f.Name == "timezone" && string(text) == "zone":
		default:
			v.add(kind, text, s.constant)
		}
	}
}

// value is what a setting is set to, as far as it matters here.
type value struct {
	text  [maxWord]byte // lower-cased
	n     int
	parts int
	word  bool // an unquoted word, which may be DEFAULT
}

func (v *value) add(kind byte, text, constant []byte) {
	v.parts++
	v.word = kind == 'w'
	switch kind {
	case 'l':
		text = constant
		if len(text) > 1 && text[0] == '\'' {
			text = text[1 : len(text)-1]
		}
	case 'w', 'q':
	default:
		v.parts++ // neither name nor constant
	}
	v.n = copy(v.text[:], bytes.ToLower(text))
}

// is compares the whole value.
func (v *value) is(s string) bool { return v.parts == 1 && string(v.text[:v.n]) == s }

func (v *value) on() bool { return v.is("on") || v.is("true") || v.is("yes") || v.is("1") }

func (v *value) off() bool { return v.is("off") || v.is("false") || v.is("no") || v.is("0") }

// asciiEncodings are the client encodings, without their punctuation, in which
// no character but the ASCII ones holds an ASCII byte, so that quotes and
// backslashes are what they look like.
var asciiEncodings = map[string]bool{
	"utf8": true, "unicode": true, "sqlascii": true, "eucjp": true, "euccn": true, "euckr": true, "euctw": true, "eucjis2004": true,
	"latin1": true, "latin2": true, "latin3": true, "latin4": true, "latin5": true, "latin6": true, "latin7": true, "latin8": true, "latin9": true, "latin10": true,
	"iso88591": true, "iso88595": true, "iso88596": true, "iso88597": true, "iso88598": true, "iso885915": true,
	"win1250": true, "win1251": true, "win1252": true, "win1253": true, "win1254": true, "win1255": true, "win1256": true, "win1257": true, "win1258": true,
	"win866": true, "win874": true, "koi8r": true, "koi8u": true,
}

// ForeignSetting reports that under a value of a setting texts may not mean
// what the router reads in them: standard_conforming_strings but on, and
// client encodings whose characters hold ASCII bytes.
func ForeignSetting(name, val string) bool {
	switch strings.ToLower(name) {
	case "standard_conforming_strings":
		switch strings.ToLower(val) {
		case "on", "true", "yes", "1":
			return false
		}
		return true
	case "client_encoding":
		plain := strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
				return r
			}
			return -1
		}, strings.ToLower(val))
		return !asciiEncodings[plain]
	}
	return false
}

// setting fills what a SET of f.Name to v tells.
func (f *Facts) setting(v value) {
	if v.n == 0 && v.parts == 1 {
		v.parts++
	}
	switch name := strings.ToLower(f.Name); name {
	case RouteSetting:
		switch {
		case v.is("primary"):
			f.Hint = HintPrimary
		case v.is("standby"):
			f.Hint = HintStandby
		case v.is("auto"), v.is("default"):
			f.Hint = HintAuto
		default:
			f.Hint = HintInvalid
		}
	case "transaction_isolation", "default_transaction_isolation":
		f.Isolation = IsolationUnknown
		if v.parts == 1 {
			f.Isolation = isolation(string(v.text[:v.n]))
		}
	case "transaction_read_only", "default_transaction_read_only":
		f.Access = ReadWrite
		if v.on() {
			f.Access = ReadOnly
		}
	case "transaction_deferrable", "default_transaction_deferrable":
		f.Deferrable = !v.off()
	case "standard_conforming_strings", "client_encoding":
		f.Foreign = v.parts != 1 || ForeignSetting(name, string(v.text[:v.n]))
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
