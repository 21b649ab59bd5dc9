// Package sse finds event boundaries and event types in a Server-Sent Events
// byte stream. It never copies or changes the stream: the caller forwards the
// bytes it was given and learns where each event ended. Memory is constant.
package sse

import "bytes"

// MaxTypeBytes is how much of an event's type is kept; the rest is dropped,
// which makes an over-long type unknown to every comparison.
const MaxTypeBytes = 48

// Event tells what one block of the stream (up to and including its empty
// line) was.
type Event struct {
	// Type is the event's type: the "event" member of the first data line's
	// JSON object when it has one, else the SSE "event:" field, else empty.
	// It points into the Scanner and is valid until the next call.
	Type []byte
	// Data is true when the block had at least one data line. A block with
	// neither Data nor Type is a comment or an empty line.
	Data bool
}

type lineState uint8

const (
	lineStart lineState = iota // no byte of the line seen
	fieldName                  // inside the field's name
	skipSpace                  // after the colon, one space is not part of the value
	eventValue
	dataValue
	skipLine // a comment, an unknown field, or nothing left to learn
)

// Scanner is a push parser: give it the stream in pieces of any size. The zero
// Scanner stands at the beginning of a stream. It is not safe for concurrent use.
type Scanner struct {
	line   lineState
	lineIn bool // the current line has at least one byte
	skipLF bool // the last byte was CR: an LF now belongs to it
	midway bool // bytes of an unfinished event were seen
	begun  bool // the stream's first byte has been seen
	bom    uint8

	name  [6]byte // long enough to tell "event" and "data" from anything longer
	nameN uint8
	value lineState // what skipSpace leads to

	field  typeBuf // the SSE event field
	member typeBuf // the JSON member of the data
	json   jsonPeek
	data   bool
	closed bool // an event was returned; reset before the next byte
}

type typeBuf struct {
	n    int
	over bool
	b    [MaxTypeBytes]byte
}

func (t *typeBuf) add(c byte) {
	if t.n == len(t.b) {
		t.over = true
		return
	}
	t.b[t.n] = c
	t.n++
}

func (t *typeBuf) bytes() []byte {
	if t.over {
		return t.b[:]
	}
	return t.b[:t.n]
}

// AtBoundary tells whether the bytes seen so far end exactly between two
// events, so that another event or a comment may be put in.
func (s *Scanner) AtBoundary() bool { return !s.midway }

// Next consumes bytes of p up to the end of the first event that ends in p. It
// returns how many bytes it took, and whether an event ended there; without
// one it has taken all of p.
func (s *Scanner) Next(p []byte) (n int, ev Event, ok bool) {
	if s.closed {
		s.resetEvent()
	}
	i := 0
	for i < len(p) {
		// Nothing to learn from the rest of this line: jump to its end.
		if s.line == skipLine {
			j := lineEnd(p[i:])
			if j < 0 {
				return len(p), Event{}, false
			}
			i += j
		}
		c := p[i]
		i++
		if s.skipLF {
			s.skipLF = false
			if c == '\n' {
				continue
			}
		}
		if c != '\n' && c != '\r' {
			if !s.begun && s.byteOrderMark(c) {
				continue
			}
			s.midway, s.lineIn = true, true
			s.inLine(c)
			continue
		}
		s.begun = true
		s.skipLF = c == '\r'
		if s.lineIn {
			s.endLine()
			continue
		}
		// An empty line ends the event. Take the LF of a CRLF along when it is here.
		if s.skipLF && i < len(p) && p[i] == '\n' {
			s.skipLF = false
			i++
		}
		s.midway, s.closed = false, true
		ev = Event{Data: s.data, Type: s.member.bytes()}
		if len(ev.Type) == 0 {
			ev.Type = s.field.bytes()
		}
		return i, ev, true
	}
	return i, Event{}, false
}

func (s *Scanner) resetEvent() {
	s.closed, s.data = false, false
	s.field.n, s.field.over = 0, false
	s.member.n, s.member.over = 0, false
	s.json = jsonPeek{}
}

// lineEnd returns the index of the first CR or LF, or -1.
func lineEnd(p []byte) int {
	lf := bytes.IndexByte(p, '\n')
	if lf >= 0 {
		p = p[:lf]
	}
	if cr := bytes.IndexByte(p, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

const bomBytes = "\xef\xbb\xbf"

// byteOrderMark swallows a byte order mark at the very beginning.
func (s *Scanner) byteOrderMark(c byte) bool {
	if s.bom < 3 && c == bomBytes[s.bom] {
		s.bom++
		if s.bom == 3 {
			s.begun = true
		}
		return true
	}
	s.begun = true
	return false
}

func (s *Scanner) inLine(c byte) {
	switch s.line {
	case lineStart:
		if c == ':' {
			s.line = skipLine
			return
		}
		s.line, s.nameN = fieldName, 0
		s.addName(c)
	case fieldName:
		if c != ':' {
			s.addName(c)
			return
		}
		switch string(s.name[:s.nameN]) {
		case "event":
			s.field.n, s.field.over = 0, false // the last event field of a block wins
			s.line, s.value = skipSpace, eventValue
		case "data":
			if s.data {
				s.line = skipLine // only the first data line is looked into
				return
			}
			s.data = true
			s.line, s.value = skipSpace, dataValue
		default:
			s.line = skipLine
		}
	case skipSpace:
		s.line = s.value
		if c != ' ' {
			s.inLine(c)
		}
	case eventValue:
		s.field.add(c)
	case dataValue:
		if !s.json.feed(c, &s.member) {
			s.line = skipLine
		}
	}
}

func (s *Scanner) addName(c byte) {
	if int(s.nameN) == len(s.name) {
		s.line = skipLine
		return
	}
	s.name[s.nameN] = c
	s.nameN++
}

func (s *Scanner) endLine() {
	// A field name without a colon is a field with an empty value.
	if s.line == fieldName && string(s.name[:s.nameN]) == "data" {
		s.data = true
	}
	s.line, s.lineIn = lineStart, false
}
