package sse

// jsonPeek finds the string member "event" at the top level of a JSON object
// without building values. It reads until it has found it and no further; what
// is not an object is left after its first byte. It does not validate: a
// malformed document gives some type or none, never an error.
type jsonPeek struct {
	depth   uint32
	state   jsonState
	escaped bool
	key     bool // the current string is a member's name at the top level
	match   uint8
	expect  bool // a name at the top level may come now
}

type jsonState uint8

const (
	jsonStart   jsonState = iota // before the opening brace
	jsonBetween                  // outside strings
	jsonString                   // inside a string that does not matter
	jsonAfter                    // after the name "event", before its value
	jsonCapture                  // inside the value
)

const memberName = "event"

// noMatch marks a name that has already differed from memberName.
const noMatch = 0xff

// feed takes one byte and returns false when nothing more can be learned.
func (j *jsonPeek) feed(c byte, out *typeBuf) bool {
	switch j.state {
	case jsonStart:
		switch c {
		case ' ', '\t':
		case '{':
			j.depth, j.expect, j.state = 1, true, jsonBetween
		default:
			return false
		}
	case jsonBetween:
		return j.between(c)
	case jsonString:
		j.inString(c)
	case jsonAfter:
		switch c {
		case ' ', '\t', ':':
		case '"':
			j.state = jsonCapture
		default:
			return false // not a string: there is no type
		}
	case jsonCapture:
		if c == '"' || c == '\\' {
			// A type with an escape in it is none that anybody knows.
			return false
		}
		out.add(c)
	}
	return true
}

func (j *jsonPeek) between(c byte) bool {
	switch c {
	case '"':
		j.key, j.match = j.depth == 1 && j.expect, 0
		j.expect = false
		j.state = jsonString
	case '{', '[':
		if j.depth == 1<<32-1 {
			return false
		}
		j.depth++
	case '}', ']':
		j.depth--
		return j.depth > 0
	case ',':
		j.expect = true
	}
	return true
}

func (j *jsonPeek) inString(c byte) {
	switch {
	case j.escaped:
		j.escaped, j.match = false, noMatch
	case c == '\\':
		j.escaped = true
	case c == '"':
		j.state = jsonBetween
		if j.key && int(j.match) == len(memberName) {
			j.state = jsonAfter
		}
	case int(j.match) < len(memberName) && c == memberName[j.match]:
		j.match++
	default:
		j.match = noMatch
	}
}
