package route

import (
	"bytes"
	"strings"
)

// Placeholders of constants in a shape stand behind a zero byte, which no text
// of a client can hold.
const (
	stringConstant  = 's'
	integerConstant = 'i' // at most nine digits, so that the grammar takes it as an integer
	numberConstant  = 'f'
	// verbatimShape starts the key of a text that is its own shape.
	verbatimShape = 'v'
)

// shape is what shapeOf found out about a text.
type shape struct {
	// key is the text with each constant replaced by its class, without
	// comments but hints, and with repeated constants of a list written once.
	// Texts with equal keys differ in nothing that a verdict may depend on. It
	// is nil when the text is not one or more queries, or is too long.
	key []byte
	// other is the first word of the first statement that need not be parsed, as
	// it was written, and nil when there is none. It is empty when the statement
	// begins with anything but a word.
	other []byte
	hint  Hint
}

// shapeOf appends the shape of sql, which holds no zero byte, to buf. It gives up with a nil key when buf
// would grow beyond limit bytes. It does not allocate but for buf.
//
//nolint:gocyclo // one loop over bytes with one case for each class is the fast form
func shapeOf(buf, sql []byte, limit int) (s shape, out []byte) {
	var (
		from   int // sql[from:i] is not yet in buf
		atHead = true
		// The list element that i is in, and the one before it, in buf.
		elem, elemOK, elemConstant = 0, false, false
		prev, prevEnd, prevOK      = 0, 0, false
	)
	for i := 0; i < len(sql); {
		c := sql[i]
		class := classes[c]
		if atHead && class != plain && class != dash && class != slash && class != semicolon {
			atHead = false
			if c != '(' {
				word := sql[i:i]
				if class == wordByte {
					word = sql[i:endOfWord(sql, i)]
				}
				if !mustParse(word) {
					s.other = word
					return s, buf
				}
			}
		}
		switch class {
		case plain:
			// No statement begins with an operator.
			atHead = atHead && c <= ' '
			i++
		case wordByte:
			end := endOfWord(sql, i+1)
			if end > i+1 || end >= len(sql) {
				i = end
				continue
			}
			switch next := sql[end]; {
			case next == '\'' && (c == 'e' || c == 'E'):
				buf = append(buf, sql[from:i]...)
				buf = append(buf, 0, stringConstant)
				var ok bool
				if i, ok = endOfString(sql, end, true); !ok {
					return s.verbatim(buf[:0], sql, limit)
				}
				from, elemConstant = i, true
			case next == '\'' && (c == 'b' || c == 'B' || c == 'x' || c == 'X' || c == 'n' || c == 'N'),
				next == '&' && (c == 'u' || c == 'U'):
				return s.verbatim(buf[:0], sql, limit)
			default:
				i = end
			}
		case quote:
			buf = append(buf, sql[from:i]...)
			buf = append(buf, 0, stringConstant)
			var ok bool
			if i, ok = endOfString(sql, i, false); !ok {
				return s.verbatim(buf[:0], sql, limit)
			}
			from, elemConstant = i, true
		case doubleQuote:
			var ok bool
			if i, ok = endOfQuoted(sql, i, '"'); !ok {
				return s.verbatim(buf[:0], sql, limit)
			}
		case dot:
			switch next := byteAt(sql, i+1); {
			case next == '.':
				return s.verbatim(buf[:0], sql, limit)
			case next < '0' || next > '9':
				i++
				continue
			}
			fallthrough
		case digit:
			end, integer := endOfNumber(sql, i)
			if end < len(sql) && inWord[sql[end]] || byteAt(sql, end) == '.' {
				// 0x1F, 1_000, 12abc: what these are depends on the version.
				return s.verbatim(buf[:0], sql, limit)
			}
			buf = append(buf, sql[from:i]...)
			if integer && end-i <= 9 {
				buf = append(buf, 0, integerConstant)
			} else {
				buf = append(buf, 0, numberConstant)
			}
			i = end
			from, elemConstant = i, true
		case dollar:
			end, quoted, ok := endOfDollar(sql, i)
			switch {
			case quoted && ok:
				buf = append(buf, sql[from:i]...)
				buf = append(buf, 0, stringConstant)
				i = end
				from, elemConstant = i, true
			case quoted:
				return s.verbatim(buf[:0], sql, limit)
			default: // a parameter
				for end = i + 1; end < len(sql) && classes[sql[end]] == digit; {
					end++
				}
				if end == i+1 || end < len(sql) && inWord[sql[end]] {
					return s.verbatim(buf[:0], sql, limit)
				}
				i = end
			}
		case dash:
			if byteAt(sql, i+1) != '-' {
				i++
				continue
			}
			buf = append(buf, sql[from:i]...)
			i = endOfLineComment(sql, i)
			from = i
		case slash:
			if byteAt(sql, i+1) != '*' {
				i++
				continue
			}
			end, ok := endOfComment(sql, i)
			if !ok {
				return s.verbatim(buf[:0], sql, limit)
			}
			if h := commentHint(sql[i:end]); h == NoHint {
				buf = append(buf, sql[from:i]...)
				buf = append(buf, ' ')
				from = end
			} else if s.hint != HintPrimary {
				s.hint = h
			}
			i = end
		case opening:
			i++
			elem, elemOK, elemConstant, prevOK = len(buf)+i-from, true, false, false
		case comma, closing:
			if elemOK && elemConstant {
				// f(1, 2, 3) has the shape of f(1): names decide, not their arguments.
				buf = append(buf, sql[from:i]...)
				from = i
				if prevOK && sameElement(buf[prev:prevEnd], buf[elem:]) {
					buf = buf[:prevEnd]
				} else {
					prev, prevEnd, prevOK = elem, len(buf), true
				}
			} else {
				prevOK = false
			}
			i++
			elem, elemOK, elemConstant = len(buf)+i-from, class == comma, false
		case semicolon:
			i++
			atHead, elemOK, prevOK = true, false, false
		}
		if len(buf)+i-from > limit {
			return s, buf
		}
	}
	if buf = append(buf, sql[from:]...); len(buf) <= limit {
		s.key = buf
	}
	return s, buf
}

// verbatim makes the text its own shape.
func (s shape) verbatim(buf, sql []byte, limit int) (shape, []byte) {
	if len(sql) >= limit {
		return s, buf
	}
	_, s.hint = scan(sql)
	buf = append(buf, 0, verbatimShape)
	buf = append(buf, sql...)
	s.key = buf
	return s, buf
}

// sameElement compares elements of a list that hold a constant.
func sameElement(a, b []byte) bool {
	a, b = bytes.Trim(a, " \n\t"), bytes.Trim(b, " \n\t")
	return len(a) > 1 && (a[0] == 0 || a[0] == '-') && bytes.Equal(a, b)
}

// canonicalText writes a text that has the shape key.
func canonicalText(key []byte) string {
	if len(key) > 1 && key[0] == 0 && key[1] == verbatimShape {
		return string(key[2:])
	}
	var b strings.Builder
	b.Grow(len(key) + 64)
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 || i+1 >= len(key) {
			b.Write(key)
			return b.String()
		}
		b.Write(key[:i])
		// The spaces keep it apart from its neighbours.
		switch key[i+1] {
		case stringConstant:
			b.WriteString(" 'x' ") // not empty: COPY TO '' parses like COPY TO STDOUT
		case integerConstant:
			b.WriteString(" 1 ")
		case numberConstant:
			b.WriteString(" 1.5 ")
		}
		key = key[i+2:]
	}
}

// mustParse holds for the first words of statements that may be reads.
func mustParse(word []byte) bool {
	switch len(word) {
	case 4:
		return equalFold(word, "with") || equalFold(word, "copy")
	case 5:
		return equalFold(word, "table")
	case 6:
		return equalFold(word, "select") || equalFold(word, "values")
	case 7:
		return equalFold(word, "explain")
	}
	return false
}
